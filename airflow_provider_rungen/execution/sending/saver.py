"""Saves what is due in the run log, from the thread that changes the jobs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress

from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog

log = logging.getLogger(__name__)

# Seconds between the tries to save at once what the service did, and how long one may take: a kill waits.
PAUSES = (0.1, 0.4)
SAVE_TIME = 1.0
# Seconds between two tries to save during a wait.
SAVE_EVERY = 5.0
_POLL = 0.05


class Saver:
    """
    Saves in bounded time. What a place does not take stays due, and is saved later.

    :param jobs: the jobs.
    :param run_log: their log.
    """

    def __init__(self, jobs: Jobs, run_log: RunLog) -> None:
        self.jobs = jobs
        self.run_log = run_log
        #: A write that did not end in time. The next one waits for its end.
        self.late: Future[None] | None = None
        self._next_try = 0.0

    @contextmanager
    def writing(self, parts: Iterable[int] | None = None) -> Iterator[Future[None]]:
        """
        Write in a daemon thread while the block waits for it. It fails if the block leaves it too early.

        :param parts: see `RunLog.snapshots`.
        """
        with self.run_log.saving(self.jobs, parts) as files:
            write: Future[None] = Future()
            if files:
                write = begin(self.run_log.place.put, files)
            else:
                write.set_result(None)
            try:
                yield write
            finally:
                self.late = None if write.done() else write
            write.result(0)

    def save(
        self,
        parts: Iterable[int] | None = None,
        *,
        within: float = SAVE_TIME,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> bool:
        """
        Try a few times to save, and return whether that succeeded.

        :param parts: see `RunLog.snapshots`.
        :param within: the seconds that one try may take.
        :param is_stopping: returns whether to wait no longer.
        """
        parts = None if parts is None else list(parts)
        for pause in (*PAUSES, None):
            try:
                self._try(parts, within, is_stopping)
            except Exception as error:
                log.warning("Could not save in the run log: %s; saving continues", _reason(error))
            else:
                return True
            if pause is None or self.late is not None:
                break
            time.sleep(pause)
        return False

    def save_between_polls(self) -> None:
        """Try once to save what is due, if the last try is some time ago."""
        if time.monotonic() >= self._next_try:
            with suppress(Exception):
                self._try(None, SAVE_TIME, lambda: False)
            self._next_try = time.monotonic() + SAVE_EVERY

    def _try(self, parts: list[int] | None, within: float, is_stopping: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + within

        def wait_for(write: Future[None]) -> None:
            while not write.done() and time.monotonic() < give_up_at and not is_stopping():
                wait([write], _POLL)
            if not write.done():
                raise TimeoutError("it does not answer")

        if self.late is not None:
            wait_for(self.late)
        with self.writing(parts) as write:
            wait_for(write)


def _reason(error: Exception) -> str:
    return clean_text(f"{type(error).__name__}: {error}", 300)
