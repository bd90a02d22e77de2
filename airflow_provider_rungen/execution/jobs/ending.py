"""End an attempt: stop one that fails throughout, leave jobs to the next, and cancel the others."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_rungen._airflow import AirflowFailException, AirflowSkipException, TaskInstanceState
from airflow_provider_rungen.client.daemon_threads import ends_within
from airflow_provider_rungen.client.progress import FIRST_FAILURES
from airflow_provider_rungen.client.texts import format_count, format_duration
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobTimeoutError, RunGenLimitError
from airflow_provider_rungen.execution.jobs.job_ends import reason_of
from airflow_provider_rungen.execution.sinks.batch_result import Stopped
from airflow_provider_rungen.execution.task import attempts
from airflow_provider_rungen.execution.task.attempts import CALL_TIME, call_briefly
from airflow_provider_rungen.execution.task.job_ids import begin_with_jobs, format_jobs, log_jobs
from airflow_provider_rungen.execution.task.outcomes import is_misconfigured
from airflow_provider_rungen.runs.attempt_record import End
from airflow_provider_rungen.runs.place import DamagedLogError, SupersededError
from airflow_provider_rungen.runs.rows import JobState

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.runner import Runner

log = logging.getLogger(__name__)

# Seconds of a kill that are left for the ledger after the cancels, and that the cancels have at least.
_AFTER_CANCEL = 0.4
_LEAST_CANCEL = 0.5
# What the function of a task may raise to have no more tries.
_NO_RETRY = (AirflowFailException, AirflowSkipException)


class Ending:
    """
    Stops an attempt, and decides about its jobs when it ends.

    :param run: the attempt.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._options = run.options
        self._log = run.task_log
        #: The app of the jobs.
        self.app_id = run.options.app_id or ""
        #: Why the attempt was stopped, and how far it had come.
        self.stopped: Stopped | None = None
        #: The jobs that could not be canceled when the time was up; ``None`` until that was tried.
        self.late: dict[str, RunGenError] | None = None
        # whether nothing had to be canceled then
        self._were_over = False
        # the state of the task that Airflow gave when it was killed, once it was asked for
        self._state_at_kill: tuple[str | None] | None = None

    def read_earlier(self) -> None:
        """Read which jobs earlier attempts left, and of which app; see `TaskLog.read_earlier`."""
        if self._run.deferral.is_last:
            self._run.guard.call_patiently("read the run log", self._log.read_earlier)
        else:
            self._log.read_earlier()
        known = [record.app_id for record in self._log.home.earlier if record.app_id]
        self.app_id = known[-1] if known else self.app_id

    def has_next(self, error: Exception | None = None) -> bool:
        """Return whether another attempt follows that finds what is saved."""
        is_final = isinstance(error, _NO_RETRY) or (isinstance(error, RunGenError) and not error.retryable)
        return self._log.home.is_durable and not is_final and self._log.home.numbers.has_next

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record how the attempt ends, and leave the jobs alone when the connection is at fault."""
        try:
            with self._leaving_when_refused():
                yield
        except Exception as error:
            if not self._run.guard.is_killed:
                self._note_end(End.UNKNOWN if self.has_next(error) else End.FAILED)
            raise
        self._note_end(End.SUCCEEDED)

    def _note_end(self, end: End) -> None:
        if end is not End.SUCCEEDED and self._log.has_begun:  # pages read how the jobs ended
            save = partial(self._log.run_log.save, self._log.jobs, self._log.jobs.unsaved_parts)
            call_briefly(save, self._run.guard.time_left())
        self._log.note(end=end, totals=self._log.jobs.totals())

    @contextmanager
    def _leaving_when_refused(self) -> Iterator[None]:
        """Leave the jobs alone when the connection or the key is at fault, and name those that run."""
        try:
            yield
        except RunGenError as error:
            if not is_misconfigured(error):
                raise
            with self._run.guard.working():  # a kill names them, too
                self._run.deferral.find_jobs()
            if not (running := self._log.running):
                if not self.has_next():
                    error.add_hint(self._run.deferral.unread)
                raise
            if not self.has_next():
                log_jobs(f"May still run, jobs of app {self.app_id}", running)
            raise error.revised(
                f"{error.message}. Canceled nothing: {format_jobs(running)} of app {self.app_id} may still "
                "run",
                hint=f"{error.hint}. {self._run.advice.how_to_resume()}. {self._run.deferral.unread}".strip(
                    ". "
                ),
                retryable=True,
            ).with_traceback(error.__traceback__) from None

    @contextmanager
    def canceling(self) -> Iterator[None]:
        """Cancel the jobs when the attempt ends before they do, unless the next attempt resumes them."""
        try:
            with self._noticing_successor():
                yield
        except RunGenJobTimeoutError as error:
            message = error.message
            if not self.are_over() and self.late:
                message += f". {_not_canceled(self.app_id, self.late)}"
            overall = self._run.task.execution_timeout
            hint = error.hint.replace(
                " or execution_timeout",
                f" or execution_timeout (now {format_duration(overall.total_seconds())})" if overall else "",
            )
            for name in ("timeout", "queued_timeout"):
                if (limit := getattr(self._options, name)) is not None:
                    hint = hint.replace(f"Raise {name} ", f"Raise {name} (now {format_duration(limit)}) ")
            raise error.revised(message, hint=hint, retryable=error.retryable) from None
        except Exception as error:
            if self._run.guard.is_killed or isinstance(error, SupersededError):
                raise
            # the hint of a log that is damaged says so
            is_said = isinstance(error, DamagedLogError) and not self._run.was_deferred
            unread = "" if is_said or self.has_next(error) else self._run.deferral.unread
            is_kept = isinstance(error, RunGenLimitError) or is_misconfigured(error)
            if self._log.running and not is_kept:
                self._leave_or_cancel(error)
            _add_remains(error, unread)
            raise

    def are_over(self) -> bool:
        """Cancel what runs when the time is up, once. Return whether nothing did: all had ended meanwhile."""
        if self.late is None:
            running = self._log.running
            self._log.check_successor()  # whose jobs these may be by now
            self.late = self._cancel_and_look(running)
            self._were_over = not self.late and self._run.wait.canceled.isdisjoint(running)
        return self._were_over and not self._log.jobs.running and not self._log.has_unsent

    def _cancel_and_look(self, job_ids: Sequence[str], why: str = "") -> dict[str, RunGenError]:
        """Cancel jobs, and find out how those ended that were over by then; return what may still run."""
        not_canceled = self.cancel(job_ids, why=why, asks_seconds=True)
        over = set(job_ids).difference(self._run.wait.canceled, not_canceled)
        try:
            if self._log.has_begun:
                self._run.collecting.refetch([job_id for job_id in job_ids if job_id in over])
        except RunGenError as error:
            log.warning("%s; it is unknown how %s ended", error.message, format_jobs(sorted(over)))
        return not_canceled

    @contextmanager
    def _noticing_successor(self) -> Iterator[None]:
        """Raise a `SupersededError` if a later attempt has begun, whose files this one takes for damage."""
        try:
            yield
        except DamagedLogError:
            self._log.check_successor()
            raise

    def _leave_or_cancel(self, error: Exception) -> None:
        """Cancel what the next attempt does not resume, and name what may still run."""
        self._log.check_successor()
        if self._log.has_begun:
            self._log.saver.save()
        _add_remains(error, self._cancel_lost(self._lost(has_next=self.has_next(error))))

    def _lost(self, *, has_next: bool) -> Collection[str]:
        """Return the jobs that may run, and that no attempt resumes."""
        if not has_next:
            return self._log.running
        return {*self._run.submitting.unsaved_ids(), *self._log.unwanted()}

    def stop_failing(self) -> None:
        # of what one poll found, a success may have come last
        failures = max(self._log.state.failures, FIRST_FAILURES)
        self._stop(f"{format_count(failures, 'job')} in a row failed", retryable=True)

    def stop_refused(self, deadline: float) -> None:
        """Submit no more. Inputs that were accepted are fine, so their jobs may end."""
        # an answer that came after the last refusal may have been a success
        refusals = max(self._log.state.refusals, FIRST_FAILURES)
        unsent = self._run.submitting.stop()
        log.warning("Submitting no more: %d inputs in a row were refused", refusals)
        try:
            while self._log.jobs.running and not self._run.wait_for_part(deadline, may_defer=False):
                self._run.collecting.store()
        except RunGenJobTimeoutError:
            if not self.are_over():
                raise
        self._stop(f"{refusals} inputs in a row were refused", retryable=False, unsent=unsent)

    def _stop(self, cause: str, *, retryable: bool, unsent: int = 0) -> None:
        """Cancel what is in flight, unless a later attempt waits for it."""
        self._log.fence()
        running = self._log.running
        log.warning("Stopped: %s. Canceling %d jobs", cause, len(running))
        not_canceled = self._cancel_and_look(running, f"after {cause}")
        canceled = self._run.wait.canceled.intersection(running)
        unsent += self._run.submitting.stop()
        self.stopped = Stopped(cause, len(canceled), unsent, list(not_canceled), retryable)

    def cancel(
        self,
        job_ids: Sequence[str],
        *,
        within: float | None = None,
        why: str = "",
        asks_seconds: bool = False,
    ) -> dict[str, RunGenError]:
        """
        Cancel jobs, and return those that may still run, each with the reason.

        :param asks_seconds: whether there is time to ask the service how long they ran.
        """
        not_canceled = self._run.wait.cancel(self.app_id, job_ids, within=within)
        over = set(job_ids).difference(not_canceled)
        self._log.undecided = [job_id for job_id in self._log.undecided if job_id not in over]
        canceled = self._run.wait.canceled.intersection(job_ids)
        self._note_canceled(dict.fromkeys(canceled), why)
        # a kill leaves little time, and the next attempt finds out that they were canceled
        forgetting = self._run.ledger.forget(dict.fromkeys(canceled))
        if forgetting is not None:
            ends_within(min(self._run.guard.time_left(), CALL_TIME), forgetting, lambda: False)
        if asks_seconds:
            self._note_canceled(self._run.wait.seconds_of(self.app_id, sorted(canceled)), why)
        return not_canceled

    def _note_canceled(self, seconds: Mapping[str, float | None], why: str) -> None:
        """Note jobs that this attempt canceled, with how long each ran, if that is known."""
        for job_id, ran_for in seconds.items():
            self._log.jobs.end(job_id, JobState.CANCELED, seconds=ran_for, why=why)
            self._run.report.note_canceled(job_id, why, ran_for)

    def clean_up(self, *, is_connected: bool) -> str:
        """
        Cancel the jobs (``cancel_on_kill``) that the next attempt does not resume.

        An attempt may be asked to stop because it was cut off, after its successor resumed the jobs. So with
        tries to come, the jobs are canceled only if Airflow reports that a user ended the task.

        :param is_connected: whether the connection is known. Airflow cannot be asked for it any more.
        :return: what the last line of the log says about what may still run.
        """
        running, unread = self._log.running, self._run.deferral.unread
        if unread and self._is_left_to_next():
            unread = ""
        if not running:
            return unread
        if not is_connected:
            remains = f"Canceled nothing: {begin_with_jobs(running, self.app_id)} may still run."
            return f"{remains} {unread}".strip()
        lost = self._lost(has_next=self._is_left_to_next())
        is_last = self._log.home.is_durable and not self._log.home.numbers.has_next
        note = partial(self._note_end, End.FAILED)
        if is_last:
            # before the cancels, because it takes the store no time when all is well
            call_briefly(note, self._run.guard.time_left() / 4)
        within = max(self._run.guard.time_left() - _AFTER_CANCEL, _LEAST_CANCEL)
        remains = self._cancel_lost(lost, within=within)
        if is_last:  # again, for the jobs have ended
            call_briefly(note, self._run.guard.time_left())
        return f"{remains} {unread}".strip()

    def _cancel_lost(self, lost: Collection[str], *, within: float | None = None) -> str:
        """Cancel the jobs that no attempt resumes (``cancel_on_kill``), and name those that may still run."""
        running, lost = self._log.running, set(lost)
        kept = [job_id for job_id in running if job_id not in lost]
        not_canceled = [job_id for job_id in running if job_id in lost]
        sentences = []
        if not_canceled and self._options.cancel_on_kill:
            cancel = self._cancel_and_look if within is None else partial(self.cancel, within=within)
            if failures := cancel(not_canceled):
                sentences.append(_not_canceled(self.app_id, failures))
        elif not_canceled:
            log_jobs(f"May still run, jobs of app {self.app_id}", not_canceled)
            sentences.append(f"{begin_with_jobs(not_canceled, self.app_id)} may still run (cancel_on_kill)")
        if kept:
            sentences.append(f"The next attempt resumes {format_jobs(kept)} of app {self.app_id}")
        return "".join(f"{sentence}. " for sentence in sentences).strip()

    def _is_left_to_next(self) -> bool:
        """Return whether the next attempt, which there may be already, decides about the jobs."""
        if attempts.is_timing_out() or not self.has_next():
            return False
        if self._state_at_kill is None:
            within = self._run.guard.time_left() / 2
            self._state_at_kill = (attempts.ask_for_state(self._run.ti, self._note_clear, within=within),)
        [state] = self._state_at_kill
        if state == TaskInstanceState.RESTARTING:
            return self._log.home.survives_clear
        return not attempts.was_ended_by_user(state)

    def _note_clear(self, state: str | None) -> None:
        """Note that a user cleared the task while it ran, which its numbers do not show."""
        if state == TaskInstanceState.RESTARTING:
            self._log.note(end=End.CLEARED)


def _add_remains(error: Exception, remains: str) -> None:
    """Add to an error, or log, which jobs may still run."""
    if isinstance(error, RunGenError):
        error.add_hint(remains)
    elif remains:
        log.error("%s", remains)


def _not_canceled(app_id: str, failures: Mapping[str, RunGenError]) -> str:
    job_id, error = next(iter(failures.items()))
    message = reason_of(error, app_id, job_id)
    reason = message.partition(": ")[2] or message
    return f"Could not cancel {format_jobs(list(failures))} of app {app_id}, which may still run: {reason}"
