"""Submits a job so that the next attempt of the task finds it: an intent before the POST, the id after it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client import codec, endpoints
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.exceptions import (
    RunGenConflictError,
    RunGenError,
    RunGenNotFoundError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution import attempts as attempt
from airflow_provider_rungen.execution import records
from airflow_provider_rungen.execution.attempts import Attempt, End

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.state_store import TaskState
    from airflow_provider_rungen.hooks.rungen import RunGenHook

log = logging.getLogger(__name__)

KEY = "rungen_submission"
CANCEL_TIME = 10.0
# Seconds after a submission in which a job that the service does not know may still be on its way: what it
# does not know then is submitted again.
RESUBMISSION_GRACE = 30.0


class Submission(NamedTuple):
    """A job, and the time (seconds since 1970) at which it has to be over."""

    job: Job
    deadline: float


@dataclass(frozen=True)
class SubmissionRecord:
    """
    What the store holds of a submission.

    :param app_id: the app.
    :param digest: the fingerprint of the input.
    :param submitted_at: the time (seconds since 1970) right before the submission.
    :param deadline: the time (seconds since 1970) at which the job has to be over.
    :param job_id: the job; empty while its fate is unknown.
    :param attempt: the attempt that submitted it.
    :param end: how that attempt ended.
    """

    app_id: str
    digest: str
    submitted_at: float
    deadline: float
    attempt: Attempt
    job_id: str = ""
    end: End = End.UNKNOWN

    @classmethod
    def from_store(cls, value: Any) -> Self | None:
        """Return the record of a stored value; ``None``, with a warning, when it is not one."""
        return records.parse(KEY, value, cls._read, "a new job is submitted")

    @classmethod
    def _read(cls, fields: Mapping[str, Any]) -> Self:
        return cls(
            app_id=records.identifier(fields, "app_id"),
            digest=records.digest(fields),
            submitted_at=records.moment(fields, "submitted_at"),
            deadline=records.moment(fields, "deadline"),
            job_id=records.identifier(fields, "job_id", or_empty=True),
            attempt=Attempt.from_store(fields),
            end=attempt.end_from_store(fields),
        )

    def to_store(self) -> dict[str, Any]:
        """Return the value to store."""
        return {
            "version": records.VERSION,
            "app_id": self.app_id,
            "digest": self.digest,
            "submitted_at": self.submitted_at,
            "deadline": self.deadline,
            "job_id": self.job_id,
            **self.attempt.to_store(),
            "end": self.end.value,
        }


class DurableSubmission:
    """
    One task's submission, kept in Airflow's task state store.

    :param state: where it is kept.
    :param current: the attempt that runs.
    :param resume_cleared: whether to take up the job of the attempt before a clear.
    :param resubmit_unknown: whether to submit again when the fate of the last submission is not known.
    :param cancel_stale: whether to cancel a job that is replaced by a new one while it runs.
    """

    def __init__(
        self,
        state: TaskState,
        current: Attempt,
        *,
        resume_cleared: bool,
        resubmit_unknown: bool,
        cancel_stale: bool,
    ) -> None:
        self._state = state
        self._current = current
        self._record = SubmissionRecord.from_store(state.get(KEY))
        self._resume_cleared = resume_cleared
        self._resubmit_unknown = resubmit_unknown
        self._cancel_stale = cancel_stale

    @property
    def jobs(self) -> tuple[str, list[str]]:
        """The app and the job, if any, of the record."""
        if self._record is None:
            return "", []
        return self._record.app_id, [self._record.job_id] if self._record.job_id else []

    def find(self, hook: RunGenHook, app_id: str, input: Any, timeout: float) -> Submission | None:
        """
        Find the job that an earlier attempt of this task submitted, if it is still of use.

        :param timeout: seconds that a job has which is taken up after its time was up, and a clear.
        :raises RunGenSubmissionUnknownError: its fate is not known, and it is not to be submitted again.
        """
        record = self._record
        if record is None:
            return None
        is_cleared = self._current.was_cleared_since(record.attempt, record.end)
        name = f"RunGen job {record.job_id}" if record.job_id else "a RunGen job"
        if is_cleared and not self._resume_cleared:
            log.info("The task was cleared since it submitted %s: submitting a new one", name)
            self._abandon(hook, record)
        elif record.app_id != app_id or record.digest != digest(input):
            log.info("The input or the app changed since %s was submitted: submitting a new one", name)
            self._abandon(hook, record)
        elif record.job_id:
            job = self._look(hook, app_id, record.job_id, record.submitted_at + RESUBMISSION_GRACE)
            return self._take_up(job, record, timeout if is_cleared else None) if job else None
        elif self._resubmit_unknown or is_cleared:
            log.warning(
                "An earlier attempt submitted a RunGen job to app %s, and it is not known whether it was "
                "created: submitting it again, which may run and bill it twice",
                app_id,
            )
        else:
            raise RunGenSubmissionUnknownError(
                f"An earlier attempt submitted a RunGen job to app {app_id}, and it is not known whether it "
                "was created",
                hint="Look at the app's jobs, then clear the task to submit it again",
                retryable=False,
            )
        return None

    def _take_up(self, job: Job, record: SubmissionRecord, timeout: float | None) -> Submission:
        """Make the record one of this attempt when the task was cleared: its retries are to find it."""
        if timeout is not None:
            now = time.time()
            deadline = record.deadline if record.deadline > now else now + timeout
            self._record = record = replace(record, attempt=self._current, deadline=deadline, end=End.UNKNOWN)
            self._state.save(KEY, record.to_store())
        return Submission(job, record.deadline)

    def _abandon(self, hook: RunGenHook, record: SubmissionRecord) -> None:
        """Cancel the job of a record that is no longer valid: nobody waits for it any more."""
        if not (self._cancel_stale and record.job_id):
            return
        try:
            hook.perform(endpoints.cancel_job(record.app_id, record.job_id, patience=CANCEL_TIME))
            log.info("Canceled RunGen job %s, which nobody waits for any more", record.job_id)
        except (RunGenConflictError, RunGenNotFoundError):
            pass  # it is over
        except RunGenError as error:
            log.warning("RunGen job %s of app %s was not canceled: %s", record.job_id, record.app_id, error)

    @staticmethod
    def _look(hook: RunGenHook, app_id: str, job_id: str, known_by: float) -> Job | None:
        try:
            job = hook.perform(endpoints.get_job_when_visible(app_id, job_id, known_by=known_by))
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
        record = SubmissionRecord(
            app_id=app_id,
            digest=digest(input),
            submitted_at=submitted_at,
            deadline=submitted_at + timeout,
            attempt=self._current,
        )
        self._state.set(KEY, record.to_store())
        try:
            job = self._new_job(hook, app_id, input)
        except RunGenSubmissionUnknownError as error:
            self._record = record
            raise RunGenSubmissionUnknownError(
                error.message, hint=error.hint, retryable=self._resubmit_unknown
            ) from None
        except RunGenError:
            self._record = None
            self._state.delete(KEY)  # it was certainly not taken
            raise
        self._record = record = replace(record, job_id=job.id)
        # the job runs: to give it up now because it cannot be saved would lose it for certain
        self._state.save(KEY, record.to_store())
        return Submission(job, record.deadline)

    def _new_job(self, hook: RunGenHook, app_id: str, input: Any) -> Job:
        job = hook.run_job(app_id=app_id, input=input)
        if (app_id, [job.id]) == self.jobs:
            raise RunGenSubmissionUnknownError(
                f"It is not known whether RunGen created the job of app {app_id}: the answer names job "
                f"{job.id}, which an earlier attempt submitted",
                hint="Look at the app's jobs first",
            )
        return job

    def confirm(self, app_id: str, job_id: str) -> None:
        """Save the id of a job that the store did not take before the task was deferred."""
        record = self._record
        if record is not None and record.app_id == app_id and not record.job_id:
            self._record = replace(record, job_id=job_id)
            self._state.save(KEY, self._record.to_store())

    def end(self, end: End) -> None:
        """Note how the attempt ended, so that a clear can be told from a retry."""
        if self._record is not None and self._state.is_saved:
            self._record = replace(self._record, end=end, attempt=self._current)
            self._state.note(KEY, self._record.to_store())


def digest(input: Any) -> str:
    """Give a fingerprint of an input; equal inputs have equal ones."""
    return hashlib.sha256(codec.encode_input(input)).hexdigest()
