"""What is reported of an attempt: its first line in the log, its run's bill, and the view for its page."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.texts import format_count
from airflow_provider_rungen.store.records import Record, Status
from airflow_provider_rungen.work.limits import Quote

if TYPE_CHECKING:
    from airflow_provider_rungen.client.money import Price
    from airflow_provider_rungen.work.rows import Counts, Rows


def first_line(counts: Counts, quote: Quote, without_job: Mapping[str, int]) -> str:
    """Return what will be done about the rows, and what that may cost."""
    parts = {
        "equal to others": counts.equal,
        "known": counts.known,
        "running": counts.running,
        "being bought elsewhere (for up to 3 min)": counts.waiting,
        "given up": counts.given_up,
        "gone from storage": counts.gone,
        **without_job,
    }
    known = "".join(f", {count:,} {what}" for what, count in parts.items() if count)
    is_unknown = bool(counts.new and quote.price and not quote.seconds)
    time_is = ", for an unknown time" if is_unknown else ""
    return f"{format_count(counts.rows, 'row')}: {counts.new:,} to buy{quote}{time_is}{known}."


def bill(bought: Iterable[Record], by: str | None) -> dict[str, Any]:
    """
    Return the XCom ``usage``: what a run has bought, in all of its attempts.

    :param bought: its purchases. One without a job may have cost.
    :param by: the attempt that makes the bill, unless it collects what others bought.
    """
    jobs: dict[str, Record] = {}
    lost = 0
    for record in bought:
        lost += not record.job
        if record.job:
            jobs[record.job] = record
    seconds = [each.seconds for each in jobs.values() if each.seconds is not None]
    completed = sum(each.status is Status.COMPLETED for each in jobs.values())
    unfinished = sum(each.status is Status.OPEN for each in jobs.values())
    return {
        "jobs": len(jobs),
        "bought": sum(each.by == by for each in jobs.values()),
        "completed": completed,
        "failed": len(jobs) - completed - unfinished,
        "ran": sum(each > 0 for each in seconds),
        "canceled_before_run": sum(
            each.status is Status.CANCELED and each.seconds == 0 for each in jobs.values()
        ),
        "execution_seconds": round(sum(seconds), 3) if seconds or not jobs else None,
        **({"lost": lost} if lost else {}),
    }


def view_of(
    rows: Rows,
    used: Mapping[str, Any],
    price: Price | None,
    without_job: Mapping[str, int],
    ended: Sequence[Any],
) -> dict[str, Any]:
    """
    Return what the page shows while a task runs.

    :param used: see `bill`.
    :param without_job: how many rows are skipped, and how many do not fit.
    :param ended: the rows that ended last, as the results have them.
    """
    counts = rows.counts
    usage = dict(used)
    if price is not None and used["execution_seconds"] is not None:
        usage |= {"cost": float(price.cost(used["execution_seconds"])), "currency": price.currency}
    return {
        "at": time.time(),
        "counts": {
            "rows": counts.rows - counts.equal,
            "completed": counts.known + rows.completed,
            "failed": counts.given_up + rows.ended - rows.completed + without_job.get("refused", 0),
            "skipped": without_job.get("skipped", 0),
            "reused": counts.known,
            "running": len(rows.open),
            "waiting": len(rows.new) + len(rows.claimed),
        },
        "usage": usage,
        "ended": ended,
    }
