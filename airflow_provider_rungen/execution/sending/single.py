"""Submits one job after its intent is durable, and saves its id. Without an event loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.runs.part_files import PART_ROWS

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.saver import Saver
    from airflow_provider_rungen.hooks.rungen import RunGenHook

# Seconds that a place which does not answer is waited for before anything is sent.
ANNOUNCING_TIME = 60.0
_POLL = 0.05


def submit_one(
    hook: RunGenHook,
    app_id: str,
    number: int,
    job_input: Any,
    *,
    saver: Saver,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Job:
    """
    Submit one job.

    Its id may not be saved yet when it returns. Then it is still due, because the job runs.

    :param number: the input's number. It has to be submittable.
    :param is_stopping: returns whether to stop at once. Then nothing is sent.
    :raises SupersededError: a later attempt has begun; nothing was sent.
    :raises RunGenSubmissionUnknownError: it is unknown whether a job was created. The intent stays.
    :raises Exception: no job was created.
    """
    _announce(number, saver, is_stopping)
    jobs = saver.jobs
    try:
        job = hook.run_job(app_id=app_id, input=job_input)
        if not jobs.accept(number, job.id):
            raise RunGenSubmissionUnknownError(
                "Fate unknown: RunGen may have created a job. Its answer names that of another input or "
                f"attempt {format_ids(app_id, job.id)}",
                hint="Look at the app's jobs first",
            )
    except RunGenSubmissionUnknownError:
        raise
    except RunGenError as error:
        if isinstance(error, RunGenBadRequestError):
            jobs.refuse(number, error.message)
        else:
            jobs.withdraw([number])
        saver.save([number // PART_ROWS])
        raise
    saver.save()
    return job


def _announce(number: int, saver: Saver, is_stopping: Callable[[], bool]) -> None:
    """Make the intent durable, and look for later attempts. A place that hangs holds up no kill."""
    jobs, run_log = saver.jobs, saver.run_log
    jobs.announce([number])
    writes = run_log.writes(jobs)
    is_put = False

    def save() -> None:
        nonlocal is_put
        run_log.place.put(writes.files)
        is_put = True
        run_log.fence()

    attempt = begin(save)
    try:
        _wait_for(attempt, is_stopping)
    except BaseException:
        jobs.withdraw([number])
        if not is_put:
            run_log.note_doubt(writes)
        else:
            run_log.note_written(jobs, writes)
        if attempt.done():
            saver.save([number // PART_ROWS])
        raise
    run_log.note_written(jobs, writes)


def _wait_for(attempt: Future[None], is_stopping: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + ANNOUNCING_TIME
    while not attempt.done() and not is_stopping():
        if time.monotonic() >= give_up_at:
            raise RunGenError("Could not submit a job: the run log does not answer; nothing was sent")
        wait([attempt], _POLL)
    if is_stopping():
        raise RunGenError("Could not submit a job: the task was killed; nothing was sent")
    attempt.result()
