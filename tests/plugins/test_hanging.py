"""What hangs holds up nobody else's pages."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.sdk.io import attach
from conftest import APP, SOON, FakeTaskInstance
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_rungen.runs.rows import JobState
from plugins.conftest import SERVER_WARNINGS, Pages, World, write_log

pytestmark = [pytest.mark.usefixtures("unsettled"), SERVER_WARNINGS]

# More than may hang at a time.
VIEWS = 12


def task_of(world: World, dag_id: str) -> FakeTaskInstance:
    """Return a task of a DAG of its own."""
    ti = FakeTaskInstance()
    ti.dag_id, ti.run_id = dag_id, f"{world.ti.run_id}-{dag_id}"
    return ti


def save_task(world: World, folder: str, *, dag_id: str = "dag", destination: str = "") -> str:
    """Write a task of a DAG of its own, and return the path of its page."""
    record = {"connection": "none", "app": APP, "results": f"{folder}/r.csv", "destination": destination}
    xcoms = {"rungen_page": record} | ({"job_id": "j"} if destination else {})
    return world.database.save(task_of(world, dag_id), xcoms=xcoms)


def save_healthy(world: World) -> str:
    """Write another task, with a log that is read, and return the path of its page."""
    for dag_id in ("healthy", "dag"):
        write_log(task_of(world, dag_id), world.folder, [JobState.FAILED], job_id="j", why="out of paint")
    return save_task(world, str(world.folder), dag_id="healthy")


def view(pages: Pages, paths: list[str]) -> list[Any]:
    """Request pages at the same time, each by a client of its own."""
    with ThreadPoolExecutor(len(paths)) as executor:
        return list(executor.map(lambda path: pages.as_user(pages.role).get(path), paths))


def assert_healthy(pages: Pages, path: str) -> None:
    started = time.monotonic()
    answer = pages.get(path)
    assert "out of paint" in answer.text
    assert time.monotonic() - started < SOON


class HangingStore(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store that does not answer until ``answering`` is set."""

    cachable = False
    store: dict[str, Any] = {}

    def __init__(self) -> None:
        super().__init__()
        self.answering = threading.Event()
        self.asked = 0
        self.opened: Any = None

    def _open(self, *_: Any, **__: Any) -> Any:
        return self.opened or self._hang()

    def _hang(self, *_: Any, **__: Any) -> Any:
        self.asked += 1
        self.answering.wait()
        raise FileNotFoundError

    cat_file = ls = _hang


@pytest.fixture
def hanging() -> Iterator[HangingStore]:
    fs = HangingStore()
    attach("memory", conn_id="hangs", fs=fs).fs = fs
    yield fs
    fs.answering.set()


@pytest.mark.parametrize("place", ["log", "destination"])
def test_a_store_that_hangs_holds_up_no_other_user_and_no_other_store(
    world: World, hanging: HangingStore, place: str
) -> None:
    uri = "memory://hangs@bucket/results"
    healthy = save_healthy(world)
    if place == "log":
        paths = [save_task(world, uri)]
    else:
        paths = [f"{save_task(world, str(world.folder), destination=uri)}/jobs/j/files/0"]
    started = time.monotonic()
    viewer = world.pages.as_user("viewer")
    answers = view(viewer, paths * VIEWS)
    assert time.monotonic() - started < SOON + 5
    assert all("did not answer in time" in answer.text for answer in answers)
    assert 0 < hanging.asked <= 4
    assert_healthy(world.pages, healthy)
    assert_healthy(viewer, healthy)
    # nor once more, while the first requests hang
    assert "did not answer in time" in view(viewer, paths)[0].text
    assert hanging.asked <= 4
    assert_healthy(viewer, healthy)


def test_a_file_that_hangs_is_closed_without_waiting_for_it(hanging: HangingStore) -> None:
    """The event loop closes it, and a file that is being read may wait for that to end."""
    from airflow_provider_rungen.plugins.stored import OpenFile, StoredFile

    closed = threading.Event()

    class HangingFile(io.BytesIO):
        def close(self) -> None:
            hanging.answering.wait()
            super().close()
            closed.set()

    hanging.opened = HangingFile(b"x" * 1000)
    file = OpenFile("memory://hangs@bucket/x", "j", StoredFile("a.txt", 1000, "text/plain"))
    assert file.read()
    file.close()
    assert not closed.is_set()
    hanging.answering.set()
    assert closed.wait(SOON)
