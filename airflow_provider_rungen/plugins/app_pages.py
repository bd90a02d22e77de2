"""Make the pages of the apps of connections."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.pages.models import AppPage, AppsPage, AppView, ConnectionApps
from airflow_provider_rungen.plugins import live, views
from airflow_provider_rungen.plugins.gather import NOT_ASKED, PAGE_TIME, explain
from airflow_provider_rungen.plugins.rows import shown_text
from airflow_provider_rungen.plugins.threads import charge, run_within
from airflow_provider_rungen.plugins.urls import Urls


async def apps_page(conn_ids: list[str], urls: Urls) -> AppsPage:
    """Return the page of all apps of some connections."""
    return AppsPage(
        connections=await asyncio.gather(*(_connection_apps(conn_id, urls) for conn_id in conn_ids))
    )


async def _connection_apps(conn_id: str, urls: Urls) -> ConnectionApps:
    apps, notice = await _ask(live.get_apps, conn_id)
    return ConnectionApps(
        conn_id=conn_id, apps=[_view(app, conn_id, urls) for app in apps or ()], notice=notice
    )


async def app_page(conn_id: str, app_id: str, urls: Urls, *, may_ask: bool = True) -> AppPage:
    """
    Return the page of an app.

    :param may_ask: whether the service may be asked, with this connection.
    """
    answer, notice = None, NOT_ASKED.format(conn_id=shown_text(conn_id, 200))
    if may_ask:
        answer, notice = await _ask(live.get_app, conn_id, app_id)
    return AppPage(app=_view(answer or App(id=app_id), conn_id, urls), conn_id=conn_id, notice=notice)


async def _ask(function: Any, *args: str) -> tuple[Any, str]:
    """Return the answer of the service, or why there is none."""
    charge("connection", args[0])
    try:
        return await run_within(PAGE_TIME, "service", partial(function, *args), PAGE_TIME), ""
    except Exception as error:
        return None, explain("service", error)


def _view(app: App, conn_id: str, urls: Urls) -> AppView:
    return AppView(
        app=app,
        is_billed=views.is_billed(app),
        gpu_tier=shown_text(str(app.configuration.get("gpu_tier") or ""), 50),
        href=urls.app_of_connection(conn_id, app.id),
    )
