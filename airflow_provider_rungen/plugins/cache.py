"""What pages keep in memory for some seconds, so that it is not asked for, or read, again. No I/O."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

#: Seconds to keep what changes, and errors.
FRESH = 3.0
#: Seconds to keep what does not change.
LASTING = 60.0


class Cache:
    """
    Values by key, for some seconds each. The oldest make room.

    :param max_size: the sum of the sizes of its values. What is larger by itself is not kept.
    """

    def __init__(self, max_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = self._max_size = max_size
        self._lock = threading.Lock()
        self._entries: OrderedDict[Any, tuple[float, int, Any]] = OrderedDict()

    def get(self, key: Any) -> Any:
        with self._lock:
            expires_at, _, value = self._entries.get(key, (0.0, 0, None))
            return value if self._clock() < expires_at else None

    def put(self, key: Any, value: Any, seconds: float, size: int = 1) -> None:
        with self._lock:
            self._remove(key)
            if size > self._max_size:
                return
            self._entries[key] = (self._clock() + seconds, size, value)
            self._left -= size
            while self._left < 0:
                self._remove(next(iter(self._entries)))

    def clear(self) -> None:
        with self._lock:
            for key in list(self._entries):
                self._remove(key)

    def _remove(self, key: Any) -> None:
        _, size, _ = self._entries.pop(key, (0.0, 0, None))
        self._left += size
