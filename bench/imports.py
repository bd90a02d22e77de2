"""What an import costs on top of `airflow.sdk`; as a program it measures one, in its own process."""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.service import ROOT, clean_environment

OURS = "airflow_provider_rungen.operators"
HTTP = "airflow.providers.http.operators.http"


def measure(rounds: int) -> dict[str, Any]:
    """Give the seconds of each round, by module, with and without bytecode from before; the same for all."""
    seconds: dict[str, dict[str, list[float]]] = {"warm": {}, "cold": {}}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for temperature, of_module in seconds.items():
                for module in (OURS, HTTP):
                    took = _measure(Path(folder), module, temperature)
                    if number:  # the first round writes the bytecode
                        of_module.setdefault(module, []).append(took)
    return seconds


def _measure(folder: Path, module: str, temperature: str) -> float:
    environment = clean_environment(AIRFLOW_HOME=str(folder), PYTHONPYCACHEPREFIX=str(folder / "bytecode"))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-m", "bench.imports", module, temperature],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def main(module: str, temperature: str) -> None:
    importlib.import_module("airflow.sdk")
    with tempfile.TemporaryDirectory() as folder:
        if temperature == "cold":
            sys.pycache_prefix = folder
        gc.collect()
        gc.freeze()
        began = time.perf_counter()
        importlib.import_module(module)
        print(json.dumps(time.perf_counter() - began))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
