"""The context that `run_operator` gives a task, without Airflow's database."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from importlib import import_module
from types import SimpleNamespace
from typing import Any

RETURN_VALUE = "return_value"

_OF_THE_LAST_RUN = (
    "prev_data_interval_start_success",
    "prev_data_interval_end_success",
    "prev_start_date_success",
    "prev_end_date_success",
)


class FakeTaskInstance:
    """
    The parts of a task instance that an operator may use.

    :param operator: its task.
    :param upstream: the XComs of other tasks, by task id and key.
    """

    dag_id = "dag"
    task_id = "task"
    run_id = "run"
    map_index = -1
    try_number = 1
    max_tries = 0

    def __init__(self, operator: Any = None, upstream: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        if operator is not None:
            self.task, self.dag_id, self.task_id = operator, operator.dag_id, operator.task_id
            self.max_tries = operator.retries or 0
        self.start_date = datetime.now(UTC)
        self.pushed: list[tuple[str, Any]] = []
        self.on_push: Callable[[str, Any], None] | None = None
        self._upstream = upstream or {}

    @property
    def xcoms(self) -> dict[str, Any]:
        """What the task pushed."""
        return dict(self.pushed)

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        self.pushed.append((key, value))
        if self.on_push is not None:
            self.on_push(key, value)

    def xcom_pull(self, task_ids: Any = None, key: str = RETURN_VALUE, default: Any = None, **_: Any) -> Any:
        if isinstance(task_ids, list | tuple):
            return [self.xcom_pull(task_id, key, default) for task_id in task_ids]
        if task_ids in (None, self.task_id):
            return self.xcoms.get(key, default)
        return self._upstream.get(task_ids, {}).get(key, default)

    def get_relevant_upstream_map_indexes(self, *_: Any, **__: Any) -> None:
        """Return that no earlier task is mapped, as Airflow 2 asks."""


class FakeTaskInstance3(FakeTaskInstance):
    """
    A task instance that can be asked for others, as on Airflow 3.

    :param states: the states of the tasks of its run, by task id.
    """

    def __init__(
        self, operator: Any, upstream: Mapping[str, Mapping[str, Any]], states: Mapping[str, str | None]
    ) -> None:
        super().__init__(operator, upstream)
        self._states = states

    def get_task_states(
        self, *_: Any, task_ids: Collection[str] | None = None, **__: Any
    ) -> dict[str, dict[str, str | None]]:
        is_asked = self._states if task_ids is None else task_ids
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
        name = outlet.uri if hasattr(outlet, "uri") else outlet.name
        return self.setdefault((type(outlet).__name__, name), SimpleNamespace(extra={}))


def context(
    operator: Any, upstream: Mapping[str, Mapping[str, Any]], states: Mapping[str, str]
) -> dict[str, Any]:
    """
    Return what Airflow gives a task of a manual run at midnight (UTC), the first run of its DAG.

    :param operator: the task.
    :param upstream: the XComs of earlier tasks, by task id and key.
    :param states: their states. Other tasks of the DAG have none yet.
    """
    from airflow_provider_rungen._airflow import AIRFLOW_V_3_0_PLUS, AIRFLOW_V_3_3_PLUS

    dag = operator.dag if operator.has_dag() else None
    known = {**dict.fromkeys(dag.task_dict if dag else ()), **states, operator.task_id: "running"}
    when = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    dates = {"logical_date": when, "data_interval_start": when, "data_interval_end": when}
    run = {"run_id": FakeTaskInstance.run_id, "dag_id": operator.dag_id, "run_type": "manual", "conf": {}}
    dag_run = SimpleNamespace(**run, start_date=when, **dates)
    if AIRFLOW_V_3_0_PLUS:
        ti: FakeTaskInstance = FakeTaskInstance3(operator, upstream, known)
        macros, accessors = "airflow.sdk.execution_time.macros", "airflow.sdk.execution_time.context"
    else:
        ti = FakeTaskInstance(operator, upstream)
        macros, accessors = "airflow.macros", "airflow.utils.context"
        dag_run.get_task_instance = lambda task_id, **_: SimpleNamespace(state=known.get(task_id))
    lookups = import_module(accessors)
    return {
        "ti": ti,
        "task_instance": ti,
        "task_instance_key_str": f"{ti.dag_id}__{ti.task_id}__{when:%Y%m%d}",
        "task": operator,
        "dag": dag,
        "dag_run": dag_run,
        "run_id": ti.run_id,
        "params": {**(dag.params.dump() if dag else {}), **operator.params.dump()},
        **dates,
        "ds": f"{when:%Y-%m-%d}",
        "ds_nodash": f"{when:%Y%m%d}",
        "ts": when.isoformat(),
        "ts_nodash": f"{when:%Y%m%dT%H%M%S}",
        "ts_nodash_with_tz": f"{when:%Y%m%dT%H%M%S%z}",
        **dict.fromkeys(_OF_THE_LAST_RUN),
        "macros": import_module(macros),
        "var": {
            "value": lookups.VariableAccessor(deserialize_json=False),
            "json": lookups.VariableAccessor(deserialize_json=True),
        },
        "conn": lookups.ConnectionAccessor(),
        "inlets": operator.inlets,
        "outlets": operator.outlets,
        "outlet_events": OutletEvents(),
        "triggering_asset_events": {},
        "task_state_store": FakeStore() if AIRFLOW_V_3_3_PLUS else None,
        "expanded_ti_count": None,
    }
