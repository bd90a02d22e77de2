"""A task with its pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import FakeTaskInstance
from rungen_emulator import Emulator

from pages.world import Database, Pages, World, make_server, new_run


@pytest.fixture(scope="session")
def server() -> Any:
    return make_server()


@pytest.fixture
def ti() -> FakeTaskInstance:
    return new_run(FakeTaskInstance())


@pytest.fixture
def world(rungen_emulator: Emulator, context: Any, tmp_path: Path, server: Any) -> World:
    return World(rungen_emulator, context, context["ti"], tmp_path, Pages(server), Database())
