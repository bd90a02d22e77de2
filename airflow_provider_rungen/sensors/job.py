"""The sensor that waits for jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_rungen.checks import set_parameters
from airflow_provider_rungen.operators.base import (
    DEFAULT_DEFERRABLE,
    JOB_LINKS,
    find_job_sources,
    follow_job_sources,
)
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID
from airflow_provider_rungen.sensors.base import RunGenBaseSensor

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.parameters import Duration, JobIds, OutputSource, SensorArguments
    from airflow_provider_rungen.work.known_jobs import JobSensorRun


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
    :param queued_timeout: seconds that jobs may wait while the app has no worker; ``None`` for no limit.
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
        queued_timeout: Duration | None = 900,
        cancel_on_kill: bool = False,
        output_type: OutputSource | None = None,
        **kwargs: Unpack[SensorArguments],
    ) -> None:
        super().__init__(**cast("Any", kwargs))
        set_parameters(self, locals())
        self.job_sources = find_job_sources(job_id)

    def _make_run(self, context: Context) -> JobSensorRun:
        from airflow_provider_rungen.work.known_jobs import JobSensorRun

        follow_job_sources(self, context)
        return JobSensorRun(self, context)

    def _get_next_poke_interval(
        self, started_at: Any, run_duration: Callable[[], float], *args: Any, **kwargs: Any
    ) -> float:
        """Poke no sooner than the service asked for, in each mode, but no later than the time-out."""
        interval: float = super()._get_next_poke_interval(started_at, run_duration, *args, **kwargs)
        asked = cast("JobSensorRun", self._run).not_before - time.time() if self._run else 0.0
        return max(interval, min(asked, self.timeout - run_duration()))
