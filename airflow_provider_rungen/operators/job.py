"""Operators for single jobs: run one, cancel some."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow_provider_rungen import api
from airflow_provider_rungen._airflow import AirflowFailException, AirflowSkipException
from airflow_provider_rungen.connection import seconds
from airflow_provider_rungen.default_args import default_arg_names
from airflow_provider_rungen.durations import in_words
from airflow_provider_rungen.exceptions import (
    RunGenConflictError,
    RunGenError,
    RunGenJobError,
    RunGenJobTimeoutError,
)
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.lineage import Done
from airflow_provider_rungen.links import JOB_AND_APP
from airflow_provider_rungen.schemas import Schema, checked
from airflow_provider_rungen.submission import DurableSubmission, Submission
from airflow_provider_rungen.task import RunGenTask, deadline_of, failing_for_good
from airflow_provider_rungen.waiting import (
    JobWaiter,
    known_job_ids_of,
    names_of,
    raise_for_jobs,
    read_event,
)
from airflow_provider_rungen.watch import KNOWN_WITHIN

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.models import Job

log = logging.getLogger(__name__)

# What the function of a task may raise to have no more tries.
_FINAL = (AirflowFailException, AirflowSkipException)


def cancel_time(hook: RunGenHook, job_ids: Sequence[str]) -> float:
    """Give the seconds to cancel jobs in when nobody is about to kill the task."""
    return 60.0 + len(job_ids) / (hook.settings.max_requests_per_second or 20)


class JobSubmitter(JobWaiter):
    """What the operators that run jobs have in common: the jobs are theirs, to keep and to cancel."""

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
        self.wait_for_completion = wait_for_completion
        self.end_from_trigger = end_from_trigger
        self.poll_interval = seconds(poll_interval, "poll_interval")
        self.timeout = seconds(timeout, "timeout")
        self.durable = durable
        self.on_unknown_submission = on_unknown_submission
        self.input_schema = checked(input_schema, "input_schema")

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral; when Airflow ended it without an event, no job is left behind."""
        if next_method == "__fail__":
            with failing_for_good(), self._working(context) as hook, self._not_abandoning(context, hook):
                job_ids = self._pushed_job_ids(context)
                self._jobs = (hook.app_id_or_default(self.app_id), job_ids)
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

    def _store(self, context: Context) -> Any:
        store = context.get("task_state_store") if self.durable else None
        if self.durable and store is None:
            log.info(
                "This Airflow keeps no state of a task (3.3 and later do): should this attempt die, the next "
                "one cannot take up what it submitted, and submits anew"
            )
        return store

    @contextmanager
    def _not_abandoning(self, context: Context, hook: RunGenHook) -> Iterator[None]:
        """Cancel the jobs when the wait ends before they do, unless the next attempt takes them up."""
        try:
            yield
        except RunGenJobTimeoutError as error:
            app_id, job_ids = self._jobs
            self._cancel_all(hook, app_id, job_ids, within=cancel_time(hook, job_ids))
            now = in_words(self.timeout)
            message = f"{error}. Raise timeout (now {now}) or execution_timeout if it needs longer."
            raise RunGenJobTimeoutError(message, app_id=app_id, job_id=error.job_id) from None
        except Exception as error:
            if self._is_killed or (isinstance(error, RunGenJobError) and self.wait_for_completion):
                raise  # they are canceled, or over
            ti = context["ti"]
            is_kept = self.durable and context.get("task_state_store") is not None
            is_final = isinstance(error, _FINAL) or (isinstance(error, RunGenError) and error.hopeless)
            is_taken_up = is_kept and not is_final and ti.try_number <= ti.max_tries
            if self.cancel_on_kill and not is_taken_up:
                app_id, job_ids = self._jobs
                self._cancel_all(hook, app_id, job_ids, within=cancel_time(hook, job_ids))
            raise


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
    :param input_schema: the JSON Schema that the input has to fit before it is sent: a dict, the path or URI
        of a file, or the name of a schema that comes with the package, such as ``flux-schnell``.
    """

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
        with failing_for_good(), self._working(context) as hook, self._not_abandoning(context, hook):
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
                known_by=time.time() + KNOWN_WITHIN,
                hand_over=lambda: self._push_result(context, job.id),
            )
            return self._finish(context, app_id, job.id, jobs)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> str:
        """
        Go on after the wait in the triggerer.

        :return: the job's id.
        """
        app_id, [job_id] = event["app_id"], event["job_ids"]
        self._jobs = (app_id, [job_id])
        with failing_for_good(), self._working(context) as hook, self._not_abandoning(context, hook):
            return self._finish(context, app_id, job_id, read_event(event))

    def _pushed_job_ids(self, context: Context) -> list[str]:
        ti = context["ti"]
        job_id = ti.xcom_pull(task_ids=ti.task_id, key="job_id", map_indexes=ti.map_index)
        return [job_id] if job_id else []

    def _submit(self, context: Context, hook: RunGenHook) -> Submission:
        ti, store = context["ti"], self._store(context)
        submission = DurableSubmission(
            store,
            max_tries=0 if store is None else ti.max_tries,
            resubmit_unknown=self.on_unknown_submission == "resubmit",
            cancel_stale=self.cancel_on_kill,
        )
        self._jobs = submission.jobs
        app_id = hook.app_id_or_default(self.app_id)
        self._link_to(context, hook, app_id)
        found = submission.find(hook, app_id, self.input)
        if found is None and (schema := Schema.of(self.input_schema, "input_schema")):
            schema.check_input(json.loads(api.encode_input(self.input)))
        with self._unbreakable():
            if found is None:
                found = submission.submit(hook, app_id, self.input, self.timeout)
                log.info("Submitted RunGen job %s to app %s", found.job.id, app_id)
            self._jobs = (app_id, [found.job.id])
            ti.xcom_push(key="job_id", value=found.job.id)
            self._link_to_job(context, hook, app_id, found.job.id)
        return found

    def _finish(self, context: Context, app_id: str, job_id: str, jobs: list[Job]) -> str:
        raise_for_jobs(jobs)
        self._tell(context, Done(app_id, [job_id]))
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
        with failing_for_good(), self._working(context) as hook:
            app_id = hook.app_id_or_default(self.app_id)
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
