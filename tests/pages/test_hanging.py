"""A store, a service or an XCom backend that hangs: what is known comes in time, and holds up nobody."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.io import attach
from conftest import APP, FakeTaskInstance
from fsspec.implementations.memory import MemoryFileSystem
from rungen_emulator import Fault

from airflow_provider_rungen.pages import airflow_db, files, threads
from pages.world import SERVER_WARNINGS, World, given, new_run

pytestmark = SERVER_WARNINGS

#: Seconds within which each page has what is known, and how much longer this machine may take.
IN_TIME, GRACE = 5.0, 3.0
VIEWS = 12


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

    cat_file = ls = info = _hang


@pytest.fixture
def hanging() -> Iterator[HangingStore]:
    fs = HangingStore()
    attach("memory", conn_id="hangs", fs=fs).fs = fs
    yield fs
    fs.answering.set()


def save_task(world: World, state: str = "success") -> str:
    """Write a task of a run of its own, whose store hangs."""
    ti = new_run(FakeTaskInstance())
    uri = "memory://hangs@bucket/store"
    page = {"connection": "none", "app": APP, "destination": uri, "view": ".rungen/runs/a/b.json", "rows": 7}
    xcoms = {"rungen_page": page, "usage": {"jobs": 7, "completed": 7, "execution_seconds": 9}}
    more = {"results": f"{uri}/r.jsonl"} if state == "success" else {}
    return world.database.save(ti, state, xcoms=xcoms | more)


@pytest.mark.parametrize("state", ["running", "success", "failed"])
def test_a_store_that_hangs_gives_what_is_known_in_time(
    world: World, hanging: HangingStore, state: str
) -> None:
    page, healthy = save_task(world, state), world.table(given("one"))
    started = time.monotonic()
    data = world.data(page)
    assert time.monotonic() - started < IN_TIME
    assert (data["progress"]["total"], data["usage"]["jobs"], data["rows"]) == (7, 7, [])
    assert any("did not answer in time" in notice for notice in data["notices"])
    assert world.data(healthy)["rows"]


@pytest.mark.parametrize("kind", ["task", "file"])
def test_many_views_of_what_hangs_hold_up_nobody_else(world: World, hanging: HangingStore, kind: str) -> None:
    page, healthy = save_task(world), world.table(given("one"))
    picture = world.data(healthy)["rows"][0]["outputs"][0]["url"]
    query = {"path": "files/ab/x.png"} if kind == "file" else {}
    started = time.monotonic()
    with ThreadPoolExecutor(VIEWS + 1) as executor:
        answers = [
            executor.submit(world.pages.as_user("viewer").api, page, kind, **query) for _ in range(VIEWS)
        ]
        while not hanging.asked:
            time.sleep(0.01)
        begun = time.monotonic()
        assert world.pages.get(picture).content.startswith(b"\x89PNG")
        assert time.monotonic() - begun < 2
        assert all("did not answer in time" in answer.result().text for answer in answers)
    assert time.monotonic() - started < IN_TIME + GRACE
    assert 0 < hanging.asked <= threads.MAX_THREADS


def test_a_file_that_hangs_is_closed_without_waiting_for_it(hanging: HangingStore) -> None:
    closed = threading.Event()

    class HangingFile(io.BytesIO):
        def close(self) -> None:
            hanging.answering.wait()
            super().close()
            closed.set()

    hanging.opened = HangingFile(b"x" * 1000)
    file = files.OpenFile("memory://hangs@bucket/x", "j", "a.txt")
    assert file.read()
    file.close()
    assert not closed.is_set()
    hanging.answering.set()
    assert closed.wait(10)


def test_forty_pictures_at_once_stall_nobody_elses_page(world: World) -> None:
    page = world.table(given("one"))
    picture = world.data(page)["rows"][0]["outputs"][0]["url"]
    with ThreadPoolExecutor(40) as executor:
        pictures = [executor.submit(world.pages.as_user("viewer").get, picture) for _ in range(40)]
        started = time.monotonic()
        assert world.data(page)["rows"]
        assert time.monotonic() - started < IN_TIME
        assert {answer.result().status_code for answer in pictures} == {200}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "hang"}, "SocketTimeoutError"),
        ({"status": 503}, "(503)"),
        ({"status": 200, "body": "<html>"}, ""),
        ({"status": 401, "body": {"error": "invalid API key"}}, "invalid API key"),
    ],
    ids=str,
)
def test_a_service_out_of_order_is_named_in_time(world: World, fault: dict[str, Any], words: str) -> None:
    page = world.save(xcoms={"rungen_page": {"connection": "rungen_default", "app": APP}, "job_id": "j"})
    world.emulator.service.inject(Fault(on="any", times=None, **fault))
    started = time.monotonic()
    assert world.data(page)["rows"]
    assert time.monotonic() - started < 2  # it is not asked
    answer = world.pages.api(page, "job", job_id="j")
    assert (answer.status_code, words in answer.text) == (502, True), answer.text
    silent = world.pages.get("/api/apps").json()["silent"]
    assert words in silent["rungen_default"]
    assert time.monotonic() - started < 2 * IN_TIME


class Elsewhere(BaseXCom):
    """An XCom backend of a user: the database has only numbers."""

    values: ClassVar[list[Any]] = []
    is_answering = threading.Event()

    @staticmethod
    def serialize_value(value: Any, **_: Any) -> Any:
        Elsewhere.values.append(value)
        return f"number {len(Elsewhere.values) - 1}"

    @staticmethod
    def deserialize_value(result: Any) -> Any:
        Elsewhere.is_answering.wait()
        return Elsewhere.values[int(result.value.removeprefix("number "))]


def test_xcoms_are_read_through_their_backend_which_may_hang(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__XCOM_BACKEND", f"{__name__}.{Elsewhere.__name__}")
    Elsewhere.is_answering.set()
    page = world.table(given("one"), given("two", fail="out of memory"))
    assert [row["error"] for row in world.data(page)["rows"]] == ["", "out of memory"]
    Elsewhere.is_answering.clear()
    started = time.monotonic()
    answer = world.pages.api(page)
    assert time.monotonic() - started < IN_TIME
    Elsewhere.is_answering.set()
    assert (answer.status_code, "did not answer in time" in answer.text) == (504, True)


def test_a_database_out_of_order_gives_a_notice_without_a_traceback(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = world.table(given("one"))

    def fail(*_: Any) -> None:
        raise OSError("the password of the database is 5ecret")

    monkeypatch.setattr(airflow_db, "_find_task", fail)
    answer = world.pages.api(page)
    assert (answer.status_code, "OSError" in answer.text, "5ecret" in answer.text) == (503, True, False)
