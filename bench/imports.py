"""Measures what an import costs a DAG file that has imported `airflow.sdk`."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from bench.service import ROOT, clean_environment

OPERATOR = "from airflow_provider_rungen.operators import RunGenRunJobOperator"
ALL = "from airflow_provider_rungen.operators import *"
PACKAGE = "import airflow_provider_rungen.operators"
HTTP = "from airflow.providers.http.operators.http import HttpOperator"
# A new process, since what the benchmark itself imports would not be counted.
_PROGRAM = """
import airflow.sdk
import gc, sys, tempfile, time
if {is_cold}:
    sys.pycache_prefix = tempfile.mkdtemp(dir={folder!r})
gc.collect()
gc.freeze()
began = time.perf_counter()
{statement}
print(time.perf_counter() - began)
"""


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each round, by statement, with and without existing bytecode."""
    seconds: dict[str, dict[str, list[float]]] = {"warm": {}, "cold": {}}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for temperature, of_statement in seconds.items():
                for statement in (OPERATOR, ALL, PACKAGE, HTTP):
                    took = _measure(folder, statement, is_cold=temperature == "cold")
                    if number:  # the first round writes the bytecode
                        of_statement.setdefault(statement, []).append(took)
    return seconds


def _measure(folder: str, statement: str, *, is_cold: bool) -> float:
    environment = clean_environment(AIRFLOW_HOME=folder, PYTHONPYCACHEPREFIX=f"{folder}/bytecode")
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    program = _PROGRAM.format(is_cold=is_cold, folder=folder, statement=statement)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment,
    )
    return float(done.stdout.splitlines()[-1])
