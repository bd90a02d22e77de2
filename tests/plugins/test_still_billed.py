"""The pages of the tasks of a ``scaled_app`` say what is billed, until the service confirms the end."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from airflow.sdk import DAG
from conftest import APP, FakeTaskInstance, run_task
from rungen_emulator import Fault

from airflow_provider_rungen.operators import RunGenRunJobOperator, RunGenScaleAppOperator, scaled_app
from plugins.conftest import SERVER_WARNINGS, World, given, words_of

pytestmark = [pytest.mark.usefixtures("unsettled"), SERVER_WARNINGS]

FAST: dict[str, Any] = {"poll_interval": 0.02}


class Block:
    """A block with one job, whose tasks run one by one."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store: dict[str, Any] = {}
        self.others: dict[str, dict[str, str | None]] = {}  #: Other runs, with the states of their tasks.
        world.emulator.service.scale(APP, 0)
        with DAG("dag", schedule=None) as self.dag, scaled_app(APP, 2, price="3 USD/h", **FAST):
            RunGenRunJobOperator(task_id="paint", input=given(), wait_for_completion=True, **FAST)

    def run(self, task_id: str, state: str | None = None) -> str:
        """Run a task, and return the path of its page."""
        ti, found = self.perform(task_id)
        return self.world.database.save(ti, state or found, operator=ti.task.task_type)

    def perform(self, task_id: str) -> tuple[Any, str]:
        """Run a task, and return its instance and its state."""
        op, ti = self._instance(task_id)
        outcome = run_task(op, {"ti": ti, "task_instance": ti, "dag": self.dag})
        self.store[task_id] = ti.xcoms
        return ti, "failed" if outcome.error else "success"

    def queue(self, task_id: str) -> str:
        """Note that a task waits for a slot, and return the path of its page."""
        op, ti = self._instance(task_id)
        return self.world.database.save(ti, "queued", operator=op.task_type)

    def _instance(self, task_id: str) -> tuple[Any, FakeTaskInstance]:
        op, ti = self.dag.get_task(task_id), _Instance(self)
        ti.task_id, ti.run_id, ti.task = task_id, self.world.ti.run_id, op
        return op, ti


class _Instance(FakeTaskInstance):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self._block = block

    def xcom_pull(
        self, task_ids: Any = None, key: str = "return_value", default: Any = None, **_: Any
    ) -> Any:
        if isinstance(task_ids, list):
            return [self._block.store.get(task_id, {}).get(key) for task_id in task_ids]
        return self._block.store.get(task_ids, {}).get(key, default)

    def get_task_states(self, task_ids: list[str], **_: Any) -> Any:
        own = {each: "success" for each in self._block.store if each in task_ids}
        return {self.run_id: own, **self._block.others}

    def get_dr_count(self, **_: Any) -> int:
        return 1 + len(self._block.others)

    def get_dagrun_state(self, *_: Any) -> str:
        return "running"


def billing_of(world: World, path: str) -> str:
    """Return the words of the card about what is billed, or nothing."""
    page = world.get(path).text
    return words_of(page.partition('aria-label="What is billed"')[2].partition("</section>")[0])


def test_each_task_of_a_block_says_what_is_billed_until_its_teardown_has_ended_it(world: World) -> None:
    block = Block(world)
    pages = [block.run("app_up"), block.run("paint")]
    pages.append(run := pages[0].partition("/tasks/")[0])
    for path in pages:
        text = billing_of(world, path)
        for words in (
            f"Billed now : app {APP}",
            "Workers now 2",
            "6.00 USD an hour",
            "so far below 0.01",
            "app_down",
        ):
            assert words in text
        assert "STILL BILLED" not in text
    pages.append(block.run("app_down"))
    for path in pages:
        assert billing_of(world, path) == ""
    assert re.search(f"workers of app {APP}: 0[.][0-9]+ USD", words_of(world.get(run).text))


def test_an_app_that_was_left_to_another_run_is_paid_for_by_that_one(world: World) -> None:
    block = Block(world)
    block.run("app_up")
    block.others = {"other": {"app_up": "success", "app_down": None}}
    path = block.run("app_down")
    text = billing_of(world, path)
    for words in ("Billed now", "Workers now 2", "app_down left it up: its log says why"):
        assert words in text
    for words in ("STILL BILLED", "Cost so far", "Clear it"):
        assert words not in text
    assert "Bill so far" in words_of(world.get(path).text)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("queued", f"Billed now : app {APP}"),
        ("up_for_retry", "It is tried again"),
        ("running", "It is tried again"),
        ("success", "STILL BILLED"),  # a user has marked it
    ],
)
def test_a_block_that_is_up_again_after_a_clear_is_billed(world: World, state: str, words: str) -> None:
    block = Block(world)
    for task_id in ("app_up", "paint"):
        block.perform(task_id)
    down, _ = block.perform("app_down")
    world.database.save(down, state, operator=down.task.task_type)
    ended = int(time.time())
    while int(time.time()) == ended:  # the bill has seconds
        time.sleep(0.05)
    del block.store["app_down"]  # it was cleared
    text = billing_of(world, block.run("app_up"))
    assert words in text
    assert "Workers now 2" in text


def test_a_teardown_that_has_not_begun_says_what_is_billed(world: World) -> None:
    block = Block(world)
    block.run("app_up")
    text = billing_of(world, block.queue("app_down"))
    assert f"Billed now : app {APP} Workers now 2 Price 6.00 USD an hour" in text
    assert "Until app_down scales the app down" in text


def test_a_teardown_that_failed_is_told_on_all_pages_of_the_block(world: World) -> None:
    block, service = Block(world), world.emulator.service
    pages = [block.run("app_up"), block.run("paint")]
    service.inject(Fault(on="update_app", status=403, times=None))
    pages += [pages[0].partition("/tasks/")[0], block.run("app_down")]
    for path in pages:
        text = billing_of(world, path)
        for words in ("STILL BILLED", "Workers now 2", "6.00 USD an hour", "Clear it to try again"):
            assert words in text
    page = words_of(world.get(pages[-1]).text)
    assert "Bill so far" in page
    assert "403" in page


def test_somebody_else_scaled_it_down_so_it_is_not_billed_any_more(world: World) -> None:
    block, service = Block(world), world.emulator.service
    block.run("app_up")
    service.inject(Fault(on="update_app", status=403, times=None))
    path = block.run("app_down")
    service.scale(APP, 0)
    assert "Not billed any more" in billing_of(world, path)


def test_nobody_answers_so_it_is_unknown_what_is_billed(world: World) -> None:
    block, service = Block(world), world.emulator.service
    block.run("app_up")
    service.inject(Fault(on="update_app", status=403, times=None))
    path = block.run("app_down")
    service.inject(Fault(on="get_app", status=503, times=None))
    text = billing_of(world, path)
    for words in ("STILL BILLED", "unknown", "Workers when last seen 2", "6.00 USD an hour"):
        assert words in text


def test_an_app_that_is_scaled_without_a_block_is_billed_until_somebody_ends_it(world: World) -> None:
    world.emulator.service.scale(APP, 0)
    op = RunGenScaleAppOperator(task_id="task", active_workers=1, **FAST)
    path = world.run(op)
    assert "Until somebody scales the app down" in billing_of(world, path)
    world.emulator.service.scale(APP, 0)


@pytest.mark.parametrize("value", [{"app_id": 1}, "text", {"changes": [1]}, []])
def test_a_record_that_is_none_is_left_out(world: World, value: Any) -> None:
    page = {"connection": "rungen_default", "app": APP, "up": "task", "price": "free"}
    answer = world.get(world.save(xcoms={"rungen_page": page, "scaled": value}))
    assert answer.status_code == 200
    assert 'aria-label="What is billed"' not in answer.text
