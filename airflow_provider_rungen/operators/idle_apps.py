"""The operator that scales idle apps to zero, for a DAG with a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_provider_rungen.checks import set_parameters
from airflow_provider_rungen.operators.base import RunGenBaseOperator
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.client.idleness import IdleEvent
    from airflow_provider_rungen.parameters import Duration, OperatorArguments


class RunGenScaleDownIdleAppsOperator(RunGenBaseOperator):
    """
    Scale apps to zero that are idle: poll them, wait ``idle_for``, and poll them again.

    An app is idle if it has workers and, at both polls, its counters report that no job is queued or running,
    none has ended in between, and no worker is running or initializing. An app whose counters are absent is
    never idle. Without an idle app at the first poll, the task ends at once. To watch apps without a worker
    slot, use `RunGenIdleAppTrigger`.

    Return a list of ``{"app_id", "idle_seconds", "active_workers", "scaled_down"}``, one for each app that
    was idle, with the number of workers before.

    :param app_ids: the apps that may be scaled to zero, and no others. A text is one app (templated).
    :param idle_for: seconds that an app must have been idle.
    :param scale_down: scale to zero. Otherwise, idle apps are only reported.
    :param rungen_conn_id: the Airflow connection (templated).
    """

    template_fields: Sequence[str] = ("app_ids", "rungen_conn_id")

    def __init__(
        self,
        *,
        app_ids: str | XComArg | Sequence[str],
        idle_for: Duration,
        scale_down: bool = True,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        set_parameters(self, locals())

    def execute(self, context: Context) -> list[IdleEvent]:
        """
        Scale down the apps that are idle.

        :return: what was idle.
        :raises RunGenAppError: an app may be idle, and billed. The others are dealt with.
        """
        from airflow_provider_rungen.execution.apps.idle_apps import IdleAppsOptions, IdleAppsRun

        return self._start(IdleAppsRun(self, context, IdleAppsOptions.of(self))).execute()
