"""The inputs of a batch that have no job yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any


class Unsent:
    """
    The inputs that are still to be submitted, in order. They are read as a stream.

    :param read: yields inputs with their indexes, all that are wanted among them. It can be called again.
    :param wanted: the indexes of those to submit.
    """

    def __init__(
        self, read: Callable[[], Iterable[tuple[int, Any]]] = tuple, wanted: Iterable[int] = ()
    ) -> None:
        self._read = read
        self._wanted = deque(sorted(wanted))
        self._stream: Iterator[tuple[int, Any]] | None = None

    def __len__(self) -> int:
        return len(self._wanted)

    def take(self, count: int) -> tuple[list[int], Iterator[tuple[int, Any]]]:
        """Remove the first inputs, and return their indexes, and the inputs with them."""
        indexes = [self._wanted.popleft() for _ in range(min(count, len(self._wanted)))]
        if self._stream is None:
            self._stream = iter(self._read())
        return indexes, _filter(self._stream, indexes)

    def clear(self) -> None:
        """Drop the inputs."""
        self._wanted.clear()

    def finder(self) -> Callable[[int], Any]:
        """Return a function that returns an input, or ``None``. It is called with ascending indexes."""
        stream = _filter(iter(self._read()), list(self._wanted)) if self._wanted else iter(())
        following = next(stream, None)

        def find(index: int) -> Any:
            nonlocal following
            if following is None or following[0] != index:
                return None
            (_, found), following = following, next(stream, None)
            return found

        return find


def _filter(stream: Iterator[tuple[int, Any]], indexes: list[int]) -> Iterator[tuple[int, Any]]:
    """Yield the inputs with these indexes, which the stream has in the same order."""
    wanted = set(indexes)
    # no further than the last: the stream goes on from there
    return islice((item for item in stream if item[0] in wanted), len(wanted))
