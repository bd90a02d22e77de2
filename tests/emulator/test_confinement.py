"""Unit tests must not spend money: whatever a secrets backend says, they reach the emulator alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rungen_emulator import Emulator

pytestmark = pytest.mark.contract

# What a company keeps its connections in. It is asked before the environment.
VAULT = """
import json, os
from airflow.secrets import BaseSecretsBackend


class Vault(BaseSecretsBackend):
    def get_conn_value(self, conn_id, team_name=None):
        return os.environ["REAL_CONNECTION"]
"""

UNIT_TESTS = """
import pytest
from rungen_emulator.testing import run_operator
from airflow_provider_rungen.exceptions import RunGenConfigError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenRunJobOperator, RunGenRunTableOperator


early = RunGenHook()
assert early.resolve_app_id() == "the-real-app"


def paint(**options):
    return RunGenRunJobOperator(
        task_id="paint", input={"prompt": "x"}, wait_for_completion=True, poll_interval=0.05, **options
    )


def test_the_vault_is_asked_outside_of_tests():
    assert RunGenHook().settings.api_key == "the-real-key"


def test_without_a_fixture_nothing_is_sent():
    assert "must not reach" in str(run_operator(paint()).error)


def test_without_a_fixture_a_stand_in_on_this_machine_is_used(monkeypatch):
    # port 9 answers nobody
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", "rungen://:key@127.0.0.1:9/http?app_id=mine&api_retries=0")
    assert "must not reach" not in str(run_operator(paint()).error)
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", "rungen://:key@api.rungen.ai/https?app_id=mine")
    assert "must not reach" in str(run_operator(paint()).error)


@pytest.mark.parametrize("options", [{}, {"deferrable": True}])
def test_a_job_runs_at_the_emulator(rungen_emulator, options):
    result = run_operator(paint(**options), emulator=rungen_emulator)
    assert (result.error, result.xcoms["rungen_page"]["app"]) == (None, "flux-schnell")
    assert rungen_emulator.service.stats()["jobs_created"] == 1


def test_a_table_runs_at_the_emulator(rungen_emulator_module, tmp_path):
    inputs = [{"prompt": str(number)} for number in range(5)]
    options = {"destination": str(tmp_path), "deferrable": True, "poll_interval": 0.05}
    op = RunGenRunTableOperator(task_id="t", table=inputs, **options)
    assert run_operator(op, emulator=rungen_emulator_module).error is None
    assert rungen_emulator_module.service.stats()["jobs_created"] == 5


def test_a_hook_that_was_used_before_asks_again(rungen_emulator):
    early.run_job(input={"prompt": "x"})
    assert len(rungen_emulator.service.jobs()) == 1


def test_a_connection_that_only_the_vault_has_is_refused(rungen_emulator):
    result = run_operator(paint(rungen_conn_id="rungen_marketing"))
    assert "'rungen_marketing'" in str(result.error) and "must not reach" in str(result.error)
    with rungen_emulator.connection("rungen_marketing"):
        assert run_operator(paint(rungen_conn_id="rungen_marketing")).error is None


async def _arun(hook):
    async with hook:
        return await hook.arun_job(input={"prompt": "x"})


def test_an_event_loop_is_refused_too(rungen_emulator):
    import asyncio
    with pytest.raises(RunGenConfigError, match="must not reach"):
        asyncio.run(_arun(RunGenHook("rungen_marketing")))
    asyncio.run(_arun(RunGenHook()))
    assert len(rungen_emulator.service.jobs()) == 1
"""

WHOLE_DAG = """
from airflow.sdk import DAG
from airflow_provider_rungen.operators import RunGenRunJobOperator

with DAG("postcard", schedule=None) as dag:
    RunGenRunJobOperator(task_id="worker", input={"prompt": "x"}, wait_for_completion=True)
    RunGenRunJobOperator(
        task_id="triggerer", input={"prompt": "x"}, wait_for_completion=True, deferrable=True
    )
    RunGenRunJobOperator(task_id="refused", input={"prompt": "x"}, rungen_conn_id="rungen_marketing")
"""

WHOLE_DAG_TEST = """
from airflow.cli.cli_parser import get_parser
from dags import postcard


def test_a_whole_dag_runs_at_the_emulator(rungen_emulator):
    for command in (["db", "migrate"], ["dags", "reserialize"]):
        arguments = get_parser().parse_args(command)
        arguments.func(arguments)
    run = postcard.dag.test()
    states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
    assert states == {"worker": "success", "triggerer": "success", "refused": "failed"}
    assert rungen_emulator.service.stats()["jobs_created"] == 2
"""


@pytest.fixture
def real() -> Iterator[Emulator]:
    """The service that a test must not reach, with an app of its own."""
    with Emulator(job_seconds=0.05, api_key="the-real-key", app_id="the-real-app") as emulator:
        yield emulator


def run_pytest(folder: Path, real: Emulator, cache: bool = False) -> str:
    """Run the tests of a folder as a user does, and return what pytest prints."""
    (folder / "vault.py").write_text(VAULT)
    backend = {"SECRETS__BACKEND": "vault.Vault", "WORKERS__SECRETS_BACKEND": "vault.Vault"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", "."],
        env={
            # tests may leave a connection to an emulator of this process
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_CONN_")},
            **{f"AIRFLOW__{name}": value for name, value in backend.items()},
            "AIRFLOW__SECRETS__USE_CACHE": str(cache),
            "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW_CONFIG": str(folder / "airflow" / "airflow.cfg"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/airflow.db",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(folder / "logs"),
            "REAL_CONNECTION": real.airflow_connection(),
            "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTEST_XDIST_WORKER": "",
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.system
@pytest.mark.parametrize("cache", [False, True], ids=["", "cached"])
def test_with_a_secrets_backend_unit_tests_reach_the_emulator_alone(
    tmp_path: Path, real: Emulator, cache: bool
) -> None:
    (tmp_path / "test_units.py").write_text(UNIT_TESTS)
    assert "9 passed" in run_pytest(tmp_path, real, cache)
    assert real.service.records() == []


@pytest.mark.system
def test_with_a_secrets_backend_a_whole_dag_reaches_the_emulator_alone(
    tmp_path: Path, real: Emulator
) -> None:
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "postcard.py").write_text(WHOLE_DAG)
    (tmp_path / "test_dag.py").write_text(WHOLE_DAG_TEST)
    assert "1 passed" in run_pytest(tmp_path, real)
    assert real.service.records() == []
