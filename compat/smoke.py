"""Import all modules of the installed package, and run a job with the emulator."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import tempfile
from typing import Any

home = tempfile.mkdtemp(prefix="rungen-airflow-")
os.environ |= {"AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}

import airflow  # noqa: E402 - it reads its settings when imported
import rungen_emulator as emulator  # noqa: E402
from rungen_emulator.fakes import FakeTaskInstance  # noqa: E402

import airflow_provider_rungen as package  # noqa: E402
from airflow_provider_rungen import operators  # noqa: E402


def main() -> None:
    if not str(package.__file__).startswith(sys.prefix):
        raise SystemExit("the imported package is not the installed one")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    for lazy in (operators, emulator):
        for name in lazy.__all__:
            getattr(lazy, name)
    with emulator.Emulator(job_seconds=0.2) as service:
        os.environ["AIRFLOW_CONN_RUNGEN_DEFAULT"] = service.airflow_connection()
        task = operators.RunGenRunJobOperator(
            task_id="run", input={"prompt": "a lighthouse"}, wait_for_completion=True, poll_interval=0.1
        )
        context: Any = {"ti": FakeTaskInstance(task)}
        job_id = task.execute(context)
    print(f"ran job {job_id} on Airflow {airflow.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
