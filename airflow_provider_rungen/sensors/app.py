"""The sensor that waits for an app."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_rungen.checks import set_parameters
from airflow_provider_rungen.operators.base import DEFAULT_DEFERRABLE
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID
from airflow_provider_rungen.sensors.base import RunGenBaseSensor

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.apps.waiting import AppSensorRun
    from airflow_provider_rungen.parameters import SensorArguments


class RunGenAppSensor(RunGenBaseSensor):
    """
    Wait until an app has a status. If RunGen returns none, the counts of its workers decide.

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
        set_parameters(self, locals())

    def _make_run(self, context: Context) -> AppSensorRun:
        from airflow_provider_rungen.apps.waiting import AppSensorRun

        return AppSensorRun(self, context)
