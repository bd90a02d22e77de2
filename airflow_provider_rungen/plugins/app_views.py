"""Find what the pages of apps show."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.money import Cost, Price
from airflow_provider_rungen.pages.models import is_billed
from airflow_provider_rungen.plugins import live
from airflow_provider_rungen.plugins.gather import Gathering, ask_service
from airflow_provider_rungen.plugins.trouble import cost


async def app_page(conn_id: str, app_id: str) -> dict[str, Any] | None:
    """Return what the page of an app shows, or ``None`` if there is no such app."""
    found, notice = await ask_service(conn_id, live.find_app, app_id)
    settings, app = found or (None, None)
    if app is None and not notice:
        return None
    shown = _app(app or App(id=app_id), conn_id, settings.price if settings else None)
    return shown | {"task": None, "notice": notice}


async def app_page_of_task(gathering: Gathering) -> dict[str, Any]:
    """Return what the page of the app of a task shows."""
    page, app = gathering.task.page, await gathering.app()
    shown = _app(app or App(id=page.app), page.connection, page.price)
    return shown | {"task": gathering.task, "notice": gathering.notice}


def _app(app: App, conn_id: str, price: Price | str | None) -> dict[str, Any]:
    return {"app": app, "conn_id": conn_id, "an_hour": _an_hour(app, price)}


def _an_hour(app: App, price: Price | str | None) -> Cost | None:
    """Return what the workers of an app cost, if both are known."""
    return cost(str(price), 3600 * app.active_workers) if app.active_workers else None


async def apps_page(conn_ids: Sequence[str]) -> dict[str, Any]:
    """Return what the page of all apps shows: one row for each, billed first."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    notices, totals, priced = {}, defaultdict[str, Decimal](Decimal), 0
    answers = await asyncio.gather(*(ask_service(conn_id, live.get_apps) for conn_id in conn_ids))
    for conn_id, (found, notices[conn_id]) in zip(conn_ids, answers, strict=True):
        if found is None:
            continue
        settings, apps = found
        for app in apps:
            row = rows.setdefault((settings.base_url, app.id), {"app": app, "conn_ids": [], "an_hour": ""})
            row["conn_ids"].append(conn_id)
            if not row["an_hour"] and (paid := _an_hour(app, settings.price)):
                row["an_hour"] = paid
                totals[paid.currency] += paid.amount
                priced += app.active_workers or 0
    shown = sorted(
        rows.values(), key=lambda row: (not is_billed(row["app"]), row["app"].name or row["app"].id)
    )
    an_hour = [f"{amount} {currency}" for currency, amount in totals.items()]
    return {"rows": shown, "notices": notices, "an_hour": an_hour, "priced": priced}
