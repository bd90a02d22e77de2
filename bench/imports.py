"""
Imports.

What an import costs a DAG file that has imported `airflow.sdk`, in a new process, with garbage collection
frozen. Without bytecode, what is imported after `airflow.sdk` has to be compiled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from statistics import median

from bench.page import Row
from bench.processes import run_python

_HTTP = "from airflow.providers.http.operators.http import HttpOperator"
_OURS = {
    "`airflow_provider_rungen.operators`": "import airflow_provider_rungen.operators",
    "`RunGenRunJobOperator` from it": "from airflow_provider_rungen.operators import RunGenRunJobOperator",
    "all operators from it": "from airflow_provider_rungen.operators import *",
}
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


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Import each in turn, with and without existing bytecode."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {"AIRFLOW_HOME": folder, "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}

        def seconds(statement: str, *, is_cold: bool) -> float:
            program = _PROGRAM.format(is_cold=is_cold, folder=folder, statement=statement)
            took: float = run_python("-c", program, **environment)
            return took

        for is_cold, words in ((False, "with bytecode"), (True, "without bytecode")):
            statements = [*_OURS.values(), _HTTP]
            # the first round writes the bytecode
            each = [[seconds(one, is_cold=is_cold) for one in statements] for _ in range(rounds + 1)][1:]
            *ours, http = (median(values) * 1000 for values in zip(*each, strict=True))
            for what, took in zip(_OURS, ours, strict=True):
                figure = f"{took:.1f} ms ({took / http:.2f} ×)"
                is_reached = took <= http / 10
                yield Row(
                    f"{what}, {words}", figure, f"`HttpOperator`: {http:.1f} ms", "≤ a tenth", is_reached
                )
