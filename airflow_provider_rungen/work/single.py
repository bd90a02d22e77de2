"""One attempt of a task that runs one job: submit it, push its id at once, wait if asked, and cancel it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_rungen._airflow import AirflowFailException, AirflowSkipException, metrics
from airflow_provider_rungen.client import codec
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import format_duration, format_ids
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobTimeoutError,
    RunGenNotFoundError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.schemas import Schema
from airflow_provider_rungen.store.keys import input_key
from airflow_provider_rungen.task import attempts
from airflow_provider_rungen.task.job_ids import log_jobs
from airflow_provider_rungen.task.options import JobOptions
from airflow_provider_rungen.task.outcomes import are_all_over, event_error, is_misconfigured
from airflow_provider_rungen.task.report import TaskOutcome
from airflow_provider_rungen.task.run import TaskRun
from airflow_provider_rungen.task.xcom_keys import JOB_KEY, LABEL_KEY
from airflow_provider_rungen.work.kept_job import JobRecord, KeptJob
from airflow_provider_rungen.work.single_value import JobId
from airflow_provider_rungen.work.wait import JobWait

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.work.single_value import JobValue

log = logging.getLogger(__name__)

#: Seconds without an answer after which a job of an earlier attempt is left to the wait, or to itself.
LOOK_TIME = 10.0


class JobRun(TaskRun[JobOptions]):
    """
    One attempt of a task that runs one job.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param make_input: returns the input; it is called once an attempt.
    :param make_value: makes what turns the completed job into the value of the task.
    """

    def __init__(
        self,
        task: Any,
        context: Context,
        make_input: Callable[[], Any],
        make_value: Callable[[JobRun], JobValue] = JobId,
    ) -> None:
        super().__init__(task, context, JobOptions.of(task))
        self.wait = JobWait(self, task.defer_for_jobs, are_known=True)
        self.used = self._used
        self._make_input, self._make_value = make_input, partial(make_value, self)
        self._record = JobRecord(self.ti, self._store, self.guard)
        self._is_over = False  # has the job ended

    def execute(self) -> Any:
        """Run the job, or resume that of the last attempt, and return its value."""
        if self._store is None:
            log.info("Not durable: before Airflow 3.3, a retry submits the input again")
        with self._working():
            value = self._make_value()
            self._begin(value)
            return self._finish(value)

    def complete(self, event: Mapping[str, Any]) -> Any:
        """
        Go on after a wait in the triggerer.

        :param event: the trigger's event. It is a hint: the job is looked at again.
        """
        with self._working():
            self._go_on()
            self._is_over, error = are_all_over(event), event_error(event)
            if error is not None and not isinstance(error, RunGenJobTimeoutError):
                raise error
            return self._finish(self._make_value(), error)

    def fail_deferral(self, reason: str) -> NoReturn:
        """Decide about the job when Airflow ended the deferral without an event, and raise."""
        with self._working():
            job_id = self._go_on()
            raise RunGenError(f"Airflow ended the wait for job {job_id} in the triggerer: {reason}")
        raise AssertionError  # nothing swallows it

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Read what is kept, open the hook, and decide about the job when the attempt fails."""
        with self.attempt(), self.guard.working():
            self._record.read()
            try:
                with self.opened():
                    yield
            except Exception as error:
                if (job_id := self._running) and not self.guard.is_killed:
                    raise self._decide(error, job_id) from error.__cause__
                raise

    def _go_on(self) -> str:
        """Return the job that this attempt has run before the deferral."""
        if not self._kept.job:
            raise RunGenError(
                f"Could not go on after the deferral: {JOB_KEY} in Airflow's database is gone",
                hint=f"Look at the jobs of app {self.app_id}: that of this task may still run",
            )
        self.note_app(self._kept.app, [self._kept.job])
        return self._kept.job

    # --- the begin ---

    def _begin(self, value: JobValue) -> None:
        """Resume the job of an earlier attempt, or buy one."""
        app_id, kept = self.app_id, self._kept
        self.link_to(app_id)
        job_input = self._make_input()
        key = input_key(job_input, app_id)
        if kept.job:
            unwanted = "" if kept.key == key else "Input or app changed"
            self._look(unwanted if kept.max_tries == self.ti.max_tries else "The task was cleared")
        elif kept.lost:
            may = "an earlier attempt may have created a job. Submitting again, which may bill twice"
            log.warning("Fate unknown: %s %s", may, format_ids(app_id))
        if not kept.job and (schema := Schema.of(self.task.input_schema, "input_schema")) is not None:
            schema.check_input(json.loads(codec.encode_input(job_input)))
        value.prepare()
        if kept.job:
            metrics.incr("jobs.resumed", 1)
            self._push_job(kept.job)
            return
        kept.app, kept.key, kept.max_tries = app_id, key, self.ti.max_tries
        self._buy(app_id, job_input)

    def _look(self, unwanted: str) -> None:
        """
        Look once at the job of an earlier attempt, and forget it if it is of no use.

        :param unwanted: why this attempt runs another one in any case.
        """
        kept, job_id = self._kept, self._kept.job
        found, ids = self._fetch(job_id), format_ids(kept.app, job_id)
        if isinstance(found, RunGenError) and is_misconfigured(found):
            raise found
        job = found if isinstance(found, Job) and found.is_terminal else None
        if job is not None:
            kept.usage.note(job)
        if isinstance(found, RunGenNotFoundError):
            log.info("Submitting a new job: that of an earlier attempt is gone %s", ids)
            log_jobs(f"Not known any more to app {kept.app} (another API key or team_id?)", [job_id])
        elif unwanted:
            cancels = self.options.cancel_on_kill and job is None
            log.info("%s: %s its job %s", unwanted, "canceling" if cancels else "leaving", ids)
            if cancels:
                self._cancel(job_id, within=LOOK_TIME)
        elif job is not None and not job.is_usable:
            log.info("Submitting a new job: that of an earlier attempt is %s %s", job.status, ids)
        else:
            self._is_over = job is not None
            log.info("Resuming a job that is %s %s", "COMPLETED" if self._is_over else "not over", ids)
            return
        kept.job = ""

    def _fetch(self, job_id: str, *, have_ended: bool = False) -> Job | RunGenError | None:
        """Return a job as it is now, or why that is not known."""
        found: dict[str, Job | RunGenError] = {}
        try:
            self.wait.refetch(self._kept.app, [job_id], found.__setitem__, LOOK_TIME, have_ended=have_ended)
        except RunGenError as error:
            return error
        return found.get(job_id)

    def _buy(self, app_id: str, job_input: Mapping[str, Any]) -> None:
        """Submit the input, and write its id."""
        kept = self._kept
        self.guard.check()
        try:
            # nothing ends the process between the answer and its record
            with self.guard.defer_signals():
                kept.job = self.hook.run_job(input=job_input, app_id=app_id).id
                kept.by, kept.deadline = self.attempt_id, time.time() + self.options.timeout
                kept.usage.note_submitted([kept.job])
                log.info("Submitted job %s to app %s", kept.job, app_id)
                self._record.write()
                self._push_job(kept.job)
        except RunGenSubmissionUnknownError as error:
            kept.lost += 1
            self._record.update()
            error.hint = "It may have cost. A retry submits it again: look at the app's jobs before"
            raise

    def _push_job(self, job_id: str) -> None:
        """Push the id of the job, its label, and the link to it."""
        self.note_app(self._kept.app, [job_id])
        self.push("job_id", job_id)
        if (label := self.options.job_label) is not None:
            self.push(LABEL_KEY, {job_id: str(label)})
        self.link_to_job(self._kept.app, job_id)

    # --- the wait, and the end ---

    def _finish(self, value: JobValue, late: RunGenError | None = None) -> Any:
        """
        Wait for the job if asked, and return its value.

        :param late: why a trigger stopped waiting.
        """
        kept, job_id = self._kept, self._kept.job
        if not self.options.wait_for_completion:
            self.record_outcome(TaskOutcome(kept.app, [job_id]))
            return job_id
        try:
            if late is not None:
                raise late
            [job] = self.wait.wait(
                kept.app,
                [job_id],
                deadline=self.deadline(kept.deadline),
                on_finished=value.hold,
                ended=[job_id] if self._is_over else (),
            )
        except RunGenJobTimeoutError as error:
            remains, ended = self._cancel(job_id)
            if ended is None:
                for name in ("timeout", "queued_timeout"):
                    now = f"Raise {name} (now {format_duration(getattr(self.options, name) or 0)})"
                    error.hint = error.hint.replace(f"Raise {name}", now)
                error.add_hint(remains)
                raise
            job = ended
        self._is_over = True
        kept.usage.note(job)
        job.raise_for_status()
        result, outcome = value.take(job)
        self._record.update(is_success=True)
        self.record_outcome(outcome)
        return result

    # --- how the job ends ---

    def _cancel(self, job_id: str, within: float | None = None) -> tuple[str, Job | None]:
        """
        Cancel the job. Return that it may still run, if so, and the job if it had ended before.

        :param within: seconds that it may take. Then nothing else is asked about the job.
        """
        kept, has_time = self._kept, within is None
        failures = self.wait.cancel(kept.app, [job_id], within=within)
        if job_id in self.wait.canceled:
            seconds = self.wait.seconds_of(kept.app, [job_id]) if has_time else {}
            kept.usage.note_canceled(job_id, seconds.get(job_id))
            kept.job = ""
        elif not failures and has_time:
            job = self._fetch(job_id, have_ended=True)
            return "", job if isinstance(job, Job) and job.is_terminal else None
        return "".join(f"It may still run. {error.message}" for error in failures.values()), None

    def _decide(self, error: Exception, job_id: str) -> Exception:
        """Leave the job to the next attempt, or else cancel it; return the error, which says what may run."""
        app_id = self._kept.app
        if isinstance(error, RunGenError) and is_misconfigured(error):
            what_next = "A retry resumes" if self._has_next() else "Then collect or cancel by id"
            return error.revised(
                f"{error.message}. Canceled nothing: job {job_id} of app {app_id} may still run",
                hint=f"{error.hint}. {what_next}".strip(". "),
                retryable=True,
            )
        if isinstance(error, RunGenJobTimeoutError) or self._has_next(error):
            return error
        remains = f"Job {job_id} of app {app_id} may still run (cancel_on_kill)"
        if self.options.cancel_on_kill:
            with self.hook:
                remains, _ = self._cancel(job_id)
        if isinstance(error, RunGenError):
            error.add_hint(remains)
        elif remains:
            log.error("%s", remains)
        return error

    def _has_next(self, error: Exception | None = None) -> bool:
        """Return whether another attempt follows that finds the job."""
        is_final = not getattr(error, "retryable", True)
        is_final |= isinstance(error, AirflowFailException | AirflowSkipException)
        return self._record.is_saved and attempts.has_next(self.ti) and not is_final

    def cleanup(self) -> str:
        """Cancel the job unless the next attempt resumes it. A clear cancels it, since it has no store."""
        app_id, job_id = self._kept.app, self._running
        if not job_id:
            return ""
        if not self.is_connected:
            return f"Canceled nothing: Job {job_id} of app {app_id} may still run."
        if self._record.is_saved and attempts.is_left_to_next(self.ti, self.guard.time_left() / 2):
            return f"The next attempt resumes job {job_id} of app {app_id}."
        if not self.options.cancel_on_kill:
            log_jobs(f"May still run, jobs of app {app_id}", [job_id])
            return f"Job {job_id} of app {app_id} may still run (cancel_on_kill)."
        remains, _ = self._cancel(job_id, within=max(self.guard.time_left(), 0.4))
        return remains

    # --- what is reported ---

    @property
    def _kept(self) -> KeptJob:
        return self._record.kept

    @property
    def _running(self) -> str:
        """The job, if it may still run."""
        return "" if self._is_over else self._kept.job

    @property
    def job_ids(self) -> Sequence[str]:
        return [self._running] if self._running else self._known_job_ids

    def _used(self) -> Mapping[str, Any]:
        lost = {"lost": self._kept.lost} if self._kept.lost else {}
        return {**self._kept.usage.to_json(bought=int(self._kept.by == self.attempt_id)), **lost}

    def failure_details(self) -> dict[str, Any]:
        return {"still_billing": [self._running] if self._running else []}

    def page_details(self) -> dict[str, Any]:
        destination = self.options.destination
        return {
            "rows": 1,
            "destination": None if destination is None else redact(str(destination)),
        }
