"""The client is a Python SDK: it needs neither Airflow nor the rest of the package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import airflow_provider_rungen
from airflow_provider_rungen.emulator import Emulator

PARTS = ("__init__.py", "exceptions.py", "client")


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the parts of the package that the client may import."""
    folder = tmp_path_factory.mktemp("sdk")
    package, copy = Path(airflow_provider_rungen.__file__).parent, folder / "airflow_provider_rungen"
    copy.mkdir()
    for part in PARTS:
        if (package / part).is_dir():
            shutil.copytree(package / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(package / part, copy / part)
    return folder


def run(sdk: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={"PYTHONPATH": str(sdk), "PYTHONDONTWRITEBYTECODE": "1", "NO_PROXY": ""},
        cwd=sdk,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_client_runs_jobs_without_airflow(sdk: Path) -> None:
    with Emulator(job_seconds=0.2) as emulator:
        script = str(Path(__file__).with_name("use_as_sdk.py"))
        output = run(sdk, script, emulator.url, emulator.service.api_key)
        assert emulator.service.stats()["jobs_completed"] == 2
    assert output.startswith(f"used {sdk}")
