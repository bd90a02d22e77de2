"""A ledger for lists of inputs: they are paid for once, by the server's count."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, ObjectStoragePath
from operator_kit import Inputs
from rungen_emulator import Emulator, Fault, Service
from rungen_emulator.messages import Reply
from rungen_emulator.testing import run_operator

from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.operators import Ledger, RunGenRunTableOperator

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.contract]


def make(inputs: Any, **options: Any) -> Any:
    return RunGenRunTableOperator(**{"task_id": "task"} | options, table=inputs)


class Task(Inputs):
    """A task with a ledger, that runs again and again."""

    def __init__(self, emulator: Emulator, folder: Path) -> None:
        options = {"destination": (folder / "photos").as_uri()}
        options["ledger"] = Ledger((folder / "ledger").as_uri(), ignore=["request"])  # type: ignore[assignment]
        super().__init__(emulator, folder / "photos", [], **options | {"results": None})
        self.store, self.max_tries = None, 1

    def run(self, inputs: Any, *, retry: bool = False, **changes: Any) -> Any:
        """Run the first attempt of a run, or a retry."""
        if not retry:
            self.next_run(self.run_id + "1")
        return self.attempt(table=inputs, **changes)


@pytest.fixture
def task(rungen_emulator: Emulator, tmp_path: Path) -> Task:
    return Task(rungen_emulator, tmp_path)


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def inputs(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"picture {n}", "request": n, **more} for n in range(count)]


def test_what_is_stored_is_reused_and_bought_once(task: Task, mode: bool) -> None:
    assert task.run(inputs(6), deferrable=mode).error is None
    first = task.column("job_id")
    before = len(task.emulator.service.records())
    again = task.run(inputs(6, request="another"), deferrable=mode)
    assert (task.column("job_id"), task.column("reused"), again.events) == (first, [True] * 6, [])
    assert [record.operation for record in task.emulator.service.records()[before:]] == ["get_app"]
    task.run([{"prompt": "new"}, *inputs(2), {"prompt": "new"}], deferrable=mode)
    more = task.column("job_id")
    assert more[1:3] == first[:2]
    assert more[0] == more[3]
    assert task.created == 7
    assert not list(task.folder.glob(".rungen-*"))


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_at_the_first_look_at_the_app_ends_the_task_at_once(task: Task, status: int) -> None:
    task.emulator.service.inject(Fault(on="get_app", status=status, times=None))
    error = task.run(inputs(2)).error
    assert isinstance(error, AirflowFailException)
    assert f"({status})" in str(error)
    assert task.emulator.service.count("get_app") == 1
    assert task.created == 0


def test_a_retry_takes_up_what_a_killed_attempt_submitted(task: Task, mode: bool) -> None:
    task.attempt_until(RunGenJobLink.key, table=inputs(6), deferrable=mode)
    outcome = task.run(inputs(6), deferrable=mode, retry=True)
    assert outcome.value["completed"] == 6
    assert task.created == 6


def test_what_failed_is_bought_anew_and_the_rest_is_not(task: Task, mode: bool) -> None:
    # the service refuses one, and another fails
    task.emulator.service.inject(Fault(on="run", status=400, body={"error": "no"}))
    given = [*inputs(4), {"prompt": "bad", "emulator": {"fail": "no luck"}}]
    outcome = task.run(given, deferrable=mode)
    assert "no luck" in str(outcome.error)
    assert task.created == 4
    assert len(list(task.folder.glob("*/0-0.png"))) == 3
    again = task.run(given, deferrable=mode, max_failed=2)
    assert again.error is None
    assert task.column("status") == ["completed"] * 4 + ["failed"]
    assert task.ti.xcoms["failed"][-1]["index"] == 4
    assert task.created == 4 + 2


def test_a_time_that_no_job_can_have_run_is_not_kept(task: Task, mode: bool) -> None:
    class Odd(Service):
        def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
            reply = super().handle(method, path, headers, body)
            answer = re.sub(rb'("execution_time": )"[0-9.]+"', rb'\1"1764302000000"', reply.body)
            return replace(reply, body=answer)

    task.emulator.service = Odd(workers=10)
    failing = [*inputs(2), {"prompt": "p", "emulator": {"fail": "no luck"}}]
    for retry in (False, True):  # neither the log nor the ledger is damaged
        assert "1 of 3" in str(task.run(failing, deferrable=mode, retry=retry).error)
    assert task.created == 4
    assert task.run(inputs(2), deferrable=mode).error is None
    assert task.created == 4


def test_each_run_renders_the_templates_of_the_ledger_anew(task: Task) -> None:
    ledger = Ledger("/ledgers/{{ ds }}", version="{{ ds }}")
    op = task.begin(table=[], ledger=ledger)
    for day in ("2026-01-01", "2026-01-02"):
        run = op.prepare_for_execution()
        run.render_template_fields({"ds": day})
        assert (run.ledger.uri, run.ledger.version) == (f"/ledgers/{day}", day)
    assert ledger.uri == "/ledgers/{{ ds }}"


def test_a_text_is_the_folder_of_a_ledger(rungen_emulator: Emulator, tmp_path: Path) -> None:
    op = make([{"prompt": "x"}], ledger=f"{tmp_path}/{{{{ run_id }}}}", destination=tmp_path.as_uri())
    first, again = (run_operator(op) for _ in range(2))
    assert first.error is None
    assert again.value["completed"] == 1
    assert (tmp_path / "run").is_dir()
    assert len(rungen_emulator.service.jobs()) == 1
    for folder in (tmp_path, ObjectStoragePath(tmp_path.as_uri())):
        assert make([], ledger=folder, destination="/d").ledger == Ledger(folder)
    with pytest.raises(ValueError, match="uri of a Ledger"):
        make([], ledger="", destination="/d")


def test_a_ledger_needs_a_destination(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path.as_uri())
    with pytest.raises(ValueError, match="ledger needs destination"):
        make([], ledger=ledger, results=f"{tmp_path}/results.jsonl")
