"""The links: pushed before the wait, right after a failure, and never a reason to fail."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import APP, FakeTaskInstance, run_task, table_of
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen._airflow import XCom
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.links import RunGenAppLink, RunGenJobLink, RunGenResultsLink
from airflow_provider_rungen.operators import (
    RunGenCancelJobOperator,
    RunGenCollectResultsOperator,
    RunGenPlanTableOperator,
    RunGenRunJobOperator,
)
from airflow_provider_rungen.sensors import RunGenAppSensor, RunGenJobSensor
from airflow_provider_rungen.task.xcom_keys import PAGE_KEY

pytestmark = pytest.mark.usefixtures("unsettled")

JOB, APP_LINK, RESULTS = RunGenJobLink.key, RunGenAppLink.key, RunGenResultsLink.key
WAIT: dict[str, Any] = {"task_id": "task"}
POLL: dict[str, Any] = {**WAIT, "poll_interval": 0.02}


def given(prompt: str = "a red fox", **emulator: Any) -> dict[str, Any]:
    return {"prompt": prompt, "emulator": {"seconds": 0.2, **emulator}}


def submitted(*inputs: dict[str, Any]) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input=one).id for one in inputs]


def run(deferrable: bool = False, *inputs: dict[str, Any]) -> Any:
    given_input = inputs[0] if inputs else given()
    return RunGenRunJobOperator(input=given_input, wait_for_completion=True, deferrable=deferrable, **POLL)


def batch(deferrable: bool, *inputs: dict[str, Any]) -> Any:
    return table_of(inputs=list(inputs), deferrable=deferrable, **POLL)


def collect(deferrable: bool, *inputs: dict[str, Any]) -> Any:
    folder = tempfile.mkdtemp()
    return RunGenCollectResultsOperator(
        job_id=submitted(*inputs), deferrable=deferrable, destination=folder, **POLL
    )


def sensor(deferrable: bool, *inputs: dict[str, Any]) -> Any:
    return RunGenJobSensor(job_id=submitted(*inputs), deferrable=deferrable, poke_interval=0.02, **WAIT)


def cancel(deferrable: bool, *inputs: dict[str, Any]) -> Any:
    return RunGenCancelJobOperator(task_id="task", job_id=submitted(*inputs))


Make = Callable[..., Any]
EVERY = pytest.mark.parametrize("make", [run, batch, collect, sensor, cancel])
OF_MANY = pytest.mark.parametrize("make", [batch, collect, sensor])
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])


@EVERY
@MODES
def test_what_people_see_is_pushed_before_the_wait_and_stays(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, make: Make, deferrable: bool
) -> None:
    op = make(deferrable, given())
    early: dict[str, Any] = {}

    def note(key: str, value: Any) -> None:
        if not rungen_emulator.service.count("get"):
            early[key] = value

    ti.on_push = note
    assert run_task(op, context).error is None
    [job] = rungen_emulator.service.jobs()
    page = f"/rungen/task/{ti.dag_id}/{ti.run_id}/{ti.task_id}"
    links = {RESULTS: page, APP_LINK: f"/rungen/#{APP}", JOB: f"{page}#job={job['id']}"}
    assert {key: early[key] for key in links} == links
    assert {key: ti.xcoms[key] for key in links} == links
    # what Airflow pushes at the end
    assert {link.get_link(op, ti_key=None) for link in op.operator_extra_links} == set(links.values())


@pytest.mark.contract
def test_a_task_without_a_job_does_not_look_for_its_link(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table: Any = [{"sku": "A-1", "prompt": "x"}]
    op = RunGenPlanTableOperator(task_id="plan", table=table, key="sku", destination=str(tmp_path))
    assert run_task(op, context).value == 1
    looked_up: list[str] = []
    monkeypatch.setattr(XCom, "get_value", lambda key, **_: looked_up.append(key))
    links = {link.key: link.get_link(op, ti_key=None) for link in op.operator_extra_links}
    assert links == {JOB: "", APP_LINK: context["ti"].xcoms[APP_LINK], RESULTS: context["ti"].xcoms[RESULTS]}
    assert looked_up == [], "the SDK logs a missing XCom as an error"


@pytest.mark.parametrize("kind", [RunGenJobSensor, RunGenAppSensor])
def test_a_rescheduling_sensor_pushes_its_links_at_its_first_look(
    rungen_emulator: Emulator, ti: FakeTaskInstance, kind: Any
) -> None:
    options = {"job_id": submitted(given(seconds=60))} if kind is RunGenJobSensor else {"status": "STOPPED"}
    for look in range(4):  # each is a process of its own
        task = kind(task_id="task", mode="reschedule", **options)
        assert task.poke({"ti": ti, "task_reschedule_count": look}) is False
        # what Airflow pushes at the end of the look
        assert [link.get_link(task, ti_key=None) for link in task.operator_extra_links] == [
            ti.xcoms[link.key] for link in task.operator_extra_links
        ]
    keys = [link.key for link in task.operator_extra_links]
    # Airflow removes everything before each look, and does not push what the page shows
    assert sorted(key for key, _ in ti.pushed) == sorted([*keys, *[PAGE_KEY] * 4])


@pytest.mark.contract
@OF_MANY
@MODES
def test_of_many_jobs_the_first_that_failed_is_linked(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, make: Make, deferrable: bool
) -> None:
    op = make(deferrable, given(), given("bad", fail="out of memory"), given("worse", fail="out of memory"))
    assert run_task(op, context).error is not None
    [bad] = [job for job in rungen_emulator.service.jobs() if job["input"]["prompt"] == "bad"]
    assert ti.xcoms[JOB].endswith(f"#job={bad['id']}")
    assert RunGenJobLink().get_link(op, ti_key=None) == ti.xcoms[JOB]


@pytest.mark.contract
def test_a_submission_that_was_refused_has_the_link_to_the_app(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance
) -> None:
    rungen_emulator.service.inject(Fault(on="run", status=400))
    assert run_task(run(), context).error is not None
    assert ti.xcoms[APP_LINK] == f"/rungen/#{APP}"
    assert JOB not in ti.xcoms


@pytest.mark.contract
def test_the_connection_says_where_people_look(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads(rungen_emulator.airflow_connection())
    connection["extra"] |= {
        "app_url": "https://console.example.com/apps/{app_id}?tab=jobs",
        "job_url": "https://console.example.com/apps/{app_id}/jobs#{job_id}",
    }
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", json.dumps(connection))
    job_id = run_task(run(), context).value
    assert ti.xcoms[APP_LINK] == f"https://console.example.com/apps/{APP}?tab=jobs"
    assert ti.xcoms[JOB] == f"https://console.example.com/apps/{APP}/jobs#{job_id}"


def test_what_cannot_be_pushed_or_found_fails_nothing(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance
) -> None:
    def refuse(key: str, _: Any) -> None:
        if key in (JOB, APP_LINK, RESULTS, PAGE_KEY):
            raise RuntimeError("the supervisor is busy")

    ti.on_push = refuse
    assert run_task(run(), context).error is None
    untouched = run()
    assert [link.get_link(untouched, ti_key=None) for link in untouched.operator_extra_links] == [""] * 3


@pytest.mark.contract
def test_a_mapped_task_has_the_links() -> None:
    mapped = RunGenRunJobOperator.partial(task_id="mapped").expand(input=[given()])
    names = [link.name for link in mapped.operator_extra_links]
    assert names == ["RunGen results", "RunGen job", "RunGen app"]


@pytest.mark.contract
@MODES
def test_without_a_page_and_without_a_pattern_there_is_no_link(
    rungen_emulator: Emulator,
    context: Any,
    ti: FakeTaskInstance,
    deferrable: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__RUNGEN__PAGES", "False")
    op = run(deferrable, given())
    assert run_task(op, context).error is None
    assert not {RESULTS, APP_LINK, JOB} & set(ti.xcoms)
    assert [link.get_link(op, ti_key=None) for link in op.operator_extra_links] == [""] * 3


@pytest.mark.contract
def test_links_begin_with_the_path_of_airflow(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://example.com/team/airflow/")
    run_task(run(), context)
    assert ti.xcoms[RESULTS].startswith("/team/airflow/rungen/task/")


@MODES
def test_the_page_of_a_task_learns_what_it_shows_before_it_submits(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, deferrable: bool, tmp_path: Any
) -> None:
    place = tmp_path.as_uri()
    op = table_of(inputs=[given(), given()], destination=place, deferrable=deferrable, **POLL)
    submitted: dict[str, int] = {}

    def note(key: str, _: Any) -> None:
        submitted.setdefault(key, rungen_emulator.service.count("run"))

    ti.on_push = note
    assert run_task(op, context).error is None
    assert submitted[PAGE_KEY] == 0
    page = {"connection": "rungen_default", "app": APP, "rows": 2, "destination": place}
    assert page.items() <= ti.xcoms[PAGE_KEY].items()
