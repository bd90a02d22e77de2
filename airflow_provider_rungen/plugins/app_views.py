"""Find what the pages of apps show."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.pages.models import is_billed
from airflow_provider_rungen.plugins import live
from airflow_provider_rungen.plugins.gather import Gathering, ask_service
from airflow_provider_rungen.plugins.trouble import CENTS


async def app_page(conn_id: str, app_id: str) -> dict[str, Any] | None:
    """Return what the page of an app shows, or ``None`` if there is no such app."""
    app, notice = await ask_service(conn_id, live.find_app, app_id)
    if app is None and not notice:
        return None
    return {"app": app or App(id=app_id), "conn_id": conn_id, "task": None, "notice": notice}


async def app_page_of_task(gathering: Gathering) -> dict[str, Any]:
    """Return what the page of the app of a task shows."""
    task, app = gathering.task, await gathering.app()
    shown = app or App(id=task.page.app)
    return {"app": shown, "conn_id": task.page.connection, "task": task, "notice": gathering.notice}


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
            if (price := settings.price) and app.active_workers and not row["an_hour"]:
                amount = price.cost(Decimal(3600 * app.active_workers), CENTS)
                row["an_hour"] = f"{amount} {price.currency}"
                totals[price.currency] += amount
                priced += app.active_workers
    shown = sorted(
        rows.values(), key=lambda row: (not is_billed(row["app"]), row["app"].name or row["app"].id)
    )
    an_hour = [f"{amount} {currency}" for currency, amount in totals.items()]
    return {"rows": shown, "notices": notices, "an_hour": an_hour, "priced": priced}
