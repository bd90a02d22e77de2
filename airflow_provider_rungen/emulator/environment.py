"""What tells the tasks of this process, and of processes that it starts, to use an emulator."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# While it is set, hooks reach the emulators that it names, and nothing else.
EMULATORS = "RUNGEN_EMULATOR"


def including(url: str) -> str:
    """Return a value of `EMULATORS` with one more emulator."""
    return " ".join(dict.fromkeys(f"{os.environ.get(EMULATORS, '')} {url}".split()))


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment for a ``with`` block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
