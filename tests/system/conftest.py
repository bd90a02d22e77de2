"""The Airflow and the emulator that all system tests of a process share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client_mistakes import early_retries, keys_leaked
from rungen_emulator import Emulator

from system.stage import AirflowInstance, Place, Run, S3Place

# A dead supervisor is noticed after 15 s, not after 5 minutes.
IMPATIENT = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "3",
    # the next task starts sooner
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "8",
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
}


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    with Emulator(workers=100, api_key="a-key-that-must-appear-nowhere") as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def _connection(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", emulator.airflow_connection())


@pytest.fixture(scope="session")
def airflow(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowInstance]:
    home, dags = tmp_path_factory.mktemp("airflow"), Path(__file__).parent / "dags"
    connection = emulator.airflow_connection(price="1.20 USD/h")
    stored = {"RUNGEN_FOLDER": str(tmp_path_factory.mktemp("stored"))}  # of the examples
    environment = {"AIRFLOW_CONN_RUNGEN_DEFAULT": connection, **stored, **IMPATIENT}
    with AirflowInstance(home, dags, environment=environment) as instance:
        yield instance
        check_that_the_key_is_nowhere(instance, emulator)


def check_that_the_key_is_nowhere(airflow: AirflowInstance, emulator: Emulator) -> None:
    """Search the logs (at DEBUG) and the database of all tests that ran in an Airflow."""
    key = emulator.service.api_key.encode()
    files = [path for path in airflow.home.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    assert [path for path in files if key in path.read_bytes()] == []
    assert keys_leaked(emulator.service) == 0
    assert early_retries(emulator.service) == 0


@pytest.fixture
def start(airflow: AirflowInstance, emulator: Emulator) -> Callable[..., Run]:
    def start(dag_id: str, **options: Any) -> Run:
        return Run(airflow, emulator, dag_id, **options)

    return start


@pytest.fixture(scope="session")
def airflow_s3(airflow: AirflowInstance, s3_client: Any) -> Any:
    """Add the connection `my_s3` to Airflow, and return a client of S3."""
    extra = json.dumps({"endpoint_url": s3_client.meta.endpoint_url, "region_name": "us-east-1"})
    own = {"connection_id": "my_s3", "conn_type": "aws", "login": "me-myself", "password": "a-secret"}
    airflow.request("POST", "/connections", {**own, "extra": extra})
    return s3_client


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where tasks store files."""
    if request.param == "s3":
        return S3Place(request.getfixturevalue("airflow_s3"), "my_s3", "bucket", tmp_path.name)
    return Place(tmp_path)
