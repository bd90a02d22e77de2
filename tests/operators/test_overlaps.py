"""Two runs of a table at a time, and storage that is slow: what the server counts, and how long it takes."""

from __future__ import annotations

import contextvars
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome
from operator_kit import MODES, Table, picture, products, wait_until
from rungen_emulator import Emulator

from airflow_provider_rungen.execution.jobs import submitting
from airflow_provider_rungen.hooks import RunGenHook

pytestmark = pytest.mark.usefixtures("unsettled")


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("begun", [0, 80], ids=["together", "later"])
def test_runs_that_overlap_buy_each_input_once(
    rungen_emulator: Emulator, tmp_path: Path, deferrable: bool, begun: int
) -> None:
    options: dict[str, Any] = {"deferrable": deferrable, "max_in_flight": 40, "poll_interval": 0.05}
    nights = [Table(rungen_emulator, tmp_path, products(200), **options) for _ in range(2)]
    outcomes: dict[str, Outcome] = {}

    def run(task: Table, name: str) -> None:
        task.run_id = name
        outcomes[name] = task.attempt(results=(tmp_path / f"{name}.jsonl").as_uri())

    first, second = (
        threading.Thread(target=contextvars.copy_context().run, args=(run, task, name))
        for task, name in zip(nights, "AB", strict=True)
    )
    first.start()
    while nights[0].created < begun and first.is_alive():
        time.sleep(0.01)
    second.start()
    first.join(100)
    second.join(100)
    assert [outcomes[name].error for name in "AB"] == [None, None]
    values = [outcomes[name].value for name in "AB"]
    assert [value["completed"] for value in values] == [200, 200]
    assert sum(value["jobs"] for value in values) == nights[0].created == 200


@MODES
def test_what_another_run_has_claimed_is_looked_up_while_jobs_run(
    rungen_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    monkeypatch.setattr(submitting, "LOOK_INTERVAL", 0.05)

    def lasting(row: dict[str, Any]) -> dict[str, Any]:
        return picture(row) | ({"emulator": {"seconds": 3600}} if row["sku"] == "sku-2" else {})

    task = Table(rungen_emulator, tmp_path, products(2), to_input=lasting, poll_interval=0.05)
    task.attempt_until("rungen_job_link")
    entries = {path: path.read_text() for path in (tmp_path / "ledger").glob("??/*.json")}
    for path, text in entries.items():
        path.write_text(json.dumps(json.loads(text) | {"state": "claimed", "job_id": ""}))
    task.next_run("night 2")

    def go_on() -> None:
        """Write a job in one entry, remove the other, and end the long job when all inputs have one."""
        wait_until(lambda: task.created == 3)
        shared, free = entries
        shared.write_text(entries[shared])
        free.unlink()
        wait_until(lambda: task.created == 4)
        with RunGenHook() as hook:
            hook.cancel_job(job_id=task.ids()[2])

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(go_on)
        outcome = task.attempt(table=products(3), deferrable=deferrable, max_failed=1, timeout=60)
        done.result()
    assert outcome.error is None
    assert task.column("status") == ["completed", "completed", "canceled"]
    assert (outcome.value["jobs"], task.created) == (2, 4)
