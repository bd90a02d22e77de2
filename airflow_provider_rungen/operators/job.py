"""Operators for single jobs: run one, cancel some."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

from airflow_provider_rungen._airflow import AirflowFailException, AirflowSkipException, TaskInstanceState
from airflow_provider_rungen.client import codec, retry
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.polling import VISIBILITY_GRACE
from airflow_provider_rungen.exceptions import (
    RunGenConfigError,
    RunGenConflictError,
    RunGenError,
    RunGenJobError,
    RunGenJobTimeoutError,
)
from airflow_provider_rungen.execution import attempts as attempt
from airflow_provider_rungen.execution import submission
from airflow_provider_rungen.execution.attempts import (
    Attempt,
    End,
    ask_for_state,
    call_airflow_briefly,
    is_timing_out,
    was_ended_by_user,
)
from airflow_provider_rungen.execution.default_args import default_arg_names
from airflow_provider_rungen.execution.lineage import TaskOutcome
from airflow_provider_rungen.execution.state_store import TaskState
from airflow_provider_rungen.execution.submission import DurableSubmission, Submission
from airflow_provider_rungen.execution.task import (
    RunGenTask,
    deadline_of,
    fail_without_retry,
    kill_time,
)
from airflow_provider_rungen.execution.waiting import (
    JobWaiter,
    known_job_ids_of,
    names_of,
    raise_for_jobs,
    read_event,
)
from airflow_provider_rungen.hooks.connection import seconds
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.links.rungen import JOB_AND_APP
from airflow_provider_rungen.schemas import Schema, checked

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.client.models import Job

log = logging.getLogger(__name__)

# What the function of a task may raise to have no more tries.
_FINAL = (AirflowFailException, AirflowSkipException)


def cancel_time(hook: RunGenHook, job_ids: Sequence[str]) -> float:
    """Give the seconds to cancel jobs in when nobody is about to kill the task."""
    return 60.0 + len(job_ids) / (hook.settings.max_requests_per_second or 20)


class JobSubmitter(JobWaiter):
    """What the operators that run jobs have in common: the jobs are theirs, to keep and to cancel."""

    _record_key: ClassVar[str]
    _attempt: Attempt = Attempt()
    _state: TaskState = TaskState(None)
    # whether the record survived a clear while the task ran
    _is_state_kept = False

    def __init__(
        self,
        *,
        wait_for_completion: bool = False,
        end_from_trigger: bool = False,
        poll_interval: float | timedelta = 5,
        timeout: float | timedelta = 86400,
        cancel_on_kill: bool = True,
        durable: bool = True,
        on_unknown_submission: Literal["resubmit", "fail"] = "resubmit",
        on_clear: Literal["new", "resume"] = "new",
        input_schema: Any = None,
        **kwargs: Any,
    ) -> None:
        is_own = "deferrable" not in default_arg_names(kwargs)
        if kwargs.get("deferrable") and is_own and not wait_for_completion:
            raise ValueError(
                "deferrable=True has no effect without a wait: set wait_for_completion=True to wait in the "
                "triggerer, or leave deferrable out to submit and go on"
            )
        super().__init__(cancel_on_kill=cancel_on_kill, **kwargs)
        if on_unknown_submission not in ("resubmit", "fail"):
            raise ValueError(
                f"on_unknown_submission must be 'resubmit' or 'fail', not {on_unknown_submission!r}"
            )
        if on_clear not in ("new", "resume"):
            raise ValueError(f"on_clear must be 'new' or 'resume', not {on_clear!r}")
        self.wait_for_completion = wait_for_completion
        self.end_from_trigger = end_from_trigger
        self.poll_interval = seconds(poll_interval, "poll_interval")
        self.timeout = seconds(timeout, "timeout")
        self.durable = durable
        self.on_unknown_submission = on_unknown_submission
        self.on_clear = on_clear
        self.input_schema = checked(input_schema, "input_schema")

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral; when Airflow ended it without an event, no job is left behind."""
        if next_method == "__fail__":
            self._begin(context)
            job_ids = self._pushed_job_ids(context)
            self._jobs = (self.app_id or "", job_ids)
            with self._owning(context) as hook:
                self._jobs = (hook.resolve_app_id(self.app_id), job_ids)
                reason = (next_kwargs or {}).get("error", "unknown")
                raise RunGenError(
                    f"Airflow ended the wait for {names_of(job_ids)} in the triggerer: {reason}"
                )
        return super().resume_execution(next_method, next_kwargs, context)

    def _pushed_job_ids(self, context: Context) -> list[str]:
        """Give the ids that this attempt pushed before it deferred."""
        raise NotImplementedError

    def _push_result(self, context: Context, result: Any) -> None:
        """Push what the task returns when it ends in the triggerer, which cannot."""
        if self.do_xcom_push:
            context["ti"].xcom_push(key="return_value", value=result)

    def _begin(self, context: Context) -> None:
        """Find out which attempt this is, and where it keeps its state."""
        self._context = context
        store = context.get("task_state_store") if self.durable else None
        self._state = TaskState(store)
        self._attempt = Attempt.of(context, self)

    def _warn_if_not_durable(self) -> None:
        if self.durable and not self._state.is_durable:
            log.info(
                "This Airflow keeps no state of a task (3.3 and later do): should this attempt die, the next "
                "one cannot take up what it submitted, and submits anew"
            )

    @property
    def _resumes_clears(self) -> bool:
        """Whether the jobs of before a clear are taken up."""
        # Since Airflow 3.4, a record that survived a clear was kept on purpose. A clear of the whole run
        # keeps it, too (apache/airflow #72929), and looks the same.
        return self.on_clear == "resume" or attempt.CLEAR_DISCARDS_STATE

    def _between_polls(self) -> None:
        if not self._state.is_saved:
            # a signal in the middle of a call to the supervisor would leave it out of step
            with self.defer_signals():
                self._state.save_between_polls()

    def _defer(self, *args: Any, **kwargs: Any) -> NoReturn:
        with self.defer_signals():
            self._state.save_all()
        super()._defer(*args, **kwargs)

    # --- the end of an attempt ---

    @contextmanager
    def _owning(self, context: Context) -> Iterator[RunGenHook]:
        """Open the hook, and see to the jobs and to the record when the attempt ends."""
        with fail_without_retry():
            try:
                with (
                    self._leaving_when_refused(),
                    self._working(context) as hook,
                    self._not_abandoning(hook),
                ):
                    yield hook
            except Exception as error:
                if not self._is_killed and not self._has_next(error):
                    self._note_end(End.FAILED)
                raise
            self._note_end(End.SUCCEEDED)

    def _note_end(self, end: End) -> None:
        """Note in the record how the attempt ended."""

    def _save(self) -> list[str]:
        """Try to save what the store did not take, and return the jobs that no other attempt would find."""
        return [] if self._state.save_all() else list(self._jobs[1])

    def _unsaved(self) -> list[str]:
        """Return the jobs that no other attempt would find, asking nothing of Airflow."""
        return [] if self._state.is_saved else list(self._jobs[1])

    def _has_next(self, error: Exception | None = None) -> bool:
        """Return whether another attempt follows that finds what is saved."""
        is_final = isinstance(error, _FINAL) or (isinstance(error, RunGenError) and not error.retryable)
        return self._state.is_durable and not is_final and self._attempt.has_next

    @contextmanager
    def _leaving_when_refused(self) -> Iterator[None]:
        """Leave the jobs alone when the connection or the key is at fault, and say that they run."""
        try:
            yield
        except RunGenError as error:
            if not _is_refusal(error):
                raise
            app_id, job_ids = self._jobs
            job_ids = [job_id for job_id in job_ids if job_id not in self._over]
            if not job_ids:
                raise
            what_to_do = self._how_to_resume(is_saved=not self._save())
            hint = f"Check the Airflow connection {self.rungen_conn_id!r}. {what_to_do}"
            error.message += f". {names_of(job_ids)} of app {app_id} may still run; nothing was canceled"
            error.hint, error.retryable = hint, True
            raise

    def _how_to_resume(self, *, is_saved: bool) -> str:
        if self._has_next() and is_saved:
            return "A retry resumes"
        if not (self._state.is_durable and is_saved):
            return "Then collect or cancel by id"
        how = "and keep its task state" if attempt.CLEAR_DISCARDS_STATE else "with on_clear='resume'"
        return f"Then clear the task {how} to resume, or cancel by id"

    @contextmanager
    def _not_abandoning(self, hook: RunGenHook) -> Iterator[None]:
        """Cancel the jobs when the wait ends before they do, unless the next attempt takes them up."""
        try:
            yield
        except RunGenJobTimeoutError as error:
            app_id, job_ids = self._jobs
            left = self._cancel_all(hook, app_id, job_ids, within=cancel_time(hook, job_ids))
            now = format_duration(self.timeout)
            raise RunGenJobTimeoutError(
                _with_left(error.message, app_id, left),
                app_id=app_id,
                job_id=error.job_id,
                hint=f"Raise timeout (now {now}) or execution_timeout if it needs longer",
            ) from None
        except Exception as error:
            if (
                _is_refusal(error)
                or self._is_killed
                or (isinstance(error, RunGenJobError) and self.wait_for_completion)
            ):
                raise  # they are left alone, canceled, or over
            if self._jobs[1]:
                self._leave_or_cancel(hook, error)
            raise

    def _leave_or_cancel(self, hook: RunGenHook, error: Exception) -> None:
        """Cancel what the next attempt does not take up, and let the error say what may still run."""
        unsaved = self._save()
        lost = unsaved if self._has_next(error) else list(self._jobs[1])
        said = self._cancel(hook, lost, within=cancel_time(hook, lost))
        if not said:
            return
        if isinstance(error, RunGenError):
            error.hint = f"{error.hint}. {said}" if error.hint else said
        else:
            log.error("%s", said.strip())

    # --- a kill ---

    def _abandon(self, hook: RunGenHook) -> None:
        """
        Cancel the jobs (``cancel_on_kill``) that the next attempt does not take up.

        An attempt may be told to stop because it was cut off, after its successor took up the jobs. So with
        tries left the jobs are canceled only if Airflow says that a user ended the task.
        """
        _, job_ids = self._jobs
        if not job_ids:
            return
        begun_at, within = time.monotonic(), kill_time()
        lost = self._unsaved() if self._is_left_to_the_next() else list(job_ids)
        within -= time.monotonic() - begun_at
        self._last_words = self._cancel(hook, lost, within=max(within, 1)).strip()
        if self._state.is_durable and not self._attempt.has_next:
            call_airflow_briefly(lambda: self._note_end(End.FAILED))

    def _cancel(self, hook: RunGenHook, lost: Collection[str], *, within: float) -> str:
        """Cancel the jobs that nobody takes up (``cancel_on_kill``), and say which jobs may still run."""
        app_id, job_ids = self._jobs
        running, lost = [job_id for job_id in job_ids if job_id not in self._over], set(lost)
        kept = [job_id for job_id in running if job_id not in lost]
        left = [job_id for job_id in running if job_id in lost]
        if left and self.cancel_on_kill:
            left = self._cancel_all(hook, app_id, left, within=within)
            return _with_left("", app_id, left) + _with_kept(app_id, kept)
        said = f" {names_of(left)} of app {app_id} may still run (cancel_on_kill)." if left else ""
        return said + _with_kept(app_id, kept)

    def _is_left_to_the_next(self) -> bool:
        """Return whether the next attempt, which there may be already, decides about the jobs."""
        if is_timing_out() or not self._has_next():
            return False
        if self._state_at_kill is None:
            self._state_at_kill = (ask_for_state(self._context["ti"], self._note_clear),)
        [state] = self._state_at_kill
        if state == TaskInstanceState.RESTARTING:
            return self._is_state_kept if attempt.CLEAR_DISCARDS_STATE else self.on_clear == "resume"
        return not was_ended_by_user(state)

    def _note_clear(self, state: str | None) -> None:
        """Note that a user cleared the task while it ran, which its numbers do not show."""
        if state != TaskInstanceState.RESTARTING:
            return
        if attempt.CLEAR_DISCARDS_STATE:
            self._is_state_kept = self._state.get(self._record_key) is not None
        else:
            self._note_end(End.CLEARED)


def _is_refusal(error: Exception) -> bool:
    """Return whether the key or the connection is at fault, which is no reason to cancel a job."""
    if isinstance(error, RunGenConfigError):
        return True
    return isinstance(error, RunGenError) and retry.is_refusal(error)


def _with_left(message: str, app_id: str, job_ids: Sequence[str]) -> str:
    """Add the jobs that could not be canceled to a message."""
    if not job_ids:
        return message
    prefix = f"{message}. " if message else ""
    return f"{prefix}Could not cancel {names_of(job_ids)} of app {app_id}, which may still run: see above"


def _with_kept(app_id: str, job_ids: Sequence[str]) -> str:
    return f" The next attempt takes up {names_of(job_ids)} of app {app_id}." if job_ids else ""


class RunGenRunJobOperator(JobSubmitter):
    """
    Run a RunGen job: submit it, push its id under the XCom key ``job_id`` at once, and return the id.

    :param input: a JSON object (a dict), as the app's model wants it (templated, nested values too).
    :param app_id: the app to run; the connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param wait_for_completion: wait until the job is over, and fail when it failed or was canceled.
    :param deferrable: wait in the triggerer, without a worker slot. Only with ``wait_for_completion``.
    :param defer_after: seconds to look for the end on the worker first; a deferral takes longer than that.
    :param end_from_trigger: let a success end in the triggerer, with no second start of a worker, where
        Airflow can (3.3 and later; not with ``outlets``).
    :param poll_interval: seconds between two looks at the job.
    :param timeout: seconds the job may take; after that it is canceled and the task fails.
    :param cancel_on_kill: cancel the job when the task is killed, or cleared while the job runs.
    :param durable: keep the job's id in Airflow's task state store (Airflow 3.3 and later), so that a retry
        takes up the job of the attempt before, and none is bought twice.
    :param on_unknown_submission: what a retry does when it is not known whether the last attempt's job was
        created: ``resubmit`` it, with a warning, or ``fail``.
    :param on_clear: what the attempt after a clear does: run a ``new`` job, or ``resume`` the one of before,
        if input and app are the same. A job that failed is run anew. Needs ``durable``.
    :param input_schema: the JSON Schema that the input has to fit before it is sent: a dict, the path or URI
        of a file, or the name of a schema that comes with the package, such as ``flux-schnell``.
    """

    _record_key = submission.KEY

    template_fields: Sequence[str] = ("app_id", "input", "rungen_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"input": "json"}

    def __init__(self, *, input: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input = input

    def execute(self, context: Context) -> str:
        """
        Submit the job, or take up the one an earlier attempt submitted, and wait for it when asked to.

        :return: the job's id.
        """
        self._begin(context)
        self._warn_if_not_durable()
        with self._owning(context) as hook:
            job, deadline = self._submit(context, hook)
            app_id = job.app_id
            if not self.wait_for_completion:
                return self._finish(context, app_id, job.id, [])
            deadline = deadline_of(self, deadline)
            jobs = self._wait(
                hook,
                app_id,
                [job.id],
                poll_interval=self.poll_interval,
                deadline=deadline,
                known_by=time.time() + VISIBILITY_GRACE,
                hand_over=lambda: self._push_result(context, job.id),
            )
            return self._finish(context, app_id, job.id, jobs)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> str:
        """
        Go on after the wait in the triggerer.

        :return: the job's id.
        """
        self._begin(context)
        # another version of the package may have left something out
        job_ids = event.get("job_ids") or self._pushed_job_ids(context)
        self._jobs = (event.get("app_id") or self.app_id or "", job_ids)
        with self._owning(context) as hook:
            app_id = event.get("app_id") or hook.resolve_app_id(self.app_id)
            self._jobs = (app_id, job_ids)
            for job_id in job_ids:
                self._submission.confirm(app_id, job_id)
                return self._finish(context, app_id, job_id, read_event(event))
            raise RunGenError("The trigger's event names no job, and none was pushed before the deferral.")

    def _begin(self, context: Context) -> None:
        super()._begin(context)
        self._submission = DurableSubmission(
            self._state,
            self._attempt,
            resume_cleared=self._resumes_clears,
            resubmit_unknown=self.on_unknown_submission == "resubmit",
            cancel_stale=self.cancel_on_kill,
        )
        self._jobs = self._submission.jobs

    def _note_end(self, end: End) -> None:
        self._submission.end(end)

    def _pushed_job_ids(self, context: Context) -> list[str]:
        ti = context["ti"]
        job_id = ti.xcom_pull(task_ids=ti.task_id, key="job_id", map_indexes=ti.map_index)
        return [job_id] if job_id else []

    def _submit(self, context: Context, hook: RunGenHook) -> Submission:
        ti = context["ti"]
        app_id = hook.resolve_app_id(self.app_id)
        self._link_to(context, hook, app_id)
        found = self._submission.find(hook, app_id, self.input, self.timeout)
        if found is None:
            self._jobs = ("", [])  # what an earlier attempt left is over, canceled or not to be canceled
            if schema := Schema.of(self.input_schema, "input_schema"):
                schema.check_input(json.loads(codec.encode_input(self.input)))
        with self.defer_signals():
            if found is None:
                found = self._submission.submit(hook, app_id, self.input, self.timeout)
                log.info("Submitted RunGen job %s to app %s", found.job.id, app_id)
            self._jobs = (app_id, [found.job.id])
            ti.xcom_push(key="job_id", value=found.job.id)
            self._link_to_job(context, hook, app_id, found.job.id)
        return found

    def _finish(self, context: Context, app_id: str, job_id: str, jobs: list[Job]) -> str:
        raise_for_jobs(jobs)
        self._tell(context, TaskOutcome(app_id, [job_id]))
        return job_id


class RunGenCancelJobOperator(RunGenTask):
    """
    Cancel RunGen jobs.

    :param job_id: one id, a list, or the ``.output`` of a task (templated); ``None`` in a list, as a batch
        gives for an input without a job, is passed over.
    :param app_id: the app of the jobs; the connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param fail_if_over: fail when a job is already over.
    """

    template_fields: Sequence[str] = ("app_id", "job_id", "rungen_conn_id")
    operator_extra_links = JOB_AND_APP

    def __init__(
        self,
        *,
        job_id: Any,
        app_id: str | None = None,
        rungen_conn_id: str = RunGenHook.default_conn_name,
        fail_if_over: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_id = job_id
        self.app_id = app_id
        self.rungen_conn_id = rungen_conn_id
        self.fail_if_over = fail_if_over

    def execute(self, context: Context) -> list[str]:
        """
        Cancel the jobs.

        :return: the ids of those that were canceled; those already over are left out.
        """
        canceled = []
        with fail_without_retry(), self._working(context) as hook:
            app_id = hook.resolve_app_id(self.app_id)
            job_ids = known_job_ids_of(self.job_id)
            self._link_to(context, hook, app_id, job_ids)
            for job_id in job_ids:
                try:
                    hook.cancel_job(app_id=app_id, job_id=job_id)
                except RunGenConflictError:
                    if self.fail_if_over:
                        raise
                    log.info("RunGen job %s is already over", job_id)
                else:
                    log.info("Canceled RunGen job %s", job_id)
                    canceled.append(job_id)
        return canceled
