"""Processes that run one step at a time, so that one can be frozen, killed, or thaw beside its successor."""

from __future__ import annotations

from collections.abc import Callable

from greenlet import getcurrent, greenlet
from places import Died


class Process:
    """
    A function that runs until it calls `pause`.

    :param work: the function.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._greenlet = greenlet(self._run)
        self._is_killed = False
        #: What it raised, other than its death.
        self.error: Exception | None = None

    def _run(self) -> None:
        try:
            self._work()
        except Died:
            pass
        except Exception as error:
            self.error = error

    @property
    def is_over(self) -> bool:
        return bool(self._greenlet.dead)

    def step(self) -> None:
        """Run it to its next pause."""
        self._greenlet.parent = getcurrent()
        self._greenlet.switch()

    def kill(self) -> None:
        """End it where it is: it does nothing more."""
        self._is_killed = True
        while not self.is_over:
            self.step()

    def pause(self) -> None:
        """Wait for the next step. To be called by the function."""
        if not self._is_killed:
            self._greenlet.parent.switch()
        if self._is_killed:
            raise Died
