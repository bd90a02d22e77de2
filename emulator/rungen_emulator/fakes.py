"""The context that `run_operator` gives a task, without Airflow's database."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

RETURN_VALUE = "return_value"

# The default of a parameter: midnight (UTC), at the time of the call.
TODAY = datetime.min


class FakeTaskInstance:
    """
    The parts of a task instance that an operator may use.

    :param operator: its task.
    :param upstream: the XComs of other tasks, by task id and key.
    :param states: the states of the tasks of its run, by task id.
    """

    dag_id = "dag"
    task_id = "task"
    run_id = "run"
    map_index = -1
    try_number = 1
    max_tries = 0

    def __init__(
        self,
        operator: Any = None,
        upstream: Mapping[str, Mapping[str, Any]] | None = None,
        states: Mapping[str, str | None] | None = None,
    ) -> None:
        if operator is not None:
            self.task, self.dag_id, self.task_id = operator, operator.dag_id, operator.task_id
            self.max_tries = operator.retries or 0
        self.id = str(uuid4())
        self.start_date = datetime.now(UTC)
        self.pushed: list[tuple[str, Any]] = []
        self._upstream = upstream or {}
        self._states = states or {}

    @property
    def xcoms(self) -> dict[str, Any]:
        """What the task pushed."""
        return dict(self.pushed)

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        self.pushed.append((key, value))

    def xcom_pull(self, task_ids: Any = None, key: str = RETURN_VALUE, default: Any = None, **_: Any) -> Any:
        if isinstance(task_ids, list | tuple):
            return [self.xcom_pull(task_id, key, default) for task_id in task_ids]
        if task_ids in (None, self.task_id):
            return self.xcoms.get(key, default)
        return self._upstream.get(task_ids, {}).get(key, default)

    def get_task_states(self, *_: Any, **which: Any) -> Any:
        is_asked: Collection[str] = which.get("task_ids") or self._states
        return {self.run_id: {name: state for name, state in self._states.items() if name in is_asked}}

    def get_dr_count(self, *_: Any, **__: Any) -> int:
        return 1

    def get_dagrun_state(self, *_: Any, **__: Any) -> str:
        return "running"


class FakeStore:
    """Airflow 3.3's task state store, which stores JSON."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def get(self, key: str) -> Any:
        return json.loads(self.kept[key]) if key in self.kept else None

    def set(self, key: str, value: Any, **_: Any) -> None:
        self.kept[key] = json.dumps(value)

    def delete(self, key: str) -> None:
        self.kept.pop(key, None)


class OutletEvents(dict[Any, Any]):
    """Maps outlets to their events by kind and name, and creates an event on first use."""

    def __getitem__(self, outlet: Any) -> Any:
        return self.setdefault((type(outlet).__name__, _name_of(outlet)), SimpleNamespace(extra={}))


def _name_of(asset: Any) -> Any:
    return getattr(asset, "uri", None) or getattr(asset, "name", asset)


# --- the results of earlier tasks ---


def xcoms_of(result: Any) -> dict[str, Any]:
    """
    Return the XComs of a task, by key.

    :param result: a `TaskResult`, or what the task returned.
    """
    if hasattr(result, "xcoms"):
        return dict(result.xcoms)
    return {RETURN_VALUE: result}


def _state_of(result: Any) -> str:
    from rungen_emulator.names import AirflowSkipException

    error = result.error if hasattr(result, "xcoms") else None
    if error is None:
        return "success"
    return "skipped" if isinstance(error, AirflowSkipException) else "failed"


# --- the run ---


def make_dag_run(dag_id: str, logical_date: datetime | None, partition_key: str | None) -> SimpleNamespace:
    """
    Return what is ``dag_run`` in templates: a manual run, and the first one.

    :param logical_date: `TODAY` when left out.
    :raises ValueError: this Airflow has no such runs.
    """
    from rungen_emulator.names import HAS_PARTITIONS

    if partition_key is not None and not HAS_PARTITIONS:
        raise ValueError("partition_key needs Airflow 3.2: earlier runs have no partition")
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if logical_date is TODAY:
        logical_date = None if partition_key is not None else today
    run = SimpleNamespace(run_id=FakeTaskInstance.run_id, dag_id=dag_id, run_type="manual", conf={})
    run.start_date = run.run_after = logical_date or today
    run.logical_date = run.data_interval_start = run.data_interval_end = logical_date
    if HAS_PARTITIONS:
        run.partition_key = partition_key
    return run


def _date_names(when: datetime) -> dict[str, Any]:
    """Return the names in templates that follow from a logical date."""
    return {
        **dict.fromkeys(("logical_date", "data_interval_start", "data_interval_end"), when),
        "ds": f"{when:%Y-%m-%d}",
        "ds_nodash": f"{when:%Y%m%d}",
        "ts": when.isoformat(),
        "ts_nodash": f"{when:%Y%m%dT%H%M%S}",
        "ts_nodash_with_tz": f"{when:%Y%m%dT%H%M%S%z}",
        **dict.fromkeys(("prev_data_interval_start_success", "prev_data_interval_end_success")),
    }


def make_context(operator: Any, dag_run: SimpleNamespace, upstream: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return what Airflow gives a task.

    :param operator: the task.
    :param dag_run: the run of the DAG.
    :param upstream: the results of earlier tasks, by task id. Other tasks of the DAG have no state yet.
    """
    from rungen_emulator.names import HAS_TASK_STATE, ConnectionAccessor, VariableAccessor, macros

    dag = operator.dag if operator.has_dag() else None
    xcoms = {task_id: xcoms_of(result) for task_id, result in upstream.items()}
    states: dict[str, str | None] = dict.fromkeys(dag.task_dict if dag else ())
    states |= {task_id: _state_of(result) for task_id, result in upstream.items()}
    states[operator.task_id] = "running"
    ti, when = FakeTaskInstance(operator, xcoms, states), dag_run.logical_date
    key = dag_run.run_id if when is None else f"{when:%Y%m%d}"
    return {
        "ti": ti,
        "task_instance": ti,
        "task_instance_key_str": f"{ti.dag_id}__{ti.task_id}__{key}",
        "task": operator,
        "dag": dag,
        "dag_run": dag_run,
        "run_id": ti.run_id,
        "params": {**(dag.params.dump() if dag else {}), **operator.params.dump()},
        **({} if when is None else _date_names(when)),
        **({"partition_key": dag_run.partition_key} if hasattr(dag_run, "partition_key") else {}),
        **dict.fromkeys(("prev_start_date_success", "prev_end_date_success")),
        "macros": macros,
        "var": {
            "value": VariableAccessor(deserialize_json=False),
            "json": VariableAccessor(deserialize_json=True),
        },
        "conn": ConnectionAccessor(),
        "inlets": operator.inlets,
        "outlets": operator.outlets,
        "outlet_events": OutletEvents(),
        "triggering_asset_events": {},
        "task_state_store": FakeStore() if HAS_TASK_STATE else None,
        "expanded_ti_count": None,
    }
