"""Perform blocking work in daemon threads, so that whoever waits for it can leave at any time."""

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

T = TypeVar("T")
# Seconds between two looks at whether the caller is interrupted.
SLICE = 0.1
# Seconds that a request under way gets for its answer once the caller is interrupted.
LAST_ANSWER = 1.0

_here = threading.local()


class AbandonedError(OSError):
    """Nobody waits for this exchange any more: nothing more may be sent."""


class LateError(Exception):
    """
    An exchange was abandoned.

    :param sent: whether any of the request may have been sent.
    :param is_interrupted: whether its caller was interrupted, rather than its time over.
    """

    def __init__(self, *, sent: bool, is_interrupted: bool) -> None:
        super().__init__()
        self.sent = sent
        self.is_interrupted = is_interrupted


class Exchange(Generic[T]):
    """
    One request and its answer, performed by the thread of a `Line`.

    :param work: what to perform; it uses the line's own connections.
    """

    def __init__(self, line: Line, work: Callable[[], T]) -> None:
        self.line = line
        self._work = work
        self._lock = threading.Lock()
        self._running = threading.Lock()
        self._running.acquire()
        self._outcome: tuple[T | None, BaseException | None] = (None, None)
        self._is_abandoned = False
        #: Whether any of the request may have been sent.
        self.is_sent = False

    def run(self) -> None:
        """Perform the work, in the thread of the line."""
        _here.exchange = self
        try:
            self._outcome = (self._work(), None)
        except BaseException as error:
            self._outcome = (None, error)
        finally:
            _here.exchange = None
            self.line.release()
            self._running.release()

    def begin_to_send(self) -> None:
        """
        Note that a request is about to be sent.

        :raises AbandonedError: it must not be, since its caller was told that it was not.
        """
        if not self.is_sent:
            with self._lock:
                self.check()
                self.is_sent = True

    def check(self) -> None:
        if self._is_abandoned:
            raise AbandonedError

    def wait(self, limit: float, is_interrupted: Callable[[], bool]) -> T:
        """
        Wait for the end, and return what the work returns or raise what it raises.

        :param limit: seconds to wait at most.
        :param is_interrupted: tells that the caller is to end soon.
        :raises LateError: it was abandoned.
        """
        end = time.monotonic() + limit
        interrupted = False
        try:
            while not self._running.acquire(timeout=max(0.0, min(SLICE, end - time.monotonic()))):
                if not interrupted and (interrupted := is_interrupted()):
                    end = min(end, time.monotonic() + (LAST_ANSWER if self.is_sent else 0.0))
                if time.monotonic() >= end:
                    self._abandon()
                    break
        except BaseException:  # the handler of a signal
            self._abandon()
            raise
        value, error = self._outcome
        self._outcome = (None, None)
        if error is None and value is not None:
            return value
        if self._is_abandoned or error is None:
            raise LateError(sent=self.is_sent, is_interrupted=interrupted)
        try:
            raise error
        finally:
            del error  # it holds this frame

    def _abandon(self) -> None:
        with self._lock:
            self._is_abandoned = True
        self.line.cut()


class Line:
    """
    A thread, and the connections that only its exchanges use.

    :param close: closes the connections.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._exchanges: queue.SimpleQueue[Exchange[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # a connection may be closed by the garbage collector at any time
        # a second handle of each connection: its own is out of reach in a TLS handshake, or once it is closed
        # with an answer still to be read
        self._handles: dict[int, socket.socket] = {}
        self._closed: set[int] = set()
        self.is_cut = False
        weakref.finalize(self, self._exchanges.put, None).atexit = False

    def begin(self, work: Callable[[], T]) -> Exchange[T]:
        """Begin an exchange; they are performed one after another."""
        if self._thread is None or not self._thread.is_alive():  # none survives a fork
            self._thread = threading.Thread(
                target=_serve, args=(self._exchanges,), name="rungen-exchange", daemon=True
            )
            self._thread.start()
        exchange = Exchange(self, work)
        self._exchanges.put(exchange)
        return exchange

    def cut(self) -> None:
        """End the exchange under way, and the line with it."""
        self.is_cut = True
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

    def connected(self, connection: object, sock: socket.socket) -> None:
        """Take note of a connection, so that it can be cut."""
        with self._lock:
            if not self.is_cut:
                self._drop(id(connection))
                self._handles[id(connection)] = sock.dup()

    def closed(self, connection: object) -> None:
        """Take note that a connection is closed, but for what is still being read from it."""
        with self._lock:
            self._closed.add(id(connection))
        if getattr(_here, "exchange", None) is None:
            self.release()

    def release(self, *, everything: bool = False) -> None:
        """Forget connections that are closed."""
        if self.is_cut:
            self._close()
        with self._lock:
            closed, self._closed = self._closed, set()
            for name in list(self._handles) if everything or self.is_cut else closed:
                self._drop(name)

    def _drop(self, name: int) -> None:
        handle = self._handles.pop(name, None)
        if handle is not None:
            handle.close()


def _serve(exchanges: queue.SimpleQueue[Exchange[Any] | None]) -> None:
    while (exchange := exchanges.get()) is not None:
        exchange.run()
        del exchange  # or the line would not be given back while this waits


def current() -> Exchange[Any] | None:
    """Return the exchange that this thread performs, if it does."""
    return getattr(_here, "exchange", None)


def check_wanted() -> None:
    """
    Check that somebody waits for what this thread performs.

    :raises AbandonedError: nobody does any more.
    """
    if (exchange := current()) is not None:
        exchange.check()


def in_slices(seconds: float, check: Callable[[], None]) -> None:
    """Sleep, calling ``check`` again and again; what it raises ends the sleep."""
    end = time.monotonic() + seconds
    check()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, SLICE))
        check()


async def asleep_in_slices(seconds: float, check: Callable[[], None]) -> None:
    """Do the same in an event loop."""
    end = time.monotonic() + seconds
    check()
    while (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, SLICE))
        check()


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Perform blocking work in a thread that the end of the event loop and of the process do not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]  # there is one where there is no error

    def run() -> None:
        value, failure = None, None
        try:
            value = work()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=run, name="rungen-lookup", daemon=True).start()
    return await future
