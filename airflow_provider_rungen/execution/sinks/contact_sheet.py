"""
Write a contact sheet beside stored pictures: ``index.html``, and further pages for many jobs.

Each of the tasks of an ``expand`` has one of its own: ``index-{map_index}.html``.

The links of a sheet are relative, so that it works wherever the folder is opened, and holds no signed URL.
``index.html`` is written last, and the names of the other pages are new each time. So a reader, and whoever
comes after an attempt that was killed, sees one whole sheet: the earlier or the later one.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.table.result_rows import (
    ResultCounts,
    ResultRow,
    Status,
    without_connection,
)
from airflow_provider_rungen.pages.models import (
    ContactSheet,
    JobView,
    OutputFile,
    Pager,
    Progress,
    find_facts,
    find_prompt,
    find_text,
    group_failures,
)
from airflow_provider_rungen.pages.output_kinds import guess

log = logging.getLogger(__name__)

JOBS_A_PAGE = 200
#: So many jobs are shown, the first. All are counted.
MAX_JOBS = 10_000
_MAX_VALUE_CHARS = 200


def describe_job(input: Any, outputs: Sequence[Mapping[str, Any]], result: Any = None) -> dict[str, Any]:
    """Return what a sheet shows of a job, besides what is in the results table."""
    sides = [input.get(name) for name in ("width", "height")] if isinstance(input, Mapping) else []
    return {
        "prompt": find_prompt(input),
        "facts": find_facts(input),
        "sides": sides if all(type(side) is int and side > 0 for side in sides) else [],
        "text": None if outputs else find_text(result),
        "files": [[output.get("size"), output.get("content_type")] for output in outputs],
    }


class SheetWriter:
    """
    Writes the contact sheet of one attempt.

    :param destination: the folder of the outputs.
    :param key: the columns that identify a row.
    :raises RunGenInputError: the destination cannot be used.
    """

    def __init__(self, destination: Any, key: Sequence[str] = ()) -> None:
        self._storage = Storage(destination)
        self._prefix = without_connection(f"{str(destination).removesuffix('/')}/")
        self._key = key
        self._shown = redact(str(destination))

    def write(self, rows: Callable[[], Iterable[ResultRow]], ti: Any, app_id: str) -> None:
        """
        Write the sheet, if there are pictures. A failure is logged and ends nothing, since the jobs are paid
        for and stored.

        :param rows: returns the rows, in order. It is called twice, since all of them would fill the memory.
        """
        try:
            self._write(rows, ti, app_id)
        except (RunGenOutputError, OSError) as error:
            reason = error.message if isinstance(error, RunGenOutputError) else type(error).__name__
            log.warning("No contact sheet: %s. The outputs are stored in %s", reason, clean_text(self._shown))

    def _write(self, rows: Callable[[], Iterable[ResultRow]], ti: Any, app_id: str) -> None:
        from airflow_provider_rungen.pages.render import render

        counts, has_pictures = ResultCounts(), False

        def jobs_of_all() -> Iterator[JobView]:
            nonlocal has_pictures
            for job in map(self._job, counts.count(rows())):
                has_pictures = has_pictures or any(file.kind == "image" for file in job.outputs)
                yield job

        failures = group_failures(jobs_of_all())
        if not has_pictures:
            return
        ended = counts.by_status
        progress = Progress(
            total=counts.rows,
            completed=ended[Status.COMPLETED],
            failed=counts.failed - ended[Status.CANCELED],
            canceled=ended[Status.CANCELED],
            skipped=ended[Status.SKIPPED],
            reused=counts.reused,
        )
        written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        facts = [("DAG", str(ti.dag_id)), ("run", str(ti.run_id)), ("app", app_id), ("written", written)]
        if counts.runnable > MAX_JOBS:
            facts.append(("shown", f"the first {MAX_JOBS:,} jobs"))
        stem = "index" if ti.map_index in (None, -1) else f"index-{ti.map_index}"
        token, page_count = secrets.token_hex(4), -(-min(counts.runnable, MAX_JOBS) // JOBS_A_PAGE)
        first = f"{stem}.html"
        names = [first, *(f"{stem}-{token}-{number}.html" for number in range(2, page_count + 1))]
        jobs = (job for job in map(self._job, rows()) if job.status != Status.SKIPPED)
        index = b""
        neighbors = zip(["", *names[:-1]], names, [*names[1:], ""], strict=True)
        for number, (before, name, after) in enumerate(neighbors, 1):
            page = ContactSheet(
                title=str(ti.task_id),
                facts=facts,
                progress=progress,
                jobs=list(itertools.islice(jobs, JOBS_A_PAGE)),
                failures=() if before else failures,
                pager=Pager(page=number, pages=page_count, previous_href=before, next_href=after),
            )
            content = render(page).encode()
            if before:
                self._put_page(name, content)
            else:
                index = content
        self._put_page(first, index)
        further = re.compile(rf"{stem}-[0-9a-f]{{8}}-\d+\.html")
        older = [name for name in self._storage.list_folder("") if further.fullmatch(name)]
        self._storage.remove(("", name) for name in set(older) - set(names))
        log.info("Wrote a contact sheet of %d jobs to %s/%s", counts.runnable, self._shown.rstrip("/"), first)

    def _put_page(self, name: str, content: bytes) -> None:
        """Write a page as a file, from whose name a store derives the content type."""
        with self._storage.incoming("", name) as (file, path):
            file.write(content)
            self._storage.put(file, path, "", name)

    def _job(self, row: ResultRow) -> JobView:
        about = row.about or {}
        values = {name: _format_value(value) for name, value in row.values.items()}
        return JobView(
            index=row.index,
            status=str(row.status),
            key=", ".join(values[name] for name in self._key if name in values),
            job_id=row.job_id or "",
            seconds=row.execution_seconds,
            error=redact(row.error or ""),
            prompt=redact(about.get("prompt", "")),
            facts=[
                *((name, value) for name, value in values.items() if value and name not in self._key),
                *((label, value) for label, value in about.get("facts", ())),
            ],
            outputs=list(self._files(row, about)),
            text=about.get("text") and redact(about["text"]),
            reused=row.reused,
        )

    def _files(self, row: ResultRow, about: Mapping[str, Any]) -> Iterator[OutputFile]:
        described = about.get("files") or [[None, None]] * len(row.outputs)
        width, height = about.get("sides") or (None, None)
        for uri, (size, content_type) in zip(row.outputs, described, strict=True):
            if not uri.startswith(self._prefix):  # the ledger found it in another folder
                yield OutputFile(name=redact(uri), href="", size=size)
                continue
            name, href = uri.rpartition("/")[2], quote(uri.removeprefix(self._prefix))
            kind = guess(name, content_type or "")
            yield OutputFile(name=name, href=href, kind=kind, size=size, width=width, height=height)


def _format_value(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
    return clean_text(text, _MAX_VALUE_CHARS)
