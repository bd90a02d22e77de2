"""SIGKILL in each phase of a table task: the next attempt buys nothing twice, by the server's count."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# pytest adds this folder to the path
from test_table import Table, products

from airflow_provider_rungen.emulator import Emulator, Fault

pytestmark = pytest.mark.usefixtures("unsettled")
ROWS = 12
# The attempt that is killed, in a process of its own. It has no task state store, as on Airflow 2.11.
ATTEMPT = """
import sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from airflow_provider_rungen.operators import Ledger, RunGenRunTableOperator

class TI:
    dag_id, run_id, task_id, map_index, try_number, max_tries = "dag", "night 1", "task", -1, 1, 1
    def xcom_push(self, *args, **kwargs): pass
    def xcom_pull(self, *args, **kwargs): pass

folder, rows = Path(sys.argv[1]), int(sys.argv[2])

def to_input(row):
    if row["sku"] == "sku-5" and (folder / "hold").exists():
        (folder / "held").touch()
        time.sleep(60)
    return {"prompt": f"photo of {row['title']}"}

RunGenRunTableOperator(
    task_id="task",
    table=[{"sku": f"sku-{n}", "title": f"product {n}"} for n in range(rows)],
    key="sku",
    to_input=to_input,
    destination=(folder / "photos").as_uri(),
    results=(folder / "out" / "results.csv").as_uri(),
    ledger=Ledger((folder / "ledger").as_uri()),
    poll_interval=0.1,
    max_concurrency=4,
).execute({"ti": TI()})
"""


def entries(folder: Path) -> int:
    """Return how many inputs the ledger has."""
    return len(list((folder / "ledger").glob("??/*.json")))


def stored(folder: Path) -> int:
    return len(list((folder / "photos").glob("*/0-0.png")))


Phase = tuple[Callable[[Emulator, Path], Any], Callable[[Path], Any]]
#: By phase, how the attempt is brought to a halt there, and how it is known that it is there.
PHASES: dict[str, Phase] = {
    "reading": (lambda _, folder: (folder / "hold").touch(), lambda folder: (folder / "held").exists()),
    "submitting": (
        lambda emulator, _: emulator.service.inject(Fault(on="run", kind="hang", times=None, skip=7)),
        lambda folder: entries(folder) == 7,
    ),
    "waiting": (
        lambda emulator, _: emulator.service.inject(Fault(on="get", kind="hang", times=None)),
        lambda folder: entries(folder) == ROWS,
    ),
    "storing": (
        lambda emulator, _: emulator.service.inject(Fault(on="output", kind="hang", times=None, skip=5)),
        lambda folder: stored(folder) == 5,
    ),
    "writing the table": (
        lambda *_: None,
        # a folder is tried before anything is sent
        lambda folder: stored(folder) == ROWS and any((folder / "out").glob("*")),
    ),
}


@pytest.mark.usefixtures("on_the_wire")
@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_table_buys_nothing_twice(rungen_emulator: Emulator, tmp_path: Path, phase: str) -> None:
    rungen_emulator.service.scale("flux-schnell", 100)
    halt, is_there = PHASES[phase]
    halt(rungen_emulator, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", ATTEMPT, str(tmp_path), str(ROWS)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not is_there(tmp_path):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    rungen_emulator.service.clear_faults()
    (tmp_path / "hold").unlink(missing_ok=True)

    results = (tmp_path / "out" / "results.csv").as_uri()
    task = Table(rungen_emulator, tmp_path, products(ROWS), results=results)
    task.tries = 1
    fetched = rungen_emulator.service.count("output")
    outcome = task.attempt()
    assert outcome.error is None
    assert outcome.value["completed"] == ROWS
    bought = Counter(job["input"]["prompt"] for job in rungen_emulator.service.jobs())
    assert len(bought) == task.created == ROWS
    if phase == "storing":
        # four were on their way
        assert rungen_emulator.service.count("output") - fetched == ROWS - 5
    elif phase == "writing the table":
        assert outcome.value["reused"] == ROWS
        assert rungen_emulator.service.count("output") == fetched
    assert stored(tmp_path) == entries(tmp_path) == ROWS
