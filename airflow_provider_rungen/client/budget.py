"""Limit the bytes of one output, and of all outputs of a job. No I/O."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from airflow_provider_rungen.exceptions import RunGenOutputError


class Budget:
    """
    The bytes that the outputs of a job may have together.

    :param max_total_bytes: how many; ``None`` for any number.
    """

    def __init__(self, max_total_bytes: int | None = None) -> None:
        self._max_total_bytes = max_total_bytes
        self._taken = 0
        #: Whether an output did not fit.
        self.is_exceeded = False

    def take(self, size: int) -> None:
        """
        Take bytes for good.

        :raises RunGenOutputError: not enough are left.
        """
        if self._max_total_bytes is not None and self._taken + size > self._max_total_bytes:
            self.is_exceeded = True
            raise _over_limit("the outputs of the job have", self._max_total_bytes, "max_total_bytes")
        self._taken += size

    @contextlib.contextmanager
    def lease(self, max_bytes: int) -> Iterator[Callable[[int], None]]:
        """
        Return a function that takes bytes for one file up to its current size. They come back on an error.

        :param max_bytes: how many bytes the file may have.
        """
        held = 0

        def grow_to(size: int) -> None:
            nonlocal held
            if size > max_bytes:
                raise _over_limit("the file has", max_bytes, "max_output_bytes")
            if size > held:
                self.take(size - held)
                held = size

        try:
            yield grow_to
        except BaseException:
            self._taken -= held
            raise


def _over_limit(what: str, limit: int, parameter: str) -> RunGenOutputError:
    return RunGenOutputError(
        f"{what} over {limit} bytes ({parameter})",
        hint=f"Raise {parameter} if that size is right",
        retryable=False,
    )
