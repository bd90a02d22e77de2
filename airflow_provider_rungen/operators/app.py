"""The operators that create and delete apps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from airflow_provider_rungen.checks import set_parameters
from airflow_provider_rungen.operators.base import RunGenBaseOperator
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.parameters import Duration, JsonObject, OperatorArguments


class RunGenCreateAppOperator(RunGenBaseOperator):
    """
    Create an app, and return its id.

    A retry creates no second app: it finds the app of the last attempt by its
    name. On Airflow 3.3 and later it knows that the app is its own.

    :param name: the app's name (templated).
    :param configuration: ``gpu_tier`` (``BASIC``, ``STANDARD`` or ``PERFORMANCE``), optionally
        ``active_workers``, which are billed from now on, and ``location`` (templated).
    :param workflow: ``model_url``, optionally ``tools``, such as ``{"loras": [{"id", "versionId",
        "downloadUrl", "name", "weight"}, …]}`` (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param description: what the app is for (templated).
    :param if_exists: when an app of this name exists already, ``use`` it as it is, or ``fail``.
    """

    template_fields: Sequence[str] = ("name", "configuration", "workflow", "description", "rungen_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"configuration": "json", "workflow": "json"}

    def __init__(
        self,
        *,
        name: str | XComArg,
        configuration: JsonObject,
        workflow: JsonObject,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        description: str | XComArg | None = None,
        if_exists: Literal["use", "fail"] = "use",
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        set_parameters(self, locals())

    def execute(self, context: Context) -> str:
        """
        Create the app, or find it.

        :return: the app's id.
        """
        from airflow_provider_rungen.execution.apps.creation import CreateAppRun, CreateOptions

        return self._start(CreateAppRun(self, context, CreateOptions.of(self))).execute()


class RunGenDeleteAppOperator(RunGenBaseOperator):
    """
    Delete an app for good: scale it to zero, wait until its workers are gone, delete it.

    An app that is already gone is fine.

    :param app_id: the app. It has to be named here (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param poll_interval: seconds between two polls.
    :param timeout: seconds that the app may take to stop.
    """

    def __init__(
        self,
        *,
        app_id: str | XComArg,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: Duration = 5,
        timeout: Duration = 600,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        set_parameters(self, locals())

    def execute(self, context: Context) -> None:
        """Delete the app."""
        from airflow_provider_rungen.execution.apps.creation import DeleteAppRun
        from airflow_provider_rungen.execution.task.options import RunOptions

        options = RunOptions.of(self)
        run = self._start(DeleteAppRun(self, context, options))
        run.execute(options.app_id or "", poll_interval=self.poll_interval, timeout=self.timeout)
