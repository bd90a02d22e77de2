"""``scaled_app``: what it makes of a DAG, what its setup and teardown send, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import warnings
from collections.abc import Callable
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
)
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_3_PLUS
from conftest import FakeStore, FakeTaskInstance, Outcome, run_task, table_of
from operator_kit import KILLED, MODES, failing, hang, kill_when, workers
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen import triggers
from airflow_provider_rungen.exceptions import RunGenAppError
from airflow_provider_rungen.operators import RunGenRunJobOperator, scaled_app
from airflow_provider_rungen.task.xcom_keys import SCALED_KEY, USAGE_KEY

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
def test_the_graph_has_documented_tasks_and_plain_ids() -> None:
    with dag() as d:
        with scaled_app(APP, task_display_name="mine", pool="one_at_a_time") as gpu:
            job("paint")
        with TaskGroup("group"), scaled_app(APP), TaskGroup("inner"):
            job("load")
    own = {"app_up", "paint", "app_down", "app_end"}
    assert set(d.task_dict) == own | {f"group.{e}" for e in ("app_up", "inner.load", "app_down", "app_end")}
    assert set(d.task_group.children) == own | {"group"}
    tasks: list[Any] = [gpu.up, gpu.down, d.task_dict["app_end"]]
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
    assert upstream(d, "group.inner_up") == {"app_up"}
    assert upstream(d, "app_down") >= {"first", "second", "third", "group.inner_end"}


@pytest.mark.contract
def test_an_error_in_the_block_is_raised() -> None:
    with dag():
        with pytest.raises(KeyError), scaled_app(APP):
            raise KeyError
        with pytest.raises(TypeError), scaled_app("other", nonsense=True):  # type: ignore[call-arg]
            pass


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
    end: Any = d.task_dict["app_end"]
    assert gpu.down.trigger_rule == TriggerRule.ALL_DONE
    assert (end.is_teardown, end.on_failure_fail_dagrun) == (True, True)
    assert end.trigger_rule == TriggerRule.NONE_FAILED
    assert upstream(d, "app_end") == {"app_up", "app_down"}


@pytest.mark.contract
def test_every_task_inside_is_reached_whatever_it_waits_for() -> None:
    with dag() as d:
        rows = give.override(task_id="rows")([1])
        with scaled_app(APP):
            alone = job("alone")
            batch = table_of(task_id="batch", inputs=rows, destination="file:///bought")
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
        with scaled_app("third", name="app_2"):
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
            with (
                TaskGroup(f"stage_{number}", prefix_group_id=False) as stage,
                scaled_app(APP, name=f"app_{number}"),
            ):
                job(f"job_{number}")
            stages.append(stage)
        chain(*stages)
    assert upstream(d, "app_2_up") == {"job_1"}


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


@pytest.mark.contract
@pytest.mark.parametrize("option", ["depends_on_past", "wait_for_downstream"])
@pytest.mark.parametrize("is_mapped", [False, True])
def test_a_task_that_a_block_may_wait_for_forever_is_refused(option: str, is_mapped: bool) -> None:
    options: dict[str, Any] = {"task_id": "later", "app_id": APP, option: True}
    with dag(), contextlib.ExitStack() as block:
        before = job("before", **{option: True})
        block.enter_context(scaled_app(APP))
        before >> job("first")
        if is_mapped:
            RunGenRunJobOperator.partial(**options).expand(input=[{}])
        else:
            job(**options)
        with pytest.raises(ValueError, match="depends_on_past, later waits forever"):
            block.close()


@pytest.mark.contract
def test_a_branch_of_a_block_does_not_skip_its_teardown() -> None:
    with dag() as d:
        with scaled_app(APP):
            first = job("first")
            branch: Any = task.branch(task_id="branch")(lambda: "outside")()
            first >> branch
        branch >> job("outside")
    assert upstream(d, "app_down") == {"app_up", "first"}


# --- its runs -----------------------------------------------------------------------------------------------


class Block:
    """A block of a DAG, its runs, and what Airflow says of them."""

    def __init__(self, emulator: Emulator, **options: Any) -> None:
        emulator.service.add_app(APP, init_seconds=0.2)
        self.service, self.emulator = emulator.service, emulator
        with dag() as self.dag, scaled_app(APP, 2, **{"poll_interval": 0.02} | options) as self.gpu:
            job("paint")
        self.states: dict[str, dict[str, str | None]] = {}
        self.run_states: dict[str, str] = {}
        self.xcoms: dict[str, dict[str, Any]] = {}
        self.store = FakeStore()
        self.tries = 1
        self.began("run", None)

    def began(self, run_id: str, up: str | None, down: str | None = None, state: str = "running") -> None:
        """Add a run."""
        self.states[run_id] = {"app_up": up, "app_down": down}
        self.run_states[run_id] = state

    def ti(self, task_id: str, run_id: str) -> Any:
        ti: Any = FakeTaskInstance()
        ti.task_id, ti.run_id, ti.dag_id, ti.map_index = task_id, run_id, "d", -1
        ti.try_number, ti.max_tries = self.tries, 2
        xcoms = self.xcoms.setdefault(run_id, {})
        ti.xcom_pull = lambda key, **_: xcoms.get(key)
        ti.on_push = xcoms.__setitem__
        for name in ("get_task_states", "get_dr_count", "get_dagrun_state"):
            setattr(ti, name, getattr(self, name))
        return ti

    def get_task_states(
        self, dag_id: str, task_ids: list[str], run_ids: list[str] | None = None, map_index: int | None = None
    ) -> Any:
        suffix = "" if map_index in (None, -1) else f"_{map_index}"
        wanted = {f"{task_id}{suffix}" for task_id in task_ids}
        return {
            run_id: {name: state for name, state in states.items() if name in wanted}
            for run_id, states in self.states.items()
            if run_ids is None or run_id in run_ids
        }

    def get_dr_count(self, dag_id: str, states: list[str], **_: Any) -> int:
        return [*self.run_states.values()].count("running")

    def get_dagrun_state(self, dag_id: str, run_id: str) -> str:
        return self.run_states[run_id]

    def run(self, op: Any, run_id: str = "run", how: Callable[..., Outcome] = run_task, **ti: Any) -> Outcome:
        instance = self.ti(op.task_id, run_id)
        for name, value in ti.items():
            setattr(instance, name, value)
        self.states.setdefault(run_id, {})[op.task_id] = "running"
        outcome = how(op, {"ti": instance, "dag": self.dag, "task_state_store": self.store})
        failed = "up_for_retry" if self.tries < 3 else "failed"
        self.states[run_id][op.task_id] = failed if outcome.error else "success"
        return outcome

    def up(self, **options: Any) -> Outcome:
        return self.run(self.gpu.up, **options)

    def down(self, **options: Any) -> Outcome:
        return self.run(self.gpu.down, **options)

    @property
    def sent(self) -> list[int]:
        """Every number of workers that was asked for."""
        bodies = [json.loads(r.body) for r in self.service.records() if r.operation == "update_app"]
        return [body["configuration"]["active_workers"] for body in bodies]

    @property
    def workers(self) -> int:
        return workers(self.emulator, APP)

    @property
    def usage(self) -> dict[str, Any]:
        found: dict[str, Any] = self.xcoms["run"][USAGE_KEY]
        return found

    def fault(self, on: str, **fault: Any) -> None:
        self.service.inject(Fault(on=on, **fault))


@pytest.fixture
def block(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, unsettled: None
) -> Callable[..., Block]:
    # a worker costs 1 in a second
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", rungen_emulator.airflow_connection(price="3600 USD/h"))
    monkeypatch.setattr("airflow_provider_rungen.apps.sharing._ASK_TIME", 0.5)
    monkeypatch.setattr("airflow_provider_rungen.apps.scaling._AIRFLOW_TIME", 0.5)
    return lambda **options: Block(rungen_emulator, **options)


@pytest.fixture
def slow(block: Callable[..., Block]) -> Block:
    """A block whose app does not get up."""
    found = block(deferrable=False)
    found.service.add_app(APP, init_seconds=60)
    return found


LOUD = f"STILL BILLED: app {APP} may still have workers: "


@pytest.mark.contract
@MODES
def test_a_block_is_up_and_down_and_has_a_bill(block: Callable[..., Block], deferrable: bool) -> None:
    gpu = block(deferrable=deferrable)
    assert gpu.up().value == APP
    assert (gpu.sent, gpu.workers) == ([2], 2)
    assert gpu.xcoms["run"][SCALED_KEY]["active_workers"] == 2
    outcome = gpu.down()
    assert (outcome.error, gpu.sent, gpu.workers) == (None, [2, 0], 0)
    billed = gpu.service.stats()["worker_seconds"][APP]
    usage = gpu.usage
    assert usage["seconds"] == usage["cost"] == pytest.approx(billed, abs=0.5)
    assert (usage["active_workers"], usage["currency"], bool(usage["down_at"])) == (2, "USD", True)
    assert f"Scaled to 0 workers (app {APP})" in outcome.log
    assert f"Bill of app {APP}: 2 workers for " in outcome.log


@pytest.mark.contract
def test_the_teardown_sends_zero_although_the_app_says_so_already(block: Callable[..., Block]) -> None:
    gpu = block()
    gpu.up()
    body = {"id": APP, "status": "STOPPED", "configuration": {"active_workers": 0}}
    gpu.fault("update_app", status=200, body=body)  # and does nothing
    assert gpu.down().error is None
    assert (gpu.sent, gpu.workers) == ([2, 0, 0], 0)


@pytest.mark.contract
@pytest.mark.parametrize("up", [None, "skipped", "upstream_failed", "removed"])
def test_a_teardown_whose_setup_never_began_does_nothing(block: Callable[..., Block], up: str | None) -> None:
    gpu = block()
    gpu.service.scale(APP, 2)
    gpu.began("run", up)
    assert gpu.down().error is None
    assert (gpu.sent, gpu.workers) == ([], 2)
    # one that was cut off before a user marked the run
    gpu.xcoms["run"][SCALED_KEY] = {"app_id": APP, "active_workers": 2, "up_at": 1.0}
    assert gpu.down().error is None
    assert (gpu.workers, USAGE_KEY in gpu.xcoms["run"]) == (0, False)


@pytest.mark.contract
@pytest.mark.parametrize("value", [0, False, "0", None])
def test_nothing_to_run_needs_no_app(block: Callable[..., Block], value: Any) -> None:
    gpu = block(only_if=value)
    assert gpu.up().value == APP
    assert gpu.down().error is None
    assert (gpu.sent, USAGE_KEY in gpu.xcoms["run"]) == ([], False)


@pytest.mark.contract
def test_a_setup_that_was_cut_off_is_taken_down(slow: Block) -> None:
    slow.service.scale(APP, 2)
    for up in ("failed", "running", "success"):
        slow.began("run", up)
        slow.service.scale(APP, 2)
        assert slow.down().error is None
        assert slow.workers == 0


@pytest.mark.contract
def test_a_retry_that_goes_on_with_the_app_is_billed_from_the_first_attempt(
    block: Callable[..., Block],
) -> None:
    gpu = block()
    assert gpu.up().error is None
    gpu.store.set(SCALED_KEY, gpu.store.get(SCALED_KEY) | {"up_at": time.time() - 100})
    gpu.tries = 2
    gpu.up()
    gpu.down()
    assert 200 < gpu.usage["seconds"] < 210
    gpu.began("run", None)
    gpu.up(max_tries=7)  # after a clear
    gpu.down()
    assert gpu.usage["seconds"] < 10


@pytest.mark.contract
def test_a_setup_that_fails_takes_the_app_down_before_it_ends(slow: Block) -> None:
    slow.gpu.up.timeout = 0.2
    outcome = slow.up()
    assert "Not RUNNING in time" in str(outcome.error)
    assert (slow.sent, slow.workers) == ([2, 0], 0)


@pytest.mark.contract
@KILLED
@pytest.mark.parametrize("trouble", [None, failing(hang), hang], ids=["answers", "fails", "hangs"])
def test_a_setup_that_is_killed_takes_the_app_down_before_it_ends(slow: Block, trouble: Any) -> None:
    def is_due() -> bool:
        return slow.service.count("get_app") > 3

    instance = {"get_dr_count": trouble} if trouble else {}
    outcome = slow.up(how=lambda op, context: kill_when(op, context, is_due), **instance)
    assert outcome.error
    assert (slow.sent, slow.workers) == ([2, 0], 0)


@pytest.mark.contract
@pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="Airflow before 3.3 tells no trigger of a kill")
@pytest.mark.parametrize(
    ("state", "other", "want"),
    [
        ("failed", None, 0),
        ("success", None, 0),
        (None, None, 0),
        ("deferred", None, 2),
        ("failed", "success", 2),
    ],
)
def test_a_deferred_setup_that_a_user_ends_takes_the_app_down(
    slow: Block, monkeypatch: pytest.MonkeyPatch, state: str | None, other: str | None, want: int
) -> None:
    slow.gpu.up.deferrable = True
    with pytest.raises(TaskDeferred) as deferral:
        slow.up(how=lambda op, context: op.execute(context))
    kind, kwargs = deferral.value.trigger.serialize()
    assert (kind, len(kwargs)) == ("airflow_provider_rungen.triggers.RunGenAppTrigger", 8)
    trigger: Any = triggers.RunGenAppTrigger(**json.loads(json.dumps(kwargs)))
    # what a trigger has cannot be asked
    trigger.task_instance = SimpleNamespace(dag_id="d", run_id="run", task_id="app_up", map_index=-1)
    asked: Any = import_module("airflow.sdk.execution_time.task_runner").RuntimeTaskInstance
    for name in ("get_task_states", "get_dr_count", "get_dagrun_state"):
        monkeypatch.setattr(asked, name, getattr(slow, name))
    slow.states["run"]["app_up"] = state
    if other:
        slow.began("another", other)
    asyncio.run(trigger.on_kill())
    assert slow.workers == want


@pytest.mark.contract
@pytest.mark.parametrize("down", ["success", "running", "failed"])
def test_a_setup_whose_teardown_was_left_out_of_a_clear_bills_nothing(
    block: Callable[..., Block], down: str
) -> None:
    gpu = block()
    gpu.began("run", None, down)
    error = gpu.up().error
    assert isinstance(error, AirflowFailException)
    assert "Nothing would scale the app down: app_down runs or has ended" in str(error)
    assert "Clear app_up with its downstream tasks, and not only failed ones" in str(error)
    assert gpu.sent == []


# --- several runs, and an Airflow or a service that is out --------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize("up", ["running", "deferred", "success", "up_for_retry"])
def test_the_app_is_left_to_another_run_that_uses_it(block: Callable[..., Block], up: str) -> None:
    gpu = block()
    gpu.up()
    gpu.began("tuesday", up)
    outcome = gpu.down()
    assert (outcome.error, gpu.sent, gpu.workers) == (None, [2], 2)
    assert f"STILL BILLED: app {APP} stays up for run tuesday, whose teardown ends it" in outcome.log
    assert gpu.usage["down_at"] is None
    gpu.states["tuesday"]["app_up"] = "success"
    gpu.run_states["run"] = "success"
    assert gpu.down(run_id="tuesday").error is None
    assert (gpu.sent, gpu.workers) == ([2, 0], 0)


@pytest.mark.contract
@pytest.mark.parametrize(
    ("up", "down", "state"),
    [
        *(("success", each, "running") for each in ("running", "success", "failed", "up_for_retry")),
        *((each, None, "running") for each in (None, "queued", "failed", "skipped", "upstream_failed")),
        *(("success", None, each) for each in ("failed", "success", "queued")),
    ],
)
def test_no_other_run_keeps_it_up(block: Callable[..., Block], up: Any, down: Any, state: str) -> None:
    gpu = block()
    gpu.up()
    gpu.began("tuesday", up, down, state)
    gpu.began("wednesday", None)
    assert gpu.down().error is None
    assert (gpu.sent, gpu.workers) == ([2, 0], 0)


@pytest.mark.contract
def test_blocks_of_a_mapped_group_see_their_own_index_only(block: Callable[..., Block]) -> None:
    gpu = block()
    states: dict[str, str | None] = {"app_up_1": "success", "app_down_1": None}
    gpu.states["tuesday"], gpu.run_states["tuesday"] = states, "running"
    gpu.states["run"]["app_up_0"] = gpu.states["run"]["app_up_1"] = "success"
    for index, want in ((1, 2), (0, 0)):
        gpu.service.scale(APP, 2)
        assert gpu.down(map_index=index).error is None
        assert gpu.workers == want


@pytest.mark.contract
@pytest.mark.parametrize("trouble", [failing(hang), hang], ids=["fails", "hangs"])
def test_an_airflow_that_does_not_answer_keeps_nothing_up(block: Callable[..., Block], trouble: Any) -> None:
    gpu = block()
    gpu.up()
    gpu.began("tuesday", "success")
    calls = ("get_task_states", "get_dr_count", "xcom_pull", "xcom_push")
    outcome = gpu.down(**dict.fromkeys(calls, trouble))
    assert (outcome.error, gpu.sent, gpu.workers) == (None, [2, 0], 0)


@pytest.mark.contract
@pytest.mark.parametrize("fault", [{"status": 403}, {"status": 503}, {"kind": "reset_before"}])
def test_a_teardown_that_fails_is_loud_and_succeeds_when_it_is_retried(
    block: Callable[..., Block], fault: Any
) -> None:
    gpu = block()
    gpu.up()
    gpu.fault("update_app", times=None, **fault)
    outcome = gpu.down()
    assert type(outcome.error) is RunGenAppError, "which a retry may help, even with a wrong key"
    assert str(outcome.error).startswith(LOUD)
    assert (gpu.workers, gpu.usage["down_at"]) == (2, None)
    gpu.service.clear_faults()
    gpu.tries = 2
    assert gpu.down().error is None
    assert (gpu.workers, bool(gpu.usage["down_at"])) == (0, True)


@pytest.mark.contract
@pytest.mark.parametrize("operation", ["get_app", "update_app"])
def test_a_stray_404_does_not_leave_the_app_up(block: Callable[..., Block], operation: str) -> None:
    gpu = block()
    gpu.up()
    gpu.fault(operation, status=404, times=2)
    assert gpu.down().error is None
    assert gpu.workers == 0
    gpu.xcoms["run"][SCALED_KEY] |= {"app_id": "gone"}
    outcome = gpu.down()
    assert outcome.error is None
    assert "The app does not exist (app gone)" in outcome.log


@pytest.mark.contract
def test_a_teardown_passes_on_how_long_the_service_asked_to_wait(block: Callable[..., Block]) -> None:
    gpu = block()
    gpu.up()
    gpu.fault("update_app", status=429, headers={"Retry-After": "600"}, times=None)
    error = gpu.down().error
    assert isinstance(error, RunGenAppError)
    assert error.retry_after == 600


@pytest.mark.contract
@KILLED
def test_a_teardown_that_is_killed_is_loud(block: Callable[..., Block]) -> None:
    gpu = block()
    gpu.up()
    gpu.fault("update_app", status=503, times=None)
    is_due = lambda: gpu.service.count("update_app") > 1  # noqa: E731
    outcome = gpu.down(how=lambda op, context: kill_when(op, context, is_due, RunGenAppError))
    assert str(outcome.error) == f"{LOUD}The task was killed"
