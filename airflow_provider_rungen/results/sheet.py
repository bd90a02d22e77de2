"""Write the contact sheet of a table beside its results: the page of the task as one file."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.results.rows import ResultRow, Status
from airflow_provider_rungen.results.shown import shown_row, shown_usage
from airflow_provider_rungen.results.values import without_connection
from airflow_provider_rungen.schemas.output_type import FIXED_COLUMNS

log = logging.getLogger(__name__)

#: So many rows are shown, the first.
MAX_ROWS = 1000


def sheet_uri(results: str) -> str:
    """Return the URI of the contact sheet of a results table."""
    return f"{results.rpartition('.')[0]}.html"


def write_sheet(
    uri: str,
    rows: Iterable[ResultRow],
    summary: Mapping[str, Any],
    *,
    key: Sequence[str],
    ti: Any,
    app_id: str,
) -> None:
    """
    Write the sheet, if there are pictures. A failure is logged and ends nothing: the outputs are stored.

    :param uri: the results table.
    :param rows: its rows. No more are taken than are shown.
    :param summary: what the task returns of it: see `ResultCounts.summary`.
    :param key: the columns that identify a row.
    :param ti: the task instance.
    """
    folder, _, name = sheet_uri(str(uri)).rpartition("/")
    try:
        shown = list(_shown(rows, key, without_connection(folder)))
        if not any(file["kind"] == "image" for row in shown for file in row["outputs"]):
            return
        content = _html(_data(shown, summary, ti, app_id)).encode()
        storage = Storage(folder, "results")
        # as a file, from whose name a store derives the content type
        with storage.incoming("", name) as (file, path):
            file.write(content)
            storage.put(file, path, "", name)
    except (RunGenError, OSError) as error:
        reason = error.message if isinstance(error, RunGenError) else type(error).__name__
        log.warning("No contact sheet: %s. The outputs are stored", reason)
        return
    log.info("Wrote a contact sheet of %d rows to %s", len(shown), clean_text(f"{folder}/{name}"))


def _shown(rows: Iterable[ResultRow], key: Sequence[str], folder: str) -> Iterator[dict[str, Any]]:
    count = 0
    for row in rows:
        if row.status is Status.SKIPPED:
            continue
        values = row.written(row.values, [*FIXED_COLUMNS, *row.typed])
        yield shown_row(values, key, lambda uri: relative(uri, folder))
        count += 1
        if count == MAX_ROWS:
            return


def relative(uri: str, folder: str) -> str | None:
    """Return where a file is from a folder, as a relative URL; ``None`` if it is in another store."""
    target, here = (each.removeprefix("file://").split("/") for each in (uri, folder))
    same = 0
    while same < min(len(target), len(here)) and target[same] == here[same]:
        same += 1
    if same < (3 if "://" in uri.removeprefix("file://") else 1):
        return None
    # a colon before the first slash would be that of a scheme
    return "/".join([*[".."] * (len(here) - same), *map(quote, target[same:])]).replace(":", "%3A")


def _data(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], ti: Any, app_id: str
) -> dict[str, Any]:
    """Return what the page asks the API for: see `pages.task_view`."""
    map_index = -1 if ti.map_index is None else ti.map_index
    counts = {name: summary[name] for name in ("completed", "failed", "skipped", "reused")}
    notice = f"Only the first {len(rows):,} rows are shown." if len(rows) == MAX_ROWS else ""
    return {
        "state": "",
        "failed": None,
        "progress": {"total": summary["rows"], "ended": summary["rows"], "running": 0, **counts},
        "usage": shown_usage(
            summary["jobs"],
            summary["execution_seconds"],
            summary.get("cost"),
            summary.get("currency", ""),
        ),
        "about": {
            "dag": ti.dag_id,
            "run": ti.run_id,
            "task": ti.task_id,
            "map_index": map_index,
            "app": app_id,
            "results": redact(str(summary["results"])),
        },
        "notices": [notice] if notice else [],
        "rows": rows,
        "next": None,
    }


def _html(data: Mapping[str, Any]) -> str:
    """Return the page with its style, its script and its data. A policy lets nothing else run."""
    static = files("airflow_provider_rungen.pages").joinpath("static")
    page, style, script = (static.joinpath(name).read_text("utf-8") for name in _STATIC)
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "img-src 'self' file:; media-src 'self' file:; base-uri 'none'; form-action 'none'"
    )
    # no text in it ends the element, or begins a comment
    text = json.dumps(data, default=str).replace("<", "\\u003c")
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>'
    body = f'<script type="application/json" id="data">{text}</script>\n<script>{script}</script>'
    page = re.sub(r"<script\b[^>]*></script>\n?", "", page)
    page = re.sub(r"<link\b[^>]*>", lambda _: head, page, count=1).replace("{root}", "")
    return page.replace("</body>", f"{body}\n</body>")


_STATIC = ("page.html", "style.css", "page.js")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
