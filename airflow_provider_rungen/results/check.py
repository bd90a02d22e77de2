"""The function ``check`` of a table."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from airflow_provider_rungen._airflow import AirflowException, ObjectStoragePath
from airflow_provider_rungen.client.texts import clean_text, format_ids
from airflow_provider_rungen.exceptions import RejectRow, RunGenError
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.results.values import ResultReader
from airflow_provider_rungen.store.records import Record

_MAX_REASON_CHARS = 200


class ResultCheck:
    """
    The function ``check`` of a table.

    :param function: takes a result and the files of a job, and raises `RejectRow` if they will not do.
    :param storage: the destination.
    :param reader: reads results.
    """

    def __init__(
        self,
        function: Callable[[Any, list[ObjectStoragePath]], object] | None,
        storage: Storage,
        reader: ResultReader,
    ) -> None:
        self._function, self._storage, self._reader = function, storage, reader
        # why jobs are not checked any more
        self._unchecked: RunGenError | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is a function."""
        return self._function is not None

    def __call__(self, record: Record) -> RunGenError | None:
        """
        Return why a job is rejected. Once the function has failed, it is not called again.

        :raises RunGenError: the function failed. A retry asks it again.
        :raises AirflowException: the function raised it.
        """
        if self._function is None or self._unchecked is not None:
            return self._unchecked
        files = [ObjectStoragePath(self._storage.uri_of("", record.path_of(each))) for each in record.outputs]
        ids = format_ids(record.app, record.job)
        try:
            self._function(deepcopy(self._reader.read(record)), files)
        except RejectRow as error:
            return RejectRow(_text(error.message) or "rejected", app_id=record.app, job_id=record.job)
        except AirflowException as error:  # the function decides how the task ends
            self._unchecked = RunGenError(f"not checked: check failed for job {record.job}")
            error.add_note(f"check raised this for {ids}")
            raise
        except Exception as error:
            self._unchecked = RunGenError(f"not checked: check failed for job {record.job}")
            raise RunGenError(
                f"check failed: {_text(f'{type(error).__name__}: {error}')} {ids}",
                hint="Correct the function. A retry asks it again, and buys nothing that completed",
                app_id=record.app,
                job_id=record.job,
            ) from error
        return None


def _text(text: str) -> str:
    return clean_text(text, _MAX_REASON_CHARS)
