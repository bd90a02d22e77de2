"""The sensors: one waits for jobs, one for an app."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_rungen._airflow import (
    AIRFLOW_V_3_3_PLUS,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    conf,
    metrics,
)
from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.models import Job, JobStatus, normalize_status
from airflow_provider_rungen.client.polling import (
    COUNTER_THRESHOLD,
    JobPoller,
    strip_payloads,
    wait_for_jobs,
)
from airflow_provider_rungen.client.scaling import AppTarget, wait_for_app
from airflow_provider_rungen.exceptions import (
    RunGenAppTimeoutError,
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobFailedError,
    RunGenJobTimeoutError,
)
from airflow_provider_rungen.execution.lineage import TaskOutcome
from airflow_provider_rungen.execution.task import RunGenTask, deadline_of, fail_without_retry
from airflow_provider_rungen.execution.waiting import (
    GRACE,
    JobWaiter,
    job_ids_of,
    known_job_ids_of,
    raise_for_event,
    raise_for_jobs,
    read_event,
    refetch,
)
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.schemas import Schema, checked

if TYPE_CHECKING:
    from airflow.triggers.base import StartTriggerArgs

    from airflow_provider_rungen._airflow import Context


class RunGenJobSensor(JobWaiter, BaseSensorOperator):
    """
    Wait until jobs are over; fail when one failed or was canceled.

    ``poke_interval``, ``timeout``, ``mode``, ``soft_fail`` and the rest are Airflow's own, and hold when
    deferred, too.

    :param job_id: one id, a list, or the ``.output`` of a task (templated); ``None`` in a list, as a batch
        gives for an input without a job, is passed over.
    :param app_id: the app of the jobs; the connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param deferrable: wait in the triggerer, without a worker slot.
    :param defer_after: seconds to look for the end on the worker first; a deferral takes longer than that.
    :param end_from_trigger: let a success end in the triggerer, with no second start of a worker, where
        Airflow can (3.3 and later; not with ``outlets`` or ``result_schema``).
    :param start_from_trigger: begin in the triggerer, without a first start of a worker (Airflow 3.3 and
        later; before, and when mapped, the sensor defers as ever). Gather with ``end_from_trigger`` a
        success needs no worker at all. Only with ``deferrable``.
    :param cancel_on_kill: cancel the jobs when the task is killed. Off by default, since a task that runs
        again would find them canceled.
    :param result_schema: the JSON Schema that every result has to fit: a dict, the path or URI of a file, or
        the name of a schema that comes with the package, such as ``flux-schnell``. The first that does not
        fit fails the sensor for good.
    """

    template_fields: Sequence[str] = ("app_id", "job_id", "rungen_conn_id")

    #: What the last look found not to be over.
    late: RunGenJobTimeoutError | None = None
    _schema: Schema | None = None

    def __init__(
        self,
        *,
        job_id: Any,
        end_from_trigger: bool = False,
        start_from_trigger: bool = False,
        cancel_on_kill: bool = False,
        result_schema: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(cancel_on_kill=cancel_on_kill, **kwargs)
        self.job_id = job_id
        self.end_from_trigger = end_from_trigger
        self.result_schema = checked(result_schema, "result_schema")
        self._watch: JobPoller | None = None
        if start_from_trigger and not self.deferrable:
            raise ValueError("start_from_trigger needs deferrable=True")
        # on the instance alone: Airflow breaks mapped tasks of a class that says so
        self.start_from_trigger = start_from_trigger and AIRFLOW_V_3_3_PLUS
        if self.start_from_trigger:
            self.start_trigger_args = self._start()

    def _start(self) -> StartTriggerArgs:
        """Give what Airflow needs to begin in the triggerer."""
        from airflow.triggers.base import StartTriggerArgs

        return StartTriggerArgs(
            trigger_cls="airflow_provider_rungen.triggers.RunGenJobTrigger",
            # those that are named as the sensor's template fields are rendered in the triggerer
            trigger_kwargs={
                "rungen_conn_id": self._template("rungen_conn_id", self.rungen_conn_id),
                "app_id": self._template("app_id", self.app_id),
                "job_id": self._template("job_id", self.job_id),
                "poll_interval": self._interval(),
                "timeout": self.timeout,
                "cancel_on_kill": self.cancel_on_kill,
                "end_from_trigger": self._can_end_without_worker(),
            },
            next_method="execute_complete",
            timeout=timedelta(seconds=self.timeout) + GRACE,
        )

    def _template(self, name: str, value: Any) -> Any:
        """
        Give a value as the triggerer can render it: it knows templates, but no ``.output``.

        :raises ValueError: it cannot be rendered there.
        """
        if isinstance(value, list | tuple):
            return [self._template(name, item) for item in value]
        if isinstance(value, str):
            for arguments in re.findall(r"xcom_pull\(((?:[^()]|\([^()]*\))*)", value):
                if "map_indexes" not in arguments:
                    raise ValueError(
                        f"{name} of {self.task_id}: with start_from_trigger, xcom_pull needs map_indexes=-1 "
                        "(or a mapped task's index), without which Airflow waits in the triggerer for ever"
                    )
            return value
        if value is None:
            return None
        from airflow.sdk.definitions.xcom_arg import PlainXComArg

        group = self.get_closest_mapped_task_group()
        if isinstance(value, PlainXComArg) and not value.operator.is_mapped:
            theirs = value.operator.get_closest_mapped_task_group()
            if theirs in (None, group):
                index = -1 if theirs is None else "ti.map_index"
                where = f"task_ids={value.operator.task_id!r}, key={value.key!r}, map_indexes={index}"
                return f"{{{{ ti.xcom_pull({where}) }}}}"
        raise ValueError(
            f"{name} of {self.task_id}: with start_from_trigger, it must be text, a template, or the .output "
            "of one task that is not mapped, which is all that Airflow can render in the triggerer"
        )

    def _interval(self) -> float:
        return max(self.poke_interval, 0.1)

    def execute(self, context: Context) -> Any:
        if not self.deferrable:
            with self._executing(), explain_timeout(self):
                return BaseSensorOperator.execute(self, context)
        with apply_soft_fail(self), self._failing(), self._working(context) as hook, as_sensor_timeout(self):
            app_id, job_ids = hook.resolve_app_id(self.app_id), known_job_ids_of(self.job_id)
            self._link_to(context, hook, app_id, job_ids)
            deadline = deadline_of(self, time.time() + self.timeout)
            self._read_schema()
            interval = self._interval()
            jobs = self._wait(
                hook, app_id, job_ids, poll_interval=interval, deadline=deadline, take=self._take
            )
            self._finish(context, app_id, job_ids, jobs)
        return None

    def poke(self, context: Context) -> bool:
        with self._failing(), self._working(context) as hook:
            app_id, job_ids = hook.resolve_app_id(self.app_id), known_job_ids_of(self.job_id)
            self._jobs = (app_id, job_ids)
            if not self.links:
                self._link_to(context, hook, app_id, job_ids)
            self._read_schema()
            self._watch = self._watch or JobPoller(app_id, take=metrics.counting(self._take))
            try:
                # one look: the deadline is now
                perform = hook.perform_concurrently if len(job_ids) > COUNTER_THRESHOLD else hook.perform
                jobs = perform(wait_for_jobs(app_id, job_ids, poll_interval=1, deadline=0, watch=self._watch))
            except RunGenJobTimeoutError as error:
                self.late = error
                return False
            self._finish(context, app_id, job_ids, jobs)
            return True

    def _get_next_poke_interval(
        self, started_at: Any, run_duration: Callable[[], float], *args: Any, **kwargs: Any
    ) -> float:
        """Poke no sooner than the service asked for, in every mode, but not beyond the end of the time."""
        interval: float = super()._get_next_poke_interval(started_at, run_duration, *args, **kwargs)
        asked = self._watch.not_before - time.time() if self._watch else 0.0
        return max(interval, min(asked, self.timeout - run_duration()))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """Go on after the wait in the triggerer."""
        from airflow_provider_rungen.triggers.rungen import rendered_job_ids

        with apply_soft_fail(self), self._failing(), self._working(context) as hook:
            with as_sensor_timeout(self):
                jobs = read_event(event)
            raise_for_jobs(jobs, event.get("count", 0))
            # what is rendered in the triggerer may be the text of a list
            app_id = event.get("app_id") or hook.resolve_app_id(self.app_id)
            job_ids = event.get("job_ids") or job_ids_of(rendered_job_ids(self.job_id))
            self._read_schema()
            if self._schema is not None:
                perform = hook.perform_concurrently if len(job_ids) > COUNTER_THRESHOLD else hook.perform
                perform(refetch(app_id, job_ids, self._take_again))
            self._finish(context, app_id, job_ids, [])

    def _finish(self, context: Context, app_id: str, job_ids: list[str], jobs: list[Job]) -> None:
        raise_for_jobs(jobs)
        self._tell(context, TaskOutcome(app_id, job_ids))

    def _read_schema(self) -> None:
        self._schema = self._schema or Schema.of(self.result_schema, "result_schema")

    def _take(self, job: Job) -> Job:
        """Hold the result of a job against the schema, and let go of it."""
        if self._schema is not None and job.status is JobStatus.COMPLETED:
            self._schema.check_result(job)
        return strip_payloads(job)

    def _take_again(self, _: str, job: Job | RunGenError) -> None:
        if isinstance(job, RunGenError):
            raise job
        job.raise_for_status()
        self._take(job)

    def _can_end_from_trigger(self) -> bool:
        return self._can_end_without_worker() and super()._can_end_from_trigger()

    def _can_end_without_worker(self) -> bool:
        return self.end_from_trigger and not self.outlets and self.result_schema is None

    @staticmethod
    def _failing() -> AbstractContextManager[None]:
        # another try would find the same job as it is
        return fail_without_retry(RunGenJobFailedError, RunGenJobCanceledError)


class RunGenAppSensor(RunGenTask, BaseSensorOperator):
    """
    Wait until an app has a status; going by the counts of its workers where it names none.

    ``poke_interval``, ``timeout``, ``mode``, ``soft_fail`` and the rest are Airflow's own, and hold when
    deferred, too.

    :param app_id: the app; the connection's ``app_id`` when left out (templated).
    :param status: the status to wait for: ``RUNNING``, ``STOPPED``, … (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param deferrable: wait in the triggerer, without a worker slot.
    """

    template_fields: Sequence[str] = ("app_id", "status", "rungen_conn_id")

    #: What the last look found not to be so.
    late: RunGenAppTimeoutError | None = None

    def __init__(
        self,
        *,
        app_id: Any = None,
        status: str = "RUNNING",
        rungen_conn_id: str = RunGenHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.app_id = app_id
        self.status = status
        self.rungen_conn_id = rungen_conn_id
        self.deferrable = deferrable
        self._goal: AppTarget | None = None

    def execute(self, context: Context) -> Any:
        if not self.deferrable:
            with self._executing(), explain_timeout(self):
                return BaseSensorOperator.execute(self, context)
        deadline = deadline_of(self, time.time() + self.timeout)
        with apply_soft_fail(self):
            if not self.poke(context):
                self._defer(deadline)
        return None

    def poke(self, context: Context) -> bool:
        with fail_without_retry(), self._working(context) as hook:
            self._goal = self._goal or AppTarget(
                hook.resolve_app_id(self.app_id), normalize_status(self.status or "RUNNING")
            )
            if not self.links:
                self._link_to(context, hook, self._goal.app_id)
            try:
                # one look: the deadline is in the past
                hook.perform(wait_for_app(self._goal, poll_interval=1, deadline=0))
            except RunGenAppTimeoutError as error:
                self.late = error
                return False
            return True

    def _defer(self, deadline: float) -> NoReturn:
        from airflow_provider_rungen.triggers.rungen import RunGenAppTrigger

        goal, now = self._goal, time.time()
        assert goal is not None  # noqa: S101 - for the type checker; poke made it
        self.defer(
            trigger=RunGenAppTrigger(
                rungen_conn_id=self.rungen_conn_id,
                app_id=goal.app_id,
                status=goal.status,
                poll_interval=max(self.poke_interval, 0.1),
                deadline=deadline,
                deferred_at=now,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=max(deadline - now, 0)) + GRACE,
        )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """Go on after the wait in the triggerer."""
        with apply_soft_fail(self), fail_without_retry(), as_sensor_timeout(self):
            raise_for_event(event)


@contextmanager
def as_sensor_timeout(sensor: BaseSensorOperator) -> Iterator[None]:
    """Say in Airflow's way that a sensor's time is over."""
    try:
        yield
    except (RunGenJobTimeoutError, RunGenAppTimeoutError) as error:
        raise AirflowSensorTimeout(
            f"{error.message}: the sensor had {format_duration(sensor.timeout)}. Raise timeout if it needs "
            "longer."
        ) from error


@contextmanager
def explain_timeout(sensor: RunGenJobSensor | RunGenAppSensor) -> Iterator[None]:
    """Say it where Airflow's own loop says that a sensor's time is over, which knows no more than that."""
    try:
        yield
    except AirflowSensorTimeout as error:
        if sensor.late is None:
            raise
        with as_sensor_timeout(sensor):
            raise sensor.late from error


@contextmanager
def apply_soft_fail(sensor: BaseSensorOperator) -> Iterator[None]:
    """Apply ``soft_fail`` and ``never_fail`` where Airflow's own loop, which does it, is not run."""
    try:
        yield
    except (AirflowSensorTimeout, AirflowFailException) as error:
        if sensor.soft_fail or sensor.never_fail:
            raise AirflowSkipException(f"Skipping: {error}") from error
        raise
    except RunGenError as error:
        if sensor.never_fail:
            raise AirflowSkipException(f"Skipping: {error}") from error
        raise
