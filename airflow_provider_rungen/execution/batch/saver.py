"""Saves job ids in one store, in a thread of its own. One that hangs holds up no other store, and no kill."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.state_store import PAUSES

log = logging.getLogger(__name__)


class Backlog:
    """
    The entries of a batch that one store does not have yet.

    :param name: the store, for log and errors.
    :param write: saves entries, by index.
    """

    def __init__(self, name: str, write: Callable[[Mapping[int, str]], None]) -> None:
        self.name = name
        self.pending: dict[int, str] = {}
        self._write = write

    def flush(self) -> None:
        """Save what is pending. After a failure, it can be called again."""
        entries = dict(self.pending)
        self._write(entries)
        for index, entry in entries.items():
            if self.pending.get(index) == entry:  # more may be noted meanwhile
                del self.pending[index]


class Saver:
    """
    Saves a backlog again and again, until `finish`.

    :param backlog: what one store has to take.
    :param patience: seconds in which the store may fail, or not answer.
    """

    def __init__(self, backlog: Backlog, patience: float) -> None:
        self._backlog = backlog
        self._patience = patience
        self._news, self._finishing = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._busy_since: float | None = None
        # a daemon: the process does not wait for a store that hangs
        self._thread = threading.Thread(target=self._work, name="rungen-saver", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it is still to save something."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Save what has changed."""
        self._news.set()

    def finish(self) -> None:
        """Save what has changed a last time."""
        self._finishing.set()
        self._news.set()

    def check(self) -> None:
        """
        Raise what keeps the store from taking the entries.

        :raises Exception: it failed for too long.
        """
        if self._failure is not None:
            raise self._failure
        since = self._busy_since
        if since is not None and time.monotonic() > since + self._patience + 1:
            raise RunGenError(f"Could not save job ids in {self._backlog.name}: it does not answer")

    def _work(self) -> None:
        is_last = False
        while not is_last:
            self._news.wait()
            self._news.clear()
            is_last = self._finishing.is_set()
            self._busy_since = time.monotonic()
            try:
                self._flush()
            except Exception as error:
                self._failure = error
            except BaseException as error:  # it is raised where the work is
                self._failure = error
                return
            else:
                self._failure = None
            self._busy_since = None

    def _flush(self) -> None:
        """Save what has changed. When the store fails, retry for a while."""
        give_up_at, pause = 0.0, retry.BACKOFF
        last_pauses = iter(() if self._failure else PAUSES)
        while True:
            try:
                return self._backlog.flush()
            except Exception as error:
                if not give_up_at:
                    give_up_at = time.monotonic() + self._patience
                    reason = clean_text(f"{type(error).__name__}: {error}", 300)
                    log.warning("Could not save job ids in %s: %s; retrying", self._backlog.name, reason)
                if self._finishing.is_set():
                    if (last_pause := next(last_pauses, None)) is None:
                        raise
                    time.sleep(last_pause)
                elif time.monotonic() >= give_up_at:
                    raise
                else:
                    self._finishing.wait(pause)
                    pause = min(pause * 2, 5.0)
