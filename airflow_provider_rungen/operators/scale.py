"""The operator that sets how many workers an app has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.checks import set_parameters
from airflow_provider_rungen.exceptions import RunGenAppError
from airflow_provider_rungen.operators.base import DEFAULT_DEFERRABLE, RunGenBaseOperator
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.execution.apps.scale import ScaleRun
    from airflow_provider_rungen.parameters import Duration, OperatorArguments


class RunGenScaleAppOperator(RunGenBaseOperator):
    """
    Bring an app to a number of workers. Going up, wait until it is ``RUNNING``. Return the app's id.

    An app that has the number already is sent nothing. RunGen bills the app from the first worker until the
    number is 0. `scaled_app` makes sure that it gets there.

    :param active_workers: the number of workers to have. 0 stops the app and its bill (templated).
    :param app_id: the app. The connection's ``app_id`` when left out (templated).
    :param only_if: how much there is to run: a number, or a boolean. With 0, ``False`` or ``None`` the app
        is left as it is (templated, or a task's ``.output``).
    :param rungen_conn_id: the Airflow connection (templated).
    :param wait_until_running: going up, wait until the app is ``RUNNING``.
    :param deferrable: wait in the triggerer, without a worker slot.
    :param defer_after: seconds to poll on the worker first. A deferral takes longer than that.
    :param poll_interval: seconds between two polls.
    :param timeout: seconds that the app may take to be ``RUNNING``.
    :param scale_down_on_failure: restore the number of workers that the app had when it is not ``RUNNING`` in
        time, or when the task fails or is killed or cleared on the way.
    """

    template_fields: Sequence[str] = ("app_id", "active_workers", "only_if", "rungen_conn_id")

    def __init__(
        self,
        *,
        active_workers: int | str | XComArg,
        app_id: str | XComArg | None = None,
        only_if: bool | int | str | XComArg | None = True,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        wait_until_running: bool = True,
        deferrable: bool = DEFAULT_DEFERRABLE,
        defer_after: Duration = 5,
        poll_interval: Duration = 5,
        timeout: Duration = 1800,
        scale_down_on_failure: bool = True,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        set_parameters(self, locals())

    def execute(self, context: Context) -> str:
        """
        Set the number of workers, and wait for the app.

        :return: the app's id.
        """
        return self._scale_run(context).execute()

    def execute_complete(self, context: Context, event: dict[str, Any]) -> str:
        """
        Go on after the wait in the triggerer.

        :return: the app's id.
        """
        return self._scale_run(context).complete(event)

    def _end_deferral(self, context: Context, reason: str) -> None:
        from airflow_provider_rungen.execution.task.outcomes import error_to_json

        error = RunGenAppError(f"Airflow ended the wait for the app in the triggerer: {reason}")
        self._scale_run(context).complete({"error": error_to_json(error)})

    def _scale_run(self, context: Context) -> ScaleRun:
        from airflow_provider_rungen.execution.apps.scale import ScaleOptions, ScaleRun

        return self._start(ScaleRun(self, context, ScaleOptions.of(self), self._defer_for_app))
