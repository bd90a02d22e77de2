"""Results that hang, or never end, hold up nobody else's pages."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.io import attach
from conftest import APP, SOON, FakeTaskInstance
from fsspec.implementations.memory import MemoryFileSystem

from plugins.conftest import Pages, World, result_row

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.filterwarnings("ignore")]

# More than may hang at a time.
VIEWS = 12


def save_task(world: World, results: str, *, dag_id: str = "dag", destination: str = "") -> str:
    """Write a task of a DAG of its own, and return the path of its page."""
    record = {"connection": "none", "app": APP, "results": results, "destination": destination}
    ti = FakeTaskInstance()
    ti.dag_id, ti.run_id = dag_id, f"{world.ti.run_id}-{dag_id}"
    return world.database.save(ti, xcoms={"rungen_page": record})


def save_healthy(world: World) -> str:
    """Write another task, with a table that is read, and return the path of its page."""
    table = world.folder / "healthy.jsonl"
    table.write_text(json.dumps(result_row(index=0, status="failed", job_id="j", error="out of paint")))
    return save_task(world, str(table), dag_id="healthy")


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

    def _open(self, *args: Any, **kwargs: Any) -> Any:
        if self.opened is not None:
            return self.opened
        self.asked += 1
        self.answering.wait()
        return super()._open(*args, **kwargs)


@pytest.fixture
def hanging() -> Iterator[HangingStore]:
    fs = HangingStore()
    attach("memory", conn_id="hangs", fs=fs).fs = fs
    yield fs
    fs.answering.set()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_folder(path: Path) -> None:
    path.mkdir()


def make_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 36)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("make", [make_pipe, make_link_to_pipe, make_device, make_folder, make_sparse])
def test_what_is_no_file_of_results_is_not_waited_for(
    world: World, make: Callable[[Path], None], suffix: str
) -> None:
    place = world.folder / f"results{suffix}"
    make(place)
    path, healthy = save_task(world, str(place)), save_healthy(world)
    answers = [world.get(path) for _ in range(VIEWS)]
    assert all(answer.status_code == 200 for answer in answers)
    assert all("is missing, or is no results table" in answer.text for answer in answers)
    assert world.get(f"{path}/jobs/j/files/0").status_code in (404, 502)
    assert_healthy(world.pages, healthy)


def test_a_link_to_the_results_of_others_is_not_followed(world: World) -> None:
    healthy = save_healthy(world)
    (world.folder / "mine.jsonl").symlink_to("healthy.jsonl")
    answer = world.get(save_task(world, str(world.folder / "mine.jsonl")))
    assert "out of paint" not in answer.text
    assert_healthy(world.pages, healthy)


def test_no_folder_is_searched_for_results(world: World) -> None:
    save_healthy(world)
    for place in (f"{world.folder}/*.jsonl", f"{world.folder}/**/healthy.jsonl"):
        answer = world.get(save_task(world, place, dag_id=f"searching{len(place)}"))
        assert "is missing, or is no results table" in answer.text


@pytest.mark.parametrize("place", ["results", "destination"])
def test_a_store_that_hangs_holds_up_no_other_user_and_no_other_store(
    world: World, hanging: HangingStore, place: str
) -> None:
    uri = "memory://hangs@bucket/results.jsonl"
    healthy = save_healthy(world)
    if place == "results":
        paths = [save_task(world, uri)]
    else:
        paths = [f"{save_task(world, str(world.folder / 'healthy.jsonl'), destination=uri)}/jobs/j/files/0"]
    started = time.monotonic()
    answers = view(world.pages.as_user("viewer"), paths * VIEWS)
    assert time.monotonic() - started < SOON + 5
    assert all("did not answer in time" in answer.text for answer in answers)
    assert 0 < hanging.asked <= 4
    assert_healthy(world.pages, healthy)
    assert_healthy(world.pages.as_user("viewer"), healthy)
    # nor once more, while the first requests hang
    assert "did not answer in time" in view(world.pages.as_user("viewer"), paths)[0].text
    assert hanging.asked <= 4
    assert_healthy(world.pages.as_user("viewer"), healthy)


def test_results_without_an_end_are_not_read_when_nobody_waits_any_more(world: World) -> None:
    closed = threading.Event()

    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            return b"\n" * size

        def close(self) -> None:
            closed.set()
            super().close()

    class EndlessStore(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
        cachable = False

        def _open(self, *args: Any, **kwargs: Any) -> Any:
            return Endless()

    fs = EndlessStore()
    attach("memory", conn_id="endless", fs=fs).fs = fs
    answer = world.get(save_task(world, "memory://endless@bucket/results.jsonl"))
    assert "did not answer in time" in answer.text
    assert closed.wait(SOON)


def test_a_file_that_hangs_is_closed_without_waiting_for_it(hanging: HangingStore) -> None:
    """The event loop closes it, and a file that is being read may wait for that to end."""
    from airflow_provider_rungen.plugins.stored import OpenFile, StoredFile, StoredOutputs

    closed = threading.Event()

    class HangingFile(io.BytesIO):
        def close(self) -> None:
            hanging.answering.wait()
            super().close()
            closed.set()

    hanging.opened = HangingFile(b"x" * 1000)
    outputs = StoredOutputs("memory://hangs@bucket/x", APP)
    file = OpenFile(outputs, "j", StoredFile("a.txt", 1000, "text/plain"))
    assert file.read()
    file.close()
    assert not closed.is_set()
    hanging.answering.set()
    assert closed.wait(SOON)
