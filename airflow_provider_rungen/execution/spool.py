"""Holds many values on disk while a task works on them, so that memory stays bounded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from typing import Any


class Spool:
    """JSON values in a temporary file that no other process can open. They are read in the order written."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the spool
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, value: Any) -> None:
        """Add a value."""
        self._file.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
        self._count += 1

    def __iter__(self) -> Iterator[Any]:
        self._file.flush()
        position = 0
        while True:
            # another iteration may have moved the file's position
            self._file.seek(position)
            lines = self._file.readlines(1 << 20)
            position = self._file.tell()
            if not lines:
                self._file.seek(0, 2)
                return
            for line in lines:
                yield json.loads(line)
