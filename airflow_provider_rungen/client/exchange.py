"""Perform blocking requests in a daemon thread, so that their caller can leave at any time."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from airflow_provider_rungen.client.failures import ExchangeState

T = TypeVar("T")
# Seconds between two checks whether the caller is interrupted.
CHECK_INTERVAL = 0.1
# Seconds that a request in flight may take once its caller is interrupted.
FINAL_GRACE = 1.0

_here = threading.local()


class AbandonedError(OSError):
    """Nobody waits for this exchange: nothing more may be sent."""


class Exchange(ExchangeState, Generic[T]):
    """
    One request and its answer, performed by an `ExchangeThread`.

    :param thread: the thread.
    :param work: what to perform, with the thread's own connections.
    """

    def __init__(self, thread: ExchangeThread, work: Callable[[], T]) -> None:
        super().__init__()
        self.thread = thread
        self._work = work
        self._lock = threading.Lock()
        self._running = threading.Lock()
        self._running.acquire()
        self._outcome: tuple[T | None, BaseException | None] = (None, None)
        self._is_abandoned = False

    def run(self) -> None:
        """Perform the work, in the thread."""
        _here.exchange = self
        outcome: tuple[T | None, BaseException | None]
        try:
            outcome = (self._work(), None)
        except BaseException as error:
            outcome = (None, error)
        with self._lock:
            if not self._is_abandoned:  # an aborted connection may look like the end of the answer
                self._outcome = outcome
        del outcome
        _here.exchange = None
        self.thread.release()
        self._running.release()

    def begin_to_send(self) -> None:
        """
        Note that the request is about to be sent.

        :raises AbandonedError: it must not be sent: its caller already knows that it was not.
        """
        if not self.is_sent:
            with self._lock:
                self.check()
                self.is_sent = True

    def check(self) -> None:
        """
        Check that the caller still waits.

        :raises AbandonedError: it does not.
        """
        if self._is_abandoned:
            raise AbandonedError

    def wait(self, limit: float, is_interrupted: Callable[[], bool]) -> T:
        """
        Wait for the end, and return what the work returns, or raise its error.

        :param limit: the most seconds to wait.
        :param is_interrupted: returns whether the caller has to end soon.
        :raises AbandonedError: the time was over.
        """
        end = time.monotonic() + limit
        try:
            while not self._running.acquire(timeout=max(0.0, min(CHECK_INTERVAL, end - time.monotonic()))):
                if not self.is_interrupted and is_interrupted():
                    self.is_interrupted = True
                    end = min(end, time.monotonic() + (FINAL_GRACE if self.is_sent else 0.0))
                if time.monotonic() >= end:
                    self._abandon()
                    break
        except BaseException:  # of a signal handler
            self._abandon()
            raise
        value, error = self._outcome
        self._outcome = (None, None)
        if error is None and value is not None:
            return value
        if self._is_abandoned or error is None:
            raise AbandonedError
        try:
            raise error
        finally:
            del error  # it holds this frame

    def _abandon(self) -> None:
        with self._lock:
            self._is_abandoned = True
        self.thread.abort()


class ExchangeThread:
    """
    A thread, and the connections that only its exchanges use.

    :param close: closes the connections.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._exchanges: queue.SimpleQueue[Exchange[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # the garbage collector may close a connection at any time
        # A second handle of each connection. Its own is out of reach during a TLS handshake, and once it is
        # closed while its answer is being read.
        self._handles: dict[int, socket.socket] = {}
        self._closed: set[int] = set()
        self.is_aborted = False
        weakref.finalize(self, self._exchanges.put, None).atexit = False

    def start(self, work: Callable[[], T]) -> Exchange[T]:
        """Start an exchange. Exchanges are performed one after another."""
        if self._thread is None or not self._thread.is_alive():  # none survives a fork
            self._thread = threading.Thread(
                target=_serve, args=(self._exchanges,), name="rungen-exchange", daemon=True
            )
            self._thread.start()
        exchange = Exchange(self, work)
        self._exchanges.put(exchange)
        return exchange

    def abort(self) -> None:
        """End the current exchange, and the thread."""
        self.is_aborted = True
        self._exchanges.put(None)
        with self._lock:
            for handle in self._handles.values():
                with contextlib.suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections, and end the thread."""
        self._exchanges.put(None)
        self._close()
        self.release(everything=True)

    # --- called by the connections ---

    def track(self, connection: object, sock: socket.socket) -> None:
        """Note a connection that was made, so that it can be aborted."""
        with self._lock:
            if not self.is_aborted:
                self._drop(id(connection))
                self._handles[id(connection)] = sock.dup()

    def untrack(self, connection: object) -> None:
        """Note a connection that was closed. An answer may still be read from it."""
        with self._lock:
            self._closed.add(id(connection))
        if getattr(_here, "exchange", None) is None:
            self.release()

    def release(self, *, everything: bool = False) -> None:
        """Release the handles of connections that are closed."""
        if self.is_aborted:
            self._close()
        with self._lock:
            closed, self._closed = self._closed, set()
            for name in list(self._handles) if everything or self.is_aborted else closed:
                self._drop(name)

    def _drop(self, name: int) -> None:
        handle = self._handles.pop(name, None)
        if handle is not None:
            handle.close()


def _serve(exchanges: queue.SimpleQueue[Exchange[Any] | None]) -> None:
    while (exchange := exchanges.get()) is not None:
        exchange.run()
        del exchange  # it holds the ExchangeThread, which could not be collected while this waits


def current() -> Exchange[Any] | None:
    """Return the exchange that this thread performs, if it does."""
    return getattr(_here, "exchange", None)


def check_current() -> None:
    """
    Check that the caller of the exchange in this thread, if there is one, still waits.

    :raises AbandonedError: it does not.
    """
    if (exchange := current()) is not None:
        exchange.check()


def sleep_with_checks(seconds: float, check: Callable[[], None]) -> None:
    """Sleep, and call ``check`` again and again. An error of it ends the sleep."""
    end = time.monotonic() + seconds
    check()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, CHECK_INTERVAL))
        check()


async def asleep_with_checks(seconds: float, check: Callable[[], None]) -> None:
    """Do the same in an event loop."""
    end = time.monotonic() + seconds
    check()
    while (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, CHECK_INTERVAL))
        check()
