"""Keeps what a deferred batch has to know again in the user's storage, because it is too much for XCom."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from typing import Any, BinaryIO

from airflow_provider_rungen.exceptions import RunGenError, RunGenOutputError
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.spool import Spool

# So many earlier attempts may have left a file.
MAX_EARLIER = 10


class SavedLines:
    """
    JSON values in one file, from a deferral to the end of the attempt.

    :param folder: the URI of the folder to keep them in.
    :param token: the task: see `task_token`.
    :param try_number: the attempt. One that was cut off, and goes on, has another file than its successor.
    """

    def __init__(self, folder: Any, token: str, try_number: int) -> None:
        self._storage = Storage(folder)
        # hidden files: nobody takes them for outputs
        tries = range(max(try_number, 1), 0, -1)
        self._name, *self._earlier = (f".rungen-{token}-{number}.jsonl" for number in tries)

    def save(self, values: Iterable[Any]) -> None:
        """
        Write the file.

        :raises RunGenOutputError: it cannot be written.
        """
        with self._storage as storage, storage.incoming("", self._name) as (file, path):
            for value in values:
                file.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
            storage.put(file, path, "", self._name)

    def load(self) -> Spool:
        """
        Return what was saved.

        :raises RunGenOutputError: it cannot be read.
        """

        def read(file: BinaryIO) -> Spool:
            spool = Spool()
            for line in iter(file.readline, b""):
                spool.append(json.loads(line))
            return spool

        found: Spool | None = self._storage.read_with("", self._name, read)
        if not found:  # missing, or empty
            uri = self._storage.uri_of("", self._name)
            raise RunGenOutputError(
                f"What was kept for the deferred task in {uri} is gone", hint="Clear the task to run it again"
            )
        return found

    def remove(self) -> None:
        """Remove the file, and those of the last earlier attempts. A failure is not worth one of the task."""
        for name in (self._name, *self._earlier[:MAX_EARLIER]):
            with contextlib.suppress(RunGenError):
                self._storage.remove("", [name])
