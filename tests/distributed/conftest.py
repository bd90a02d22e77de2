"""The Airflow with several workers and triggerers, and the emulator, that all of these tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed_airflow import DistributedAirflow
from rungen_emulator import Emulator
from system.conftest import IMPATIENT, _connection, emulator, start

from airflow_provider_rungen.hooks import RunGenHook


@pytest.fixture(scope="session")
def distributed(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DistributedAirflow]:
    environment = {"AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(), **IMPATIENT}
    home, dags = tmp_path_factory.mktemp("airflow"), Path(__file__).parent / "dags"
    with DistributedAirflow(home, dags, workers=4, slots=2, environment=environment) as instance:
        yield instance


@pytest.fixture
def airflow(distributed: DistributedAirflow) -> Iterator[DistributedAirflow]:
    """Return the Airflow with all parts running, and restore lost parts after the test."""
    yield distributed
    distributed.restore()


@pytest.fixture
def scale(emulator: Emulator, _connection: None) -> Iterator[Callable[[int], None]]:
    """Set how many jobs run at a time. With 0 they wait until the test is ready."""

    def scale(workers: int) -> None:
        with RunGenHook() as hook:
            hook.scale_app(active_workers=workers)

    yield scale
    scale(100)
