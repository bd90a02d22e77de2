"""Make the pages of the apps of connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any

from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.pages.models import AppPage, AppsPage, AppView, ConnectionApps
from airflow_provider_rungen.plugins import live, views
from airflow_provider_rungen.plugins.gather import NOT_ASKED, PAGE_TIME, explain
from airflow_provider_rungen.plugins.rows import shown_text
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.plugins.threads import charge, run_within
from airflow_provider_rungen.plugins.urls import Urls

# Of the tasks that use an app, on the overview and on its page.
_MAX_TASKS = 3
_MAX_TASKS_OF_APP = 20


async def apps_page(conn_ids: list[str], tasks: list[TaskRecord], urls: Urls) -> AppsPage:
    """
    Return the page of all apps of some connections.

    :param tasks: the tasks that used RunGen last, and that the user may see.
    """
    parts = await asyncio.gather(*(_connection_apps(conn_id, tasks, urls) for conn_id in conn_ids))
    return AppsPage(connections=parts)


async def _connection_apps(conn_id: str, tasks: list[TaskRecord], urls: Urls) -> ConnectionApps:
    apps, notice = await _ask(live.get_apps, conn_id)
    return ConnectionApps(
        conn_id=conn_id,
        apps=[_view(app, conn_id, tasks, urls, _MAX_TASKS) for app in apps or ()],
        notice=notice,
    )


async def app_page(
    conn_id: str, app_id: str, tasks: list[TaskRecord], urls: Urls, *, may_ask: bool = True
) -> AppPage:
    """
    Return the page of an app.

    :param tasks: the tasks that used RunGen last, and that the user may see.
    :param may_ask: whether the service may be asked, with this connection.
    """
    answer, notice = None, NOT_ASKED.format(conn_id=shown_text(conn_id, 200))
    if may_ask:
        answer, notice = await _ask(live.get_app, conn_id, app_id)
    app: App = answer or App(id=app_id)
    users = [task for task in tasks if _uses(task, conn_id, app_id)]
    scaling = next((task for task in users if views.up_since(task.scaled) is not None), None)
    return AppPage(
        app=_view(app, conn_id, tasks, urls, _MAX_TASKS_OF_APP),
        conn_id=conn_id,
        scaled_by=None if scaling is None or not app.active_workers else urls.link(scaling),
        bill=next((facts for task in users if (facts := views.figures(task.bill))), ()),
        notice=notice,
    )


async def _ask(function: Any, *args: str) -> tuple[Any, str]:
    """Return the answer of the service, or why there is none."""
    charge("connection", args[0])
    try:
        return await run_within(PAGE_TIME, "service", partial(function, *args), PAGE_TIME), ""
    except Exception as error:
        return None, explain("service", error)


def _view(app: App, conn_id: str, tasks: Iterable[TaskRecord], urls: Urls, limit: int) -> AppView:
    users = [task for task in tasks if _uses(task, conn_id, app.id)]
    latest: dict[tuple[str, str], TaskRecord] = {}
    for task in users:
        latest.setdefault((task.dag_id, task.task_id), task)
    since = (at for task in users if (at := views.up_since(task.scaled)) is not None)
    return AppView(
        app=app,
        is_billed=views.is_billed(app),
        gpu_tier=shown_text(str(app.configuration.get("gpu_tier") or ""), 50),
        up_since=next(since, None) if app.active_workers else None,
        used_by=[urls.link(task) for task in latest.values()][:limit],
        href=urls.app_of_connection(conn_id, app.id),
    )


def _uses(task: TaskRecord, conn_id: str, app_id: str) -> bool:
    return (task.page.connection, task.page.app) == (conn_id, app_id)
