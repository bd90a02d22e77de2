"""Saves what is due in the run log, from the thread that changes the jobs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager

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
        Write in a daemon thread while the block waits for it. How it ended is noted after the block.

        :param parts: see `RunLog.writes`.
        """
        writes = self.run_log.writes(self.jobs, parts)
        write: Future[None] = Future()
        if writes.files:
            write = begin(self.run_log.place.put, writes.files)
        else:
            write.set_result(None)
        try:
            yield write
        finally:
            if write.done() and not write.cancelled() and write.exception() is None:
                self.run_log.note_written(self.jobs, writes)
            else:
                self.run_log.note_doubt(writes)
                self.late = None if write.done() else write

    def save(
        self,
        parts: Iterable[int] | None = None,
        *,
        within: float = SAVE_TIME,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> bool:
        """
        Try a few times to save, and return whether that succeeded.

        :param parts: see `RunLog.writes`.
        :param within: the seconds that one try may take.
        :param is_stopping: returns whether to wait no longer.
        """
        parts = None if parts is None else list(parts)
        for pause in (*PAUSES, None):
            if not (problem := self._try(parts, within, is_stopping)):
                return True
            log.warning("Could not save in the run log: %s; saving continues", problem)
            if pause is None or self.late is not None:
                break
            time.sleep(pause)
        return False

    def save_between_polls(self) -> None:
        """Try once to save what is due, if the last try is some time ago."""
        if time.monotonic() >= self._next_try:
            self._try(None, SAVE_TIME, lambda: False)
            self._next_try = time.monotonic() + SAVE_EVERY

    def _try(self, parts: list[int] | None, within: float, is_stopping: Callable[[], bool]) -> str:
        """Try to save, and return what the problem is."""
        if self.late is not None and not _is_done(self.late, within, is_stopping):
            return "it does not answer"
        self.late = None
        with self.writing(parts) as write:
            if not _is_done(write, within, is_stopping):
                return "it does not answer"
        error = write.exception()
        return "" if error is None else clean_text(f"{type(error).__name__}: {error}", 300)


def _is_done(write: Future[None], within: float, is_stopping: Callable[[], bool]) -> bool:
    """Wait for the end of a write, and return whether it came."""
    give_up_at = time.monotonic() + within
    while not write.done() and time.monotonic() < give_up_at and not is_stopping():
        wait([write], _POLL)
    return write.done()
