"""What the page of a task shows: from Airflow, and from what the task wrote to its store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from airflow_provider_rungen.client.money import parse_price
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.outputs.storage import Storage, missing_package
from airflow_provider_rungen.pages.airflow_db import NotNamedError, Place, TaskRecord
from airflow_provider_rungen.pages.files import folder_of, store_of
from airflow_provider_rungen.pages.results_file import PAGE_ROWS, Filter, Page, read_page
from airflow_provider_rungen.pages.threads import TooSlowError, run_within
from airflow_provider_rungen.results.sheet import sheet_uri
from airflow_provider_rungen.results.shown import shown, shown_row, shown_usage, to_number
from airflow_provider_rungen.results.values import without_connection

log = logging.getLogger(__name__)

T = TypeVar("T")
# Seconds for one question to the store. One page asks twice at most, after Airflow.
_STORE_TIME = 2.2
_VIEW = re.compile(r"\.rungen/runs/[^/.][^/]*/[^/.][^/]*\.json")
_MAX_VIEW = 32 << 20
# What a row shows of the value that a task with one job returns.
_STORED = ("label", "outputs", "result")
_ENDS = ("completed", "failed")
_FAILED = ("failed", "up_for_retry", "upstream_failed")
_NO_REASON = (
    "The task did not report why: a user marked it, its worker was lost, or it failed before it began."
)
_SEE_LOG = "See its log in Airflow. A clear buys only what did not complete"


class Written(NamedTuple):
    """
    What a task wrote, as far as one page needs it.

    :param view: the view of the attempt; empty without one.
    :param page: rows of its results; ``None`` while there are none.
    :param sheet: the URI of the contact sheet; empty without one.
    """

    view: Mapping[str, Any]
    page: Page | None
    sheet: str


@dataclass
class Reader:
    """
    Reads what a task wrote.

    :param task: the task.
    :param notices: what is missing on the page, and why.
    """

    task: TaskRecord
    notices: list[str] = field(default_factory=list)

    async def read(self, cursor: int, which: Filter) -> Written:
        """Return what the task wrote: the view while it runs, and then its results, too."""
        task = self.task
        results = "" if task.is_moving else task.results
        if results:
            view, (page, sheet) = await asyncio.gather(self._view(), self._rows(results, cursor, which))
            return Written(view, page, sheet)
        view, page, sheet = await self._view(), None, ""
        # an attempt that was killed has a view; whatever an earlier one wrote is older
        if not view and not task.is_moving and task.page.results:
            page, sheet = await self._rows(task.page.results, cursor, which)
        return Written(view, page, sheet)

    async def _view(self) -> Mapping[str, Any]:
        page = self.task.page
        if not page.destination or not _VIEW.fullmatch(page.view):
            return {}
        found = await self._ask(page.destination, _read_view, page.view)
        return found or {}

    async def _rows(self, uri: str, cursor: int, which: Filter) -> tuple[Page | None, str]:
        return await self._ask(uri, _read_results, cursor, which) or (None, "")

    async def _ask(self, uri: str, function: Callable[..., T], *args: Any) -> T | None:
        try:
            place = self.task.find_place(uri)
            if install := missing_package(place.root):
                self.notices.append(f"Rows are missing: {install} where the API server runs.")
                return None
            return await run_within(_STORE_TIME, f"store {store_of(uri)}", function, place, *args)
        except Exception as error:
            # a task that was killed may not have come so far as to write results
            if self.task.results or not isinstance(error, FileNotFoundError):
                self.notices.append(_explain(error))
            return None


def _explain(error: Exception) -> str:
    if isinstance(error, TooSlowError):
        return "The storage did not answer in time, so that rows and counts are missing."
    if isinstance(error, FileNotFoundError):
        return "The results file is not there: it was moved or removed."
    if isinstance(error, NotNamedError):
        return str(error)
    if isinstance(error, RunGenError):
        return f"Rows are missing: {shown(str(error))}"
    log.warning("The storage could not be asked for a page (%s)", type(error).__name__)
    return f"Rows are missing: the storage could not be read ({type(error).__name__})."


def _read_view(place: Place, path: str) -> Mapping[str, Any]:
    folder, _, name = f"{place.path}/{path}".removeprefix("/").rpartition("/")
    content = Storage(place.root, read_only=True).read_all([(folder, name)], _MAX_VIEW).get((folder, name))
    if content is None:
        return {}
    found = json.loads(content)
    return found if isinstance(found, dict) else {}


def _read_results(place: Place, cursor: int, which: Filter) -> tuple[Page, str]:
    root, folder, name = folder_of(place)
    storage = Storage(root, "results", read_only=True)
    with storage.opened(folder, name) as file:
        page = read_page(file, name, cursor, which)
    sheet = sheet_uri(name)
    has_sheet = not cursor and storage.sizes_of([(folder, sheet)])
    return page, storage.uri_of(folder, sheet) if has_sheet else ""


async def task_page(task: TaskRecord, url_of_file: Callable[[str], str], cursor: int, which: Filter) -> Any:
    """
    Return what the page of a task shows, as JSON has it.

    :param url_of_file: returns where an output is served, given its path below the destination.
    :param cursor: where the rows begin: 0, or the ``next`` of another answer.
    :param which: which rows.
    """
    reader = Reader(task, [*task.notices])
    written = await reader.read(cursor, which)
    page, root = task.page, f"{without_connection(task.page.destination).removesuffix('/')}/"

    def url_of(uri: str) -> str | None:
        return url_of_file(uri.removeprefix(root)) if page.destination and uri.startswith(root) else None

    if "down_at" in task.usage and task.usage["down_at"] is None:
        reader.notices.append(f"The workers of app {shown(page.app)} may still be up, and billed.")
    rows, following = _rows(task, written, cursor, which)
    usage = _usage(task, written.view)
    failed = _failed(task, usage["text"])
    has_results = written.page is not None
    # a task that has failed early names results that it has not written
    results = task.results or (page.results if has_results or task.is_moving else "")
    return {
        "state": task.state,
        "is_moving": task.is_moving,
        "failed": failed,
        "progress": _progress(task, written),
        "hint": shown(written.view.get("hint") or "") if task.is_moving else "",
        "at": to_number(written.view.get("at")) if task.is_moving else None,
        "duration": task.duration,
        "usage": usage,
        "about": {
            "dag": task.dag_id,
            "run": task.run_id,
            "task": task.task_id,
            "map_index": task.map_index,
            "attempt": task.try_number,
            "connection": shown(page.connection),
            "app": shown(page.app),
            "results": shown(results, 2000),
            "has_results": has_results,
            "sheet": shown(written.sheet, 2000),
            "destination": shown(page.destination, 2000),
        },
        "notices": list(dict.fromkeys(reader.notices)),
        "rows": [shown_row(row, page.key, url_of) for row in rows],
        "next": following,
    }


def _rows(
    task: TaskRecord, written: Written, cursor: int, which: Filter
) -> tuple[Sequence[Mapping[str, Any]], int | None]:
    """Return the rows of a page, and the cursor of the next one."""
    if written.page is not None:
        return written.page
    if written.view:
        ended = written.view.get("ended")
        ended = [row for row in ended if isinstance(row, dict)] if isinstance(ended, list) else []
        named = [dict(zip(task.page.key, _values(row.get("key")), strict=False)) | row for row in ended]
        rows = [{k: v for k, v in row.items() if k != "key" or k in task.page.key} for row in named]
        return [row for row in rows if which.matches(row)][:PAGE_ROWS], None
    some = task.job_ids[cursor : cursor + PAGE_ROWS]
    jobs = task.usage.get("jobs")
    ends = [name for name in _ENDS if jobs and task.usage.get(name) == jobs]
    state = "" if task.is_moving else next(iter(ends), "unknown")
    stored = _stored(task)
    rows = [{"status": state, "job_id": job_id, "input": task.input, **stored} for job_id in some]
    end = cursor + len(some)
    return [row for row in rows if which.matches(row)], end if end < len(task.job_ids) else None


def _stored(task: TaskRecord) -> dict[str, Any]:
    """Return what a task with one job has stored."""
    value = task.return_value
    files = value.get("outputs")
    files = [file.get("uri") for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    outputs = [without_connection(uri) for uri in files if isinstance(uri, str)]
    return {name: each for name, each in {**value, "outputs": outputs}.items() if name in _STORED}


def _values(key: Any) -> Sequence[Any]:
    return key if isinstance(key, list) else [] if key is None else [key]


def _progress(task: TaskRecord, written: Written) -> dict[str, int] | None:
    """Return how many rows ended, and how; ``None`` if that is not known."""
    counts = written.view.get("counts")
    counts = counts if isinstance(counts, dict) else {}
    if task.results and "rows" in task.return_value:  # the view does not count rows that are equal to others
        counts = task.return_value
    names = ("completed", "failed", "skipped", "reused", "running", "queued", "waiting")
    found = {name: int(to_number(counts.get(name)) or 0) for name in names}
    total = int(to_number(counts.get("rows")) or 0)
    if not counts:
        total = max(len(task.job_ids), task.page.rows)
        found["completed"], found["failed"] = (int(to_number(task.usage.get(name)) or 0) for name in _ENDS)
        found["running"] = len(task.job_ids) if task.is_moving else 0
        # an attempt that was killed does not know how its jobs ended
        if not task.is_moving and sum(found.values()) < (to_number(task.usage.get("jobs")) or 0):
            return None
    found["queued"] = min(found["queued"], found["running"])
    found["running"] -= found["queued"]
    ended = found["completed"] + found["failed"] + found["skipped"]
    # what was not bought has not ended, and does not run any more
    if not task.is_moving:
        found["running"] = found["queued"] = found["waiting"] = 0
    return {"total": max(total, ended), "ended": ended, **found} if total else None


def _usage(task: TaskRecord, view: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was bought, and what it cost, as far as that is known."""
    of_view = view.get("usage")
    used = task.usage or (of_view if isinstance(of_view, dict) else {})
    # jobs run for seconds, and the workers of an app are paid for seconds
    seconds = to_number(used.get("execution_seconds", used.get("seconds")))
    cost, currency = to_number(used.get("cost")), used.get("currency")
    with contextlib.suppress(ValueError, ArithmeticError):
        if cost is None and seconds is not None:
            price = parse_price(task.page.price)
            cost, currency = float(price.cost(seconds)), price.currency
    names = ("jobs", "lost", "bought", "ran", "canceled_before_run")
    counts = {name: int(count) for name in names if (count := to_number(used.get(name))) is not None}
    return shown_usage(counts.get("jobs"), seconds, cost, shown(currency or "", 10), counts)


def _failed(task: TaskRecord, spent: str) -> dict[str, Any] | None:
    """Return why the last attempt that ended failed, unless the task has succeeded since."""
    failure, has_failed = task.failure, task.state in _FAILED
    if task.state in ("success", "skipped") or (failure is None and not has_failed):
        return None
    is_reported = failure is not None and (not has_failed or failure.try_number >= task.try_number)
    why, do = (failure.error, failure.hint) if failure and is_reported else (_NO_REASON, _SEE_LOG)
    if failure and not is_reported:
        why = f"{why} Attempt {failure.try_number} failed: {failure.error}"
    if failure and is_reported and failure.still_billing:
        still = f"Job {', '.join(failure.still_billing)} may still run, and be billed"
        spent = f"{spent}. {still}" if spent else still
    return {
        "why": shown(why, 2000),
        "do": shown(do, 2000),
        "cost": shown(spent, 1000),
        "attempt": failure.try_number if failure and is_reported else task.try_number,
        "connection": shown(task.page.connection),
        "app": shown(task.page.app),
    }
