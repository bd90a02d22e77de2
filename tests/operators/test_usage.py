"""Every task that runs or collects jobs says what they used, also when it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, Asset
from conftest import FakeTaskInstance, OutletEvents, run_task

from airflow_provider_rungen.decorators import rungen_task
from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import (
    Ledger,
    RunGenCollectResultsOperator,
    RunGenRunBatchOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
)

pytestmark = pytest.mark.usefixtures("unsettled")
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
FAST: dict[str, Any] = {"poll_interval": 0.02, "defer_after": 0}
SECONDS = 0.3


def job_input(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"picture {number}", "emulator": {"seconds": SECONDS, **more}}


INPUTS = [job_input(0), job_input(1), job_input(2, fail="no luck")]


def run_job(folder: Path, **options: Any) -> Any:
    return RunGenRunJobOperator(task_id="x", input=INPUTS[2], wait_for_completion=True, **options)


def run_batch(folder: Path, **options: Any) -> Any:
    return RunGenRunBatchOperator(task_id="x", inputs=INPUTS, **options)


def run_stored_batch(folder: Path, **options: Any) -> Any:
    return RunGenRunBatchOperator(task_id="x", inputs=INPUTS, destination=folder.as_uri(), **options)


def run_table(folder: Path, **options: Any) -> Any:
    rows = [{"id": number, **given} for number, given in enumerate(INPUTS)]
    return RunGenRunTableOperator(task_id="x", table=rows, key="id", destination=folder.as_uri(), **options)


def run_function(folder: Path, **options: Any) -> Any:
    with DAG("decorated", schedule=None):

        def give() -> Any:
            return INPUTS

        function: Any = rungen_task(**options)
        return function(give)().operator


def collect(folder: Path, **options: Any) -> Any:
    with RunGenHook() as hook:
        ids = [hook.run_job(input=each).id for each in INPUTS]
    return RunGenCollectResultsOperator(task_id="x", job_id=ids, **options)


MAKERS: list[Callable[..., Any]] = [run_batch, run_stored_batch, run_table, run_function, collect]


def usage_of(op: Any) -> tuple[dict[str, Any], Any]:
    ti = FakeTaskInstance()
    outcome = run_task(op, {"ti": ti, "outlet_events": OutletEvents()})
    return ti.xcoms["usage"], outcome


@MODES
@pytest.mark.parametrize("max_failed", [0, 1], ids=["fails", "succeeds"])
@pytest.mark.parametrize("make", MAKERS)
def test_the_jobs_are_counted(
    rungen_emulator: Emulator, tmp_path: Path, make: Callable[..., Any], deferrable: bool, max_failed: int
) -> None:
    rungen_emulator.service.scale("flux-schnell", 10)
    options = FAST | {"deferrable": deferrable, "max_failed": max_failed}
    usage, outcome = usage_of(make(tmp_path, **options))
    assert (outcome.error is None) == bool(max_failed)
    seconds = usage.pop("execution_seconds")
    assert usage == {"jobs": 3, "completed": 2, "failed": 1, "reused": 0}
    assert seconds == pytest.approx(3 * SECONDS), "what failed ran, too"


@MODES
def test_a_failed_job_is_counted(rungen_emulator: Emulator, tmp_path: Path, deferrable: bool) -> None:
    usage, outcome = usage_of(run_job(tmp_path, deferrable=deferrable, **FAST))
    assert outcome.error is not None
    assert (usage["jobs"], usage["completed"], usage["failed"]) == (1, 0, 1)


def test_without_a_wait_nothing_is_known_of_the_end(rungen_emulator: Emulator) -> None:
    usage, _ = usage_of(RunGenRunBatchOperator(task_id="x", inputs=INPUTS, wait_for_completion=False))
    assert usage == {"jobs": 3, "completed": 0, "failed": 0, "reused": 0, "execution_seconds": None}


@MODES
@pytest.mark.parametrize("make", [run_stored_batch, run_table, run_function])
def test_what_is_reused_is_no_job(
    rungen_emulator: Emulator, tmp_path: Path, make: Callable[..., Any], deferrable: bool
) -> None:
    options: dict[str, Any] = FAST | {"deferrable": deferrable, "max_failed": 1}
    options |= {"ledger": Ledger((tmp_path / "ledger").as_uri())}
    if make is run_function:
        options["destination"] = tmp_path.as_uri()
    usage_of(make(tmp_path, **options))
    usage, _ = usage_of(make(tmp_path, **options))
    assert (usage["jobs"], usage["completed"], usage["failed"], usage["reused"]) == (1, 0, 1, 2)


def test_asset_events_and_the_log_have_it(
    rungen_emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    outlet, events, ti = Asset("s3://shop/pictures"), OutletEvents(), FakeTaskInstance()
    op = run_batch(tmp_path, max_failed=1, outlets=[outlet], **FAST)
    run_task(op, {"ti": ti, "outlet_events": events})
    assert events[outlet].extra["usage"] == ti.xcoms["usage"]
    facets: Any = op.get_openlineage_facets_on_complete(None)
    assert facets.run_facets["rungen_usage"].jobs == 3
    assert "Used 3 jobs (2 completed, 1 failed)" in caplog.text
