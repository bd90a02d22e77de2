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
from datetime import datetime
from operator import itemgetter
from typing import Any, TypeAlias
from urllib.parse import urlencode
from zipfile import ZipFile, ZipInfo

from airflow_provider_rungen.client.codec import to_time
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.money import Cost
from airflow_provider_rungen.client.texts import format_count
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.pages.models import (
    FACT_LABELS,
    FAILED,
    JobView,
    find_facts,
    find_prompt,
    shown_text,
)
from airflow_provider_rungen.plugins.gather import STORE_TIME, Gathering
from airflow_provider_rungen.plugins.limits import TooLargeError, TooSlowError
from airflow_provider_rungen.plugins.rows import ALL, IN_DOUBT, PAGE_SIZE, numbers_of
from airflow_provider_rungen.plugins.stored import OpenFile, StoredFile, find_files
from airflow_provider_rungen.plugins.trouble import JOB_DIGITS, cost

#: A row, and what its page has found of its task.
Entry: TypeAlias = tuple[Gathering, JobView]

# Jobs whose manifests are read for what the run log lacks. For some of the others, the service is asked.
_MAX_READ = 1000
_MAX_ASKED = PAGE_SIZE
_UNSEARCHED = (
    "Rows whose prompts and seeds were not searched: {count:,}. A column=value, a #row, and parts of a key, "
    "column or error are found in all rows."
)
_UNSORTED = "Not known, so sorted last: the {what} of {jobs}."
_MAX_FILES = 5000
_MAX_BYTES = 4 << 30
_LEFT_OUT = "LEFT OUT.txt"
_COLUMNS = ("status", "job_id", "execution_seconds", "cost", "currency", "reused", "error", "note")
_NO_COST = "cost not known"
_SAME_JOB = "job of another task"
# A setting and its number are one word.
_WORDS = re.compile(
    rf"(?:{'|'.join(label.split()[-1] for label in FACT_LABELS)}) [\d.-]+(?: x \d+)?|\d+ x \d+|\S+"
)
_UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")
# What a spreadsheet takes for the beginning of a formula, apart from numbers.
_FORMULA = re.compile(r"[=@\t\r]|[+-](?!\d[\d.]*\Z)")


def _cost_of(entry: Entry) -> Cost | None:
    """Return what the run paid for a job: nothing if an earlier one did."""
    task, row = entry[0].task, entry[1]
    return cost(task.page.price, 0 if row.reused else row.seconds, JOB_DIGITS)


_SORTS: Mapping[str, Callable[[Entry], Any]] = {
    "seconds": lambda entry: entry[1].seconds,
    "cost": lambda entry: (found := _cost_of(entry)) and found.amount,
    "time": lambda entry: to_time(entry[1].created_at),
}
_SORTED_BY = {"seconds": "duration"}


@dataclass(frozen=True, kw_only=True)
class Query:
    """
    Which rows a page shows, in which order.

    :param status: a status, ``failed`` for all that failed, or ``reused``.
    :param text: words, each a part of the key, a column, the prompt, a setting (``seed 7``), the error or the
        id of the job. ``column=value`` is the whole value of a column, ``#12`` a row.
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
        """Return the entries on the page; the last page if it is beyond."""
        return [entries[number] for number in numbers_of(self.page, len(entries))]

    @staticmethod
    def _is_named(row: JobView, text: str) -> bool | None:
        """Return whether a row is the one that a text names; ``None`` if it names none."""
        if text.startswith("#"):
            return text == f"#{row.index}"
        name, _, value = text.partition("=")
        values = {name.casefold(): value.casefold() for name, value in {"key": row.key, **row.values}.items()}
        return values[name] == value if "=" in text and name in values else None

    def _may_match(self, row: JobView, text: str) -> bool:
        """Return whether a row is shown if its prompt and its settings match."""
        is_shown = self.status in ("", row.status) or (self.status == "reused" and row.reused)
        is_shown = is_shown or (self.status == "failed" and row.status in FAILED)
        if not is_shown or (self.jobs and row.job_id not in self.jobs):
            return False
        # a value that is named may have spaces
        names = (self._is_named(row, word) for word in _WORDS.findall(text))
        return self._is_named(row, text) or False not in names

    def _matches(self, row: JobView, text: str) -> bool:
        """Return whether a row that may match does."""
        if self._is_named(row, text) or text in row.job_id.casefold():
            return True
        texts = [each.casefold() for each in (row.key, *row.values.values(), row.prompt, row.error)]
        facts = [f"{label} {value}".casefold() for label, value in row.facts]

        def has(word: str) -> bool:
            # a number is no part of a size or a seed
            is_set = any(f" {fact} ".endswith(f" {word} ") or word in fact.split() for fact in facts)
            return is_set or any(word in each for each in texts)

        return all(has(word) or self._is_named(row, word) for word in _WORDS.findall(text))

    async def select(self, gatherings: Sequence[Gathering]) -> list[Entry]:
        """Return the rows of tasks, on all pages."""
        found = await asyncio.gather(*(gathering.rows(ALL) for gathering in gatherings))
        entries = [(each, row) for each, rows in zip(gatherings, found, strict=True) for row in rows.rows]
        text = self.text.casefold()
        entries = [entry for entry in entries if self._may_match(entry[1], text)]
        if text:
            sought = [entry for entry in entries if not self._matches(entry[1], text)]
            entries = await with_inputs(entries, sought, _UNSEARCHED)
            entries = [entry for entry in entries if self._matches(entry[1], text)]
        return await self._sort(entries) if self.sort in _SORTS else entries

    async def _sort(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return entries with the greatest first, and those last of which it is not known."""
        find = _SORTS[self.sort]
        sought = [each for each in entries if self.sort == "time" or each[1].seconds is None]
        entries = await with_inputs(entries, [each for each in sought if find(each) is None])
        found = [find(each) for each in entries]
        unknown = [each for each, value in zip(entries, found, strict=True) if value is None]
        if count := sum(bool(row.job_id) for _, row in unknown):
            what, jobs = _SORTED_BY.get(self.sort, self.sort), format_count(count, "job")
            unknown[0][0].notices.append(_UNSORTED.format(jobs=jobs, what=what))
        known = [(value, each) for each, value in zip(entries, found, strict=True) if value is not None]
        return [each for _, each in sorted(known, key=itemgetter(0), reverse=True)] + unknown


async def with_inputs(entries: Sequence[Entry], sought: Sequence[Entry], notice: str = "") -> list[Entry]:
    """
    Return entries with what the run log lacks: prompts, settings, times, and the seconds of some.

    :param sought: for which of them. The manifests of the first thousand are read. Of the other jobs, the
        service is asked for as many as a page has, first for those without seconds.
    :param notice: what the page says if some of them are still not known.
    """
    known = dict[str, StoredJob | Job]()
    jobs = [entry for entry in sought if entry[1].job_id]
    for gathering, ids in _by_task(jobs[:_MAX_READ]):
        known |= await gathering.manifests(ids)
    unstored = [entry for entry in jobs if entry[1].job_id not in known]
    others = [entry for entry in unstored if not entry[1].created_at]
    others.sort(key=lambda entry: entry[1].seconds is not None or entry[1].reused)
    # not more because of an order: what is known of a list does not depend on it
    asked = _by_task(others[: max(0, _MAX_ASKED - (len(unstored) - len(others)))])
    for answers in await asyncio.gather(*(gathering.jobs(ids) for gathering, ids in asked)):
        known |= {job_id: answer for job_id, answer in answers.items() if isinstance(answer, Job)}
    unknown = [each for each in sought if each[1].job_id not in known and each[1].status != "skipped"]
    if notice and unknown:
        unknown[0][0].notices.append(notice.format(count=len(unknown)))
    return [(each, _with_inputs(row, known.get(row.job_id))) for each, row in entries]


def _by_task(entries: Sequence[Entry]) -> list[tuple[Gathering, list[str]]]:
    """Return the jobs of entries, by what the page has found of their tasks."""
    jobs = defaultdict[int, list[Entry]](list)
    for entry in entries:
        jobs[id(entry[0])].append(entry)
    return [(some[0][0], [row.job_id for _, row in some]) for some in jobs.values()]


def _with_inputs(row: JobView, found: StoredJob | Job | None) -> JobView:
    if found is None:
        return row
    given, at = found.input, found.created_at
    seconds = found.execution_time if isinstance(found, Job) else found.execution_seconds
    return replace(
        row,
        prompt=find_prompt(given),
        facts=find_facts(given),
        created_at=at.isoformat() if isinstance(at, datetime) else at or "",
        seconds=seconds if row.seconds is None else row.seconds,
    )


# --- a table, and an archive --------------------------------------------------------------------------------


def as_csv(entries: Sequence[Entry]) -> str:
    """
    Return rows as CSV, with their inputs and what the run paid for each. No value is a formula.

    A job that several tasks have is paid for once. A cost that is not known is no number, and has a note.
    """
    columns = dict.fromkeys(name for _, row in entries for name in row.values)
    asked = [{"prompt": row.prompt, **dict(row.facts)} for _, row in entries]
    settings = dict.fromkeys(name for each in asked for name in each if name not in columns)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(map(_plain, ("run_id", "task", "row", *columns, *_COLUMNS, *settings)))
    counted = set[tuple[str, str]]()
    for entry, given in zip(entries, asked, strict=True):
        task, row, paid, note = entry[0].task, entry[1], _cost_of(entry), ""
        job = task.page.app, row.job_id
        if paid is None and task.page.price and (row.job_id or row.status == IN_DOUBT):
            note = _NO_COST
        elif paid and row.job_id and not row.reused:
            paid, note = (replace(paid, amount=0 * paid.amount), _SAME_JOB) if job in counted else (paid, "")
            counted.add(job)
        price = (f"{paid.amount:f}", paid.currency) if paid else ("", "")
        values = (row.values.get(name, "") for name in columns)
        about = (row.status, row.job_id, row.seconds, *price, row.reused, shown_text(row.error), note)
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
