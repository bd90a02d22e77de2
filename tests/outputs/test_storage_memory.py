"""What stored jobs take of memory: it is bounded by bytes, and not by their number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rungen_emulator import Emulator

pytestmark = pytest.mark.contract

JOBS = 150
RESULT_BYTES = 1_000_000
# In MB, above what the same task takes for a single small job.
MOST = 128

# Prints what a task took, in a process of its own.
SCRIPT = """
import json, sys
from rungen_emulator.testing import run_operator
from airflow_provider_rungen.operators import RunGenCollectResultsOperator, RunGenRunTableOperator

folder, what, count, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024

def operator(count, size, place):
    what_to_do = {"seconds": 0, "images": 0, "result_bytes": size}
    inputs = [{"prompt": f"{n}", "emulator": what_to_do} for n in range(count)]
    options = {"task_id": what, "poll_interval": 0.1}
    options |= {"destination": f"{folder}/{place}", "results": f"{folder}/{place}/results.jsonl"}
    if what == "table":
        return RunGenRunTableOperator(table=inputs, **options)
    ids = json.load(open(f"{folder}/{place}.json"))
    return RunGenCollectResultsOperator(job_id=ids, **options)

def run(*arguments):
    outcome = run_operator(operator(*arguments))
    assert outcome.error is None, outcome.error
    return outcome.value

run(1, 1, "small")  # what it imports does not count
before = peak()
run(count, size, "large")
above = peak() - before
if what == "table":
    for place in ("small", "large"):
        rows = [json.loads(line) for line in open(f"{folder}/{place}/results.jsonl")]
        json.dump([row["job_id"] for row in rows], open(f"{folder}/{place}.json", "w"))
print(json.dumps({"above": above}))
"""


def measure(folder: Path, what: str, emulator: Emulator) -> dict[str, int]:
    environment = {**os.environ, "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection()}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), what, str(JOBS), str(RESULT_BYTES)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found: dict[str, int] = json.loads(process.stdout.splitlines()[-1])
    return found


@pytest.mark.system  # it takes a while
@pytest.mark.timeout(300)
def test_results_of_many_megabytes_are_stored_and_reused_in_bounded_memory(
    rungen_emulator: Emulator, tmp_path: Path
) -> None:
    rungen_emulator.service.scale("flux-schnell", 1000)
    # the first table buys and stores them, and then all of them are reused
    tasks = ["table", "table", "collect"]
    took = [measure(tmp_path, task, rungen_emulator) for task in tasks]
    assert rungen_emulator.service.stats()["jobs_created"] == JOBS + 1
    above = [each["above"] for each in took]
    assert max(above) <= MOST, dict(zip(["first table", *tasks[1:]], above, strict=True))
