"""Which jobs a results table has. It is read once for all files of a page."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from itertools import islice

from airflow_provider_rungen.plugins.cache import LASTING, Cache
from airflow_provider_rungen.plugins.job_rows import MAX_COUNTED, job_id_of
from airflow_provider_rungen.plugins.pools import TooSlowError
from airflow_provider_rungen.plugins.stored import read_table
from airflow_provider_rungen.plugins.task_record import TaskRecord

# Seconds to read a table. A request waits no longer than the other time, and finds it read later.
_READ_TIME = 20.0
_WAIT_TIME = 2.0
# Each is up to ten megabytes.
_known = Cache(max_size=8)
# Of the tables that are being read. One that hangs holds up no other one.
_locks: dict[Hashable, threading.Lock] = {}


def job_ids_of_table(task: TaskRecord) -> frozenset[str]:
    """
    Return the jobs of the results table of a task. Blocks.

    :raises RunGenError: it cannot be read, or is no results table.
    :raises TooSlowError: it is not read yet.
    """
    key = (task.dag_id, task.run_id, task.task_id, task.map_index, task.try_number, task.results)
    lock = _locks.setdefault(key, threading.Lock())
    if not lock.acquire(timeout=_WAIT_TIME):
        raise TooSlowError
    try:
        ids: frozenset[str] | None = _known.get(key)
        if ids is None:
            rows = islice(read_table(task.results, _READ_TIME), MAX_COUNTED)
            ids = frozenset(filter(None, map(job_id_of, rows)))
            _known.put(key, ids, LASTING)
        return ids
    finally:
        # who waits for it goes on, and finds the table
        _locks.pop(key, None)
        lock.release()


def forget_tables() -> None:
    """Remove what is known of tables, so that they are read again."""
    _known.clear()
