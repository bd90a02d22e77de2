"""The operators that create, delete and scale apps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from airflow_provider_rungen.checks import set_parameters
from airflow_provider_rungen.operators.base import DEFAULT_DEFERRABLE, RunGenBaseOperator
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.apps.lifecycle import CreateAppRun, DeleteAppRun
    from airflow_provider_rungen.apps.scaling import ScaleRun
    from airflow_provider_rungen.parameters import Duration, JsonObject, OperatorArguments


class RunGenCreateAppOperator(RunGenBaseOperator):
    """
    Create an app, and return its id. An app of this name that exists is used as it is.

    :param name: the app's name (templated).
    :param configuration: ``gpu_tier`` (``BASIC``, ``STANDARD`` or ``PERFORMANCE``), optionally
        ``active_workers``, which are billed from now on, and ``location`` (templated).
    :param workflow: ``model_url``, optionally ``tools``, such as ``{"loras": [{"id", "versionId",
        "downloadUrl", "name", "weight"}, …]}`` (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param description: what the app is for (templated).
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
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        set_parameters(self, locals())

    def _make_run(self, context: Context) -> CreateAppRun:
        from airflow_provider_rungen.apps.lifecycle import CreateAppRun

        return CreateAppRun(self, context)


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

    def _make_run(self, context: Context) -> DeleteAppRun:
        from airflow_provider_rungen.apps.lifecycle import DeleteAppRun

        return DeleteAppRun(self, context)


class RunGenScaleAppOperator(RunGenBaseOperator):
    """
    Set an app's number of workers, and wait until it is ``RUNNING``. Return the app's id.

    RunGen bills the app from the first worker until the number is 0. `scaled_app` makes sure that it becomes
    0. If the task fails, is killed or is cleared while it waits, it sets the app to 0 before it ends.

    :param active_workers: the number of workers to have. 0 stops the app and its bill (templated).
    :param max_workers: the most workers to have, whatever ``active_workers`` says. No limit when ``None``.
    :param app_id: the app. The connection's ``app_id`` when left out (templated).
    :param only_if: how much there is to run: a number, or a boolean. With 0, ``False`` or ``None`` the app
        is left as it is (templated, or a task's ``.output``).
    :param rungen_conn_id: the Airflow connection (templated).
    :param deferrable: wait in the triggerer, without a worker slot.
    :param poll_interval: seconds between two polls.
    :param timeout: seconds that the app may take to be ``RUNNING``.
    """

    template_fields: Sequence[str] = ("app_id", "active_workers", "only_if", "rungen_conn_id")

    def __init__(
        self,
        *,
        active_workers: int | str | XComArg,
        max_workers: int | None = None,
        app_id: str | XComArg | None = None,
        only_if: bool | int | str | XComArg | None = True,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = DEFAULT_DEFERRABLE,
        poll_interval: Duration = 5,
        timeout: Duration = 1800,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        set_parameters(self, locals())

    def _make_run(self, context: Context) -> ScaleRun:
        from airflow_provider_rungen.apps.scaling import ScaleRun

        return ScaleRun(self, context)
