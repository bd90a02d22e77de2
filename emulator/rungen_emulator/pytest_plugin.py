"""The fixtures of the emulator. pytest loads this module in every run, so it imports almost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rungen_emulator.server import Emulator


@contextmanager
def _run_emulator() -> Iterator[Emulator]:
    from rungen_emulator.server import Emulator

    with Emulator(job_seconds=0.05) as emulator, emulator.connection():
        yield emulator


@pytest.fixture
def rungen_emulator() -> Iterator[Emulator]:
    """
    Run an emulator with fast jobs for one test.

    The connection ``rungen_default`` uses it, whatever secrets backend is configured. A hook whose connection
    leads elsewhere raises an error and sends nothing.
    """
    with _run_emulator() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def rungen_emulator_module() -> Iterator[Emulator]:
    """Run an emulator for all tests of a module. ``emulator.service.reset()`` makes it as new."""
    with _run_emulator() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def rungen_emulator_session() -> Iterator[Emulator]:
    """Run an emulator for all tests. ``emulator.service.reset()`` makes it as new."""
    with _run_emulator() as emulator:
        yield emulator
