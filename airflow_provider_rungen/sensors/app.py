"""The sensor that waits for an app."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_rungen._airflow import BaseSensorOperator
from airflow_provider_rungen.operators.base import DEFAULT_DEFERRABLE, RunGenBaseOperator
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID
from airflow_provider_rungen.sensors.base import (
    apply_soft_fail,
    as_sensor_timeout,
    explain_timeout,
    poke_until_over,
)

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.exceptions import RunGenAppTimeoutError
    from airflow_provider_rungen.execution.apps.app_sensor import AppSensorRun
    from airflow_provider_rungen.parameters import SensorArguments


class RunGenAppSensor(RunGenBaseOperator, BaseSensorOperator):
    """
    Wait until an app has a status. Where the app names none, the counts of its workers decide.

    ``poke_interval``, ``timeout``, ``mode``, ``soft_fail`` and the rest are Airflow's own. They hold when
    deferred, too.

    :param app_id: the app. The connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param status: the status to wait for: ``RUNNING``, ``STOPPED``, … (templated).
    :param deferrable: wait in the triggerer, without a worker slot.
    """

    template_fields: Sequence[str] = ("app_id", "status", "rungen_conn_id")

    def __init__(
        self,
        *,
        app_id: str | XComArg | None = None,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        status: str = "RUNNING",
        deferrable: bool = DEFAULT_DEFERRABLE,
        **kwargs: Unpack[SensorArguments],
    ) -> None:
        super().__init__(**cast("Any", kwargs))
        self.app_id = app_id
        self.rungen_conn_id = rungen_conn_id
        self.status = status
        self.deferrable = deferrable

    @property
    def late(self) -> RunGenAppTimeoutError | None:
        """What the last poke found not to be so."""
        return None if self._run is None else cast("AppSensorRun", self._run).late

    def execute(self, context: Context) -> Any:
        """Wait for the app."""
        run = self._sensor_run(context)
        if not self.deferrable:
            with run.naming_jobs(), run.guard.working(), explain_timeout(self):
                return poke_until_over(self, context)
        with apply_soft_fail(self), as_sensor_timeout(self):
            run.wait(self.timeout, max(self.poke_interval, 0.1), self._defer_for_app)
        return None

    def poke(self, context: Context) -> bool:
        """Poll the app once, and return whether it has the status."""
        run = cast("AppSensorRun", self._run) if self._run else self._sensor_run(context)
        return run.poke()

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """Go on after the wait in the triggerer."""
        with apply_soft_fail(self), as_sensor_timeout(self):
            self._sensor_run(context).complete(event)

    def _sensor_run(self, context: Context) -> AppSensorRun:
        from airflow_provider_rungen.execution.apps.app_sensor import AppSensorRun
        from airflow_provider_rungen.execution.task.options import RunOptions

        return self._start(AppSensorRun(self, context, RunOptions.of(self), self.status))
