"""What was done to an app: for the next attempt, after a deferral, for the teardown, and for other blocks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

from airflow_provider_rungen._airflow import TaskInstanceState
from airflow_provider_rungen.client.scaling import ScaleRecord
from airflow_provider_rungen.client.worker_history import MAX_CHANGES, WorkerHistory
from airflow_provider_rungen.runs import records

log = logging.getLogger(__name__)

#: The key, in XCom and in Airflow's task state store, of what was done to the app.
KEY = "scaled"
#: The key, in XCom, of a task that left the app as it is (``only_if``).
LEFT_KEY = "left"
# The key, in Airflow's task state store, of the numbers of workers that earlier attempts have set and seen.
_HISTORY_KEY = "workers"
# The states of a teardown that is still to run.
_TO_COME = (
    None,
    TaskInstanceState.SCHEDULED,
    TaskInstanceState.QUEUED,
    TaskInstanceState.UP_FOR_RETRY,
)


class ScaleState:
    """
    The record of a scaling, and the workers of the app so far.

    XCom is wiped at the start of each attempt, so earlier attempts are in the task state store (Airflow 3.3).

    :param ti: the task instance.
    :param store: the ``task_state_store`` of the context; ``None`` where there is none.
    """

    def __init__(self, ti: Any, store: Any) -> None:
        self.history = WorkerHistory()
        self._ti = ti
        self._store = store
        self._record: ScaleRecord | None = None
        self._app_id = ""

    @property
    def is_durable(self) -> bool:
        """Whether the next attempt knows what this one has done."""
        return self._store is not None

    def load(self, app_id: str) -> ScaleRecord | None:
        """Load what earlier attempts have kept about an app, and return what the last one has done to it."""
        self._app_id = app_id
        if self._store is None:
            return None
        kept = self._store.get(_HISTORY_KEY)
        if isinstance(kept, Mapping) and kept.get("app_id") == app_id:
            self.history = read_history(kept)
        record = read_scale_record(self._store.get(KEY))
        return record if record is not None and record.app_id == app_id else None

    def adopt(self, pushed: Any) -> ScaleRecord | None:
        """Go on from what this attempt has pushed before its deferral."""
        self._record, self.history = read_scale_record(pushed), read_history(pushed)
        self._app_id = "" if self._record is None else self._record.app_id
        return self._record

    def push(self, record: ScaleRecord) -> None:
        """Keep what is about to be done, for the worker after a deferral and for the teardown."""
        self._record = record
        self._push()

    def keep(self, record: ScaleRecord) -> None:
        """Keep what is about to be done, for the next attempt, which must know it."""
        if self._store is not None:
            self._store.set(KEY, record.to_json())

    def note(self, history: WorkerHistory) -> None:
        """Keep which workers the app had. The bill is not worth a failure."""
        if history == self.history:
            return
        self.history = history
        try:
            self._push()
        except Exception as error:
            log.warning("Could not save the workers of the app for its bill: %s", type(error).__name__)
        self._save_history()

    def forget(self, *, with_history: bool) -> None:
        """Remove what the next attempt needs no more."""
        if self._store is not None:
            self._store.delete(KEY)
            if with_history:
                self._store.delete(_HISTORY_KEY)

    def _push(self) -> None:
        if self._record is not None:
            self._ti.xcom_push(key=KEY, value=self._record.to_json() | _to_json(self.history))

    def _save_history(self) -> None:
        try:
            if self._store is not None:
                self._store.set(_HISTORY_KEY, {"app_id": self._app_id, **_to_json(self.history)})
        except Exception as error:
            log.warning("Could not save the workers of the app for its bill: %s", type(error).__name__)


def read_scale_record(value: Any) -> ScaleRecord | None:
    """Return the record of a stored value; ``None``, with a warning, when it is not one."""
    return records.parse(KEY, value, _read_record, "it is unknown how many workers the app had")


def read_history(value: Any) -> WorkerHistory:
    """Return the workers in a stored value; none, with a warning, when they cannot be read."""
    found = records.parse(_HISTORY_KEY, value, _read_history, "the bill of the app misses earlier workers")
    return found or WorkerHistory()


def _read_record(fields: Mapping[str, Any]) -> ScaleRecord:
    return ScaleRecord(
        app_id=records.identifier(fields["app_id"], "app_id"),
        active_workers=records.count(fields["active_workers"], "active_workers"),
        before=None if fields["before"] is None else records.count(fields["before"], "before"),
        at=records.seconds(fields["at"], "at"),
    )


def _to_json(history: WorkerHistory) -> dict[str, Any]:
    return {"changes": [{"at": at, "workers": workers} for at, workers in history.changes]}


def _read_history(fields: Mapping[str, Any]) -> WorkerHistory:
    changes = fields.get("changes", [])
    if not isinstance(changes, list) or len(changes) > MAX_CHANGES:
        raise records.InvalidRecordError("changes is not a list of changes")
    read = [
        (records.seconds(change["at"], "at"), records.count(change["workers"], "workers"))
        for change in changes
    ]
    # two changes at one time stay in their order
    return WorkerHistory(tuple(sorted(read, key=itemgetter(0))))


# --- other blocks ---


def other_teardowns(ti: Any, teardowns: Iterable[Any], app_id: str, own: str) -> list[str]:
    """
    Return the teardowns of this DAG, in any of its runs, that are still to scale the same app down.

    :param own: that of the block that asks.
    """
    if not hasattr(ti, "get_task_states"):
        return []
    downs = {teardown.task_id: teardown for teardown in teardowns}
    is_alone = ti.get_dr_count(dag_id=ti.dag_id, states=["running"]) < 2
    runs: dict[str, Any] = {"run_ids": [ti.run_id]} if is_alone else {}
    others = []
    for run_id, states in task_states(ti, list(downs), **runs).items():
        for task_id, state in states.items():
            # one that runs right now decides like this one does: both scale down
            if state not in _TO_COME or (run_id, task_id) == (ti.run_id, own):
                continue
            record = read_scale_record(
                pull_from_setup(ti, downs[task_id].scale_up_task_id, KEY, run_id=run_id)
            )
            if record and record.app_id == app_id and ti.get_dagrun_state(ti.dag_id, run_id) == "running":
                others.append(f"{task_id} of run {run_id}")
    return others


def pull_from_setup(ti: Any, scale_up_task_id: str, key: str, **of_run: str) -> Any:
    """Return what the setup of a run has pushed."""
    return ti.xcom_pull(task_ids=scale_up_task_id, key=key, map_indexes=ti.map_index, **of_run)


def task_states(ti: Any, task_ids: list[str], **of_runs: Any) -> dict[str, dict[str, str | None]]:
    """Return the states of tasks (at this task's map index), by run."""
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=task_ids, map_index=ti.map_index, **of_runs)
    # None is a task in a loop of Airflow 3.4 that is not mapped
    suffix = "" if ti.map_index is None or ti.map_index < 0 else f"_{ti.map_index}"
    return {
        run_id: {task_id: known[task_id + suffix] for task_id in task_ids if task_id + suffix in known}
        for run_id, known in states.items()
    }
