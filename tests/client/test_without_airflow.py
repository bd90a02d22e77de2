"""The client is a Python SDK: it needs neither Airflow nor the rest of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rungen_emulator import Emulator

pytestmark = pytest.mark.contract


def test_the_client_runs_jobs_without_airflow() -> None:
    script = str(Path(__file__).with_name("use_as_sdk.py"))
    with Emulator(job_seconds=0.2) as emulator:
        command = [sys.executable, script, emulator.url, emulator.service.api_key]
        used = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        assert emulator.service.stats()["jobs_completed"] == 2
    assert used == "client exceptions\n"
