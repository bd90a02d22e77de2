"""What the measurements share: parts that run in processes of their own, and jobs at the emulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rungen_emulator import Service

ROOT = Path(__file__).resolve().parent.parent
APP = "flux-schnell"
KEY = "rungen-emulator-key"


def clean_environment(**more: str) -> dict[str, str]:
    """Return an environment for a measured process, without settings of another Airflow or a proxy."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW_", "RUNGEN_")) and not name.lower().endswith("_proxy")
    }
    return {**kept, "NO_PROXY": "127.0.0.1", "AIRFLOW__CORE__LOAD_EXAMPLES": "False", **more}


def run_python(*arguments: str, given: str = "", **environment: str) -> Any:
    """
    Run a Python process, and return the JSON in the last line that it prints.

    :param given: its input.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        input=given,
        text=True,
        check=True,
        cwd=ROOT,
        env=clean_environment(**environment),
    )
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory() -> int:
    """Return the most bytes of memory that this process used."""
    # not by getrusage(), which begins with the memory of the parent
    lines = Path("/proc/self/status").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kilobytes) * 1024


def submit(service: Service, inputs: Sequence[Mapping[str, Any]], app: str = APP) -> list[str]:
    """Submit jobs in order, and return their ids."""
    headers = {"x-api-key": KEY, "content-type": "application/json"}
    bodies = (json.dumps({"input": each}).encode() for each in inputs)
    replies = [service.handle("POST", f"/app/{app}/run_async", headers, body) for body in bodies]
    return [json.loads(reply.body)["data"]["id"] for reply in replies]
