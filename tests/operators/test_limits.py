"""Before the money is spent: limits that refuse, plans that speak money, samples. The server counts."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException
from bad_answers import Fault
from conftest import table_of
from operator_kit import Inputs, Table, picture, products, run_mapped
from rungen_emulator import Emulator, Service
from rungen_emulator.testing import run_operator

from airflow_provider_rungen.exceptions import RunGenLimitError
from airflow_provider_rungen.operators import (
    RunGenPlanTableOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
    scaled_app,
)

Run = Callable[..., Table]

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.contract]


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def run(rungen_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    # a worker costs 1 in a second
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", rungen_emulator.airflow_connection(price="3600 USD/h"))
    return lambda rows, **options: Table(rungen_emulator, tmp_path, rows, **options)


def other_picture(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": f"a better photo of {row['title']}"}


# --- what is refused ---


def test_an_edited_prompt_buys_nothing(run: Run, mode: bool) -> None:
    task = run(products(6), deferrable=mode)
    assert task.attempt().error is None
    before = task.written
    task.next_run("night 2")
    error = task.attempt(to_input=other_picture, max_jobs=5).error
    assert isinstance(error, AirflowFailException)
    assert isinstance(error.__context__, RunGenLimitError)
    assert re.fullmatch(
        r"Refused: 6 of 6 rows are new, about \d[.\d]* s of GPU, \d\.\d\d USD; max_jobs=5. Nothing was sent. "
        r"Did the rows, to_input or the model change\? If not, raise max_jobs, and clear the task.",
        str(error),
    )
    assert task.attempt(to_input=other_picture, max_jobs=5).error is not None, "nor does a retry"
    assert (task.created, task.written) == (6, before), "the last table stays"
    task.clear()
    assert task.attempt(to_input=other_picture, max_jobs=6).error is None
    assert task.created == 12


def test_what_is_stored_is_not_counted(run: Run, mode: bool) -> None:
    task = run(products(4), deferrable=mode)
    assert task.attempt().error is None
    task.next_run("night 2")
    assert "3 of 7 rows are new" in str(task.attempt(table=products(7), max_jobs=2).error)
    assert task.attempt(table=products(7), max_jobs=3).error is None
    assert task.created == 7


@pytest.mark.parametrize("place", [0, 100, 200])
def test_exactly_what_is_new_may_be_bought_wherever_it_stands(run: Run, mode: bool, place: int) -> None:
    old, new = products(203)[:200], products(203)[200:]
    task = run(old, deferrable=mode)
    assert task.attempt().error is None
    task.next_run("night 2")
    table = [*old[:place], *new, *old[place:]]
    assert task.attempt(table=table, max_jobs=3).error is None
    assert task.created == 203
    assert Counter(task.column("status")) == {"completed": 203}


def test_a_night_on_which_nothing_is_new_needs_no_money(run: Run, mode: bool) -> None:
    task = run(products(4), deferrable=mode)
    assert task.attempt().error is None
    task.next_run("night 2")
    assert task.attempt(max_cost="0.01 USD").error is None
    assert (task.created, Counter(task.column("reused"))) == (4, {True: 4})


@pytest.mark.parametrize(
    ("most", "error", "created"),
    [
        (79, "Refused: 50 of 150 rows are new after 30 that this run has bought, about ", 100),
        (80, "None", 150),
    ],
)
def test_a_retry_counts_what_earlier_attempts_bought(
    run: Run, mode: bool, most: int, error: str, created: int
) -> None:
    task = run(products(70), deferrable=mode, max_in_flight=30)
    assert task.attempt().error is None
    task.next_run("night 2")
    task.attempt_until("rungen_job_link", table=products(150))
    assert task.created == 100
    assert str(task.attempt(table=products(150), max_jobs=most).error).startswith(error)
    assert task.created == created


@pytest.mark.parametrize("changed", [{}, {"to_input": other_picture}], ids=["same", "other"])
@pytest.mark.parametrize("kind", ["lost", "cut"])
def test_jobs_that_may_exist_count(run: Run, kind: str, changed: dict[str, Any]) -> None:
    task = run(products(5))
    lost = {"status": 502, "body": b"<html>", "taken": True} if kind == "lost" else {"kind": "reset_after"}
    task.emulator.service.inject(Fault(on="run", times=5, **lost))
    assert task.attempt(max_jobs=5).error is not None
    assert task.created == 5
    refused = str(task.attempt(max_jobs=9, **changed).error)
    assert "5 of 5 rows are new after 5 that this run has bought" in refused
    task.clear()  # it is the same run, which has spent that
    assert "5 of 5 rows are new after 5" in str(task.attempt(max_jobs=9).error)
    assert task.created == 5
    assert task.attempt(max_jobs=10).error is None


def test_a_retry_that_is_refused_keeps_what_was_bought(run: Run, mode: bool) -> None:
    task = run(products(4), deferrable=mode)
    task.attempt_until("rungen_job_link", max_jobs=5)
    refused = task.attempt(table=products(6), max_jobs=5).error
    assert isinstance(refused, AirflowFailException)
    assert str(refused).startswith("Refused: 2 of 6 rows are new after 4 that this run has bought")
    assert task.statuses() == ["COMPLETED"] * 4
    assert task.column("status")[:4] == ["completed"] * 4
    assert all("Refused" in error for error in task.column("error")[4:])


def test_a_clear_that_is_refused_leaves_the_table(run: Run, mode: bool) -> None:
    task = run(products(6), deferrable=mode)
    assert task.attempt().error is None
    before = task.written
    task.clear()
    assert "Refused: 6 of 6 rows are new" in str(task.attempt(to_input=other_picture, max_jobs=5).error)
    assert (task.created, task.written) == (6, before)


@pytest.mark.parametrize("end", ["stopped", "late"])
def test_what_is_stored_is_no_failure_of_an_attempt_that_ends_early(run: Run, mode: bool, end: str) -> None:
    rows = products(210)
    task = run(rows[70:], deferrable=mode)
    assert task.attempt().error is None
    task.next_run("night 2")
    new = {row["title"] for row in rows[:70]}
    odd = {"fail": "no luck", "seconds": 0} if end == "stopped" else {"seconds": 60}

    def to_input(row: dict[str, Any]) -> dict[str, Any]:
        return picture(row) | ({"emulator": odd} if row["title"] in new else {})

    limits: dict[str, Any] = {} if end == "stopped" else {"timeout": 2}
    error = task.attempt(table=rows, to_input=to_input, max_in_flight=20, **limits).error
    assert ("Stopped: " if end == "stopped" else "Not over in time") in str(error)
    assert Counter(task.column("status"))["completed"] == 140


def test_a_list_of_inputs_has_a_limit(rungen_emulator: Emulator, tmp_path: Path) -> None:
    inputs = [{"prompt": str(n), "emulator": {"fail": "no luck"}} for n in range(3)]
    task = Inputs(rungen_emulator, tmp_path, inputs)
    task.max_tries = 3
    told = str(task.attempt(max_jobs=2).error)
    assert told.startswith("Refused: 3 of 3 rows are new; max_jobs=2. Nothing was sent. ")
    assert rungen_emulator.service.count("run") == 0
    assert "no luck" in str(task.attempt(max_jobs=5).error)
    assert "after 3 that this run has bought" in str(task.attempt(max_jobs=5).error)


# --- money ---


def test_a_cost_is_checked_with_what_the_store_remembers(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    task = run(products(10), max_cost="1 USD", max_jobs=10)
    assert task.attempt().error is None
    [line] = [each for each in caplog.messages if "max_cost" in each]
    assert line == (
        "Not checked: max_cost=1 USD, since it is unknown how long jobs of the app run. "
        "Only max_jobs=10 counts"
    )
    task.next_run("night 2")
    error = str(task.attempt(to_input=other_picture, max_jobs=None).error)
    assert re.match(
        r"Refused: 10 of 10 rows are new, about \d[.\d]* s of GPU, \d+\.\d\d USD; max_cost=1 USD\. ", error
    )
    assert "; max_jobs=9, max_cost=1 USD. " in str(task.attempt(to_input=other_picture, max_jobs=9).error)
    assert task.attempt(table=products(11)).error is None, "a job costs 30 cents"
    assert task.created == 11


BAD_LIMITS: dict[str, Any] = {
    "limit": (0, "-1", "1.5", ""),
    "max_jobs": (0, True, "many"),
    "max_cost": (20, "20", "0 USD", "-1 USD", "20 usd", ""),
}
EXPECTED = {"max_cost": "a positive amount with its currency, such as 20 USD"}


@pytest.mark.parametrize("is_template", [False, True])
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in BAD_LIMITS for value in BAD_LIMITS[name]]
)
def test_a_limit_that_is_none_is_an_error(
    rungen_emulator: Emulator, tmp_path: Path, name: str, value: Any, is_template: bool
) -> None:
    def make(given: Any) -> Any:
        options: dict[str, Any] = {"table": products(1), "key": "sku", "destination": str(tmp_path)}
        return RunGenRunTableOperator(task_id="x", **options | {name: given})

    message = f"{name} must be {EXPECTED.get(name, 'a positive whole number')}, not "
    if is_template:
        error = run_operator(make("{{ params.most }}"), context={"params": {"most": value}}).error
        assert isinstance(error, AirflowFailException)
        assert str(error) == f"{message}{str(value)!r}"
        assert rungen_emulator.service.count("run") == 0
    else:
        with pytest.raises(ValueError, match=re.escape(f"{message}{value!r}")):
            make(value)


@pytest.mark.parametrize(
    ("price", "problem"), [(None, "there is no price"), ("1 EUR/h", "the price is 1 EUR/h")]
)
def test_a_cost_needs_a_price_in_its_currency(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, price: str | None, problem: str
) -> None:
    connection = rungen_emulator.airflow_connection(**{} if price is None else {"price": price})
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", connection)
    outcome = run_operator(table_of(task_id="paint", inputs=[{"prompt": "x"}], max_cost="20 USD"))
    assert isinstance(outcome.error, AirflowFailException)
    assert str(outcome.error) == (
        f"max_cost=20 USD cannot be checked: {problem}; nothing was sent. "
        "Declare one in USD: the price of the connection."
    )
    assert rungen_emulator.service.records() == []


# --- plans ---


def test_a_plan_speaks_money(run: Run) -> None:
    task = run(products(6), to_input=lambda row: None if row["sku"] == "sku-1" else picture(row))
    assert task.attempt().error is None
    task.next_run("night 2")
    task.kind = RunGenPlanTableOperator
    # all are new, so that it is known of other entries how long they take
    assert task.attempt(to_input=other_picture, max_jobs=6).value == 6
    plan = task.ti.xcoms["plan"]
    assert "usage" not in task.ti.xcoms
    assert plan["cost"] == pytest.approx(plan["seconds"], abs=0.001)
    assert 6 * 0.25 < plan["cost"] < 6
    assert {"rows": 6, "jobs": 6, "reused": 0, "skipped": 0, "currency": "USD"}.items() <= plan.items()
    assert task.attempt(table=products(7)).value == 1
    assert {"rows": 7, "jobs": 1, "reused": 5, "skipped": 1}.items() <= task.ti.xcoms["plan"].items()


WORKERS = "{{ ti.xcom_pull('plan', key='plan')['workers'] }}"
# A minute of the service is a second here, and a job takes four of its minutes.
SPEED, JOB = 60, 240.0
GPU = "gpu"


class Night:
    """A planned table in the block of an app that is down, whose clock is fast."""

    def __init__(self, emulator: Emulator, folder: Path) -> None:
        began = time.time()
        self.service = emulator.service = Service(
            clock=lambda: began + SPEED * (time.time() - began), job_seconds=JOB
        )
        self.service.add_app(GPU, workers=4)
        self._table: dict[str, Any] = {
            "to_input": picture,
            "key": "sku",
            "app_id": GPU,
            "destination": folder.as_uri(),
            "poll_interval": 0.1,
        }

    def buy(self, rows: Any) -> None:
        task = RunGenRunTableOperator(task_id="photos", table=rows, **self._table)
        assert run_operator(task, timeout=100).error is None
        self.service.scale(GPU, 0)

    def plan(self, rows: Any, **options: Any) -> Any:
        return run_operator(RunGenPlanTableOperator(task_id="plan", table=rows, **self._table, **options))

    def perform(self, rows: Any, finish_in: timedelta, **options: Any) -> dict[str, Any]:
        """Run the DAG, and return the result of each task."""
        with DAG("d", schedule=None) as dag:
            plan = RunGenPlanTableOperator(task_id="plan", table=rows, finish_in=finish_in, **self._table)
            with scaled_app(GPU, WORKERS, only_if=plan.output, poll_interval=0.1, **options) as gpu:
                photos = RunGenRunTableOperator(task_id="photos", table=rows, **self._table)
        results: dict[str, Any] = {}
        ops: list[Any] = [plan, gpu.up, photos, gpu.down]
        for op in ops:
            results[op.task_id] = run_operator(op, upstream=results, context={"dag": dag}, timeout=100)
            assert results[op.task_id].error is None
            results[f"workers of {op.task_id}"] = self.service.stats()["active_workers"][GPU]
        return results


@pytest.fixture
def night(rungen_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    night = Night(rungen_emulator, tmp_path)
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", rungen_emulator.airflow_connection(price="1.20 USD/h"))
    return night


def test_a_deadline_gets_the_fewest_workers_that_meet_it(night: Night) -> None:
    night.buy(products(2))
    done = night.perform(products(14), timedelta(minutes=15))
    # three jobs of four minutes one after the other, by each of four workers
    assert done["plan"].xcoms["plan"]["workers"] == 4
    assert (
        "12 new rows, about 4 min each: 4 workers finish in 12 min, 0.96 USD whatever their number. "
        "The start of the app (STOPPED) comes on top."
    ) in done["plan"].log
    assert (done["workers of app_up"], done["workers of app_down"]) == (4, 0)
    jobs = night.service.jobs()[2:]
    assert len(jobs) == 12
    assert max(job["finished"] for job in jobs) - min(job["created"] for job in jobs) < 15 * 60


def test_a_team_s_limit_holds_and_what_it_costs_in_time_is_said(night: Night) -> None:
    night.buy(products(2))
    done = night.perform(products(8), timedelta(minutes=4), max_workers=3)
    assert done["plan"].xcoms["plan"]["workers"] == 6
    assert done["workers of app_up"] == 3
    assert ("Only 3 of 6 workers (max_workers): finish_in cannot be met. 24 min of GPU take 8 min") in done[
        "app_up"
    ].log


def test_a_plan_counts_the_queue_and_says_what_it_does_not_know(night: Night) -> None:
    first = night.plan(products(2), finish_in=600)
    assert first.xcoms["plan"]["workers"] == 1
    assert "2 new rows, for an unknown time each: 1 worker." in first.log
    assert "workers" not in night.plan(products(2)).xcoms["plan"]
    night.buy(products(2))
    others = RunGenRunJobOperator.partial(task_id="other", app_id=GPU).expand(input=[{"prompt": "x"}] * 6)
    for number in range(6):
        assert run_mapped(others, number).error is None
    queued = night.plan(products(4), finish_in=8 * 60)
    assert queued.xcoms["plan"]["workers"] == 4
    assert (
        "2 new rows, about 4 min each: 4 workers finish in 8 min, 0.16 USD whatever their number. "
        "6 jobs in the queue before them take 6 min of it."
    ) in queued.log
    late = night.plan(products(3), finish_in=60)
    assert late.xcoms["plan"]["workers"] == 7
    assert "finish_in=1 min cannot be met: one job takes longer." in late.log


@pytest.mark.parametrize("limits", [{"max_jobs": 1}, {"max_cost": "0.001 USD"}])
def test_a_plan_refuses_what_the_table_would(run: Run, limits: Any, rungen_emulator: Emulator) -> None:
    task = run(products(2))
    assert task.attempt().error is None
    edited = task.options | {"to_input": other_picture} | limits
    with DAG("d", schedule=None) as dag:
        plan = RunGenPlanTableOperator(task_id="plan", **edited)
        with scaled_app(only_if=plan.output):
            photos = RunGenRunTableOperator(task_id="photos", **edited)
    refused, late = (run_operator(op, context={"dag": dag}) for op in (plan, photos))
    assert isinstance(refused.error, AirflowFailException)
    assert "Refused: 2 of 2 rows are new, about" in str(refused.error)
    assert str(refused.error) == str(late.error)
    assert refused.xcoms["plan"]["jobs"] == 2
    assert rungen_emulator.service.stats()["jobs_created"] == 2, "none for the edited prompt"


def test_a_plan_does_not_refuse_what_is_paid_for(run: Run) -> None:
    task = run(products(3))
    assert task.attempt().error is None
    task.next_run("night 2")
    task.kind = RunGenPlanTableOperator
    assert task.attempt(table=products(4), max_jobs=1).value == 1


def test_to_input_may_take_the_params_of_the_dag(run: Run) -> None:
    def at(row: dict[str, Any], params: dict[str, Any]) -> Any:
        return {"prompt": f"{row['title']} at {params['when']}"}

    task = run(products(1))
    for to_input in (at, picture, lambda params: {"prompt": params["title"]}, dict):
        rows = [{"sku": "x", "title": "product 0", "prompt": "its own"}]
        options = task.options | {"table": rows, "to_input": to_input}
        op = RunGenRunTableOperator(task_id="x", **options)
        assert run_operator(op, context={"params": {"when": "dawn"}}).error is None
    prompts = [job["input"].get("prompt") for job in task.emulator.service.jobs()]
    assert prompts == ["product 0 at dawn", "photo of product 0", "product 0", "its own"]


# --- samples ---


def test_a_sample_is_not_paid_twice(run: Run, mode: bool) -> None:
    task = run(products(9), deferrable=mode, max_in_flight=2)
    task.attempt_until("rungen_job_link")
    outcome = task.attempt(limit="3")
    assert (outcome.error, outcome.value["rows"], task.created) == (None, 3, 3)
    assert task.column("sku") == ["sku-0", "sku-1", "sku-2"]
    task.next_run("all rows")
    assert task.attempt(limit="None").value["reused"] == 3
    assert task.created == 9
