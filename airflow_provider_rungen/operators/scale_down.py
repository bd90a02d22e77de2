"""The teardown of ``scaled_app``: it scales the app to zero that its run has scaled up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from airflow_provider_rungen.checks import set_parameters
from airflow_provider_rungen.operators.base import RunGenBaseOperator
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.parameters import Duration, OperatorArguments


class RunGenScaleDownOperator(RunGenBaseOperator):
    """
    The teardown of `scaled_app`: scale the app to zero, if this run has scaled it up, and push its ``bill``.

    :param app_id: the app. The connection's ``app_id`` when left out (templated).
    :param scale_up_task_id: the task that scaled it up.
    :param rungen_conn_id: the Airflow connection (templated).
    :param drain: wait until the app's own counters report no queued or running job.
    :param drain_timeout: seconds that may take. Then the app is scaled down all the same.
    :param keep_if_busy: leave the app up when its counters report jobs.
    :param price: what a worker costs, such as ``1.20 USD/h``. The connection's ``price`` when left out
        (templated).
    :param poll_interval: seconds between two polls.
    """

    template_fields: Sequence[str] = (*RunGenBaseOperator.template_fields, "price")

    #: For each task of the block that runs, collects or waits for jobs, the tasks that run them.
    jobs_of: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __init__(
        self,
        *,
        app_id: str | XComArg | None,
        scale_up_task_id: str,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        drain: bool = False,
        drain_timeout: Duration = 3600,
        keep_if_busy: bool = False,
        price: str | XComArg | None = None,
        poll_interval: Duration = 5,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        set_parameters(self, locals())

    def execute(self, context: Context) -> None:
        """
        Scale the app to zero, and see that it reports so.

        :raises RunGenAppError: it may still have workers, and be billed. A retry may always help.
        """
        from airflow_provider_rungen.execution.apps.scale_down import ScaleDownOptions, ScaleDownRun

        self._start(ScaleDownRun(self, context, ScaleDownOptions.of(self))).execute()
