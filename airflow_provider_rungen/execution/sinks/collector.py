"""Takes what jobs made, once each: stores it, or keeps it for what a task returns or writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_rungen._airflow import AirflowException, ObjectStoragePath
from airflow_provider_rungen.client.job_poller import strip_payloads
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import job_of
from airflow_provider_rungen.client.texts import clean_text, format_ids
from airflow_provider_rungen.exceptions import (
    RejectRow,
    RunGenError,
    RunGenOutputError,
    RunGenResultError,
)
from airflow_provider_rungen.execution.archive.output_store import OutputStore
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.execution.task.outcomes import JOB_IS_OVER, is_useless
from airflow_provider_rungen.execution.task.store_writer import call_patiently
from airflow_provider_rungen.schemas import OutputType

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.collect_run import CollectRun
    from airflow_provider_rungen.execution.jobs.runner import Runner
    from airflow_provider_rungen.execution.sinks.xcom_values import XComValues
    from airflow_provider_rungen.execution.table.result_rows import JobRows
    from airflow_provider_rungen.execution.task.options import CollectOptions
    from airflow_provider_rungen.execution.task.report import Usage


_MAX_REASON_CHARS = 200


class ResultCheck:
    """
    The function ``check`` of a table.

    :param function: takes a result and the files of a job, and raises `RejectRow` if they will not do.
        Without it, everything will.
    :param retry_hint: returns what a retry or a clear does about a function that failed.
    """

    def __init__(
        self,
        function: Callable[[Any, list[ObjectStoragePath]], object] | None,
        retry_hint: Callable[[], str],
    ) -> None:
        self._function = function
        self._retry_hint = retry_hint
        # why jobs are not checked any more
        self._unchecked: RunGenError | None = None

    def __call__(self, job: Job | StoredJob) -> RunGenError | None:
        """
        Return why a job is rejected. Once the function has failed, it is not called again.

        :raises RunGenError: the function failed. A retry asks it again.
        :raises AirflowException: the function raised it.
        """
        if self._function is None or self._unchecked is not None:
            return self._unchecked
        if isinstance(job, StoredJob):
            job_id, seconds = job.job_id, job.execution_seconds
            files = [ObjectStoragePath(output["uri"]) for output in job.outputs]
        else:
            job_id, seconds, files = job.id, job.execution_time, []
        ids = format_ids(job.app_id, job_id)
        try:
            self._function(deepcopy(job.result), files)
        except RejectRow as error:
            rejection = RejectRow(_text(error.message) or "rejected", app_id=job.app_id, job_id=job_id)
            rejection.execution_time = seconds
            return rejection
        except AirflowException as error:  # the function decides how the task ends
            self._unchecked = RunGenError(f"not checked: check failed for job {job_id}")
            error.add_note(f"check raised this for {ids}")
            raise
        except Exception as error:
            self._unchecked = RunGenError(f"not checked: check failed for job {job_id}")
            raise RunGenError(
                f"check failed: {_text(f'{type(error).__name__}: {error}')} {ids}",
                hint=f"Correct the function. {self._retry_hint()}",
                app_id=job.app_id,
                job_id=job_id,
            ) from error
        return None


def _text(text: str) -> str:
    return clean_text(text, _MAX_REASON_CHARS)


class Collector:
    """
    Collects jobs: stores their outputs, or fetches their results.

    :param run: the attempt.
    :param options: the operator's parameters.
    :param output: what every result has to be.
    :param values: takes results for what the task returns.
    :param rows: takes results for a table or a contact sheet.
    :param usage: takes what the jobs used, if the attempt has no log that knows it.
    :raises RunGenInputError: the destination cannot be used.
    """

    def __init__(
        self,
        run: Runner | CollectRun,
        options: CollectOptions,
        output: OutputType | None,
        *,
        values: XComValues | None,
        rows: JobRows | None,
        usage: Usage | None,
    ) -> None:
        #: Whether outputs are stored.
        self.stores = options.destination is not None
        # whether the destination could not be read when jobs were last looked for in it
        self._has_outage = False
        #: The jobs that cannot be used, or not yet: see `outcomes.is_useless`.
        self.errors: dict[str, RunGenError] = {}
        #: The jobs whose outputs are stored, without inputs, results and outputs.
        self.stored: list[StoredJob] = []
        #: Takes the result of a job that a poll finds ended, if results are not stored, and returns the rest.
        # polls are cheaper if nothing of a result is wanted
        self.hold: Callable[[Job], Job] = strip_payloads if self.stores else self._hold
        self._run = run
        self._options = options
        self._output = output
        self._find_rejection = ResultCheck(options.check, self._hint_at_retry)
        check = None if options.check is None else self._find_rejection
        self._store = OutputStore(run, options, output, self._add_stored, check) if self.stores else None
        self._rows = rows
        self._usage = usage
        self._receivers = [each for each in (values, rows) if each is not None]
        # the jobs whose results were taken
        self._taken: set[str] = set()
        # the jobs that were looked for in the destination
        self._searched: set[str] = set()

    def check(self) -> None:
        """Find out whether results can be kept, as `prepare` does, before the first request."""
        if self._store is not None:
            self._store.check()

    def prepare(self) -> None:
        """
        Find out whether results can be kept, before anything is sent.

        :raises RunGenInputError: they cannot be kept now.
        """
        if self._store is not None:
            self._store.prepare()

    def close(self) -> None:
        """Remove the rows."""
        if self._rows is not None:
            self._rows.close()

    def accepts(self, stored: StoredJob) -> bool:
        """Return whether a stored job can be used: its result has to be of the output type."""
        return self._store is None or self._store.read(stored) is not None

    def gather(self, app_id: str, job_ids: Iterable[str | None], jobs: Iterable[Job] = ()) -> None:
        """
        Take jobs that have ended, once each. What failed for a reason that may pass is tried again.

        :param jobs: those among them that the service has just returned, and further ones that failed.
        """
        returned = self._add_unsuccessful(app_id, jobs)
        rest = self._unsettled(job_ids)
        if self._store is not None:
            # the service may have forgotten what it has not just returned
            self._search(app_id, [each for each in rest if each not in returned])
            rest = [each for each in self._unsettled(rest) if each in returned or each in self._searched]
        if rest:
            self._take(app_id, rest)

    def find_stored(self, app_id: str, job_ids: Sequence[str]) -> list[str]:
        """
        Find the jobs that are stored and complete. Return the others, which only the service knows.

        :raises RunGenOutputError: the destination cannot be read now.
        """
        unsure = [each for each in job_ids if each not in self._searched]
        if self._store is not None and unsure:
            self._store.find(app_id, unsure, self._add_found)
            self._searched.update(unsure)
            self._has_outage = False
        return [each for each in job_ids if each not in self._taken]

    def find_patiently(self, app_id: str, job_ids: Sequence[str]) -> list[str]:
        """Do the same, and outlast an outage, once."""
        find, guard = partial(self.find_stored, app_id, job_ids), self._run.guard

        def gives_up() -> bool:
            return self._has_outage or guard.is_stopping()

        # a check that fails is the user's, and fails the attempt
        return call_patiently("read the destination", find, gives_up, RunGenOutputError)

    def add_stored(self, stored: StoredJob) -> None:
        """Take a job that the ledger has, and that no check rejects."""
        self._add_stored(stored if self._store is None else self._store.read(stored) or stored)

    def _add_found(self, stored: StoredJob) -> None:
        """Take a job that an earlier attempt has stored. What the log has as stored was checked before."""
        rejection = self.errors.get(stored.job_id)
        if not isinstance(rejection, RejectRow):
            log = None if self._options.check is None else cast("Runner", self._run).task_log
            rejection = None if log is None or log.is_stored(stored.job_id) else self._find_rejection(stored)
        self._add_stored(stored, rejection)
        self._searched.add(stored.job_id)

    def _add_stored(self, stored: StoredJob, rejection: RunGenError | None = None) -> None:
        """Take a stored job, whose result is as it is used."""
        if rejection is not None:
            self.errors[stored.job_id] = rejection
            if self._rows is not None:
                self._rows.add_stored(stored, rejection)
            return
        for receiver in self._receivers:
            receiver.add_stored(stored)
        self._note_taken(stored.job_id)
        if self._usage is not None:
            self._usage.note_end(stored.job_id, is_completed=True, seconds=stored.execution_seconds)
        self.stored.append(replace(stored, input=None, result=None, outputs=()))

    def _note_taken(self, job_id: str) -> None:
        self._taken.add(job_id)
        self.errors.pop(job_id, None)

    def _add_unsuccessful(self, app_id: str, jobs: Iterable[Job]) -> set[str]:
        """Add the jobs that did not complete, and return those that did."""
        completed, rejected = set(), []
        for job in jobs:
            if job.status is JobStatus.COMPLETED:
                completed.add(job.id)
            elif self._unsettled([job.id]):
                self._add(job)
                if isinstance(job.cause, RejectRow):
                    rejected.append(job.id)
        if rejected:  # before a deferral: their files are still to be looked at
            self._search(app_id, rejected)
        return completed

    def _search(self, app_id: str, job_ids: Sequence[str]) -> None:
        """Find the jobs that are stored. An outage that lasts is the error of the others."""
        try:
            self.find_patiently(app_id, job_ids)
        except RunGenOutputError as error:
            if not error.retryable:
                raise
            self._has_outage = True
            self.errors |= dict.fromkeys(self._unsettled(job_ids), error)

    def _unsettled(self, job_ids: Iterable[str | None]) -> list[str]:
        """Return the jobs that were not taken, and whose errors, if they have any, may pass."""

        def is_settled(job_id: str) -> bool:
            error = self.errors.get(job_id)
            return job_id in self._taken if error is None else not error.retryable or is_useless(error)

        return [each for each in dict.fromkeys(job_ids) if each is not None and not is_settled(each)]

    def _hint_at_retry(self) -> str:
        # only tasks that run jobs have a check
        run = cast("Runner", self._run)
        return run.advice.retry_hint("the function again, and no job that completed")

    def _hold(self, job: Job) -> Job:
        self._add(job)
        return strip_payloads(job)

    def _add(self, job: Job) -> None:
        """Take a job whose result is not stored, or note why it failed."""
        if self._usage is not None and job.is_terminal:
            self._usage.note(job)
        try:
            job.raise_for_status()
            if self._output is not None:
                job = self._output.read(job)
        except RunGenError as error:
            rejection: RunGenError | None = error
        else:
            rejection = self._find_rejection(job)
        if rejection is not None:
            if self._rows is not None:
                self._rows.add_job(job, rejection)
            self.errors[job.id] = rejection
            return
        self._note_taken(job.id)
        for receiver in self._receivers:
            if problem := receiver.add_job(job):
                self.errors[job.id] = problem

    def _take(self, app_id: str, job_ids: list[str]) -> None:
        """Store the outputs of jobs, or fetch their results."""

        def note(job_id: str, found: Job | RunGenError) -> None:
            if isinstance(found, RunGenError) and len(job_ids) == 1:
                raise found
            self._add(job_of(found, app_id, job_id))

        if self._store is None:
            self._run.wait.refetch(app_id, job_ids, note)
            return
        errors = self._store.store(app_id, job_ids)
        self.errors |= errors
        for job_id, error in errors.items():
            is_unusable = isinstance(error, RunGenResultError | RunGenOutputError)
            if self._usage is not None and (is_unusable or isinstance(error, JOB_IS_OVER)):
                seconds = getattr(error, "execution_time", None)
                if not is_unusable or seconds is not None:  # otherwise it was not looked at
                    self._usage.note_end(job_id, is_completed=is_unusable, seconds=seconds)
