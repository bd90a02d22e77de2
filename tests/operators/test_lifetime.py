"""``scaled_app``: what it makes of a DAG, and what its teardown does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowFailException,
    TaskDeferred,
    TaskGroup,
    TriggerRule,
    chain,
    task,
    task_group,
)
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_3_PLUS
from conftest import SOON, FakeTaskInstance, Outcome, run_task, signal_when, stopped_when, table_of
from operator_kit import KILLED, failing, hang, kill_when, workers
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen._airflow import XCom
from airflow_provider_rungen.client.workers import ScaleRecord, WorkerHistory
from airflow_provider_rungen.exceptions import RunGenAppError
from airflow_provider_rungen.execution.apps import scale_down
from airflow_provider_rungen.execution.task import store_writer
from airflow_provider_rungen.execution.task.xcom_keys import BILL_KEY, PAGE_KEY
from airflow_provider_rungen.operators import RunGenRunJobOperator, scaled_app
from airflow_provider_rungen.operators.app import RunGenScaleDownOperator

APP = "gpu"


def dag(**options: Any) -> Any:
    return DAG("d", schedule=None, **options)


def job(task_id: str, **options: Any) -> RunGenRunJobOperator:
    return RunGenRunJobOperator(task_id=task_id, input={"prompt": "x"}, **options)


def upstream(dag: Any, task_id: str) -> set[str]:
    return set(dag.task_dict[task_id].upstream_task_ids)


@task
def give(value: Any) -> Any:
    return value


def counted(call: Callable[..., Any], calls: Counter[str]) -> Callable[..., Any]:
    """Return a call that is counted by its name."""

    def count(*args: Any, **kwargs: Any) -> Any:
        calls[call.__name__] += 1
        return call(*args, **kwargs)

    return count


# --- the DAG ------------------------------------------------------------------------------------------------


@pytest.mark.contract
def test_tasks_inside_come_between() -> None:
    with dag() as d:
        with scaled_app(APP, 2) as gpu:
            first, second = job("first"), job("second")
            first >> second
        first >> job("outside")
    d.validate()
    assert (gpu.up.task_id, gpu.down.task_id) == ("app_up", "app_down")
    assert upstream(d, "first") == {"app_up"}
    assert upstream(d, "app_down") >= {"app_up", "second"}
    assert ("first" in upstream(d, "app_down")) != AIRFLOW_V_3_3_PLUS
    assert upstream(d, "outside") == {"first"}
    assert upstream(d, "app_up") == set()
    assert [t.task_id for t in d.tasks if t.is_setup] == ["app_up"]
    assert gpu.down.is_teardown


@pytest.mark.contract
def test_the_graph_is_a_group_with_documented_tasks_and_plain_ids() -> None:
    with dag() as d:
        with scaled_app(APP, task_display_name="mine", pool="one_at_a_time") as gpu:
            job("paint")
        with TaskGroup("group"), scaled_app(APP), TaskGroup("inner"):
            job("load")
    # a user who marks the group does not mark the teardown
    assert set(d.task_group.children) == {"app_is_up", "app_down", "app_end", "group"}
    group: Any = d.task_group.children["app_is_up"]
    assert set(group.children) == {"app_up", "paint"}
    of_group = ("app_up", "inner.load", "app_down", "app_end")
    assert set(d.task_dict) == {*group.children, "app_down", "app_end", *(f"group.{e}" for e in of_group)}
    with dag() as d, scaled_app(APP), TaskGroup("plain", prefix_group_id=False), scaled_app("another"):
        job("paint")
    both = {"app_down", "app_end", "app_2_down", "app_2_end"}
    assert set(d.task_group.children) == {"app_is_up", *both}
    tasks: list[Any] = [gpu.up, gpu.down, gpu.end]
    names = ["mine", "app billing ends", "app billing checked"]
    assert [task.task_display_name for task in tasks] == names
    assert all(task.doc_md for task in tasks)
    assert [task.pool for task in tasks[:2]] == ["one_at_a_time"] * 2


@pytest.mark.contract
def test_tasks_of_a_block_may_name_its_setup() -> None:
    with dag() as d:
        rows, between = give("rows"), job("between")
        with scaled_app(APP) as gpu:
            gpu.up >> between >> job("fourth", app_id=APP)
            job("first", app_id=gpu.up.output)
            [rows, gpu.up] >> job("second", app_id=APP)
            chain(gpu.up, job("third", app_id=APP), gpu.down)
            with TaskGroup("group") as group, scaled_app("another", name="inner") as inner:
                job("inside", app_id=gpu.up.output)
            gpu.up >> group
            gpu.up >> inner.up
    assert all(task.task_id not in task.get_flat_relative_ids(upstream=True) for task in d.tasks)
    assert upstream(d, "app_up") == {"give"}
    assert upstream(d, "between") == {"app_up"}
    assert set(gpu.down.jobs_of) == {"first", "second", "third", "fourth", "between"}
    assert upstream(d, "group.inner_up") == {"app_up"}
    assert upstream(d, "app_down") >= {"first", "second", "third", "group.inner_end"}


@pytest.mark.contract
def test_a_task_of_an_outer_block_is_on_its_bill_wherever_it_runs() -> None:
    with dag():
        between = job("between", app_id=APP)
        with scaled_app(APP, name="outer") as outer:
            score = job("score", app_id=APP)
            with scaled_app("another") as inner:
                chain(job("sketch"), score, job("paint"), between, job("print"))
    assert set(outer.down.jobs_of) == {"score"}
    assert set(inner.down.jobs_of) == {"sketch", "paint", "between", "print"}


@pytest.mark.contract
def test_an_error_in_the_block_leaves_its_group() -> None:
    with dag() as d:
        with pytest.raises(KeyError), scaled_app(APP):
            raise KeyError
        with pytest.raises(TypeError), scaled_app("other", nonsense=True):  # type: ignore[call-arg]
            pass
        job("outside")
    assert "outside" in d.task_group.children


@pytest.mark.contract
def test_what_costs_no_worker_is_marked_so() -> None:
    module: Any = import_module("airflow.serialization.serialized_objects")
    defaults = {"on_success_callback": print, "on_execute_callback": print}
    with dag(default_args=defaults) as d, scaled_app(APP):
        job("first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow's own
        kind = getattr(module, "DagSerialization", module.SerializedDAG)
        tasks = {t["__var"]["task_id"]: t["__var"] for t in kind.to_dict(d)["dag"]["tasks"]}
    assert [task_id for task_id, fields in tasks.items() if fields.get("_is_empty")] == ["app_end"]
    mark: Any = d.task_dict["app_end"]
    assert not mark.on_success_callback
    assert not mark.on_execute_callback


@pytest.mark.contract
def test_the_run_fails_when_the_teardown_or_the_setup_fails() -> None:
    with dag() as d, scaled_app(APP) as gpu:
        job("first")
    assert gpu.end.is_teardown
    assert gpu.end.on_failure_fail_dagrun
    assert gpu.end.trigger_rule == TriggerRule.NONE_FAILED
    assert upstream(d, "app_end") == {"app_up", "app_down"}


@pytest.mark.contract
def test_every_task_inside_is_reached_whatever_it_waits_for() -> None:
    with dag() as d:
        rows = give.override(task_id="rows")([1])
        with scaled_app(APP):
            alone = job("alone")
            batch = table_of(task_id="batch", inputs=rows)
            mapped = RunGenRunJobOperator.partial(task_id="mapped").expand(input=rows)
            with TaskGroup("group"):
                inner: Any = give.override(task_id="inner")(batch.output)
        give.override(task_id="load")(mapped.output)
    d.validate()
    assert {t for t in d.task_dict if "app_up" in upstream(d, t)} - {"app_down", "app_end"} == {
        *("alone", "batch", "mapped")
    }
    assert upstream(d, "app_down") >= {"alone", "mapped", "group.inner"}
    assert upstream(d, "app_up") == {"rows"}, "it is not paid for while it waits for its inputs"
    assert alone.downstream_task_ids == {"app_down"}
    assert inner.operator.downstream_task_ids == {"app_down"}


# Airflow 3.5 refuses such a DAG, and 3.4 warns of it
@pytest.mark.contract
@pytest.mark.filterwarnings("ignore:.*depend on each other in a cycle")
def test_what_waits_for_a_task_inside_is_not_waited_for() -> None:
    with dag() as d:
        outside = give.override(task_id="outside")(1)
        with scaled_app(APP):
            first = job("first")
            first >> outside
            last = job("last")
            outside >> last
    d.validate()
    assert upstream(d, "app_up") == set()
    assert upstream(d, "last") == {"app_up", "outside"}
    d.check_cycle() if hasattr(d, "check_cycle") else d.topological_sort()


@pytest.mark.contract
def test_two_of_a_dag_and_one_inside_another() -> None:
    with dag() as d:
        with scaled_app(APP), TaskGroup("group"), scaled_app("other"):
            job("inner")
        with scaled_app("third"):
            pass
        with scaled_app("fourth", name="painter"):
            job("paint")
    d.validate()
    assert {"app_up", "group.app_up", "app_2_up", "painter_up"} <= set(d.task_dict)
    assert upstream(d, "group.app_up") == {"app_up"}
    assert upstream(d, "app_down") >= {"group.app_end"}
    assert upstream(d, "app_2_down") == {"app_2_up"}


def test_default_args_have_no_say_in_scaling_down() -> None:
    defaults = {
        "retries": 0,
        "retry_delay": timedelta(days=1),
        "execution_timeout": timedelta(seconds=1),
        "depends_on_past": True,
        "wait_for_downstream": True,
        "pool": "crowded",
        "pool_slots": 1000,
        "retry_policy": "never",
        "trigger_rule": "all_success",
        "app_id": "another",
        "poll_interval": 1,
    }
    with dag(default_args=defaults) as d, scaled_app(APP, deferrable=True, retries=3, timeout=60) as gpu:
        job("first", depends_on_past=False, wait_for_downstream=False)
    down: Any = d.task_dict["app_down"]
    assert down.retries >= 5
    assert down.retry_delay <= timedelta(minutes=1)
    assert down.execution_timeout is None
    assert not down.depends_on_past
    assert not down.wait_for_downstream
    assert (down.pool, down.pool_slots) == ("default_pool", 1)
    assert getattr(down, "retry_policy", None) != "never"
    assert down.trigger_rule == TriggerRule.ALL_DONE
    assert gpu.down.app_id == gpu.up.app_id == APP
    assert (gpu.up.retries, gpu.up.deferrable, gpu.up.timeout) == (3, True, 60)


@pytest.mark.contract
def test_groups_without_prefix_that_have_blocks_may_follow_each_other() -> None:
    with dag() as d:
        stages = []
        for number in range(3):
            with TaskGroup(f"stage_{number}", prefix_group_id=False) as stage, scaled_app(APP):
                job(f"job_{number}")
            stages.append(stage)
        chain(*stages)
    assert upstream(d, "app_3_up") == {"job_1"}
    assert [set(stage.children) for stage in stages[1:]] == [
        {f"{name}_is_up", f"{name}_down", f"{name}_end"} for name in ("app_2", "app_3")
    ]


@pytest.mark.contract
@pytest.mark.parametrize("place", ["dag", "group", "group without prefix", "within a block"])
def test_a_block_scales_the_app_of_its_tasks_up_and_down(place: str) -> None:
    defaults: dict[str, Any] = {"app_id": "another", "rungen_conn_id": "rungen_prod", "queue": "gpu"}
    with contextlib.ExitStack() as around:
        around.enter_context(dag(default_args=defaults if place == "dag" else {}))
        if place == "within a block":
            around.enter_context(scaled_app(APP, name="outer"))
        if place != "dag":
            group: Any = TaskGroup  # mypy takes the type of its defaults from a converter
            around.enter_context(group("g", prefix_group_id=place == "group", default_args=defaults))
        with scaled_app() as gpu:
            tasks: list[Any] = [gpu.up, gpu.down, job("first")]
    found = {(task.app_id, task.rungen_conn_id, task.queue) for task in tasks}
    assert found == {("another", "rungen_prod", "gpu")}


@pytest.mark.contract
def test_both_tasks_of_a_block_run_where_its_options_say() -> None:
    defaults = {
        "app_id": "another",
        "rungen_conn_id": "rungen_prod",
        "queue": "cpu",
        "retries": 0,
        "owner": "me",
    }
    with dag(), scaled_app(queue="gpu", default_args=defaults) as gpu:
        job("first")
    tasks: list[Any] = [gpu.up, gpu.down]
    found = {(task.app_id, task.rungen_conn_id, task.queue, task.owner) for task in tasks}
    assert found == {("another", "rungen_prod", "gpu", "me")}
    assert (gpu.up.retries, gpu.down.retries) == (0, 10)


@pytest.mark.contract
def test_a_dag_that_would_skip_the_teardown_is_refused() -> None:
    with (
        dag(dagrun_timeout=timedelta(hours=1)),
        pytest.raises(ValueError, match="dagrun_timeout"),
        scaled_app(APP),
    ):
        pass


@pytest.mark.parametrize("option", ["depends_on_past", "wait_for_downstream"])
@pytest.mark.parametrize("where", ["inside", "mapped", "beside", "one_success", "skipped"])
def test_a_task_that_a_block_may_wait_for_forever_is_refused(option: str, where: str) -> None:
    options: dict[str, Any] = {"task_id": "later", "app_id": APP, option: True}
    with dag(), contextlib.ExitStack() as block:
        check, before, fast = job("check", **{option: True}), job("before"), job("fast")
        check >> job("one") >> before
        if where in ("beside", "one_success", "skipped"):
            later = job(**options)
        rule = where if where == "one_success" else "none_failed_min_one_success"
        block.enter_context(scaled_app(APP, trigger_rule=rule))
        first, last = job("first"), job("last")
        before >> first >> last
        if where == "inside":
            job(**options)
        elif where == "mapped":
            RunGenRunJobOperator.partial(**options).expand(input=[{}])
        elif where == "one_success":
            [fast, later] >> first
        elif where == "skipped":
            [check, later] >> fast >> first  # it may be skipped before both have ended
            later >> last
        else:
            later >> last
        names = "check, later" if where == "one_success" else "later"
        with pytest.raises(ValueError, match=rf"depends_on_past, .* before app_up, and not for {names}$"):
            block.close()


# --- the teardown -------------------------------------------------------------------------------------------


class TaskInstance3(FakeTaskInstance):
    """A task instance that can be asked for others, as on Airflow 3."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, dict[str, str | None]] = {"run": {"app_up": "success", "app_down": "running"}}
        self.scaled: dict[str, Any] = {}
        self.bill: Any = None  #: That of the teardown.
        self.run_states: dict[str, str] = {"run": "running"}

    def get_task_states(
        self, dag_id: str, map_index: int, task_ids: list[str], run_ids: list[str] | None = None
    ) -> dict[str, dict[str, str | None]]:
        suffix = r"_\d+" if map_index == -1 else f"_{map_index}"  # without an index, Airflow answers for all
        # all states of mapped tasks, of all runs, are too many
        assert run_ids or not any(task_id.startswith("paint") for task_id in task_ids)
        return {
            run_id: {
                each: state for each, state in states.items() if re.sub(f"{suffix}$", "", each) in task_ids
            }
            for run_id, states in self.states.items()
            if run_ids is None or run_id in run_ids
        }

    def get_dr_count(self, dag_id: str, states: list[str], run_ids: list[str] | None = None) -> int:
        return [self.run_states[each] for each in run_ids or self.run_states].count("running")

    def get_dagrun_state(self, dag_id: str, run_id: str) -> str:
        return self.run_states[run_id]

    def xcom_pull(self, task_ids: Any = None, key: str = "", default: Any = None, **which: Any) -> Any:
        if key != "scaled":
            return self.bill if key == BILL_KEY else None
        name = which.get("run_id", "run")
        if task_ids != "app_up":
            name = f"{name} {task_ids}"
        return self.scaled.get(f"{name} {which.get('map_indexes')}", self.scaled.get(name))


@pytest.fixture
def ti() -> TaskInstance3:
    ti = TaskInstance3()
    ti.task_id = "app_down"
    history = WorkerHistory(((time.time() - 3723, 2),))
    ti.scaled["run"] = ScaleRecord(APP, 2, 0, history=history).to_json()
    return ti


@pytest.fixture
def emulator(rungen_emulator: Emulator) -> Emulator:
    rungen_emulator.service.add_app(APP, workers=2)
    return rungen_emulator


@pytest.fixture
def context(ti: TaskInstance3) -> Any:
    return {"ti": ti, "dag": SimpleNamespace(tasks=[down_op(), down_op("app_2")])}


@pytest.fixture
def down(emulator: Emulator, context: Any) -> Callable[..., int]:
    """Run a teardown that succeeds, and return how many workers the app has after it."""

    def run(**options: Any) -> int:
        assert run_task(down_op(**options), context) == Outcome()
        return workers(emulator)

    return run


def down_op(name: str = "app", **options: Any) -> RunGenScaleDownOperator:
    options = {"app_id": APP, "scale_up_task_id": f"{name}_up", "poll_interval": 0.02, **options}
    return RunGenScaleDownOperator(task_id=f"{name}_down", **options)


def test_the_teardown_stops_the_app_and_says_how_long_it_was_up(
    down: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert down() == 0
    assert f"Scaled to 0 workers (app {APP})" in caplog.messages
    assert f"Bill of app {APP}: 2 workers for 1 h 2 min" in caplog.text


def test_an_app_that_is_gone_is_fine(down: Callable[..., int], ti: TaskInstance3) -> None:
    ti.scaled["run"]["app_id"] = "gone"
    assert down() == 2


@pytest.mark.parametrize("operation", ["get_app", "update_app"])
def test_a_stray_404_does_not_leave_the_app_up(
    emulator: Emulator, down: Callable[..., int], ti: TaskInstance3, operation: str
) -> None:
    emulator.service.inject(Fault(on=operation, status=404, times=2))
    assert down() == 0
    assert ti.xcoms[BILL_KEY]["down_at"]


@pytest.mark.parametrize("up", ["upstream_failed", "skipped"])
@pytest.mark.parametrize("workers_now", [0, 2])
def test_a_block_that_does_not_begin_again_after_a_clear_is_not_billed_again(
    emulator: Emulator, down: Callable[..., int], ti: TaskInstance3, up: str, workers_now: int
) -> None:
    emulator.service.scale(APP, workers_now)
    ti.states["run"]["app_up"] = up
    ti.try_number, ti.max_tries = 2, 11
    assert down() == 0
    bill = ti.xcoms[BILL_KEY]
    assert bill["down_at"]
    assert float(bill["worker_seconds"]) < 60, "not those of before, which were an hour"


def test_a_setup_that_waits_for_its_retry_when_the_run_is_marked_is_billed(
    emulator: Emulator, down: Callable[..., int], ti: TaskInstance3
) -> None:
    emulator.service.scale(APP, 0)
    ti.states["run"]["app_up"] = "skipped"
    ti.scaled["run"] = ScaleRecord(APP, 0, 0, history=WorkerHistory(((100.0, 2), (400.0, 0)))).to_json()
    assert down() == 0
    assert float(ti.xcoms[BILL_KEY]["worker_seconds"]) == 600


def test_a_setup_that_waits_for_its_retry_after_a_clear_when_the_run_is_marked_is_billed(
    emulator: Emulator, context: Any, ti: TaskInstance3
) -> None:
    emulator.service.scale(APP, 0)
    ti.states["run"]["app_up"] = "skipped"
    ti.try_number, ti.max_tries = 2, 11
    history = WorkerHistory(((100.0, 2), (400.0, 0)))
    for clears in (2, 1):  # when the record was written
        ti.scaled["run"] = ScaleRecord(APP, 0, 0, history=history, clear_number=clears).to_json()
        assert run_task(down_op(), context | {"dag_run": SimpleNamespace(clear_number=2)}).error is None
        assert float(ti.xcoms[BILL_KEY]["worker_seconds"]) == (600 if clears == 2 else 0)


@pytest.mark.parametrize("name", ["price", "app_id", "rungen_conn_id"])
def test_a_teardown_whose_templates_cannot_be_rendered_scales_down_or_is_loud(
    emulator: Emulator, context: Any, ti: TaskInstance3, name: str
) -> None:
    op = down_op(**{name: "{{ 1 / 0 }}"})
    outcome = run_task(op, context)
    assert f"Could not render {name}: ZeroDivisionError" in outcome.log
    if name == "rungen_conn_id":
        assert str(outcome.error).startswith(LOUD)
    else:
        assert (outcome.error, workers(emulator)) == (None, 0)
    ti.scaled.clear()
    error = run_task(op, context).error
    assert (error is None) == (name == "price")
    assert error is None or str(error).startswith("STILL BILLED: app ")


@pytest.mark.parametrize("up", ["upstream_failed", "success"])
def test_an_app_of_before_a_clear_that_is_gone_is_not_billed_again(
    down: Callable[..., int], ti: TaskInstance3, up: str
) -> None:
    ti.scaled["run"]["app_id"] = "gone"
    ti.states["run"]["app_up"] = up
    ti.try_number, ti.max_tries = 2, 11
    down()
    assert (ti.xcoms[BILL_KEY]["worker_seconds"], ti.xcoms[BILL_KEY]["up_at"]) == ("0.000", None)


LOUD = f"STILL BILLED: app {APP} may still have workers: "


def test_an_app_that_only_a_proxy_does_not_know_is_billed(
    emulator: Emulator, context: Any, ti: TaskInstance3
) -> None:
    emulator.service.inject(Fault(status=404, body="default backend - 404", times=None))
    assert str(run_task(down_op(), context).error).startswith(LOUD)
    assert emulator.service.count("update_app") > 1
    assert ti.xcoms[BILL_KEY]["down_at"] is None, "not a final bill"


@pytest.mark.parametrize(
    ("up", "want"),
    [
        *(("upstream_failed", 2), ("skipped", 2), ("removed", 2), (None, 2)),
        *(("failed", 0), ("success", 0), ("up_for_retry", 0)),
    ],
)
def test_an_app_that_this_run_never_touched_is_left_alone(
    down: Callable[..., int], ti: Any, up: str | None, want: int
) -> None:
    ti.scaled.clear()
    ti.states["run"]["app_up"] = up
    if up == "upstream_failed":
        ti.map_index = None  # a task in a loop of Airflow 3.4
    assert down() == want


@pytest.mark.parametrize("has_connection", [True, False])
def test_a_teardown_that_fails_is_loud_and_tried_again(
    emulator: Emulator, context: Any, has_connection: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_connection:
        emulator.service.inject(Fault(on="update_app", status=403, times=None))
    else:
        monkeypatch.delenv("AIRFLOW_CONN_RUNGEN_DEFAULT")
    error = run_task(down_op(), context).error
    assert type(error) is RunGenAppError, "which a retry may help, even with a wrong key"
    assert str(error).startswith(LOUD)
    assert has_connection or emulator.service.records() == []


def test_a_teardown_passes_on_how_long_the_service_asked_to_wait(emulator: Emulator, context: Any) -> None:
    emulator.service.inject(Fault(on="update_app", status=429, headers={"Retry-After": "600"}, times=None))
    error = run_task(down_op(), context).error
    assert isinstance(error, RunGenAppError)
    assert error.retry_after == 600


@KILLED
def test_a_teardown_that_is_killed_is_loud(emulator: Emulator, context: Any) -> None:
    emulator.service.inject(Fault(on="update_app", status=404, times=None))
    is_due = lambda: emulator.service.count("update_app") > 0  # noqa: E731
    outcome = kill_when(down_op(), context, is_due, RunGenAppError)
    assert str(outcome.error) == f"{LOUD}The task was killed"


# Airflow's stores fail or hang


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.5)


def test_one_failed_call_to_airflow_keeps_nothing_up(down: Callable[..., int], ti: Any) -> None:
    for name in ("xcom_pull", "get_task_states"):
        setattr(ti, name, failing(getattr(ti, name), 1))
    assert down() == 0
    assert ti.xcoms[BILL_KEY]["down_at"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("trouble", [failing(hang), hang], ids=["fails", "hangs"])
@pytest.mark.parametrize(("up", "want"), [("success", 0), ("failed", 0), ("skipped", 2), ("unknown", 0)])
def test_a_teardown_that_cannot_read_what_the_setup_did_scales_down(
    down: Callable[..., int], ti: Any, trouble: Any, up: str, want: int
) -> None:
    ti.xcom_pull = trouble
    states = ti.get_task_states
    ask_for_setup = trouble if up == "unknown" else states
    ti.states["run"]["app_up"] = up
    ti.get_task_states = lambda **of: (ask_for_setup if of["task_ids"] == ["app_up"] else states)(**of)
    assert down() == want


@pytest.mark.usefixtures("impatient")
def test_an_app_that_others_need_stays_up_though_the_own_record_cannot_be_read(
    down: Callable[..., int], ti: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ti.states["other"] = {"app_up": "success", "app_down": None}
    ti.run_states["other"] = "running"
    ti.scaled["other"] = ti.scaled.pop("run")
    pull, fail = ti.xcom_pull, failing(hang)
    ti.xcom_pull = lambda **which: (pull if "run_id" in which else fail)(**which)
    assert down() == 2
    assert f"STILL BILLED: app {APP} keeps 2 workers until app_down of run other" in caplog.text


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("trouble", [failing(hang), hang], ids=["fails", "hangs"])
def test_a_teardown_that_cannot_ask_who_needs_the_app_is_loud(
    emulator: Emulator, context: Any, ti: Any, trouble: Any
) -> None:
    ti.get_task_states = trouble
    error = run_task(down_op(), context).error
    assert type(error) is RunGenAppError, "which a retry may help"
    assert str(error).startswith(LOUD)
    assert workers(emulator) == 2


@KILLED
@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(("app_id", "app"), [(APP, APP), (None, "of connection rungen_default")])
def test_a_teardown_that_is_killed_while_airflow_hangs_is_loud(
    context: Any, ti: Any, app_id: str | None, app: str
) -> None:
    asked: list[Any] = []

    def pull(**which: Any) -> None:
        asked.append(which)
        hang()

    ti.xcom_pull = pull
    outcome = kill_when(down_op(app_id=app_id), context, lambda: bool(asked), RunGenAppError)
    line = f"STILL BILLED: app {app} may still have workers: The task was killed"
    assert str(outcome.error) == line


def hang_in_push(ti: Any, hanging: str) -> set[str]:
    """Hang when this XCom is pushed, and return the keys of all that were."""
    pushed = set[str]()

    def push(key: str, value: Any) -> None:
        pushed.add(key)
        if key == hanging:
            hang()

    ti.xcom_push = push
    return pushed


def test_links_that_hang_keep_nothing_up(
    down: Callable[..., int], ti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_down, "_REPORT_TIME", 0.5)
    push = ti.xcom_push
    ti.xcom_push = lambda key, value: (hang if key == PAGE_KEY else push)(key=key, value=value)
    assert down() == 0
    assert ti.xcoms[BILL_KEY]["down_at"]


def test_a_bill_that_hangs_keeps_no_teardown_quiet(
    emulator: Emulator, context: Any, ti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_down, "_REPORT_TIME", 0.5)
    emulator.service.inject(Fault(on="update_app", status=403, times=None))
    push = ti.xcom_push
    ti.xcom_push = lambda key, value: (hang if key == BILL_KEY else push)(key=key, value=value)
    error = run_task(down_op(), context).error
    assert type(error) is RunGenAppError
    assert str(error).startswith(LOUD)


@KILLED
def test_a_kill_once_the_app_is_down_says_nothing_else(
    emulator: Emulator, context: Any, ti: Any, caplog: pytest.LogCaptureFixture
) -> None:
    op, pushed = down_op(), hang_in_push(ti, PAGE_KEY)
    with stopped_when(op, signal.SIGTERM, lambda: PAGE_KEY in pushed):
        run_task(op, context)
    assert workers(emulator) == 0
    assert LOUD not in caplog.text


@KILLED
def test_a_bill_that_hangs_outlasts_no_kill(emulator: Emulator, context: Any, ti: Any) -> None:
    emulator.service.inject(Fault(on="update_app", status=403, times=None))
    op, pushed = down_op(), hang_in_push(ti, BILL_KEY)
    with signal_when(signal.SIGTERM, lambda: BILL_KEY in pushed, op.on_kill) as sent:
        outcome = run_task(op, context)
    assert time.monotonic() - sent[0] < SOON
    assert str(outcome.error).startswith(LOUD)


# jobs that are queued or running


# other blocks and runs of the DAG


@pytest.mark.parametrize("is_named", [True, False])
def test_a_small_block_beside_a_big_one_keeps_no_more_than_it_needs(
    emulator: Emulator, ti: TaskInstance3, is_named: bool
) -> None:
    """Also where the service does not name the number of workers."""
    with dag() as both:
        with scaled_app(APP, 3, name="big", poll_interval=0.02) as big:
            job("first")
        with scaled_app(APP, 1, name="small", poll_interval=0.02) as small:
            job("second")
    emulator.service.scale(APP, 3)
    ti.task_id = "small_up"
    ti.states["run"] = {"big_up": "success", "big_down": None, "small_up": "running", "small_down": None}
    ti.scaled = {"run big_up": ScaleRecord(APP, 3, 0).to_json()}
    if not is_named:
        told = {"id": APP, "status": "RUNNING"}
        for each in ("get_app", "update_app"):
            emulator.service.inject(Fault(on=each, status=200, body=told, times=None, taken=True))
    assert run_task(small.up, {"ti": ti, "dag": both}).value == APP
    assert workers(emulator) == 3
    emulator.service.clear_faults()
    ti.scaled["run small_up"] = ti.xcoms["scaled"]
    ti.task_id = "big_down"
    ti.states["run"] |= {"small_up": "success", "big_down": "running"}
    assert run_task(big.down, {"ti": ti, "dag": both}).error is None
    assert workers(emulator) == 1


def test_a_block_that_raises_an_app_that_others_have_up_restores_it_to_what_they_need_then(
    emulator: Emulator, up: Callable[..., Outcome], ti: TaskInstance3, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.service.scale(APP, 1)
    need(ti, 1)
    handle = emulator.service.handle

    def end_the_other(method: str, *rest: Any) -> Any:
        if method == "PUT":
            ti.states["other"]["app_down"] = ti.states["run"]["app_down"] = "success"
        return handle(method, *rest)

    monkeypatch.setattr(emulator.service, "handle", end_the_other)
    assert up().error is not None
    assert workers(emulator) == 0


def test_a_block_that_raised_an_app_believes_no_single_answer_that_it_is_as_others_need_it(
    emulator: Emulator, down: Callable[..., int], ti: TaskInstance3
) -> None:
    need(ti, 1)
    old = {"id": APP, "status": "RUNNING", "configuration": {"active_workers": 1}}
    emulator.service.inject(Fault(on="get_app", status=200, body=old))
    assert down() == 1


@pytest.mark.parametrize(("big_down", "want"), [(None, 3), ("up_for_retry", 3), ("success", 1)])
def test_a_block_takes_no_workers_from_another_one(
    emulator: Emulator, ti: TaskInstance3, caplog: pytest.LogCaptureFixture, big_down: str | None, want: int
) -> None:
    caplog.set_level(logging.INFO)
    with dag() as both:
        with scaled_app(APP, 3, name="big"):
            job("first")
        with scaled_app(APP, 1, name="small", poll_interval=0.02) as small:
            job("second")
    emulator.service.scale(APP, 3)
    ti.task_id = "small_up"
    ti.states["run"] = {"big_up": "success", "big_down": big_down, "small_down": None}
    ti.scaled = {"run big_up": ScaleRecord(APP, 3, 0).to_json()}
    assert run_task(small.up, {"ti": ti, "dag": both}).value == APP
    assert workers(emulator) == want
    line = f"STILL BILLED: app {APP} keeps 3 workers until big_down of run run scales it down"
    assert (line in caplog.messages) == (want == 3)


@pytest.mark.parametrize(
    ("other", "want"),
    [
        *(((state, "running", APP), 2) for state in (None, "queued", "up_for_retry", "restarting")),
        (("running", "running", APP), 0),  # it decides as this one does
        *(((state, "running", APP), 0) for state in ("success", "failed")),
        ((None, "failed", APP), 0),
        ((None, "running", "another"), 0),
        ((None, "running", None), 0),  # it has not scaled up yet
    ],
)
def test_an_app_is_left_to_another_run_that_is_going_to_scale_it_down(
    down: Callable[..., int], ti: TaskInstance3, other: tuple[str | None, str, str | None], want: int
) -> None:
    state, run_state, app_id = other
    ti.run_states |= {"other": run_state, "third": "running"}
    ti.states["other"] = {"app_up": "success", "app_down": state}
    if app_id:
        ti.scaled["other"] = ScaleRecord(app_id, 2, 0).to_json()
    assert down() == want


@pytest.mark.parametrize("up", [None, "upstream_failed"])
def test_a_run_that_was_cleared_and_has_not_scaled_up_again_keeps_no_app_up(
    down: Callable[..., int], ti: TaskInstance3, up: str | None
) -> None:
    ti.run_states["other"] = "running"
    ti.states["other"] = {"app_up": up, "app_down": None}
    ti.scaled["other"] = ScaleRecord(APP, 2, 0).to_json()  # Airflow drops it when the task starts
    assert down() == 0


@pytest.mark.parametrize("task_id", ["paint", "paint_0"], ids=["job", "mapped job"])
def test_an_app_is_left_to_a_job_that_a_clear_has_left_out(
    down: Callable[..., int], ti: TaskInstance3, context: Any, task_id: str
) -> None:
    context["dag"].tasks[0].jobs_of = {"paint": ["paint"]}
    ti.run_states["other"] = "running"
    ti.states["other"] = {"app_up": None, "app_down": None, task_id: "running"}
    ti.scaled["other"] = ScaleRecord(APP, 2, 0).to_json()
    assert down() == 2


def test_a_backlog_of_runs_costs_a_few_calls(
    down: Callable[..., int], ti: TaskInstance3, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[str]()
    for name in ("get_task_states", "get_dagrun_state", "xcom_pull"):
        monkeypatch.setattr(ti, name, counted(getattr(ti, name), calls))
    context["dag"].tasks[0].jobs_of = {"paint": ["paint"]}
    ti.run_states["other"] = "running"
    for number in range(1000):
        ti.states[f"queued {number}"] = {"app_up": None, "app_down": None, "paint": None}
        mapped = {f"each.app_{end}_{index}": None for end in ("up", "down") for index in range(20)}
        ti.states[f"queued {number}"] |= mapped
    with dag() as d:

        @task_group
        def each(n: int) -> None:
            with scaled_app(APP):
                job("paint")

        each.expand(n=[*range(20)])
    context["dag"].tasks.append(d.task_dict["each.app_down"])
    assert down() == 0
    assert calls.total() < 49


@pytest.fixture
def up(emulator: Emulator, ti: TaskInstance3) -> Callable[..., Outcome]:
    """Runs the setup of a block."""
    ti.task_id, ti.states["run"] = "app_up", {"app_up": "running", "app_down": None}
    ti.scaled.clear()
    emulator.service.scale(APP, 0)

    def run(how: Callable[[Any, Any], Outcome] = run_task, **options: Any) -> Outcome:
        with dag() as d, scaled_app(APP, 2, poll_interval=0.02, **options) as gpu:
            job("paint")
        return how(gpu.up, {"ti": ti, "dag": d})

    return run


@pytest.mark.parametrize("state", ["success", "running", "failed"])
def test_a_setup_whose_teardown_was_left_out_of_a_clear_bills_nothing(
    emulator: Emulator, up: Callable[..., Outcome], ti: TaskInstance3, state: str
) -> None:
    ti.states["run"]["app_down"] = state
    error = up().error
    assert "Nothing would scale the app down: app_down runs or has ended" in str(error)
    assert "Clear app_up with its downstream tasks, and not only failed ones" in str(error)
    assert isinstance(error, AirflowFailException)
    assert emulator.service.count("update_app") == 0


def need(ti: TaskInstance3, active_workers: int) -> None:
    """Add another run that needs the app."""
    ti.run_states["other"] = "running"
    ti.states["other"] = {"app_up": "running", "app_down": None}
    ti.scaled["other"] = ScaleRecord(APP, active_workers, active_workers).to_json()


@pytest.fixture
def slow(emulator: Emulator) -> None:
    told = {"id": APP, "status": "INITIALIZING"}
    emulator.service.inject(Fault(on="get_app", status=200, body=told, skip=2, times=None))


def test_a_setup_whose_teardown_ends_while_it_scales_up_scales_back(
    emulator: Emulator, up: Callable[..., Outcome], ti: TaskInstance3, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = emulator.service.handle

    def end_teardown(method: str, *rest: Any) -> Any:
        if method == "PUT":
            ti.states["run"]["app_down"] = "success"
        return handle(method, *rest)

    monkeypatch.setattr(emulator.service, "handle", end_teardown)
    assert "Nothing would scale the app down" in str(up().error)
    assert workers(emulator) == 0


@KILLED
@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    "case", [(None, 0, 2), ("running", 0, 0), ("failed", 0, 0), ("success", 0, 0), ("success", 2, 2)]
)
def test_a_setup_that_is_killed_leaves_the_app_to_its_teardown_if_that_is_to_come(
    emulator: Emulator, up: Callable[..., Outcome], ti: TaskInstance3, case: tuple[str | None, int, int]
) -> None:
    down, others, want = case
    ti.bill = {}  # of before a clear: Airflow drops it when the teardown starts
    if others:
        need(ti, others)

    def is_due() -> bool:
        ti.states["run"]["app_down"] = down
        return emulator.service.count("get_app") > 4

    def kill(op: Any, context: Any) -> Outcome:
        return kill_when(op, context, lambda: emulator.service.count("get_app") > 2 and is_due())

    outcome = up(kill)
    assert workers(emulator) == want
    assert (f"App {APP} is left to app_down" in str(outcome.error)) == (down is None)


@pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="Airflow before 3.3 tells no trigger of a kill")
@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    "case",
    [("", 0, 2), ("running", 0, 0), ("failed", 0, 0), ("failed", 1, 1), ("failed", 2, 2), (None, 0, 0)],
)
def test_a_deferred_setup_leaves_the_app_to_its_teardown_if_that_is_to_come(
    emulator: Emulator,
    up: Callable[..., Outcome],
    ti: TaskInstance3,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str | None, int, int],
) -> None:
    down, others, want = case
    with pytest.raises(TaskDeferred) as deferral:
        up(lambda op, context: op.execute(context), deferrable=True)
    trigger: Any = deferral.value.trigger
    # what a trigger has cannot be asked
    trigger.task_instance = SimpleNamespace(dag_id="dag", run_id="run", task_id="app_up", map_index=-1)
    asked: Any = import_module("airflow.sdk.execution_time.task_runner").RuntimeTaskInstance
    for name in ("get_task_states", "get_dr_count", "get_dagrun_state"):
        monkeypatch.setattr(asked, name, getattr(ti, name))
    monkeypatch.setattr(XCom, "get_one", lambda run_id, **_: ti.scaled.get(run_id))
    ti.states["run"] = {"app_up": "failed", "app_down": down or None}
    if down is None:  # the run was deleted
        ti.states.clear()
    if others:
        need(ti, others)
    emulator.service.clear_faults()
    asyncio.run(trigger.on_kill())
    assert workers(emulator) == want


def test_a_block_leaves_the_app_to_a_mapped_one(emulator: Emulator, ti: TaskInstance3) -> None:
    with dag() as d:

        @task_group
        def each(app: str) -> None:
            with scaled_app(app):
                job("paint")

        each.expand(app=["another", APP])
        with scaled_app(APP, poll_interval=0.02, name="one") as one:
            job("first")
    ti.task_id = "one_down"
    ti.states["run"] = {"one_up": "success", "one_down": "running"}
    for index, app_id in enumerate(("another", APP)):
        ti.states["run"] |= {f"each.app_up_{index}": "success", f"each.app_down_{index}": None}
        ti.scaled[f"run each.app_up {index}"] = ScaleRecord(app_id, 1, 0).to_json()
    ti.scaled["run one_up"] = ScaleRecord(APP, 2, 0).to_json()
    assert run_task(one.down, {"ti": ti, "dag": d}) == Outcome()
    assert workers(emulator) == 1, "which the mapped one needs"


def test_a_block_in_a_mapped_group_leaves_the_app_to_the_one_around_it(
    emulator: Emulator, ti: TaskInstance3
) -> None:
    with dag() as d, scaled_app(APP, 2, name="outer"):
        job("first")

        @task_group
        def each(n: int) -> None:
            with scaled_app(APP, poll_interval=0.02):
                job("paint")

        each.expand(n=[1, 2])
    ti.task_id, ti.map_index = "each.app_down", 0
    ti.states["run"] = {"outer_up": "success", "outer_down": None}
    ti.states["run"] |= {"each.app_up_0": "success", "each.app_down_0": "running"}
    ti.scaled = {f"run {each}": ScaleRecord(APP, 2, 0).to_json() for each in ("outer_up", "each.app_up")}
    assert run_task(d.task_dict["each.app_down"], {"ti": ti, "dag": d}) == Outcome()
    assert workers(emulator) == 2


@pytest.mark.parametrize("ends", [False, True])
def test_a_run_that_begins_while_the_app_is_scaled_down_gets_its_workers_back_until_it_ends(
    emulator: Emulator,
    down: Callable[..., int],
    ti: TaskInstance3,
    monkeypatch: pytest.MonkeyPatch,
    ends: bool,
) -> None:
    handle, sent = emulator.service.handle, 0

    def begin_another(method: str, *rest: Any) -> Any:
        nonlocal sent
        if method == "PUT":
            sent += 1
            need(ti, 3)
        if ends and sent > 1:
            ti.states["other"]["app_down"] = "success"
        return handle(method, *rest)

    monkeypatch.setattr(emulator.service, "handle", begin_another)
    assert down() == (0 if ends else 3)
    assert (ti.xcoms[BILL_KEY]["down_at"] is None) is not ends
    assert sent == 2 + ends


class Sent(list[int]):
    """What an app is set to. While it is set to some number, another run begins, which needs workers."""

    begins_at = 0
    needed = 2


@pytest.fixture
def sent(emulator: Emulator, ti: TaskInstance3, monkeypatch: pytest.MonkeyPatch) -> Sent:
    handle, numbers = emulator.service.handle, Sent()

    def begin_another(method: str, path: str, headers: Any, body: bytes) -> Any:
        if method == "PUT":
            numbers.append(json.loads(body)["configuration"]["active_workers"])
            if numbers[-1] == numbers.begins_at:
                need(ti, numbers.needed)
        return handle(method, path, headers, body)

    monkeypatch.setattr(emulator.service, "handle", begin_another)
    return numbers


@pytest.mark.parametrize(("status", "times"), [(503, 1), (503, 4), (404, 1)])
def test_a_request_that_fails_is_not_repeated_over_a_run_that_has_begun(
    emulator: Emulator,
    down: Callable[..., int],
    sent: Sent,
    caplog: pytest.LogCaptureFixture,
    *,
    status: int,
    times: int,
) -> None:
    emulator.service.inject(Fault(on="update_app", status=status, times=times))
    assert down() == 2
    assert sent == [0] + [2] * times
    line = f"STILL BILLED: app {APP} keeps 2 workers until app_down of run other scales it down"
    assert caplog.messages.count(line) == 1


def test_an_app_keeps_what_others_need_if_airflow_fails_when_it_is_asked_again(
    emulator: Emulator,
    down: Callable[..., int],
    ti: TaskInstance3,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.execution.apps.block._ASK_AGAIN_TIME", 0.1)
    need(ti, 1)
    handle = emulator.service.handle

    def fail(method: str, *rest: Any) -> Any:
        if method == "PUT":
            monkeypatch.setattr(ti, "get_task_states", lambda **_: 1 / 0)
        return handle(method, *rest)

    monkeypatch.setattr(emulator.service, "handle", fail)
    emulator.service.inject(Fault(on="update_app", status=503))
    assert down() == 1
    assert "ZeroDivisionError: division by zero; a run that has begun meanwhile may lack" in caplog.text


def test_a_run_that_scales_up_while_the_app_stops_keeps_its_workers(
    emulator: Emulator, down: Callable[..., int], sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = emulator.service.handle

    def scale_up_then(method: str, *rest: Any) -> Any:
        answer = handle(method, *rest)
        if method == "PUT":
            emulator.service.scale(APP, 2)
        return answer

    monkeypatch.setattr(emulator.service, "handle", scale_up_then)
    assert down() == 2
    assert sent == [0, 2]


def test_a_setup_that_lowers_the_app_repeats_no_request_over_a_run_that_has_begun(
    emulator: Emulator, up: Callable[..., Outcome], ti: TaskInstance3, sent: Sent
) -> None:
    emulator.service.scale(APP, 3)
    emulator.service.inject(Fault(on="update_app", status=503))
    sent.begins_at, sent.needed = 2, 3
    assert up().error is None
    assert (workers(emulator), sent) == (3, [2, 3])
    assert ti.xcoms["scaled"]["active_workers"] == 2, "its own"


def test_a_setup_that_lowers_the_app_names_nobody_who_needs_less(
    emulator: Emulator, up: Callable[..., Outcome], ti: TaskInstance3, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.service.scale(APP, 3)
    need(ti, 1)
    assert up().error is None
    assert workers(emulator) == 2
    assert "STILL BILLED" not in caplog.text


@pytest.mark.parametrize(
    "answer", [Fault(on="get_app", status=503), Fault(on="get_app", status=200, body={"id": APP})]
)
def test_a_teardown_that_does_not_know_the_number_lowers_the_app_to_what_others_need(
    emulator: Emulator, down: Callable[..., int], ti: TaskInstance3, answer: Fault
) -> None:
    need(ti, 1)
    emulator.service.inject(replace(answer))
    assert down() == 1


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("needed", [1, 3])
def test_a_setup_that_fails_repeats_no_request_over_a_run_that_has_begun(
    emulator: Emulator, up: Callable[..., Outcome], ti: TaskInstance3, sent: Sent, needed: int
) -> None:
    emulator.service.scale(APP, 0)
    emulator.service.inject(Fault(on="update_app", status=503, skip=1))
    sent.needed = needed
    assert up(timeout=0.5).error is not None
    assert (workers(emulator), sent) == (needed, [2, 0, needed])
    assert ti.xcoms["scaled"]["active_workers"] == min(needed, 2), "what this one has set, or less"


def test_a_setup_that_raises_says_for_whom_it_sets_more(
    emulator: Emulator,
    up: Callable[..., Outcome],
    ti: TaskInstance3,
    sent: Sent,
    caplog: pytest.LogCaptureFixture,
) -> None:
    emulator.service.scale(APP, 1)
    need(ti, 5)
    emulator.service.inject(Fault(on="update_app", status=503))
    assert up().error is None
    assert sent == [2, 5]
    assert ti.xcoms["scaled"]["changes"][-1]["workers"] == 5
    assert f"STILL BILLED: app {APP} keeps 5 workers until app_down of run other" in caplog.text


@pytest.mark.parametrize(
    ("state", "record", "want"),
    [
        (None, ScaleRecord(APP, 2, 2), 2),
        ("running", ScaleRecord(APP, 2, 2), 0),
        ("success", ScaleRecord(APP, 2, 2), 0),
        (None, None, 0),  # it has not scaled up yet
        (None, ScaleRecord(APP), 0),  # it left the app as it was: only_if=0
        (None, ScaleRecord(APP, 0), 0),  # the same after a clear
    ],
)
def test_an_app_is_left_to_another_block_of_the_same_run(
    down: Callable[..., int], ti: TaskInstance3, state: str | None, record: ScaleRecord | None, want: int
) -> None:
    ti.states["run"]["app_2_down"] = state
    ti.scaled["run app_2_up"] = record and record.to_json()
    assert down() == want
