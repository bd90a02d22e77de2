"""What a task reports: the extra of its asset events, and OpenLineage's inputs and outputs."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, Asset, AssetAlias, TaskInstanceState
from conftest import APP, Outcome, OutletEvents, run_task
from operator_kit import FAST, MODES, submitted
from rungen_emulator import Emulator

from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenRunJobOperator,
)
from airflow_provider_rungen.sensors import RunGenJobSensor
from airflow_provider_rungen.task.report import (
    MAX_LISTED_FILES,
    MAX_LISTED_JOBS,
    TaskOutcome,
    lineage_of,
)

pytestmark = pytest.mark.usefixtures("unsettled")

INPUT: dict[str, Any] = {"prompt": "a red fox", "emulator": {"seconds": 0.2}}
URL = "https://api.rungen.example"
OUTLET = Asset("s3://bucket/pictures")


def run(context: Any, op: Any) -> tuple[Outcome, dict[str, Any]]:
    """Run a task, and return the extra of its outlet's event; what was set before a deferral is lost."""
    context["outlet_events"] = events = OutletEvents()
    defer = op.defer

    def deferring(*args: Any, **kwargs: Any) -> None:
        events.clear()
        defer(*args, **kwargs)

    op.defer = deferring
    outcome = run_task(op, context)
    # what the jobs used has its own tests
    return outcome, {key: value for key, value in events[OUTLET].extra.items() if key != "usage"}


# --- asset events -------------------------------------------------------------------------------------------


def task(kind: str, deferrable: bool, *, ids: list[str], prompts: list[str], **options: Any) -> Any:
    """Return a task that runs inputs, or waits for jobs."""
    options = {"task_id": "t", "deferrable": deferrable, **FAST, **options}
    inputs = [{**INPUT, "prompt": prompt} for prompt in prompts]
    match kind:
        case "run":
            return RunGenRunJobOperator(input=inputs[-1], wait_for_completion=True, **options)
        case "collect":
            return RunGenCollectResultsOperator(job_id=ids, **options)
    return RunGenJobSensor(job_id=ids, poke_interval=options.pop("poll_interval"), **options)


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("kind", ["run", "collect", "sensor"])
@pytest.mark.feature("assets")
def test_what_was_done_is_reported(
    rungen_emulator: Emulator, context: Any, deferrable: bool, kind: str
) -> None:
    ids = submitted(INPUT, INPUT) if kind in ("collect", "sensor") else []
    op = task(kind, deferrable, ids=ids, prompts=["b"], outlets=[OUTLET])
    outcome, extra = run(context, op)
    assert len(outcome.events) == deferrable
    ids = ids or [outcome.value]
    assert extra == {"app_id": APP, "job_ids": ids, "job_count": len(ids), "failed_count": 0}


@pytest.mark.contract
def test_only_a_task_that_succeeds_adds_to_the_extra(rungen_emulator: Emulator, context: Any) -> None:
    context["outlet_events"] = events = OutletEvents()
    events[OUTLET].extra = {"mine": 1, "job_count": "old"}
    for prompt, count in (("fail: x", "old"), ("a", 1)):
        op = RunGenRunJobOperator(
            task_id="run", input={"prompt": prompt}, wait_for_completion=True, outlets=[OUTLET], **FAST
        )
        run_task(op, context)
        assert (events[OUTLET].extra["mine"], events[OUTLET].extra["job_count"]) == (1, count)


@pytest.mark.contract
def test_outlets_that_have_no_event_are_left_alone(rungen_emulator: Emulator, context: Any) -> None:
    context["outlet_events"] = events = OutletEvents()
    outlets = [AssetAlias("alias"), OUTLET, Asset("s3://bucket/more")]
    outcome = run_task(RunGenRunJobOperator(task_id="run", input=INPUT, outlets=outlets), context)
    assert outcome.error is None
    assert events[OUTLET].extra == events[outlets[2]].extra != {}
    assert len(events) == 2


def test_an_extra_is_small_however_many_jobs_there_are() -> None:
    extra = TaskOutcome(APP, [f"{n:036}" for n in range(5000)], failed_count=3).extra()
    assert len(extra["job_ids"]) == MAX_LISTED_JOBS
    assert (extra["job_count"], extra["failed_count"]) == (5000, 3)
    assert len(json.dumps(extra)) < 8000


# --- OpenLineage --------------------------------------------------------------------------------------------


def files_in(count: int, place: str = "s3://aws@bucket/x") -> list[dict[str, Any]]:
    return [{"uri": f"{place}/{number}.png", "size": 10 + number} for number in range(count)]


def named(datasets: Any) -> list[tuple[str, str]]:
    return [(dataset.namespace, dataset.name) for dataset in datasets]


def test_the_app_is_an_input_and_the_files_are_outputs() -> None:
    lineage: Any = lineage_of(
        TaskOutcome(APP, ["j"], files=[*files_in(1), *files_in(2, "file:///data/x")]), URL
    )
    assert named(lineage.inputs) == [(URL, f"app/{APP}")]
    assert named(lineage.outputs) == [
        ("s3://bucket", "x/0.png"),
        ("file", "/data/x/0.png"),
        ("file", "/data/x/1.png"),
    ]
    assert [dataset.outputFacets["outputStatistics"].size for dataset in lineage.outputs] == [10, 10, 11]


@pytest.mark.parametrize(
    ("place", "dataset"),
    [
        ("s3://aws@bucket/x/", ("s3://bucket", "x")),
        ("s3://bucket", ("s3://bucket", "/")),
        ("/data/x", ("file", "/data/x")),
        ("file:///", ("file", "/")),
    ],
)
def test_the_folder_of_many_files_is_reported(place: str, dataset: tuple[str, str]) -> None:
    done = TaskOutcome(APP, ["j"], destination=place, files=[*files_in(MAX_LISTED_FILES), *files_in(1)])
    [output] = ((lineage := lineage_of(done, URL)) and lineage.outputs) or []
    assert (output.namespace, output.name) == dataset
    assert output.outputFacets["outputStatistics"].size == sum(10 + n for n in range(MAX_LISTED_FILES)) + 10


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("kind", ["run", "batch", "collect"])
@pytest.mark.feature("lineage")
def test_every_operator_reports_to_openlineage(
    rungen_emulator: Emulator, context: Any, ti: Any, deferrable: bool, kind: str
) -> None:
    op = task(kind, deferrable, ids=submitted(INPUT) if kind == "collect" else [], prompts=["a", "b"])
    assert op.get_openlineage_facets_on_complete(ti).inputs == [], "nothing was done yet"
    assert run_task(op, context).error is None
    requests = len(rungen_emulator.service.records())
    lineage = op.get_openlineage_facets_on_complete(ti)
    assert named(lineage.inputs) == [(rungen_emulator.url, f"app/{APP}")]
    assert lineage.outputs == []
    assert len(rungen_emulator.service.records()) == requests, "it must not ask anybody"


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("kind", ["run", "collect", "sensor"])
@pytest.mark.feature("lineage")
def test_a_task_that_fails_reports_to_openlineage(
    rungen_emulator: Emulator,
    context: Any,
    deferrable: bool,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from airflow.providers.openlineage.extractors import ExtractorManager

    bad = {**INPUT, "prompt": "fail: out of memory"}
    ids = submitted(INPUT, bad) if kind in ("collect", "sensor") else []
    op = task(kind, deferrable, ids=ids, prompts=["a red fox", bad["prompt"]])
    assert run_task(op, context).error is not None
    requests = len(rungen_emulator.service.records())
    op.dag = DAG("d", schedule=None)
    run: Any = SimpleNamespace(run_id="r")
    manager: Any = ExtractorManager
    report = manager().extract_metadata(run, op, TaskInstanceState.FAILED, context["ti"])
    assert named(report.inputs) == [(rungen_emulator.url, f"app/{APP}")]
    if kind != "sensor":  # what they used is reported by the tasks that ran them
        usage = report.run_facets["rungen_usage"]
        count = 1 if kind == "run" else 2
        assert (usage.jobs, usage.completed, usage.failed) == (count, count - 1, 1)
        assert usage.execution_seconds == pytest.approx(0.2 * count)
    assert "non-valid metadata" not in caplog.text
    assert len(rungen_emulator.service.records()) == requests, "it must not ask anybody"


@pytest.mark.contract
@pytest.mark.feature("lineage")
def test_a_task_that_cannot_connect_reports_an_empty_lineage(
    context: Any, ti: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from airflow.providers.openlineage.extractors.base import DefaultExtractor

    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", "{}")
    op = RunGenRunJobOperator(task_id="run", app_id=APP, input=INPUT)
    assert run_task(op, context).error is not None
    report: Any = DefaultExtractor(op).extract_on_failure(ti)
    assert (report.inputs, report.run_facets) == ([], {})
    assert [record for record in caplog.records if "openlineage" in record.name] == []


@pytest.mark.contract
def test_without_openlineage_nothing_is_reported(
    rungen_emulator: Emulator, context: Any, ti: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("airflow.providers.openlineage")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage", None)
    op = RunGenRunJobOperator(task_id="run", input=INPUT)
    run_task(op, context)
    assert op.get_openlineage_facets_on_complete(ti) is None
