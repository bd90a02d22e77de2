"""Holds a task's data on disk while it works on them, so that memory stays bounded."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from airflow_provider_rungen.exceptions import RunGenOutputError

#: Where something is in a spool: its length and its offset.
Position: TypeAlias = tuple[int, int]


class Spool:
    """
    Bytes in a temporary file that no other process can open. Several threads may read.

    :raises RunGenOutputError: a method could not use the folder for temporary files.
    """

    def __init__(self) -> None:
        with _named_errors():
            self._file = tempfile.TemporaryFile(prefix="rungen-")  # noqa: SIM115 - closed below
        # otherwise Python warns that it is left open
        self.close = weakref.finalize(self, self._file.close)

    def add(self, content: bytes) -> Position:
        """Add bytes, and return their position."""
        with _named_errors():
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(content)
        return len(content), offset

    def read(self, position: Position) -> bytes:
        """Return the bytes at a position."""
        with _named_errors():
            self._file.flush()
            return os.pread(self._file.fileno(), *position)


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunGenOutputError(
            f"Could not keep rows in the folder for temporary files: {error.strerror or error}",
            hint=f"Check {tempfile.gettempdir()} and its free space, or set TMPDIR",
        ) from None
