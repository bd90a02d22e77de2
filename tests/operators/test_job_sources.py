"""Tasks that are given the output of a task that ran jobs ask its app and its connection for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, task
from conftest import FakeTaskInstance, run_task

from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.emulator.service import Record
from airflow_provider_rungen.emulator.testing import run_operator
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import (
    RunGenCancelJobOperator,
    RunGenCollectResultsOperator,
    RunGenRunBatchOperator,
    RunGenRunJobOperator,
)
from airflow_provider_rungen.operators.job_sources import _pull
from airflow_provider_rungen.sensors import RunGenJobSensor

pytestmark = pytest.mark.usefixtures("unsettled")

TEXT_APP = "llama-text"
INPUT: dict[str, Any] = {"prompt": "a red fox", "emulator": {"seconds": 0.05}}
FAST: dict[str, Any] = {"poll_interval": 0.02, "defer_after": 0}


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


CONSUMERS: dict[str, Callable[..., Any]] = {
    "wait": lambda **options: RunGenJobSensor(poke_interval=0.02, **options),
    "wait_deferred": lambda **options: RunGenJobSensor(
        poke_interval=0.02, deferrable=True, defer_after=0, **options
    ),
    "collect": lambda **options: RunGenCollectResultsOperator(**FAST, **options),
    "collect_deferred": lambda **options: RunGenCollectResultsOperator(deferrable=True, **FAST, **options),
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


def test_a_job_is_asked_of_the_app_that_ran_it(
    rungen_emulator: Emulator, dag: DAG, consumer: Callable[..., Any]
) -> None:
    run = Run()
    paint = RunGenRunJobOperator(task_id="paint", input=INPUT, app_id=TEXT_APP)
    after = consumer(task_id="after", job_id=paint.output)
    run.perform(after, job_id=run.perform(paint))
    assert requests(rungen_emulator) == {TEXT_APP}


def test_the_outputs_of_several_tasks_are_one_list_of_jobs(
    rungen_emulator: Emulator, dag: DAG, consumer: Callable[..., Any]
) -> None:
    many = RunGenRunBatchOperator(
        task_id="many", inputs=[INPUT] * 3, app_id=TEXT_APP, wait_for_completion=False
    )
    one = RunGenRunJobOperator(task_id="one", input=INPUT, app_id=TEXT_APP)
    upstream = {task.task_id: run_operator(task) for task in (many, one)}
    ids = [*upstream["many"].value, upstream["one"].value]
    outcome = run_operator(consumer(task_id="after", job_id=[many.output, one.output]), upstream=upstream)
    assert outcome.error is None
    assert {request.path.split("/")[4] for request in about_jobs(rungen_emulator)} == set(ids)
    assert requests(rungen_emulator) == {TEXT_APP}


@pytest.mark.usefixtures("on_the_wire")
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


def test_what_a_task_names_itself_counts(rungen_emulator: Emulator, dag: DAG) -> None:
    run = Run()
    paint = RunGenRunJobOperator(task_id="paint", input=INPUT, app_id=TEXT_APP)
    wait = RunGenJobSensor(task_id="wait", job_id=paint.output, app_id="flux-schnell", poke_interval=0.02)
    with pytest.raises(AirflowFailException, match="404"):
        run.perform(wait, job_id=run.perform(paint))
    assert requests(rungen_emulator) == {"flux-schnell"}


def test_ids_of_other_tasks_are_asked_of_the_connections_app(rungen_emulator: Emulator, dag: DAG) -> None:
    run = Run()
    with RunGenHook() as hook:
        job_id = hook.run_job(input=INPUT).id
    chosen = task(task_id="chosen")(lambda: None)()
    run.perform(RunGenJobSensor(task_id="wait", job_id=chosen, poke_interval=0.02), job_id=job_id)
    run.perform(RunGenJobSensor(task_id="plain", job_id=job_id, poke_interval=0.02))
    assert requests(rungen_emulator) == {"flux-schnell"}


def test_a_source_that_pushed_no_app_leaves_the_connections(rungen_emulator: Emulator, dag: DAG) -> None:
    """An older version of the package ran it."""
    run = Run()
    paint = RunGenRunJobOperator(task_id="paint", input=INPUT)
    job_id = run.perform(paint)
    run.xcoms.clear()
    run.perform(RunGenJobSensor(task_id="wait", job_id=paint.output, poke_interval=0.02), job_id=job_id)
    assert requests(rungen_emulator) == {"flux-schnell"}


def mapped(run: Run, apps: list[str]) -> tuple[Any, list[str]]:
    """Run a job in each app, as a mapped task does."""
    ids = [
        run.perform(RunGenRunJobOperator(task_id="each", input=INPUT, app_id=app), map_index=index)
        for index, app in enumerate(apps)
    ]
    with DAG("other", schedule=None, start_date=datetime(2025, 1, 1)):
        return RunGenRunJobOperator.partial(task_id="each", input=INPUT).expand(app_id=apps), ids


def test_each_mapped_task_asks_the_app_of_its_twin(rungen_emulator: Emulator) -> None:
    run = Run()
    each, ids = mapped(run, ["flux-schnell", TEXT_APP])
    wait = RunGenJobSensor(task_id="wait", job_id=each.output, poke_interval=0.02)
    run.perform(wait, map_index=1, job_id=ids[1])
    assert requests(rungen_emulator) == {TEXT_APP}


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
        rows = {
            number: {"app": app} for number, app in {1: "b", 2: "c", 3: "d"}.items()
        }  # 0 failed before it pushed

        def xcom_pull(self, task_ids: str, key: str, map_indexes: Any = None) -> Any:
            return list(self.rows.values()) if map_indexes is None else self.rows.get(map_indexes)

    assert _pull(Ti(), ["s"], "app", "app_id") == "c"
