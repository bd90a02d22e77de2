"""The fixture ``rungen_emulator``. pytest loads this module in every run, so it imports almost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_provider_rungen.emulator.server import Emulator


@pytest.fixture
def rungen_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Run an emulator with fast jobs. The connection ``rungen_default`` uses it."""
    from airflow_provider_rungen.emulator.server import Emulator

    with Emulator(job_seconds=0.05) as emulator:
        monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", emulator.airflow_connection())
        yield emulator
