"""A list of inputs is a table: what its results have, what the server saw, and what a kill leaves."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from bad_answers import Fault
from object_store import attach
from operator_kit import KILLED, Inputs
from rungen_emulator import Emulator

from airflow_provider_rungen.links import RunGenAppLink
from airflow_provider_rungen.operators import RunGenRunTableOperator

pytestmark = pytest.mark.usefixtures("unsettled")


def prompts(count: int, **emulator: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"picture {n}", **({"emulator": emulator} if emulator else {})} for n in range(count)]


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


Make = Callable[..., Inputs]


@pytest.fixture
def make(rungen_emulator: Emulator, tmp_path: Path) -> Make:
    return lambda inputs, **options: Inputs(rungen_emulator, tmp_path, inputs, **options)


# --- rows without a key, and failures ---


@pytest.mark.contract
@pytest.mark.parametrize("count", [1, 3, 40, 250])
def test_results_come_in_the_order_of_the_inputs_and_have_their_numbers(
    make: Make, mode: bool, count: int
) -> None:
    task = make(prompts(count), deferrable=mode)
    assert task.attempt().error is None
    assert task.prompts() == [item["prompt"] for item in prompts(count)]
    assert [row["index"] for row in task.written] == list(range(count))
    assert not {"key", "prompt"} & task.written[0].keys()
    assert task.created == count
    assert task.failed == []


@pytest.mark.contract
def test_no_inputs_are_no_jobs(make: Make, mode: bool) -> None:
    task = make([], deferrable=mode)
    assert task.attempt().value["rows"] == 0
    assert task.emulator.service.count("run") == 0


@pytest.mark.contract
@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ([{"prompt": "a"}, {"prompt": float("nan")}], r"row 2.prompt"),
        ("file:///no/such/file.jsonl", "no/such/file"),
        ("nosuchscheme://x/y", "nosuchscheme"),
    ],
)
def test_nothing_is_sent_when_an_input_is_wrong(make: Make, inputs: Any, told: str) -> None:
    task = make(inputs)
    assert re.search(told, str(task.attempt().error))
    assert task.emulator.service.count("run") == 0


@pytest.mark.contract
def test_what_failed_is_named_with_its_number_job_and_reason(make: Make, mode: bool) -> None:
    inputs = [{"prompt": "a"}, {"prompt": "fail: out of memory"}, {"prompt": "c"}]
    task = make(inputs, deferrable=mode)
    error = str(task.attempt().error)
    job_id = task.written[1]["job_id"]
    assert "index 1: out of memory" in error
    [failed] = task.ti.xcoms["failed"]
    assert (failed["index"], failed["job_id"], failed["error"]) == (1, job_id, "out of memory")


def mixed(count: int) -> list[dict[str, Any]]:
    """Every fifth fails, every seventh is refused."""
    inputs = prompts(count)
    for n in range(0, count, 5):
        inputs[n] = {"prompt": f"fail: out of memory {n}"}
    for n in range(0, count, 7):
        inputs[n] = {"prompt": ""}
    return inputs


REFUSED_OF_40 = list(range(0, 40, 7))
FAILED_OF_40 = sorted({*range(0, 40, 5), *REFUSED_OF_40})


@pytest.mark.contract
def test_too_many_failures_fail_the_task_are_named_and_a_retry_runs_only_them(make: Make, mode: bool) -> None:
    task = make(mixed(40), deferrable=mode)
    told = str(task.attempt().error)
    assert f"{len(FAILED_OF_40)} of 40 rows failed" in told
    assert "out of memory 5" in told
    assert f"and {len(FAILED_OF_40) - 10} more" in told
    assert task.failed == FAILED_OF_40
    task.attempt()
    assert task.failed == FAILED_OF_40
    # those refused make no job
    assert task.created == (40 - len(REFUSED_OF_40)) + (len(FAILED_OF_40) - len(REFUSED_OF_40))


@pytest.mark.contract
@pytest.mark.parametrize("max_failed", [len(FAILED_OF_40), len(FAILED_OF_40) / 40, 0.9])
def test_failures_that_are_allowed_are_told(make: Make, mode: bool, max_failed: float) -> None:
    task = make(mixed(40), deferrable=mode, max_failed=max_failed)
    assert task.attempt().error is None
    assert [row["index"] for row in task.written if row["job_id"] is None] == REFUSED_OF_40
    assert task.failed == FAILED_OF_40


@pytest.mark.contract
@pytest.mark.parametrize("max_failed", [-1, 1.0, 1.5, True, "1", float("nan")])
def test_a_max_failed_that_is_none_is_told_when_the_dag_is_parsed(max_failed: Any) -> None:
    with pytest.raises(ValueError, match="max_failed"):
        RunGenRunTableOperator(task_id="t", table=[], destination="s3://b", max_failed=max_failed)


def test_a_service_in_trouble_is_not_sent_all_inputs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.RETRY_BUDGET", 1.0)
    task = make(prompts(500))
    task.emulator.service.inject(Fault(on="run", status=500, times=None))
    assert "(500)" in str(task.attempt().error)
    assert task.emulator.service.count("run") < 40
    task.emulator.service.clear_faults()
    assert task.attempt().error is None
    assert task.created == 500


@pytest.mark.contract
def test_inputs_that_are_refused_for_good_leave_no_job_behind(make: Make) -> None:
    task = make([*prompts(20), {"prompt": ""}])
    assert isinstance(task.attempt().error, AirflowFailException)
    assert task.statuses() == ["COMPLETED"] * 20


@pytest.mark.contract
def test_each_job_that_may_still_run_is_named(
    make: Make, mode: bool, caplog: pytest.LogCaptureFixture
) -> None:
    task = make(prompts(14, seconds=600), deferrable=mode)
    task.emulator.service.inject(Fault(on="cancel", status=409, times=None))
    task.max_tries = 0
    assert task.attempt(timeout=0.5).error is not None
    assert set(task.statuses()) == {"RUNNING"}
    said = [message for message in caplog.messages if re.search("still run|Could not cancel", message)]
    assert all(any(job_id in line for line in said) for job_id in task.ids())


@pytest.mark.contract
def test_an_unknown_fate_is_a_failure_of_its_input_alone(make: Make) -> None:
    task = make(prompts(30))
    task.emulator.service.inject(Fault(on="run", kind="reset_after", skip=10))
    assert "1 of 30 rows failed" in str(task.attempt().error)
    [failed] = task.failed
    assert task.created == 30
    assert task.attempt().error is None
    assert task.created == 31
    assert task.prompts()[failed] == f"picture {failed}"


# --- too late, and killed ---


@pytest.mark.contract
def test_too_late_cancels_all_of_them_and_a_retry_has_the_whole_time(make: Make, mode: bool) -> None:
    task = make(prompts(30, seconds=4), timeout=2, deferrable=mode)
    error = str(task.attempt().error)
    assert "Not over in time" in error
    assert " and 29 more, app " in error
    assert task.statuses() == ["CANCELED"] * 30
    assert task.attempt(timeout=60).error is None
    assert task.created == 60


@pytest.mark.contract
def test_only_what_is_not_over_is_canceled(
    make: Make, capsys: pytest.CaptureFixture[str], mode: bool
) -> None:
    task = make([*prompts(60), *prompts(3, seconds=60)], timeout=2, deferrable=mode)
    assert " and 2 more, app " in str(task.attempt().error)
    assert Counter(task.statuses()) == {"COMPLETED": 60, "CANCELED": 3}
    assert "not canceled" not in capsys.readouterr().out
    if not mode:
        assert task.emulator.service.count("cancel") == 3


@pytest.mark.contract
def test_each_of_many_jobs_has_its_own_time_to_be_canceled(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(prompts(90, seconds=60), timeout=3, poll_interval=1)
    connection = task.emulator.airflow_connection(max_requests_per_second=80)
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", connection)
    task.emulator.service.inject(Fault(on="cancel", status=503, times=3, skip=80))
    assert " and 89 more, app " in str(task.attempt().error)
    assert task.statuses() == ["CANCELED"] * 90


@pytest.mark.contract
@KILLED
def test_a_kill_while_it_submits_cancels_every_job(make: Make) -> None:
    task = make(prompts(400, seconds=60), timeout=20)
    task.state = "failed"
    task.attempt_killed(lambda: task.emulator.service.count("run") >= 100)
    assert set(task.statuses()) == {"CANCELED"}
    assert task.created < 400


@pytest.mark.contract
def test_a_kill_while_a_link_is_pushed_submits_nothing(make: Make) -> None:
    task = make(prompts(40, seconds=60))
    task.on_push = lambda key, _: task.op.on_kill() if key == RunGenAppLink.key else None
    assert "killed" in str(task.attempt().error)
    assert task.emulator.service.count("run") == 0


@pytest.mark.contract
@KILLED
def test_a_kill_that_waits_for_answers_ends_before_airflow_does_it(make: Make) -> None:
    task = make(prompts(330, seconds=60))
    task.state = "failed"
    service = task.emulator.service
    service.inject(Fault(on="run", kind="hang", times=16, skip=300))
    service.inject(Fault(on="cancel", kind="hang", times=None))
    task.attempt_killed(lambda: service.count("run") >= 316)
    assert service.count("cancel") > 0


@pytest.mark.contract
def test_a_deferred_table_writes_little_beside_its_outputs(rungen_emulator: Emulator, tmp_path: Path) -> None:
    rows = [{"prompt": f"photo of product {n}, {'on white ground, soft light, ' * 5}"} for n in range(800)]
    rungen_emulator.service.job_seconds = 1
    rungen_emulator.service.scale("llama-text", 1000)
    store = attach()
    options = {"app_id": "llama-text", "deferrable": True, "destination": "memory://shop/out"}
    task = Inputs(rungen_emulator, tmp_path, rows, **options)
    outcome = task.attempt()
    assert outcome.value["completed"] == task.created == len(rows)
    assert outcome.events
    written = sum(size for path, size in store.written.items() if "/out/.rungen" in path)
    assert written <= 4 * sum(len(json.dumps(row)) for row in rows)
    assert sum("/plan-" in path for path in store.names()) == 1


def test_a_large_deferred_table_is_planned_in_several_files(
    rungen_emulator: Emulator, tmp_path: Path
) -> None:
    large: list[dict[str, Any]] = [{"prompt": f"{n}: {'a red fox, ' * 45_000}"} for n in range(20)]
    task = Inputs(rungen_emulator, tmp_path, large, deferrable=True, max_in_flight=3)
    assert task.attempt().error is None
    assert task.prompts() == [row["prompt"] for row in large]
    assert [json.loads(text) for text in task.column("input")] == large
    sizes = [path.stat().st_size for path in (task.folder / "bought").glob(".rungen/runs/*/plan-*")]
    assert len(sizes) == 2
    assert max(sizes) <= 8 << 20
