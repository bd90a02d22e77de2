"""The context that `run_operator` gives a task, without Airflow's database."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from types import SimpleNamespace
from typing import Any

RETURN_VALUE = "return_value"


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


def context(operator: Any, upstream: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what Airflow gives a task of a manual run at midnight (UTC)."""
    from airflow_provider_rungen._airflow import AIRFLOW_V_3_0_PLUS, AIRFLOW_V_3_3_PLUS

    ti = FakeTaskInstance(operator, upstream)
    when = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    dates = {"logical_date": when, "data_interval_start": when, "data_interval_end": when}
    run = {"run_id": ti.run_id, "dag_id": ti.dag_id, "run_type": "manual", "conf": {}, "start_date": when}
    dag = operator.dag if operator.has_dag() else None
    params = {**(dag.params.dump() if dag else {}), **operator.params.dump()}
    return {
        "ti": ti,
        "task_instance": ti,
        "task": operator,
        "dag": dag,
        "dag_run": SimpleNamespace(**run, **dates),
        "run_id": ti.run_id,
        "params": params,
        **dates,
        "ds": f"{when:%Y-%m-%d}",
        "ds_nodash": f"{when:%Y%m%d}",
        "ts": when.isoformat(),
        "ts_nodash": f"{when:%Y%m%dT%H%M%S}",
        "macros": import_module(
            "airflow.sdk.execution_time.macros" if AIRFLOW_V_3_0_PLUS else "airflow.macros"
        ),
        "inlets": operator.inlets,
        "outlets": operator.outlets,
        "outlet_events": OutletEvents(),
        "triggering_asset_events": {},
        "task_state_store": FakeStore() if AIRFLOW_V_3_3_PLUS else None,
        "expanded_ti_count": None,
    }
