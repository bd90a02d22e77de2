"""Defers the signals that end a task, so that no id of a paid job is lost between two steps."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from airflow_provider_rungen._airflow import AirflowException
from airflow_provider_rungen.client.daemon_threads import begin, ends_within
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.task import store_writer
from airflow_provider_rungen.task.attempts import is_timing_out

log = logging.getLogger(__name__)

T = TypeVar("T")

# Airflow kills the process 5 s after the signal. All that a kill does shares these seconds: the last answers
# and ids, the question for the task's state, and the cancels.
KILL_TIME = 4.0
# Seconds that a try of a call to Airflow or a store has at least.
_LEAST_TRY = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGALRM)


class TaskKilledError(AirflowException):
    """The task was killed: by its user, or with its worker."""


class KillGuard:
    """
    Decides when a kill or a time limit may interrupt an attempt.

    Airflow's signal handlers raise wherever the task is. Within `defer_signals` they are noted instead, and
    `check`, between two requests, delivers them. Python ignores what a handler raises in a finalizer, and a
    function of the user may swallow it: so `check` raises it again. A kill also comes as a call of `kill`,
    which may run in a signal handler, in another thread, or in code that swallows exceptions: `check` then
    raises in the thread that works.

    :param cleanup: called at each kill; returns the last words of the attempt, for its log.
    """

    def __init__(self, cleanup: Callable[[], str] = lambda: "") -> None:
        self._cleanup = cleanup
        self._thread: int | None = None
        self._last_words = ""
        self._handlers: dict[int, Any] = {}
        self._pending: list[tuple[int, Any]] = []
        # of the monotonic clock
        self._pending_since: float | None = None
        self._killed_at: float | None = None
        # what a signal has raised since the outermost block began
        self._raised: BaseException | None = None
        #: Whether the task was killed.
        self.is_killed = False

    @contextmanager
    def working(self) -> Iterator[None]:
        """Allow a kill or a time limit to end the work of this thread."""
        before, self._thread = self._thread, threading.get_ident()
        try:
            with nullcontext() if self._handlers else self._handling(self._deliver):
                yield
        finally:
            self._thread = before

    @contextmanager
    def defer_signals(self) -> Iterator[None]:
        """Defer kills and time limits to the end of the block. A request in flight gets one second more."""
        with self._handling(self._defer):
            yield
        if self.is_killed:
            self.kill()

    @contextmanager
    def _handling(self, handle: Callable[[int, Any], None]) -> Iterator[None]:
        """Handle signals in the block. The outermost one that defers them delivers them at its end."""
        before: dict[int, Any] = {}
        raised: BaseException | None = None
        # only the main thread may set handlers, and gets signals
        if threading.current_thread() is threading.main_thread():
            before = {each: found for each in _SIGNALS if callable(found := signal.getsignal(each))}
        is_outermost = bool(before) and not self._handlers
        if is_outermost:
            self._handlers = before
        for number in before:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            try:
                if before and self._defer not in before.values():
                    self.deliver_pending()
            finally:
                if is_outermost:
                    self._handlers = {}
                    raised, self._raised = self._raised, None
        if raised is not None:  # nobody saw it
            raise raised

    @contextmanager
    def allow_signals(self) -> Iterator[None]:
        """
        Allow signals to raise at once in the block, as for a function of the user.

        What a signal has raised ends each such block that follows: it may not have ended all of the work.
        """
        if self._raised is not None:
            raise self._raised
        handlers = self._handlers if threading.current_thread() is threading.main_thread() else {}
        for number in handlers:
            signal.signal(number, self._deliver)
        try:
            self.deliver_pending()
            yield
        finally:
            for number in handlers:
                signal.signal(number, self._defer)

    def call_patiently(self, purpose: str, call: Callable[[], T], within: float = math.inf) -> T:
        """
        Call Airflow or a store until it works, as long as that may fail or hang. A kill or a limit ends it.

        :param purpose: what the call is for, as an infinitive for log and errors.
        :param call: makes one try.
        :param within: seconds that it may take, if they are fewer than usual.
        :raises Exception: it failed or hung for too long, or the attempt is about to end.
        """
        give_up_at = time.monotonic() + min(within, store_writer.STORE_RETRY_BUDGET)

        def try_once() -> T:
            answer = begin(call)
            if not ends_within(max(give_up_at - time.monotonic(), _LEAST_TRY), answer, self.is_stopping):
                raise RunGenError(f"Could not {purpose}: no answer")
            return answer.result()

        def gives_up() -> bool:
            return self.is_stopping() or time.monotonic() >= give_up_at

        return store_writer.call_patiently(purpose, try_once, gives_up)

    def check(self) -> None:
        """
        Deliver what was deferred, and end the work of a killed task.

        :raises TaskKilledError: it was.
        :raises BaseException: what a signal has raised before, and nobody has seen.
        """
        self.deliver_pending()
        if self._thread != threading.get_ident():
            return
        if self._raised is not None:
            raise self._raised
        if self.is_killed:
            raise TaskKilledError(f"The task was killed. {self._last_words}".strip())

    def kill(self) -> None:
        """Clean up, and end the task."""
        self.is_killed = True
        self._killed_at = self._killed_at or self._pending_since or time.monotonic()
        self._last_words = self._cleanup() or self._last_words
        # a signal handler that returned would let execute() go on
        self.check()
        if self._last_words and self._thread is None:  # nobody raises them, as after a time limit
            log.error("%s", self._last_words)

    @property
    def is_pending(self) -> bool:
        """Whether a signal waits for the end of a block."""
        return bool(self._pending)

    def is_stopping(self) -> bool:
        """Return whether the attempt is about to end: it was killed, or its time is up."""
        return self.is_pending or self.is_killed or self._raised is not None or is_timing_out()

    def is_interrupted(self) -> bool:
        """Return whether the work of this thread is about to end."""
        has_ended = self.is_killed or self._raised is not None
        return self.is_pending or (has_ended and self._thread == threading.get_ident())

    def time_left(self) -> float:
        """Return the seconds that are left of a kill, which begins with its first signal."""
        since = self._killed_at or self._pending_since
        return KILL_TIME if since is None else max(KILL_TIME - (time.monotonic() - since), 0.0)

    def deliver_pending(self) -> None:
        """Call the handlers of the signals that were deferred."""
        try:
            while self._pending:
                self._deliver(*self._pending.pop(0))
        finally:
            self._pending_since = None

    def _deliver(self, number: int, frame: Any) -> None:
        try:
            self._handlers[number](number, frame)
        except BaseException as error:
            self._raised = error
            raise

    def _defer(self, number: int, frame: Any) -> None:
        self._pending.append((number, frame))
        self._pending_since = self._pending_since or time.monotonic()
