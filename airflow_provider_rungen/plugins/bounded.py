"""What pages read and keep in memory, up to a size. No I/O."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

#: Values of a text that is parsed. The manifest of ten thousand outputs has 60,000.
MAX_VALUES = 400_000
#: Seconds to keep what changes, and errors.
FRESH = 3.0
#: Seconds to keep what does not change.
LASTING = 60.0


class TooComplexError(Exception):
    """A text has more values than a page needs."""


def count_values(text: str | bytes) -> int:
    """Return the most values that a JSON text may have. It is much faster than to parse it."""
    # json.loads() holds the interpreter until it ends, and each "[]" takes 60 bytes
    marks: tuple[Any, ...] = ("[", "{", ",") if isinstance(text, str) else (b"[", b"{", b",")
    return sum(map(text.count, marks))


def parse_bounded(text: str | bytes) -> Any:
    """
    Parse JSON that has no more values than a page needs.

    :raises TooComplexError: it may have more.
    :raises ValueError: it is not JSON.
    :raises RecursionError: it has lists in lists in lists.
    """
    if count_values(text) > MAX_VALUES:
        raise TooComplexError
    return json.loads(text)


class Cache:
    """
    Values by key, for some seconds each. The oldest make room.

    :param max_size: the sum of the sizes of its values. What is larger by itself is not kept.
    """

    def __init__(self, max_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._max_size = max_size
        self._size = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Any, tuple[float, int, Any]] = OrderedDict()

    def get(self, key: Any) -> Any:
        """Return a value, or ``None`` if it is not there, or too old."""
        with self._lock:
            expires_at, _, value = self._entries.get(key, (0.0, 0, None))
        return value if self._clock() < expires_at else None

    def put(self, key: Any, value: Any, seconds: float, size: int) -> None:
        """
        Keep a value.

        :param seconds: for how long.
        :param size: about how many bytes it takes.
        """
        with self._lock:
            self._remove(key)
            if size > self._max_size:
                return
            self._entries[key] = (self._clock() + seconds, size, value)
            self._size += size
            while self._size > self._max_size:
                self._remove(next(iter(self._entries)))

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._entries.clear()
            self._size = 0

    def _remove(self, key: Any) -> None:
        self._size -= self._entries.pop(key, (0.0, 0, None))[1]


#: What all pages keep: what they read in Airflow and in the storage, and what the service answered.
CACHE = Cache(max_size=32 << 20)
