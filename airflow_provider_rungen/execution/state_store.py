"""Saves values in Airflow's task state store, again and again when it does not take them at once."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, wait
from typing import Any

from airflow_provider_rungen.client.daemon_threads import begin

log = logging.getLogger(__name__)

# Seconds between the tries to save a value at once.
PAUSES = (0.1, 0.4)
#: Seconds between two tries to save a value during a wait.
SAVE_EVERY = 5.0
# Seconds that a store that does not answer is waited for: a kill is put off for as long.
_SAVE_TIME = 1.0


class TaskState:
    """
    Airflow's task state store, or nothing before Airflow 3.3.

    :param store: the ``task_state_store`` of the context; ``None`` where there is none.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._unsaved: dict[str, Any] = {}
        self._next_try = 0.0
        self._writer: Future[bool] | None = None

    @property
    def is_durable(self) -> bool:
        """Whether there is a store."""
        return self._store is not None

    @property
    def is_saved(self) -> bool:
        """Whether the store holds every value."""
        return not self._unsaved

    def get(self, key: str) -> Any:
        """Return a value; ``None`` where there is none."""
        return None if self._store is None else self._store.get(key)

    def set(self, key: str, value: Any) -> None:
        """Save a value, or raise what the store raises."""
        if self._store is not None:
            self._store.set(key, value)
        self._unsaved.pop(key, None)

    def save(self, key: str, value: Any) -> None:
        """Save a value now, or later when the store fails: see `save_between_polls` and `save_all`."""
        self._unsaved[key] = value
        self.save_all()

    def save_all(self) -> bool:
        """Try a few times to save what is not saved; return whether everything is."""
        for pause in (*PAUSES, None):
            if self._try_briefly():
                return True
            if pause is None or self._is_writing:
                break
            time.sleep(pause)
        return False

    def save_between_polls(self) -> None:
        """Try once to save what is not saved, if the last try is some time ago."""
        if not self._unsaved or time.monotonic() < self._next_try:
            return
        self._try_briefly()

    def note(self, key: str, value: Any) -> None:
        """Save a value that is not worth a failure."""
        try:
            self.set(key, value)
        except Exception as error:
            log.debug("%s was not saved in Airflow's task state store: %s", key, error)

    def delete(self, key: str) -> None:
        """Remove a value; a failure is not worth one."""
        self._unsaved.pop(key, None)
        if self._store is None:
            return
        try:
            self._store.delete(key)
        except Exception as error:
            log.warning("%s was not removed from Airflow's task state store: %s", key, error)

    @property
    def _is_writing(self) -> bool:
        return self._writer is not None and not self._writer.done()

    def _try_briefly(self) -> bool:
        """Try in a thread, because the store may hang, and go on after a second."""
        if self._writer is None or self._writer.done():
            self._writer = begin(self._try)
        self._next_try = time.monotonic() + SAVE_EVERY
        wait([self._writer], _SAVE_TIME)
        return self._writer.done() and self._writer.result() and self.is_saved

    def _try(self) -> bool:
        for key, value in list(self._unsaved.items()):
            try:
                if self._store is not None:
                    self._store.set(key, value)
            except Exception as error:
                log.warning(
                    "Could not save %s in Airflow's task state store: %s; saving continues",
                    key,
                    type(error).__name__,
                )
                return False
            if self._unsaved.get(key) is value:
                del self._unsaved[key]
        return True
