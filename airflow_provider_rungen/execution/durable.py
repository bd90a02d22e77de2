"""Keeps the jobs that a task submits for the next attempt, or cancels them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, TypeVar

from airflow_provider_rungen._airflow import AirflowFailException, AirflowSkipException, TaskInstanceState
from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.exceptions import (
    RunGenConfigError,
    RunGenError,
    RunGenJobError,
    RunGenJobTimeoutError,
    RunGenOutputError,
)
from airflow_provider_rungen.execution import attempts
from airflow_provider_rungen.execution.attempts import Attempt, End
from airflow_provider_rungen.execution.job_ids import format_jobs
from airflow_provider_rungen.execution.run import fail_without_retry
from airflow_provider_rungen.execution.state_store import TaskState
from airflow_provider_rungen.execution.waiting import Defer, WaitingRun

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.options import SubmitOptions
    from airflow_provider_rungen.hooks.rungen import RunGenHook

log = logging.getLogger(__name__)

Options = TypeVar("Options", bound="SubmitOptions")
# After a clear, the jobs are canceled, resumed if their record survives it, or found by any later attempt.
OnClear = Literal["new", "resume", "keep"]
# Seconds of a kill that are left for the ledger after the cancels, and that the cancels have at least.
_AFTER_CANCEL = 0.4
_LEAST_CANCEL = 0.5
# What the function of a task may raise to have no more tries.
_NO_RETRY = (AirflowFailException, AirflowSkipException)


class DurableRun(WaitingRun[Options]):
    """
    An attempt that submits jobs: they are its own, to keep for the next attempt or to cancel.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param options: the operator's parameters.
    :param defer: see `WaitingRun`.
    """

    #: The key of the record in Airflow's task state store.
    record_key: ClassVar[str]

    def __init__(self, task: BaseOperator, context: Context, options: Options, defer: Defer) -> None:
        super().__init__(task, context, options, defer)
        self.state = TaskState(context.get("task_state_store") if options.durable else None)
        self.attempt = Attempt.of(context, task)
        # the state of the task that Airflow gave when it was killed, once it was asked for
        self._state_at_kill: tuple[str | None] | None = None
        # whether the record survived a clear while the task ran
        self._is_record_kept = False

    def page_details(self) -> dict[str, Any]:
        return {} if self.options.wait_for_completion else {"waits": False}

    # --- the record: what the next attempt finds ---

    def note_end(self, end: End) -> None:
        """Note in the record how the attempt ended."""
        raise NotImplementedError

    def pushed_job_ids(self) -> list[str]:
        """Return the ids that this attempt pushed before it deferred."""
        raise NotImplementedError

    def save(self) -> None:
        """Try to save what the store did not take."""
        self.state.save_all()

    def unsaved(self) -> list[str]:
        """Return the jobs that no other attempt would find, without asking Airflow."""
        return [] if self.state.is_saved else list(self.jobs.job_ids)

    @property
    def is_durable(self) -> bool:
        """Whether the next attempt finds the jobs of this one."""
        return self.state.is_durable

    def warn_if_not_durable(self) -> None:
        """Log that a retry submits again, where Airflow keeps no state."""
        if self.options.durable and not self.is_durable:
            log.info(
                "Not durable: Airflow keeps the state of a task from 3.3 on. If this attempt dies, the next "
                "one submits again"
            )

    @property
    def on_clear(self) -> OnClear:
        """What a clear of the task does with its jobs: see `OnClear`."""
        return self.options.on_clear

    @property
    def resumes_clears(self) -> bool:
        """Whether the jobs from before a clear are resumed."""
        # Since Airflow 3.4, a record that survived a clear was kept on purpose. A clear of the whole run
        # keeps it, too (apache/airflow #72929), and looks the same.
        return self.on_clear != "new" or attempts.CLEAR_DISCARDS_STATE

    def push_origin(self, app_id: str) -> None:
        """Push which app and connection know the jobs, for the tasks that are given their ids."""
        self.push_quietly("app_id", app_id, "the app")
        self.push_quietly("rungen_conn_id", self.options.rungen_conn_id, "the connection")

    def on_checkpoint(self) -> None:
        if not self.state.is_saved:
            # a signal in the middle of a call to the supervisor would leave it out of step
            with self.guard.defer_signals():
                self.state.save_between_polls()

    def defer(self, deadline: float, **arguments: Any) -> NoReturn:
        with self.guard.defer_signals():
            self.state.save_all()
        super().defer(deadline, on_clear=self.on_clear, **arguments)

    # --- the end of an attempt ---

    @contextmanager
    def owning(self) -> Iterator[RunGenHook]:
        """Open the hook, and decide about the jobs and the record when the attempt ends."""
        with fail_without_retry():
            try:
                with (
                    self._leaving_when_refused(),
                    self.opened() as hook,
                    self.reporting_usage(),
                    self._deciding(),
                ):
                    yield hook
            except Exception as error:
                if not self.guard.is_killed and not self.has_next(error):
                    self.note_end(End.FAILED)
                raise
            self.note_end(End.SUCCEEDED)

    def fail_deferral(self, reason: str) -> NoReturn:
        """
        Decide about the jobs when Airflow ended the deferral without an event.

        :raises RunGenError: always.
        """
        job_ids = self.pushed_job_ids()
        self.own(self.options.app_id or "", job_ids)
        with self.owning():
            self.own(self.app_id, job_ids)
            raise RunGenError(f"Airflow ended the wait for {format_jobs(job_ids)} in the triggerer: {reason}")
        raise AssertionError  # owning() does not swallow it

    def has_next(self, error: Exception | None = None) -> bool:
        """Return whether another attempt follows that finds what is saved."""
        is_final = isinstance(error, _NO_RETRY) or (isinstance(error, RunGenError) and not error.retryable)
        return self.is_durable and not is_final and self.attempt.has_next

    @contextmanager
    def _leaving_when_refused(self) -> Iterator[None]:
        """Leave the jobs alone when the connection or the key is at fault, and name those that run."""
        try:
            yield
        except RunGenError as error:
            if not _is_refusal(error) or not self.jobs.running:
                raise
            self.save()
            failure = error
        else:
            return
        jobs = f"{format_jobs(self.jobs.running)} of app {self.jobs.app_id}"
        raise failure.revised(
            f"{failure.message}. Canceled nothing: {jobs} may still run",
            hint=f"Check the Airflow connection {self.options.rungen_conn_id!r}. {self._how_to_resume()}",
            retryable=True,
        ) from failure

    def _how_to_resume(self) -> str:
        is_saved = not self.unsaved()
        if self.has_next() and is_saved:
            return "A retry resumes"
        if not (self.is_durable and is_saved):
            return "Then collect or cancel by id"
        if self.on_clear == "keep":
            return "Then clear the task to resume, or cancel by id"
        how = "and keep its task state" if attempts.CLEAR_DISCARDS_STATE else "with on_clear='resume'"
        return f"Then clear the task {how} to resume, or cancel by id"

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        """Cancel the jobs when the wait ends before they do, unless the next attempt resumes them."""
        try:
            yield
        except RunGenJobTimeoutError as error:
            message = error.message
            if left := self.cancel(self.jobs.running):
                message += f". {_format_left(self.jobs.app_id, left)}"
            hint = error.hint
            for name in ("timeout", "queued_timeout"):
                if (limit := getattr(self.options, name)) is not None:
                    hint = hint.replace(f"Raise {name} ", f"Raise {name} (now {format_duration(limit)}) ")
            raise error.revised(message, hint=hint, retryable=error.retryable) from None
        except Exception as error:
            # an error of storage is none of the jobs, and may come while they run
            is_of_job = isinstance(error, RunGenJobError) and not isinstance(error, RunGenOutputError)
            is_over = is_of_job and self.options.wait_for_completion
            if not (self.guard.is_killed or _is_refusal(error) or is_over) and self.jobs.job_ids:
                self._leave_or_cancel(error)
            raise

    def _leave_or_cancel(self, error: Exception) -> None:
        """Cancel what the next attempt does not resume, and name what may still run."""
        self.save()
        lost = self.unsaved() if self.has_next(error) else list(self.jobs.job_ids)
        left = self._cancel_lost(lost)
        if not left:
            return
        if isinstance(error, RunGenError):
            error.add_hint(left)
        else:
            log.error("%s", left)

    # --- a kill ---

    def cleanup(self) -> str:
        """
        Cancel the jobs (``cancel_on_kill``) that the next attempt does not resume.

        An attempt may be asked to stop because it was cut off, after its successor resumed the jobs. So with
        tries left the jobs are canceled only if Airflow reports that a user ended the task.
        """
        if not self.jobs.job_ids:
            return ""
        lost = self.unsaved() if self._is_left_to_next() else list(self.jobs.job_ids)
        if self.state.is_durable and not self.attempt.has_next:
            # before the cancels, because it takes the store no time when all is well
            attempts.call_briefly(lambda: self.note_end(End.FAILED), self.guard.time_left() / 4)
        return self._cancel_lost(lost, within=max(self.guard.time_left() - _AFTER_CANCEL, _LEAST_CANCEL))

    def _cancel_lost(self, lost: Collection[str], *, within: float | None = None) -> str:
        """Cancel the jobs that no attempt resumes (``cancel_on_kill``), and name those that may still run."""
        app_id, running, lost = self.jobs.app_id, self.jobs.running, set(lost)
        kept = [job_id for job_id in running if job_id not in lost]
        left = [job_id for job_id in running if job_id in lost]
        sentences = []
        if left and self.options.cancel_on_kill:
            if left := self.cancel(left, within=within):
                sentences.append(_format_left(app_id, left))
        elif left:
            sentences.append(f"{_sentence(left, app_id)} may still run (cancel_on_kill)")
        if kept:
            sentences.append(f"The next attempt resumes {format_jobs(kept)} of app {app_id}")
        return "".join(f"{sentence}. " for sentence in sentences).strip()

    def _clean_up(self) -> str:
        if not self._is_connected and self.jobs.running:  # the kill came during the look-up of the connection
            return f"Canceled nothing: {_sentence(self.jobs.running, self.jobs.app_id)} may still run."
        return super()._clean_up()

    def _is_left_to_next(self) -> bool:
        """Return whether the next attempt, which there may be already, decides about the jobs."""
        if attempts.is_timing_out() or not self.has_next():
            return False
        if self._state_at_kill is None:
            within = self.guard.time_left() / 2
            self._state_at_kill = (attempts.ask_for_state(self.ti, self._note_clear, within=within),)
        [state] = self._state_at_kill
        if state == TaskInstanceState.RESTARTING:
            is_discarded = attempts.CLEAR_DISCARDS_STATE and self.on_clear != "keep"
            return self._is_record_kept if is_discarded else self.on_clear != "new"
        return not attempts.was_ended_by_user(state)

    def _note_clear(self, state: str | None) -> None:
        """Note that a user cleared the task while it ran, which its numbers do not show."""
        if state != TaskInstanceState.RESTARTING:
            return
        if attempts.CLEAR_DISCARDS_STATE:
            self._is_record_kept = self.state.get(self.record_key) is not None
        else:
            self.note_end(End.CLEARED)


def _is_refusal(error: Exception) -> bool:
    """Return whether the key or the connection is at fault, which is no reason to cancel a job."""
    return isinstance(error, RunGenConfigError) or (
        isinstance(error, RunGenError) and retry.is_refusal(error)
    )


def _sentence(job_ids: Sequence[str], app_id: str) -> str:
    jobs = format_jobs(list(job_ids))
    return f"{jobs[:1].upper()}{jobs[1:]} of app {app_id}"


def _format_left(app_id: str, job_ids: Sequence[str]) -> str:
    return f"Could not cancel {format_jobs(list(job_ids))} of app {app_id}, which may still run: see above"
