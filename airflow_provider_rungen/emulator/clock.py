"""The clock of the service, which can stand still."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


class Clock:
    """
    A clock that can be paused. It is behind its source by the length of all pauses.

    :param source: returns the time (seconds since 1970).
    """

    def __init__(self, source: Callable[[], float]) -> None:
        self._source = source
        # one value, since several threads read it: the time it shows if paused, and its delay
        self._state: tuple[float | None, float] = (None, 0.0)

    def __call__(self) -> float:
        shown, delay = self._state
        return self._source() - delay if shown is None else shown

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still. A pause within a pause changes nothing."""
        if self._state[0] is not None:
            yield
            return
        shown = self()
        self._state = (shown, 0.0)
        try:
            yield
        finally:
            self._state = (None, self._source() - shown)
