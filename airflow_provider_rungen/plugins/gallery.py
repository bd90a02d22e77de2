"""The rows of one task or of several as one list: filtered, sorted, as a table, and with their files."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from urllib.parse import urlencode
from zipfile import ZipFile, ZipInfo

from airflow_provider_rungen.client.money import Cost
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.pages.models import FAILED, JobView, find_facts, find_prompt, shown_text
from airflow_provider_rungen.plugins.gather import STORE_TIME, Gathering
from airflow_provider_rungen.plugins.limits import TooLargeError, TooSlowError
from airflow_provider_rungen.plugins.rows import ALL, PAGE_SIZE
from airflow_provider_rungen.plugins.stored import OpenFile, StoredFile, find_files
from airflow_provider_rungen.plugins.trouble import JOB_DIGITS, cost

#: A row, and what its page has found of its task.
Entry: TypeAlias = tuple[Gathering, JobView]

# Jobs whose manifests are read to find a prompt or a time.
_MAX_SEARCHED = 1000
_UNSEARCHED = (
    f"Prompts, seeds and times were read of the first {_MAX_SEARCHED:,} of {{count:,}} jobs only: "
    "use column=value, or choose a status as well."
)
_MAX_FILES = 5000
_MAX_BYTES = 4 << 30
_LEFT_OUT = "LEFT OUT.txt"
_COLUMNS = ("status", "job_id", "execution_seconds", "cost", "currency", "reused", "error")
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")
# What a spreadsheet takes for the beginning of a formula, apart from numbers.
_FORMULA = re.compile(r"[=@\t\r]|[+-](?!\d[\d.]*\Z)")


def _cost_of(entry: Entry) -> Cost | None:
    """Return what the run paid for a job: nothing if an earlier one did."""
    task, row = entry[0].task, entry[1]
    return cost(task.page.price, 0 if row.reused else row.seconds, JOB_DIGITS)


_SORTS: Mapping[str, Callable[[Entry], Any]] = {
    "seconds": lambda entry: entry[1].seconds or 0,
    "cost": lambda entry: ((found := _cost_of(entry)) and found.amount) or 0,
    "time": lambda entry: entry[1].created_at,
}


@dataclass(frozen=True, kw_only=True)
class Query:
    """
    Which rows a page shows, in which order.

    :param status: a status, ``failed`` for all that failed, or ``reused``.
    :param text: a part of the key, a column, the prompt, a setting (``seed 7``), the error or the id of the
        job. ``column=value`` is the whole value of a column, ``#12`` a row.
    :param sort: ``seconds``, ``cost`` or ``time``, the greatest first; otherwise by row.
    :param jobs: only these jobs, to compare them.
    :param page: the number of the page, from 1.
    """

    status: str = ""
    text: str = ""
    sort: str = ""
    jobs: Sequence[str] = ()
    page: int = 1

    @property
    def parameters(self) -> dict[str, Any]:
        """What the URL of each page of the list has; nothing for all rows in their order."""
        names = ("status", "text", "sort", "jobs")
        return {name: value for name in names if (value := getattr(self, name))}

    def url(self, **changes: str) -> str:
        """Return the list, or another one, as a relative URL."""
        return f"?{urlencode(self.parameters | changes, doseq=True)}"

    def page_of(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return the entries on the page."""
        return entries[(self.page - 1) * PAGE_SIZE : self.page * PAGE_SIZE]

    def _is_named(self, row: JobView) -> bool | None:
        """Return whether a row is the one that the text names; ``None`` if it names none."""
        text = self.text.casefold()
        if text.startswith("#"):
            return text == f"#{row.index}"
        name, _, value = text.partition("=")
        values = {name.casefold(): value.casefold() for name, value in {"key": row.key, **row.values}.items()}
        return values[name] == value if "=" in text and name in values else None

    def _matches(self, row: JobView, text: str) -> bool:
        is_shown = self.status in ("", row.status) or (self.status == "reused" and row.reused)
        is_shown = is_shown or (self.status == "failed" and row.status in FAILED)
        if not is_shown or (self.jobs and row.job_id not in self.jobs):
            return False
        if (is_named := self._is_named(row)) is not None:
            return is_named
        facts = (f"{label} {value}" for label, value in row.facts)
        texts = (row.key, *row.values.values(), row.prompt, row.error, row.job_id, *facts)
        return any(text in each.casefold() for each in texts)

    async def select(self, gatherings: Sequence[Gathering]) -> list[Entry]:
        """Return the rows of tasks, on all pages."""
        found = await asyncio.gather(*(gathering.rows(ALL) for gathering in gatherings))
        entries = [(each, row) for each, rows in zip(gatherings, found, strict=True) for row in rows.rows]
        text, by_time = self.text.casefold(), self.sort == "time"
        entries = [entry for entry in entries if self._matches(entry[1], "")]
        # the run log has neither prompts nor times
        sought = [each for each in entries if by_time or not self._matches(each[1], text)]
        if len(sought) > _MAX_SEARCHED:
            gatherings[0].notices.append(_UNSEARCHED.format(count=len(sought)))
        entries = await with_inputs(entries, sought)
        entries = [entry for entry in entries if self._matches(entry[1], text)]
        return sorted(entries, key=_SORTS[self.sort], reverse=True) if self.sort in _SORTS else entries


async def with_inputs(entries: Sequence[Entry], sought: Sequence[Entry]) -> list[Entry]:
    """
    Return entries with what the run log does not have: their prompts, their settings, and their times.

    :param sought: for which of them; the first thousand are read.
    """
    jobs, known = defaultdict[int, list[Entry]](list), dict[str, StoredJob]()
    for entry in sought[:_MAX_SEARCHED]:
        jobs[id(entry[0])] += [entry] * bool(entry[1].job_id)
    for some in jobs.values():
        known |= await some[0][0].manifests([row.job_id for _, row in some])
    return [(each, _with_manifest(row, known.get(row.job_id))) for each, row in entries]


def _with_manifest(row: JobView, manifest: StoredJob | None) -> JobView:
    """Return a row with what the run log does not have: its prompt, its settings, and its time."""
    if manifest is None:
        return row
    # not its seconds: what a list costs must not depend on how it is sorted
    given, created_at = manifest.input, manifest.created_at or ""
    return replace(row, prompt=find_prompt(given), facts=find_facts(given), created_at=created_at)


# --- a table, and an archive --------------------------------------------------------------------------------


def as_csv(entries: Sequence[Entry]) -> str:
    """Return rows as CSV, with their inputs and what the run paid for each. No value is a formula."""
    columns = dict.fromkeys(name for _, row in entries for name in row.values)
    asked = [{"prompt": row.prompt, **dict(row.facts)} for _, row in entries]
    settings = dict.fromkeys(name for each in asked for name in each if name not in columns)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(map(_plain, ("run_id", "task", "row", *columns, *_COLUMNS, *settings)))
    for entry, given in zip(entries, asked, strict=True):
        task, row, paid = entry[0].task, entry[1], _cost_of(entry)
        price = (f"{paid.amount:f}", paid.currency) if paid else ("", "")
        values = (row.values.get(name, "") for name in columns)
        about = (row.status, row.job_id, row.seconds, *price, row.reused, shown_text(row.error))
        end = (given.get(name, "") for name in settings)
        writer.writerow(map(_plain, (task.run_id, task.label, row.index, *values, *about, *end)))
    return text.getvalue()


def _plain(value: Any) -> str:
    text = "" if value is None else str(value).encode(errors="replace").decode()
    return f"'{text}" if _FORMULA.match(text) else text


class _Chunks(list[bytes]):
    """A file that can only be appended to."""

    def write(self, data: bytes) -> int:
        self.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing: they are taken as they come."""

    def take(self) -> bytes:
        taken = b"".join(self)
        self.clear()
        return taken


def as_zip(entries: Sequence[Entry]) -> Generator[bytes]:
    """Yield an archive of the stored files of rows, in bounded memory. It blocks."""
    chunks, left_out = _Chunks(), list[str]()
    output: Any = chunks
    with ZipFile(output, "w") as archive:
        for info, file in _open_files(entries, left_out):
            with closing(file), archive.open(info, "w") as target:
                while part := file.read():
                    target.write(part)
                    yield chunks.take()
        if left_out:
            archive.writestr(_LEFT_OUT, "\n".join(left_out))
    yield chunks.take()


def _open_files(entries: Sequence[Entry], left_out: list[str]) -> Iterator[tuple[ZipInfo, OpenFile]]:
    count = size = 0
    for gathering, row in entries:
        page, files = gathering.task.page, list[StoredFile]()
        begin = f"{gathering.task.label}-{row.index:05d}-{row.key[:60]}"
        with _noting(left_out, begin):
            if page.destination and row.job_id:
                files += find_files(page.destination, page.app, row.job_id, STORE_TIME)
        for number, file in enumerate(files):
            info, opened = ZipInfo(_UNSAFE.sub("_", f"{begin}-{number}-{file.name[-60:]}")), list[OpenFile]()
            info.file_size = file.size
            with _noting(left_out, info.filename):
                if count == _MAX_FILES or size + file.size > _MAX_BYTES:
                    raise TooLargeError
                opened.append(OpenFile(page.destination, row.job_id, file))
                count, size = count + 1, size + file.size
            yield from ((info, each) for each in opened)


@contextmanager
def _noting(left_out: list[str], name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RunGenError, TooLargeError, TooSlowError):
        left_out.append(name)
