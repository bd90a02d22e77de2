"""Holds many values on disk while a task works on them, so that memory stays bounded."""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow_provider_rungen.exceptions import RunGenOutputError


class Spool:
    """
    JSON values in a temporary file that no other process can open.

    :raises RunGenOutputError: a method could not use the folder for temporary files.
    """

    def __init__(self) -> None:
        with named_errors():
            self._file = tempfile.TemporaryFile(prefix="rungen-")  # noqa: SIM115 - closed below
        # otherwise Python warns that it is left open
        self.close = weakref.finalize(self, self._file.close)

    def append(self, value: Any) -> int:
        """Add a value, and return its position."""
        with named_errors():
            position = self._file.seek(0, 2)
            self._file.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
        return position

    def at(self, position: int) -> Any:
        """Return the value at a position."""
        with named_errors():
            self._file.seek(position)
            return json.loads(self._file.readline())


@contextmanager
def named_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunGenOutputError(
            f"Could not keep rows in the folder for temporary files: {error.strerror or error}",
            hint=f"Check {tempfile.gettempdir()} and its free space, or set TMPDIR",
        ) from None
