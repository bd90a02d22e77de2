"""
The plugin of Airflow: the page of a task, and the overview of apps.

Every component of Airflow imports this module. What serves the pages is imported with the first request.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_provider_rungen._airflow import TABS_HAVE_SCOPES
from airflow_provider_rungen.links import PREFIX, are_pages_enabled, mount_path

# Airflow's names for the classes whose tasks have a page.
OPERATORS = (
    "RunGenCancelJobOperator",
    "RunGenCollectResultsOperator",
    "RunGenCreateAppOperator",
    "RunGenDecoratedOperator",
    "RunGenDeleteAppOperator",
    "RunGenPlanTableOperator",
    "RunGenRunJobOperator",
    "RunGenRunTableOperator",
    "RunGenScaleAppOperator",
    "RunGenScaleDownOperator",
    "RunGenTableDecoratedOperator",
    "RunGenAppSensor",
    "RunGenJobSensor",
)


class LazyApp:
    """The ASGI application of the pages, which is made when a page is opened."""

    _app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            # in a thread: the imports take a second
            from asyncio import to_thread

            LazyApp._app = await to_thread(_make_app)
        await self._app(scope, receive, send)


def _make_app() -> Any:
    from airflow_provider_rungen.pages.routes import make_app

    return make_app()


def _views() -> list[dict[str, Any]]:
    """Return the entry in the navigation, and the tab where Airflow can limit it to tasks of RunGen."""
    views: list[dict[str, Any]] = [
        {"name": "RunGen", "href": f"{mount_path()}/", "destination": "nav", "url_route": "rungen"}
    ]
    if TABS_HAVE_SCOPES:
        page = "task/{DAG_ID}/{RUN_ID}/{TASK_ID}?map_index={MAP_INDEX}"
        views.append(
            {
                "name": "RunGen results",
                "href": f"{mount_path()}/{page}",
                "destination": "task_instance",
                "url_route": "rungen_results",
                "applies_to": {"operator": list(OPERATORS)},
            }
        )
    return views


class RunGenPlugin(AirflowPlugin):
    """The pages, their navigation entry, and their tab. Empty with ``pages = False``."""

    name = "rungen"
    fastapi_apps: list[Any] = []  # noqa: RUF012 - as Airflow declares them
    external_views: list[Any] = []  # noqa: RUF012 - likewise

    if are_pages_enabled():
        fastapi_apps = [{"name": "RunGen", "app": LazyApp(), "url_prefix": PREFIX}]
        external_views = _views()
