"""The results table: one row for each input or job, written to a file as a whole or not at all."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.redaction import redact, redact_error
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.table.result_files import COLUMN_TYPES, FIXED_COLUMNS, RESULT_FILES

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.task.options import CollectOptions, TableOptions

log = logging.getLogger(__name__)

# How many failed rows an error names.
_MAX_NAMED = 10
_HINT = "Check results, and that the worker may write there"


class Status(StrEnum):
    """How a row ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REFUSED = "refused"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """
    A row of the results table.

    :param index: its place in the source, from 0.
    :param values: of the table's own columns, JSON values by name. A missing one is null.
    :param error: why it is not completed.
    :param reused: whether its job was stored before.
    :param outputs: the URIs of its stored files.
    :param sha256: the digest of the first file.
    :param result: what the model returned. The secrets of its URLs are removed when it is written.
    :param has_result: whether a ``result`` of ``None`` is what the model returned.
    :param cost: what its job cost, in the currency of the price.
    :param created_at: a time, or its text (ISO 8601).
    :param about: what only a contact sheet shows; see `contact_sheet.describe_job`.
    """

    index: int
    status: Status
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    job_id: str | None = None
    reused: bool = False
    outputs: Sequence[str] = ()
    sha256: str | None = None
    result: Any = None
    has_result: bool = False
    execution_seconds: float | None = None
    cost: Decimal | None = None
    created_at: datetime | str | None = None
    about: Mapping[str, Any] | None = None


class ResultCounts:
    """The rows of a table, and the jobs behind them."""

    def __init__(self) -> None:
        self.rows = self.reused = self.new_jobs = self.file_count = 0
        self.execution_seconds = 0.0
        #: The first rows that were to have a result, and have none.
        self.first_failed: list[ResultRow] = []
        self._by_status: Counter[Status] = Counter()
        # several rows may have one job
        self._jobs: set[str] = set()

    @property
    def completed(self) -> int:
        """The rows that have a result."""
        return self._by_status[Status.COMPLETED]

    @property
    def skipped(self) -> int:
        """The rows that were not to have a job."""
        return self._by_status[Status.SKIPPED]

    @property
    def canceled(self) -> int:
        """The rows whose job was canceled."""
        return self._by_status[Status.CANCELED]

    @property
    def refused(self) -> int:
        """The rows whose input can have no job."""
        return self._by_status[Status.REFUSED]

    @property
    def runnable(self) -> int:
        """The rows that were to have a result."""
        return self.rows - self.skipped

    @property
    def failed(self) -> int:
        """The rows that were to have a result, and have none."""
        return self.runnable - self.completed

    def count(self, rows: Iterable[ResultRow]) -> Iterator[ResultRow]:
        """Yield rows as they are, and count them."""
        for row in rows:
            self.rows += 1
            self.reused += row.reused
            self._by_status[row.status] += 1
            has_failed = row.status not in (Status.COMPLETED, Status.SKIPPED)
            if has_failed and len(self.first_failed) < _MAX_NAMED:
                self.first_failed.append(row)
            if row.job_id is not None and row.job_id not in self._jobs:
                self._jobs.add(row.job_id)
                self.file_count += len(row.outputs)
                if not row.reused:
                    self.new_jobs += 1
                    self.execution_seconds += row.execution_seconds or 0
            yield row

    def summary(self, uri: str) -> dict[str, Any]:
        """
        Return what the task returns.

        :param uri: the table.
        """
        return {
            "results": redact(uri),
            "rows": self.rows,
            "completed": self.completed,
            "failed": self.failed,
            "skipped": self.skipped,
            "reused": self.reused,
            "jobs": self.new_jobs,
            "execution_seconds": round(self.execution_seconds, 3),
        }


class ResultsTable:
    """
    A table of results. Whatever keeps it from being written is found here, as far as that is possible.

    :param uri: the file to write, as `ObjectStoragePath` accepts it. Its suffix is the format.
    :param columns: the types of the table's own columns, by name: see `COLUMN_TYPES`.
    :raises RunGenInputError: it cannot be written: its place, its suffix, its columns, or pyarrow is missing.
    """

    def __init__(self, uri: Any, columns: Mapping[str, str] = MappingProxyType({})) -> None:
        self.uri = str(uri)
        self._columns = dict(columns)
        folder, slash, self._name = self.uri.rpartition("/")
        shown = clean_text(self.uri, 200)
        self._suffix = next((each for each in RESULT_FILES if self._name.lower().endswith(each)), "")
        if not self._suffix:
            raise RunGenInputError(f"results {shown!r} must end in {' or '.join(RESULT_FILES)}")
        check_columns(self._columns)
        if self._suffix == ".parquet":
            _check_pyarrow()
        try:
            self._storage = Storage(folder + slash, "folder")
        except RunGenInputError as error:
            raise self._refusal(error) from None

    def prepare(self) -> None:
        """
        Find out whether the table can be written.

        :raises RunGenInputError: it cannot be written now.
        """
        try:
            self._storage.prepare()
        except RunGenInputError as error:
            raise self._refusal(error) from None

    def _refusal(self, error: RunGenInputError) -> RunGenInputError:
        shown = clean_text(self.uri, 200)
        return RunGenInputError(
            f"results {shown!r} cannot be used: {error.message}", hint=_HINT, retryable=error.retryable
        )

    def write(self, rows: Iterable[ResultRow]) -> int:
        """
        Write the table, and return the number of its rows. It replaces an older one once it is complete.

        :raises RunGenOutputError: it could not be written. An older table is still there.
        """
        count, storage = 0, self._storage
        with contextlib.ExitStack() as stack:
            with self._named_errors():
                storage.remove_leftovers("")
                file, path = stack.enter_context(storage.incoming("", self._name))
                table = RESULT_FILES[self._suffix](file, self._columns)
            stack.callback(table.close)
            for row in rows:
                # what the rows themselves raise is none of the table's errors
                with self._named_errors():
                    table.add(row)
                count += 1
            with self._named_errors():
                table.close()
                storage.put(file, path, "", self._name)
        log.info("Wrote %d rows to %s", count, clean_text(self.uri))
        return count

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RunGenOutputError) as error:
            reason, retryable = clean_text(redact_error(error, self.uri), 200), True
            if isinstance(error, RunGenOutputError):
                reason, retryable = error.message, error.retryable
            # not chained, because the text of the cause would be logged unredacted
            raise RunGenOutputError(
                f"Could not write the results table {clean_text(self.uri, 200)}: {reason}",
                hint=_HINT,
                retryable=retryable,
            ) from None


def results_uri(options: CollectOptions | TableOptions) -> str:
    """Return the URI of the results table of a task."""
    if options.results is not None:
        return str(options.results)
    return f"{str(options.destination).removesuffix('/')}/results.jsonl"


def check_columns(columns: Mapping[str, str]) -> None:
    """
    Check the columns that a results table has before the fixed ones.

    :param columns: their types: see `COLUMN_TYPES`.
    :raises RunGenInputError: there would be two of a name.
    """
    for name, kind in columns.items():
        if kind not in COLUMN_TYPES:
            raise ValueError(f"the type of column {name!r} must be one of {COLUMN_TYPES}, not {kind!r}")
    # readers such as DuckDB do not tell capitals from small letters
    seen = {name.casefold() for name in FIXED_COLUMNS}
    for name in columns:
        if name.casefold() in seen:
            raise RunGenInputError(
                f"results: there would be two columns {clean_text(repr(name), 100)}",
                hint="Rename that column of the source: a results table has the columns "
                f"{', '.join(FIXED_COLUMNS)}",
            )
        seen.add(name.casefold())


def _check_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise RunGenInputError(
            "results: a .parquet file needs pyarrow, which is not installed",
            hint="Install it with: pip install 'airflow-provider-rungen[tables]'. Or use .csv or .jsonl",
        ) from None
