"""SIGKILL and time limits in each phase of a table task: what the server counted, and what is stored."""

from __future__ import annotations

import gzip
import json
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from operator_kit import Table, products
from rungen_emulator import Emulator, Fault

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.contract]
ROWS = 24
#: As many inputs may be bought twice by each kill.
BLOCK = 16
# An attempt that is killed, in a process of its own. It has no task state store, as before Airflow 3.3.
ATTEMPT = """
import sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from airflow_provider_rungen.operators import RunGenRunTableOperator
from airflow_provider_rungen.store import records
from airflow_provider_rungen.work import table_run

records.CLAIM_TIME, table_run.LOOK_INTERVAL = 5.0, 2.0
folder, rows, try_number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

class TI:
    dag_id, run_id, task_id, map_index, max_tries = "dag", sys.argv[4], "task", -1, 9
    def xcom_push(self, *args, **kwargs): pass
    def xcom_pull(self, *args, **kwargs): pass

def to_input(row):
    if row["sku"] == "sku-5" and (folder / "hold").exists():
        (folder / "held").touch()
        time.sleep(60)
    return {"prompt": f"photo of {row['title']}"}

ti = TI()
ti.try_number = try_number
RunGenRunTableOperator(
    task_id="task",
    table=[{"sku": f"sku-{n}", "title": f"product {n}"} for n in range(rows)],
    key="sku",
    to_input=to_input,
    destination=(folder / "photos").as_uri(),
    results=(folder / "out" / f"{sys.argv[4]}.csv").as_uri(),
    poll_interval=0.1,
    retries=9,
).execute({"ti": ti})
"""


def stored(folder: Path) -> int:
    return len(list((folder / "photos" / "files").glob("*/*.png")))


class Stage:
    """A table task whose attempts are killed."""

    def __init__(self, emulator: Emulator, folder: Path) -> None:
        self.service, self.folder = emulator.service, folder
        self.tries = 0

    @property
    def known(self) -> int:
        """How many jobs the store has."""
        store = self.folder / "photos" / ".rungen"
        names = " ".join(path.name for path in store.glob("open/*"))
        ended = b"".join(gzip.decompress(path.read_bytes()) for path in store.glob("done/*.gz")).decode()
        return sum(job["id"] in names or job["id"] in ended for job in self.service.jobs())

    @property
    def bought(self) -> Counter[str]:
        """How many jobs each prompt has."""
        return Counter(job["input"]["prompt"] for job in self.service.jobs())

    def begin(self, run_id: str = "night 1", rows: int = ROWS) -> subprocess.Popen[bytes]:
        """Begin an attempt of a run."""
        self.tries += 1
        arguments = [str(self.folder), str(rows), str(self.tries), run_id]
        command, quiet = [sys.executable, "-c", ATTEMPT, *arguments], subprocess.DEVNULL
        return subprocess.Popen(command, stdout=quiet, stderr=quiet)

    def kill_when(self, is_there: Callable[[], bool]) -> None:
        """Begin an attempt, and kill it when it is there."""
        self.kill(self.begin(), is_there)

    def kill(self, process: subprocess.Popen[bytes], is_there: Callable[[], bool]) -> None:
        """Kill an attempt when it is there."""
        try:
            deadline = time.monotonic() + 120
            while not is_there():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
        self.service.clear_faults()


@pytest.fixture
def stage(rungen_emulator: Emulator, tmp_path: Path) -> Stage:
    rungen_emulator.service.scale("flux-schnell", 100)
    return Stage(rungen_emulator, tmp_path)


def finish(stage: Stage, emulator: Emulator) -> dict[str, Any]:
    """Run the last attempt to its end, and return what it says."""
    task = Table(
        emulator, stage.folder, products(ROWS), results=(stage.folder / "out" / "night 1.csv").as_uri()
    )
    task.tries, task.max_tries = stage.tries, 9
    outcome = task.attempt()
    assert outcome.error is None
    assert outcome.value["completed"] == len(stage.bought) == ROWS
    value: dict[str, Any] = outcome.value
    return value


def test_a_kill_in_each_phase_buys_nothing_that_is_known_twice(
    stage: Stage, rungen_emulator: Emulator
) -> None:
    service, folder = stage.service, stage.folder

    # while the table is read
    (folder / "hold").touch()
    stage.kill_when((folder / "held").exists)
    (folder / "hold").unlink()
    assert not stage.bought

    # while inputs are submitted: the service takes them, and nobody learns their ids
    service.inject(Fault(on="run", kind="hang", taken=True, times=None, skip=1))
    stage.kill_when(lambda: len(service.jobs()) == 1 + BLOCK)
    assert stage.known == 1

    # while it waits: no id is lost
    service.inject(Fault(on="get", kind="hang", times=None))
    stage.kill_when(lambda: stage.known == ROWS)
    assert sum(stage.bought.values()) == ROWS + BLOCK

    # while outputs are stored
    service.inject(Fault(on="output", kind="hang", times=None, skip=5))
    stage.kill_when(lambda: stored(folder) == 5)

    # while the table is written: the folder is tried before anything is sent, and then it is empty
    stage.kill_when(lambda: stored(folder) == ROWS and any((folder / "out").glob("*")))

    fetched = service.count("output")
    value = finish(stage, rungen_emulator)
    assert service.count("output") == fetched
    assert sum(stage.bought.values()) == ROWS + BLOCK
    assert value["jobs"] == ROWS, "those of all attempts whose ids are known"
    assert stored(folder) == ROWS


def test_two_runs_that_begin_together_and_are_killed_once_each_buy_inputs_once(stage: Stage) -> None:
    rows, service = 120, stage.service
    first, second = stage.begin("a", rows), stage.begin("b", rows)
    stage.kill(first, lambda: len(service.jobs()) >= 20)
    stage.kill(second, lambda: len(service.jobs()) >= 40)
    assert len(service.jobs()) < rows
    retries = [stage.begin("a", rows), stage.begin("b", rows)]
    assert [process.wait(120) for process in retries] == [0, 0]
    assert len(stage.bought) == rows
    # what was in the air at the kills
    assert sum(stage.bought.values()) <= rows + 2 * BLOCK


# --- time limits --------------------------------------------------------------------------------------------

# Tables whose time is over at a random moment, as Airflow's `execution_timeout` does it.
ALARMS = """
import json, random, signal, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from airflow_provider_rungen._airflow import AirflowTaskTimeout
from airflow_provider_rungen.operators import RunGenRunTableOperator

folder, known, seed, wanted = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
chance, struck = random.Random(seed), []

def strike(*_):
    struck.append(time.monotonic())
    raise AirflowTaskTimeout("Timeout")

class TI:
    dag_id, task_id, map_index, max_tries, try_number = "dag", "task", -1, 0, 1
    def xcom_push(self, *args, **kwargs): pass
    def xcom_pull(self, *args, **kwargs): pass

def perform(number, after):
    ti = TI()
    ti.run_id = f"run {number}"
    rows = [{"prompt": f"known {n}" if known else f"new {number} {n}"} for n in range(known or 8)]
    op = RunGenRunTableOperator(
        task_id="task", table=rows, destination=(folder / "out").as_uri(),
        results=(folder / "results.jsonl").as_uri(), poll_interval=0.05, cancel_on_kill=False,
    )
    struck.clear()
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        op.execute({"ti": ti})
        signal.setitimer(signal.ITIMER_REAL, 0)
    except AirflowTaskTimeout:
        return time.monotonic() - struck[0]
    return None if struck else 0.0

signal.signal(signal.SIGALRM, strike)
perform(0, 0)
began = time.monotonic()
perform(1, 0)
takes, alarms, lost, latest, number = time.monotonic() - began, 0, 0, 0.0, 1
while alarms < wanted:
    number += 1
    late = perform(number, chance.uniform(0.001, takes))
    if struck:
        alarms += 1
        lost += late is None
        latest = max(latest, late or 0.0)
print(json.dumps([alarms, lost, latest]))
"""


@pytest.mark.parametrize("known", [0, 400], ids=["new rows", "known rows"])
def test_no_time_limit_is_swallowed(rungen_emulator: Emulator, tmp_path: Path, known: int) -> None:
    service, seed = rungen_emulator.service, secrets.randbelow(10**6)
    service.scale("flux-schnell", 1000)
    service.job_seconds = 0.01
    command = [sys.executable, "-c", ALARMS, str(tmp_path), str(known), str(seed), "100"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=300, check=True)
    alarms, lost, latest = json.loads(done.stdout.splitlines()[-1])
    assert (alarms, lost) == (100, 0), f"seed {seed}"
    assert latest < 2, f"seed {seed}"
