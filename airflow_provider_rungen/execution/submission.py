"""Submits a job so that the next attempt finds it: saves an intent before the POST, and the id after it."""

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
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import (
    RunGenConflictError,
    RunGenError,
    RunGenNotFoundError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution import records
from airflow_provider_rungen.execution.attempts import Attempt, End, end_from_store

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.durable import DurableRun
    from airflow_provider_rungen.execution.options import SubmitOptions

log = logging.getLogger(__name__)

KEY = "rungen_submission"
CANCEL_TIME = 10.0
# Seconds after a submission in which the service may not know the job yet. What it does not know then is
# submitted again.
RESUBMISSION_GRACE = 30.0


class Submission(NamedTuple):
    """A job, and the time (seconds since 1970) of its deadline."""

    job: Job
    deadline: float


@dataclass(frozen=True)
class SubmissionRecord:
    """
    A submission in Airflow's task state store. Times are seconds since 1970.

    :param app_id: the app.
    :param digest: the fingerprint of the input.
    :param submitted_at: the time right before the submission.
    :param deadline: the time at which the job is canceled.
    :param job_id: the job. Empty while its fate is unknown.
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
            end=end_from_store(fields),
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
    The submission of one task, kept in Airflow's task state store.

    :param run: the attempt.
    """

    def __init__(self, run: DurableRun[Any]) -> None:
        self._state = run.state
        self._attempt = run.attempt
        self._hook = run.hook
        self._options: SubmitOptions = run.options
        self._resumes_clears = run.resumes_clears
        self._record = SubmissionRecord.from_store(self._state.get(KEY))

    @property
    def job_ids(self) -> list[str]:
        """The job of the record, if it has one."""
        return [self._record.job_id] if self._record and self._record.job_id else []

    @property
    def app_id(self) -> str:
        """The app of the record."""
        return self._record.app_id if self._record else ""

    def find(self, app_id: str, job_input: Any) -> Submission | None:
        """
        Find the job that an earlier attempt of this task submitted, if it is still useful.

        :raises RunGenSubmissionUnknownError: its fate is unknown, and ``on_unknown_submission`` is ``fail``.
        """
        record = self._record
        if record is None:
            return None
        is_cleared = self._attempt.was_cleared_since(record.attempt, record.end)
        ids = format_ids(record.app_id, record.job_id)
        if is_cleared and not self._resumes_clears:
            log.info("Submitting a new job: the task was cleared after an earlier one %s", ids)
            self._cancel_stale(record)
        elif record.app_id != app_id or record.digest != digest(job_input):
            log.info("Submitting a new job: input or app changed after an earlier one %s", ids)
            self._cancel_stale(record)
        elif record.job_id:
            return self._resume(record, is_cleared=is_cleared)
        elif self._resubmits_unknown or is_cleared:
            log.warning(
                "Fate unknown: an earlier attempt may have created the job. Submitting it again, which may "
                "run and bill it twice %s",
                format_ids(app_id),
            )
        else:
            raise RunGenSubmissionUnknownError(
                f"Fate unknown: an earlier attempt may have created the job {format_ids(app_id)}",
                hint="Look at the app's jobs, then clear the task to submit it again",
                retryable=False,
            )
        return None

    @property
    def _resubmits_unknown(self) -> bool:
        return self._options.on_unknown_submission == "resubmit"

    def _cancel_stale(self, record: SubmissionRecord) -> None:
        """Cancel the job of a record that a new job replaces (``cancel_on_kill``)."""
        if not (self._options.cancel_on_kill and record.job_id):
            return
        ids = format_ids(record.app_id, record.job_id)
        try:
            self._hook.cancel_job(app_id=record.app_id, job_id=record.job_id, retry_budget=CANCEL_TIME)
            log.info("Canceled, because nobody waits for it %s", ids)
        except (RunGenConflictError, RunGenNotFoundError):
            pass  # it is over
        except RunGenError as error:
            log.warning("%s", error.message)

    def _resume(self, record: SubmissionRecord, *, is_cleared: bool) -> Submission | None:
        """Return the job of an earlier attempt, unless it is useless by now."""
        visible_by = record.submitted_at + RESUBMISSION_GRACE
        flow = endpoints.get_job_when_visible(record.app_id, record.job_id, visible_by=visible_by)
        try:
            job = self._hook.perform(flow)
        except RunGenNotFoundError:
            ids = format_ids(record.app_id, record.job_id)
            log.info("Submitting a new job: that of an earlier attempt is gone %s", ids)
            return None
        if job.is_terminal and job.status is not JobStatus.COMPLETED:
            ids = format_ids(job.app_id, job.id)
            log.info("Submitting a new job: that of an earlier attempt is %s %s", job.status, ids)
            return None
        log.info("Resuming a job that is %s %s", job.status, format_ids(job.app_id, job.id))
        metrics.incr("jobs.resumed")
        if is_cleared:  # the retries of this attempt are to find it
            now = time.time()
            deadline = record.deadline if record.deadline > now else now + self._options.timeout
            self._record = record = replace(record, attempt=self._attempt, deadline=deadline, end=End.UNKNOWN)
            self._state.save(KEY, record.to_store())
        return Submission(job, record.deadline)

    def submit(self, app_id: str, job_input: Any) -> Submission:
        """
        Submit a job, and save a record before and after.

        :raises RunGenSubmissionUnknownError: it is unknown whether a job was created.
        :raises RunGenError: no job was created.
        """
        submitted_at = time.time()
        record = SubmissionRecord(
            app_id=app_id,
            digest=digest(job_input),
            submitted_at=submitted_at,
            deadline=submitted_at + self._options.timeout,
            attempt=self._attempt,
        )
        self._state.set(KEY, record.to_store())
        try:
            job = self._hook.run_job(app_id=app_id, input=job_input)
            if self._record is not None and (app_id, [job.id]) == (self.app_id, self.job_ids):
                raise RunGenSubmissionUnknownError(
                    "Fate unknown: RunGen may have created a job. Its answer names that of an earlier "
                    f"attempt {format_ids(app_id, job.id)}",
                    hint="Look at the app's jobs first",
                )
        except RunGenSubmissionUnknownError as error:
            self._record = record
            raise error.revised(error.message, hint=error.hint, retryable=self._resubmits_unknown) from None
        except RunGenError:
            self._record = None
            self._state.delete(KEY)
            raise
        self._record = record = replace(record, job_id=job.id)
        # the job runs: to give it up now because it cannot be saved would lose it for certain
        self._state.save(KEY, record.to_store())
        return Submission(job, record.deadline)

    def confirm(self, app_id: str, job_id: str) -> None:
        """Save the id of a job that the store did not take before the task was deferred."""
        record = self._record
        if record is not None and record.app_id == app_id and not record.job_id:
            self._record = replace(record, job_id=job_id)
            self._state.save(KEY, self._record.to_store())

    def note_end(self, end: End) -> None:
        """Save how the attempt ended, to distinguish a clear from a retry."""
        if self._record is not None and self._state.is_saved:
            self._record = replace(self._record, end=end, attempt=self._attempt)
            self._state.note(KEY, self._record.to_store())


def digest(job_input: Any) -> str:
    """Return the fingerprint of an input. Equal inputs have equal ones."""
    return hashlib.sha256(codec.encode_input(job_input)).hexdigest()
