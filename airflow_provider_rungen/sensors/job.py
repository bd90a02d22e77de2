"""The sensor that waits for jobs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_rungen._airflow import HAS_TASK_STATE
from airflow_provider_rungen.checks import set_parameters
from airflow_provider_rungen.operators.base import (
    DEFAULT_DEFERRABLE,
    DEFERRAL_GRACE,
    JOB_LINKS,
    find_job_sources,
    follow_job_sources,
)
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID
from airflow_provider_rungen.sensors.base import RunGenBaseSensor

if TYPE_CHECKING:
    from typing import Unpack

    from airflow.triggers.base import StartTriggerArgs

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.execution.known_jobs import JobSensorRun
    from airflow_provider_rungen.parameters import Duration, JobIds, OutputSource, SensorArguments


class RunGenJobSensor(RunGenBaseSensor):
    """
    Wait until jobs have ended. Fail if one failed or was canceled.

    ``poke_interval``, ``timeout``, ``mode``, ``soft_fail`` and the rest are Airflow's own. They hold when
    deferred, too.

    :param job_id: one id, a list, or the ``.output`` of a task (templated). The ``None`` that stands for an
        input without a job is skipped.
    :param app_id: the app of the jobs (templated). When left out, that of the task whose ``.output`` is
        given, or else the connection's ``app_id``.
    :param rungen_conn_id: the Airflow connection (templated). When left out, that of the task whose
        ``.output`` is given.
    :param deferrable: wait in the triggerer, without a worker slot.
    :param defer_after: seconds to poll on the worker first. A deferral takes longer than that.
    :param end_from_trigger: let a success end in the triggerer, without starting a worker again, where
        Airflow can (3.3 and later; not with ``outlets`` or ``output_type``, nor where a plugin has
        listeners).
    :param start_from_trigger: begin in the triggerer, without starting a worker (Airflow 3.3 and later; where
        it cannot, and when mapped, the sensor defers as usual). Together with ``end_from_trigger`` a success
        needs no worker at all. Only with ``deferrable``.
    :param queued_timeout: seconds that jobs may stay queued while none starts. No limit when left out.
    :param cancel_on_kill: cancel the jobs when the task is killed. Off by default, since a task that runs
        again would find them canceled.
    :param output_type: what every result has to be: a class that pydantic knows, or a JSON Schema (a dict,
        the path or URI of a file, or the name of a schema that comes with the package, such as
        ``flux-schnell``). The first result that does not fit fails the sensor permanently.
    """

    template_fields: Sequence[str] = ("app_id", "job_id", "rungen_conn_id")
    operator_extra_links = JOB_LINKS

    #: The tasks that ran its jobs, as far as ``.output`` tells.
    job_sources: Sequence[str] = ()

    def __init__(
        self,
        *,
        job_id: JobIds,
        app_id: str | XComArg | None = None,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = DEFAULT_DEFERRABLE,
        defer_after: Duration = 5,
        end_from_trigger: bool = False,
        start_from_trigger: bool = False,
        queued_timeout: Duration | None = None,
        cancel_on_kill: bool = False,
        output_type: OutputSource | None = None,
        **kwargs: Unpack[SensorArguments],
    ) -> None:
        super().__init__(**cast("Any", kwargs))
        set_parameters(self, locals())
        self.job_sources = find_job_sources(job_id)
        if start_from_trigger and not deferrable:
            raise ValueError("start_from_trigger needs deferrable=True")
        # on the instance: Airflow cannot map a class that sets it
        self.start_from_trigger = start_from_trigger and HAS_TASK_STATE
        if self.start_from_trigger:
            self.start_trigger_args = self._start_arguments()

    def _make_run(self, context: Context) -> JobSensorRun:
        from airflow_provider_rungen.execution.known_jobs import JobSensorRun

        follow_job_sources(self, context)
        return JobSensorRun(self, context)

    def _get_next_poke_interval(
        self, started_at: Any, run_duration: Callable[[], float], *args: Any, **kwargs: Any
    ) -> float:
        """Poke no sooner than the service asked for, in each mode, but no later than the time-out."""
        interval: float = super()._get_next_poke_interval(started_at, run_duration, *args, **kwargs)
        asked = cast("JobSensorRun", self._run).not_before - time.time() if self._run else 0.0
        return max(interval, min(asked, self.timeout - run_duration()))

    # --- start_from_trigger ---

    def _start_arguments(self) -> StartTriggerArgs:
        """Return the arguments with which Airflow begins in the triggerer."""
        from airflow.triggers.base import StartTriggerArgs

        ends = self.end_from_trigger and not self.outlets and self.output_type is None
        return StartTriggerArgs(
            trigger_cls="airflow_provider_rungen.triggers.RunGenJobTrigger",
            # the triggerer renders those with the names of the sensor's template fields
            trigger_kwargs={
                "rungen_conn_id": self._origin("rungen_conn_id", DEFAULT_CONN_ID, "connection"),
                "app_id": self._origin("app_id", None, "app"),
                "job_id": self._as_template("job_id", self.job_id),
                "poll_interval": self.poll_interval,
                "timeout": self.timeout,
                "queued_timeout": self.queued_timeout,
                "cancel_on_kill": self.cancel_on_kill,
                "end_from_trigger": ends,
            },
            next_method="execute_complete",
            timeout=timedelta(seconds=self.timeout) + DEFERRAL_GRACE,
        )

    def _origin(self, name: str, default: Any, key: str) -> Any:
        """
        Return the app or the connection; if left out, that of the task that ran the jobs.

        :param key: its key in the XCom of that task.
        """
        from airflow.sdk.definitions.xcom_arg import PlainXComArg

        from airflow_provider_rungen.execution.task.xcom_keys import PAGE_KEY

        given = getattr(self, name)
        if given == default and self.job_sources and isinstance(self.job_id, PlainXComArg):
            record = self._as_template(name, PlainXComArg(self.job_id.operator, key=PAGE_KEY))
            return record.replace(" }}", f"[{key!r}] }}}}")
        return self._as_template(name, given)

    def _as_template(self, name: str, value: Any) -> Any:
        """
        Return a value as a template, since the triggerer renders templates, but no ``.output``.

        :raises ValueError: it cannot be rendered there.
        """
        if isinstance(value, list | tuple):
            return [self._as_template(name, item) for item in value]
        if value is None:
            return None
        if isinstance(value, str):
            pulls = re.findall(r"xcom_pull\(((?:[^()]|\([^()]*\))*)", value)
            if any("map_indexes" not in arguments for arguments in pulls):
                raise ValueError(
                    f"{name} of {self.task_id}: with start_from_trigger, xcom_pull needs map_indexes=-1 (or "
                    "a mapped task's index), without which Airflow waits in the triggerer without end"
                )
            return value
        from airflow.sdk.definitions.xcom_arg import PlainXComArg

        source = value.operator if isinstance(value, PlainXComArg) else None
        if source and not source.is_mapped:
            group = source.get_closest_mapped_task_group()
            if group in (None, self.get_closest_mapped_task_group()):
                index = "-1" if group is None else "ti.map_index"
                where = f"task_ids={source.task_id!r}, key={value.key!r}, map_indexes={index}"
                return f"{{{{ ti.xcom_pull({where}) }}}}"
        raise ValueError(
            f"{name} of {self.task_id}: with start_from_trigger, it must be text, a template, or the .output "
            "of one task that is not mapped, which is all that Airflow can render in the triggerer"
        )
