"""The context that `run_operator` gives a task, without Airflow's database."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib import import_module
from types import SimpleNamespace
from typing import Any

RETURN_VALUE = "return_value"

# The default of a parameter: midnight (UTC), at the time of the call.
TODAY = datetime.min


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
    dag_run: Any = None

    def __init__(self, operator: Any = None, upstream: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        if operator is not None:
            self.task, self.dag_id, self.task_id = operator, operator.dag_id, operator.task_id
            self.max_tries = operator.retries or 0
        self.start_date = datetime.now(UTC)
        self.pushed: list[tuple[str, Any]] = []
        self._upstream = upstream or {}

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

    def get_dagrun(self) -> Any:
        """Return the run, as Airflow 2 does."""
        return self.dag_run

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
        return self.setdefault((type(outlet).__name__, _name_of(outlet)), SimpleNamespace(extra={}))


class TriggeringEvents(dict[Any, Any]):
    """Maps assets and aliases, or their names, to the events that started the run."""

    def __getitem__(self, asset: Any) -> Any:
        return super().__getitem__(_name_of(asset))


def _name_of(asset: Any) -> Any:
    return getattr(asset, "uri", None) or getattr(asset, "name", asset)


# --- the results of earlier tasks ---


def xcoms_of(result: Any) -> dict[str, Any]:
    """
    Return the XComs of a task, by key.

    :param result: a `TaskResult`, a list of them for a mapped task, or what the task returned.
    """
    if hasattr(result, "xcoms"):
        return dict(result.xcoms)
    if isinstance(result, list) and result and all(hasattr(each, "xcoms") for each in result):
        keys = dict.fromkeys(key for each in result for key in each.xcoms)
        return {key: [each.xcoms[key] for each in result if key in each.xcoms] for key in keys}
    return {RETURN_VALUE: result}


def _state_of(result: Any) -> str:
    from airflow_provider_rungen._airflow import AirflowSkipException

    results = result if isinstance(result, list) else [result]
    errors = [each.error for each in results if hasattr(each, "xcoms") and each.error is not None]
    if not errors:
        return "success"
    return "skipped" if isinstance(errors[-1], AirflowSkipException) else "failed"


# --- the run ---


def make_dag_run(
    dag_id: str, logical_date: datetime | None, partition_key: str | None, *, is_triggered: bool
) -> SimpleNamespace:
    """
    Return what is ``dag_run`` in templates: a manual run, and the first one.

    :param logical_date: `TODAY` when left out.
    :param is_triggered: whether asset events started it.
    :raises ValueError: this Airflow has no such runs.
    """
    from airflow_provider_rungen._airflow import AIRFLOW_V_3_0_PLUS, AIRFLOW_VERSION

    if partition_key is not None and AIRFLOW_VERSION < (3, 2):
        raise ValueError("partition_key needs Airflow 3.2: earlier runs have no partition")
    if logical_date is None and not AIRFLOW_V_3_0_PLUS:
        raise ValueError("logical_date=None needs Airflow 3: each earlier run has a logical date")
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if logical_date is TODAY:
        has_none = partition_key is not None or (is_triggered and AIRFLOW_V_3_0_PLUS)
        logical_date = None if has_none else today
    run = SimpleNamespace(run_id=FakeTaskInstance.run_id, dag_id=dag_id, run_type="manual", conf={})
    run.start_date = logical_date or today
    run.logical_date = run.data_interval_start = run.data_interval_end = logical_date
    if AIRFLOW_V_3_0_PLUS:
        run.run_after = run.start_date
    if AIRFLOW_VERSION >= (3, 2):
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


def make_context(
    operator: Any,
    dag_run: SimpleNamespace,
    upstream: Mapping[str, Any],
    asset_events: Mapping[str, Any],
    map_index: int | None,
) -> dict[str, Any]:
    """
    Return what Airflow gives a task.

    :param operator: the task.
    :param dag_run: the run of the DAG.
    :param upstream: the results of earlier tasks, by task id. Other tasks of the DAG have no state yet.
    :param asset_events: the ``extra`` of the events that started the run, by asset URI or alias name.
    :param map_index: the index of a mapped task.
    """
    from airflow_provider_rungen._airflow import AIRFLOW_V_3_0_PLUS, AIRFLOW_V_3_3_PLUS

    dag = operator.dag if operator.has_dag() else None
    xcoms = {task_id: xcoms_of(result) for task_id, result in upstream.items()}
    states: dict[str, str | None] = dict.fromkeys(dag.task_dict if dag else ())
    states |= {task_id: _state_of(result) for task_id, result in upstream.items()}
    states[operator.task_id] = "running"
    if AIRFLOW_V_3_0_PLUS:
        ti: FakeTaskInstance = FakeTaskInstance3(operator, xcoms, states)
        macros, accessors = "airflow.sdk.execution_time.macros", "airflow.sdk.execution_time.context"
    else:
        ti = FakeTaskInstance(operator, xcoms)
        macros, accessors = "airflow.macros", "airflow.utils.context"
        dag_run.get_task_instance = lambda task_id, **_: SimpleNamespace(state=states.get(task_id))
        instances = [SimpleNamespace(task_id=each, map_index=-1, state=states[each]) for each in states]
        dag_run.get_task_instances = lambda: instances
        ti.dag_run = dag_run
    if map_index is not None:
        ti.map_index = map_index
    when, lookups = dag_run.logical_date, import_module(accessors)
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
        "macros": import_module(macros),
        "var": {
            "value": lookups.VariableAccessor(deserialize_json=False),
            "json": lookups.VariableAccessor(deserialize_json=True),
        },
        "conn": lookups.ConnectionAccessor(),
        "inlets": operator.inlets,
        "outlets": operator.outlets,
        "outlet_events": OutletEvents(),
        "triggering_asset_events": TriggeringEvents(
            {name: [SimpleNamespace(extra=extra)] for name, extra in asset_events.items()}
        ),
        "task_state_store": FakeStore() if AIRFLOW_V_3_3_PLUS else None,
        "expanded_ti_count": None,
    }
