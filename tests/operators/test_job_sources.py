"""Tasks that are given the output of a task that ran jobs ask its app and its connection for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, task
from conftest import FakeTaskInstance, rows_in, run_task
from operator_kit import FAST, run_mapped, taking
from rungen_emulator import Emulator
from rungen_emulator.service import Record
from rungen_emulator.testing import run_operator

from airflow_provider_rungen.operators import (
    RunGenCancelJobOperator,
    RunGenCollectResultsOperator,
    RunGenRunJobOperator,
)
from airflow_provider_rungen.operators.base import _pull
from airflow_provider_rungen.sensors import RunGenJobSensor

pytestmark = pytest.mark.usefixtures("unsettled")

TEXT_APP = "llama-text"
INPUT = taking(0.05)


class Run:
    """The task instances of a DAG run. Each sees what the others pushed."""

    def __init__(self) -> None:
        self.xcoms: dict[tuple[str, str, int], Any] = {}

    def context(self, task_id: str, map_index: int = -1) -> Any:
        ti = FakeTaskInstance()
        ti.task_id, ti.map_index = task_id, map_index
        ti.on_push = lambda key, value: self.xcoms.update({(task_id, key, map_index): value})
        ti.xcom_pull = self._pull  # type: ignore[assignment]  # of other tasks, too
        return {"ti": ti, "task_instance": ti}

    def _pull(self, key: str = "return_value", *, task_ids: str, map_indexes: Any = None) -> Any:
        found = [
            value
            for (*name, index), value in self.xcoms.items()
            if name == [task_ids, key] and map_indexes in (None, index)
        ]
        return found[0] if len(found) == 1 else found or None

    def perform(self, op: Any, map_index: int = -1, **rendered: Any) -> Any:
        """Run a task, with its outputs of other tasks rendered."""
        for name, value in rendered.items():
            setattr(op, name, value)
        outcome = run_task(op, self.context(op.task_id, map_index))
        if outcome.error is not None:
            raise outcome.error
        return outcome.value


@pytest.fixture
def dag() -> Iterator[DAG]:
    with DAG("dag", schedule=None, start_date=datetime(2025, 1, 1)) as dag:
        yield dag


def waiting(**options: Any) -> RunGenJobSensor:
    return RunGenJobSensor(poke_interval=0.02, **options)


def collecting(**options: Any) -> RunGenCollectResultsOperator:
    return RunGenCollectResultsOperator(**FAST, **options)


CONSUMERS: dict[str, Callable[..., Any]] = {
    "wait": waiting,
    "wait_deferred": partial(waiting, deferrable=True),
    "collect": collecting,
    "collect_deferred": partial(collecting, deferrable=True),
    "cancel": RunGenCancelJobOperator,
}


@pytest.fixture(params=list(CONSUMERS))
def consumer(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return CONSUMERS[request.param]


def about_jobs(emulator: Emulator) -> list[Record]:
    """Return the requests about a job."""
    return [record for record in emulator.service.records() if "/job/" in record.path]


def requests(emulator: Emulator) -> set[str]:
    """Return the apps that the service was asked about jobs of."""
    return {record.path.split("/")[2] for record in about_jobs(emulator)}


@pytest.mark.contract
def test_a_job_is_asked_of_the_app_that_ran_it(
    rungen_emulator: Emulator, dag: DAG, consumer: Callable[..., Any]
) -> None:
    run = Run()
    paint = RunGenRunJobOperator(task_id="paint", input=INPUT, app_id=TEXT_APP)
    after = consumer(task_id="after", job_id=paint.output)
    run.perform(after, job_id=run.perform(paint))
    assert requests(rungen_emulator) == {TEXT_APP}


@pytest.mark.contract
@pytest.mark.parametrize("deferrable", [False, True])
def test_a_job_keeps_its_label(rungen_emulator: Emulator, dag: DAG, tmp_path: Path, deferrable: bool) -> None:
    """Of mapped tasks, in whichever order, and of which one has no job."""
    run = Run()
    paint = RunGenRunJobOperator(task_id="paint", input=INPUT, label="{{ name }}")
    other = RunGenRunJobOperator(task_id="other", input=INPUT)
    ids = [run.perform(paint, index, job_label=f"sku-{index} 🦊") for index in range(3)]
    ids += [run.perform(other), None]
    table = collecting(
        task_id="table",
        job_id=[paint.output, other.output],
        destination=tmp_path.as_uri(),
        results=f"{tmp_path}/results.jsonl",
        max_failed=1,
        deferrable=deferrable,
    )
    run.perform(table, job_id=ids[::-1])
    rows = rows_in(tmp_path)
    assert [row["label"] for row in rows] == [None, None, "sku-2 🦊", "sku-1 🦊", "sku-0 🦊"]
    assert [row["job_id"] for row in rows] == ids[::-1]


def test_what_a_function_returns_keeps_its_label(rungen_emulator: Emulator, tmp_path: Path) -> None:
    @task.rungen(destination=tmp_path.as_uri(), label="{{ ti.task_id }} of {{ ds }}")
    def paint() -> Any:
        return INPUT

    with DAG("dag", schedule=None, start_date=datetime(2025, 1, 1)):
        one = paint()
    outcome = run_operator(one, context={"ds": "2026-01-01"})
    assert outcome.value["label"] == "paint of 2026-01-01"
    assert outcome.xcoms["rungen_label"] == {outcome.value["job_id"]: outcome.value["label"]}


@pytest.mark.contract
def test_the_label_of_a_mapped_task_is_a_template(rungen_emulator: Emulator) -> None:
    with DAG("dag", schedule=None, start_date=datetime(2025, 1, 1)):
        paint = RunGenRunJobOperator.partial(task_id="paint", label="{{ task.input.prompt }}").expand(
            input=[{"prompt": "a kettle"}, {"prompt": "a desk"}]
        )
    for index, name in enumerate(("a kettle", "a desk")):
        outcome = run_mapped(paint, index)
        assert outcome.xcoms["rungen_label"] == {outcome.value: name}


@pytest.mark.contract
def test_the_outputs_of_several_tasks_are_one_list_of_jobs(
    rungen_emulator: Emulator, dag: DAG, consumer: Callable[..., Any]
) -> None:
    tasks = [RunGenRunJobOperator(task_id=name, input=INPUT, app_id=TEXT_APP) for name in ("one", "two")]
    upstream = {task.task_id: run_operator(task) for task in tasks}
    ids = [upstream[task.task_id].value for task in tasks]
    job_id = [task.output for task in tasks]
    outcome = run_operator(consumer(task_id="after", job_id=job_id), upstream=upstream)
    assert outcome.error is None
    assert {request.path.split("/")[4] for request in about_jobs(rungen_emulator)} == set(ids)
    assert requests(rungen_emulator) == {TEXT_APP}


@pytest.mark.contract
def test_a_job_is_asked_of_the_connection_that_ran_it(
    rungen_emulator: Emulator, dag: DAG, consumer: Callable[..., Any]
) -> None:
    run = Run()
    with Emulator(job_seconds=0.05) as other, other.connection("other"):
        paint = RunGenRunJobOperator(task_id="paint", input=INPUT, rungen_conn_id="{{ 'other' }}")
        after = consumer(task_id="after", job_id=paint.output)
        job_id = run.perform(paint, rungen_conn_id="other")
        run.perform(after, job_id=job_id)
        assert other.service.count("get") + other.service.count("cancel") > 0
    assert rungen_emulator.service.records() == []


@pytest.mark.contract
def test_what_a_task_names_itself_counts(rungen_emulator: Emulator, dag: DAG) -> None:
    run = Run()
    paint = RunGenRunJobOperator(task_id="paint", input=INPUT, app_id=TEXT_APP)
    wait = waiting(task_id="wait", job_id=paint.output, app_id="flux-schnell")
    with pytest.raises(AirflowFailException, match="404"):
        run.perform(wait, job_id=run.perform(paint))
    assert requests(rungen_emulator) == {"flux-schnell"}


@pytest.mark.contract
@pytest.mark.parametrize("source", ["another task", "nobody", "an older version of the package"])
def test_ids_of_which_no_app_is_known_are_asked_of_the_connections_app(
    rungen_emulator: Emulator, dag: DAG, source: str
) -> None:
    run = Run()
    paint = RunGenRunJobOperator(task_id="paint", input=INPUT)
    job_id = run.perform(paint)
    run.xcoms.clear()
    given: Any = {"another task": task(task_id="chosen")(lambda: None)(), "nobody": job_id}.get(
        source, paint.output
    )
    run.perform(waiting(task_id="wait", job_id=given), job_id=job_id)
    assert requests(rungen_emulator) == {"flux-schnell"}


def mapped(run: Run, apps: list[str]) -> tuple[Any, list[str]]:
    """Run a job in each app, as a mapped task does."""
    ids = [
        run.perform(RunGenRunJobOperator(task_id="each", input=INPUT, app_id=app), map_index=index)
        for index, app in enumerate(apps)
    ]
    with DAG("other", schedule=None, start_date=datetime(2025, 1, 1)):
        return RunGenRunJobOperator.partial(task_id="each", input=INPUT).expand(app_id=apps), ids


@pytest.mark.contract
def test_each_mapped_task_asks_the_app_of_its_twin(rungen_emulator: Emulator) -> None:
    run = Run()
    each, ids = mapped(run, ["flux-schnell", TEXT_APP])
    run.perform(waiting(task_id="wait", job_id=each.output), map_index=1, job_id=ids[1])
    assert requests(rungen_emulator) == {TEXT_APP}


@pytest.mark.contract
def test_jobs_of_several_apps_are_refused(rungen_emulator: Emulator, consumer: Callable[..., Any]) -> None:
    run = Run()
    each, ids = mapped(run, ["flux-schnell", TEXT_APP])
    after = consumer(task_id="after", job_id=each.output)
    with pytest.raises(AirflowFailException, match=f"several apps .*flux-schnell, {TEXT_APP}.*set app_id"):
        run.perform(after, job_id=ids)
    assert requests(rungen_emulator) == set()


def test_a_twin_that_pushed_nothing_moves_no_other() -> None:
    class Ti:  # as XCom.get_all does: only the rows there are
        map_index = 2
        rows = {number: {"app": app} for number, app in ((1, "b"), (2, "c"), (3, "d"))}  # 0 pushed nothing

        def xcom_pull(self, task_ids: str, key: str, map_indexes: Any = None) -> Any:
            return list(self.rows.values()) if map_indexes is None else self.rows.get(map_indexes)

    assert _pull(Ti(), ["s"], "app", "app_id") == "c"
