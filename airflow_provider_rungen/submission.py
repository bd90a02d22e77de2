"""Submits a job so that the next attempt of the task finds it: an intent before the POST, the id after it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_rungen import api, metrics
from airflow_provider_rungen.exceptions import (
    RunGenConflictError,
    RunGenError,
    RunGenNotFoundError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.models import Job, JobStatus

if TYPE_CHECKING:
    from airflow_provider_rungen.hooks import RunGenHook

log = logging.getLogger(__name__)

KEY = "rungen_submission"
CANCEL_TIME = 10.0
# Seconds after a submission in which a job that the service does not know may still be on its way: what it
# does not know then is submitted again.
FOUND_WITHIN = 30.0


class Submission(NamedTuple):
    """A job, and the time (seconds since 1970) at which it has to be over."""

    job: Job
    deadline: float


class DurableSubmission:
    """
    One task's submission, kept in Airflow's task state store.

    The record holds what makes it valid: the app, a digest of the input, and ``max_tries``, which Airflow
    raises when a task is cleared, so that a clear is told from a retry.

    :param store: the ``task_state_store`` of the context; without one nothing is found again.
    :param max_tries: the task instance's ``max_tries``.
    :param resubmit_unknown: whether to submit again when the fate of the last submission is not known.
    :param cancel_stale: whether to cancel a job that is replaced by a new one while it runs.
    """

    def __init__(self, store: Any, *, max_tries: int, resubmit_unknown: bool, cancel_stale: bool) -> None:
        self._store: Any = _Nowhere() if store is None else store
        record = self._store.get(KEY)
        self._record: Mapping[str, Any] | None = record if isinstance(record, Mapping) else None
        self._max_tries = max_tries
        self._resubmit_unknown = resubmit_unknown
        self._cancel_stale = cancel_stale

    @property
    def jobs(self) -> tuple[str, list[str]]:
        """The app and the job, if any, that an earlier attempt left."""
        record = self._record or {}
        return record.get("app_id", ""), [record["job_id"]] if record.get("job_id") else []

    def find(self, hook: RunGenHook, app_id: str, input: Any) -> Submission | None:
        """
        Find the job that an earlier attempt of this task submitted, if it is still of use.

        :raises RunGenSubmissionUnknownError: its fate is not known, and it is not to be submitted again.
        """
        record = self._record
        if record is None:
            return None
        job_id = record.get("job_id")
        name = f"RunGen job {job_id}" if job_id else "a RunGen job"
        if record.get("max_tries") != self._max_tries:
            log.info("The task was cleared since it submitted %s: submitting a new one", name)
            self._abandon(hook, record)
        elif record.get("app_id") != app_id or record.get("digest") != digest(input):
            log.info("The input or the app changed since %s was submitted: submitting a new one", name)
            self._abandon(hook, record)
        elif job_id:
            known_by = record.get("submitted_at", 0.0) + FOUND_WITHIN
            job = self._look(hook, app_id, job_id, known_by)
            return Submission(job, record["deadline"]) if job else None
        elif self._resubmit_unknown:
            log.warning(
                "An earlier attempt submitted a RunGen job to app %s, and it is not known whether it was "
                "created: submitting it again, which may run and bill it twice",
                app_id,
            )
        else:
            error = RunGenSubmissionUnknownError(
                f"An earlier attempt submitted a RunGen job to app {app_id}, and it is not known whether it "
                "was created. Look at the app's jobs, then clear the task to submit it again."
            )
            error.hopeless = True
            raise error
        return None

    def _abandon(self, hook: RunGenHook, record: Mapping[str, Any]) -> None:
        """Cancel the job of a record that is no longer valid: nobody waits for it any more."""
        app_id, job_id = record.get("app_id"), record.get("job_id")
        if not (self._cancel_stale and app_id and job_id):
            return
        try:
            hook.perform(api.cancel_job(app_id, job_id, patience=CANCEL_TIME))
            log.info("Canceled RunGen job %s, which nobody waits for any more", job_id)
        except (RunGenConflictError, RunGenNotFoundError):
            pass  # it is over
        except RunGenError as error:
            log.warning("RunGen job %s was not canceled: %s", job_id, error)

    @staticmethod
    def _look(hook: RunGenHook, app_id: str, job_id: str, known_by: float) -> Job | None:
        try:
            job = hook.perform(api.get_new_job(app_id, job_id, known_by=known_by))
        except RunGenNotFoundError:
            log.info("RunGen no longer knows job %s of an earlier attempt: submitting a new one", job_id)
            return None
        if job.status is JobStatus.COMPLETED:
            log.info("RunGen job %s of an earlier attempt completed: using it", job_id)
        elif job.is_terminal:
            log.info("RunGen job %s of an earlier attempt is %s: submitting a new one", job_id, job.status)
            return None
        else:
            log.info("RunGen job %s of an earlier attempt is %s: taking it up again", job_id, job.status)
        metrics.incr("jobs.resumed")
        return job

    def submit(self, hook: RunGenHook, app_id: str, input: Any, timeout: float) -> Submission:
        """
        Submit a job, leaving a trace before and after.

        :param timeout: seconds the job may take.
        """
        submitted_at = time.time()
        deadline = submitted_at + timeout
        record = {
            "app_id": app_id,
            "digest": digest(input),
            "max_tries": self._max_tries,
            "submitted_at": submitted_at,
            "deadline": deadline,
            "job_id": "",
        }
        self._store.set(KEY, record)
        try:
            job = hook.run_job(app_id=app_id, input=input)
        except RunGenSubmissionUnknownError as error:
            error.hopeless = not self._resubmit_unknown
            raise
        except RunGenError:
            self._store.delete(KEY)  # it was certainly not taken
            raise
        try:
            self._store.set(KEY, record | {"job_id": job.id})
        except Exception:
            # the job runs: to give it up now for want of a note would lose it for certain
            log.exception("RunGen job %s could not be noted in Airflow's task state store", job.id)
        return Submission(job, deadline)


class _Nowhere:
    """The task state store of an Airflow that has none."""

    def get(self, key: str) -> None: ...

    def set(self, key: str, value: Any) -> None: ...

    def delete(self, key: str) -> None: ...


def digest(input: Any) -> str:
    """Give a fingerprint of an input; equal inputs have equal ones."""
    return hashlib.sha256(api.encode_input(input)).hexdigest()
