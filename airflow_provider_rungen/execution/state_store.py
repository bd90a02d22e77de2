"""Saves values in Airflow's task state store, again and again when it does not take them at once."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

log = logging.getLogger(__name__)

# Seconds between the tries to save a value at once.
PAUSES = (0.1, 0.4)
#: Seconds between two tries to save a value during a wait.
SAVE_EVERY = 5.0
# Seconds that a wait is held up by a store that does not answer: a kill is put off for as long.
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
        self._writer: threading.Thread | None = None

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
            if self._try():
                return True
            if pause is not None:
                time.sleep(pause)
        return False

    def save_between_polls(self) -> None:
        """Try once to save what is not saved, if the last try is some time ago."""
        if not self._unsaved or time.monotonic() < self._next_try:
            return
        if self._writer is None or not self._writer.is_alive():
            self._writer = threading.Thread(target=self._try, daemon=True)
            self._writer.start()
        self._writer.join(_SAVE_TIME)
        self._next_try = time.monotonic() + SAVE_EVERY

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
                self._next_try = time.monotonic() + SAVE_EVERY
                return False
            if self._unsaved.get(key) is value:
                del self._unsaved[key]
        return True
