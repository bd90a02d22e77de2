"""A table of results as a file: written as a whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from airflow_provider_rungen.client.redaction import redact_error
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.table.arrow import load_pyarrow
from airflow_provider_rungen.execution.table.result_files import WRITERS
from airflow_provider_rungen.execution.table.results import ResultRow
from airflow_provider_rungen.schemas.columns import FIXED_COLUMNS

log = logging.getLogger(__name__)

_HINT = "Check results, and that the worker may write to it"


class ResultsTable:
    """
    A table of results.

    :param uri: the file to write, as `ObjectStoragePath` accepts it. Its suffix is the format.
    :param columns: the types of its columns beside those of the source, by name: see `write_parquet`.
    :param name: the parameter that ``uri`` was passed as.
    :raises RunGenInputError: it cannot be written: its place, its suffix, or pyarrow is missing.
    """

    def __init__(self, uri: Any, columns: Mapping[str, str] = FIXED_COLUMNS, name: str = "results") -> None:
        self._columns = columns
        self._what = "the results table" if name == "results" else name
        self.uri = str(uri)
        self.folder, slash, self._name = self.uri.rpartition("/")
        self._suffix = next((each for each in WRITERS if self._name.lower().endswith(each)), "")
        if not self._suffix:
            shown = clean_text(self.uri, 200)
            raise RunGenInputError(f"{name} {shown!r} must end in {' or '.join(WRITERS)}")
        if self._suffix == ".parquet":
            load_pyarrow()
        self._storage = Storage(self.folder + slash, name)

    def prepare(self) -> None:
        """
        Find out whether the table can be written.

        :raises RunGenInputError: it cannot be written now.
        """
        self._storage.prepare()

    def write(self, rows: Iterable[ResultRow], own: Mapping[str, str] = MappingProxyType({})) -> None:
        """
        Write the table. It replaces an older one once it is complete.

        :param own: the types of the columns of the source, by name: see `write_parquet`.
        :raises RunGenOutputError: it could not be written. An older table is still there.
        """
        reason = f"Could not write {self._what} {clean_text(self.uri, 200)}"
        written = (row.written(own, self._columns) for row in rows)
        try:
            self._storage.remove_leftovers("")
            with self._storage.incoming("", self._name) as (file, path):
                WRITERS[self._suffix](file, {**own, **self._columns}, written)
                self._storage.put(file, path, "", self._name)
        # neither is chained, because the text of its cause would be logged unredacted
        except RunGenOutputError as error:
            message = f"{reason}: {error.message}"
            raise error.revised(message, hint=error.hint, retryable=error.retryable) from None
        except OSError as error:
            message = f"{reason}: {clean_text(redact_error(error, self.uri), 200)}"
            raise RunGenOutputError(message, hint=_HINT, retryable=True) from None
        log.info("Wrote %s %s", self._what, clean_text(self.uri))
