"""What a page costs the API server is limited, whatever a task has, and whatever others pushed or stored."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.utils.session import create_session
from conftest import APP

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.plugins import database, live, views, xcoms
from airflow_provider_rungen.plugins.gallery import Query
from airflow_provider_rungen.plugins.gather import Gathering
from airflow_provider_rungen.plugins.limits import (
    MAX_VALUES,
    Cache,
    Kind,
    TooLargeError,
    TooSlowError,
    charge,
    parse_bounded,
    run_within,
)
from airflow_provider_rungen.plugins.stored import read_manifests
from airflow_provider_rungen.plugins.urls import Urls
from plugins.conftest import SERVER_WARNINGS, CountingStore, World, links

pytestmark = [pytest.mark.usefixtures("unsettled"), SERVER_WARNINGS]

# Lists in a list: a parser needs a second and 100 MB for each, and none of the checks between reads sees it.
BOMB = f"[{'[],' * 1_300_000}[]]"
HALF = "\ud800"
LARGE = ["x" * 1000] * 10_000
RECORD = {"connection": "none", "app": APP}
PROSE = "It was dark, and a = b; 100% of the ships returned. See https://example.org/story?a=b for more.\n"
PICTURE = b"\x89PNG\r\n\x1a\n" + b"x" * 100


def manifest_text(folder: str, job_id: str, outputs: int, input: Any, result: str) -> str:
    of_file = {"at": "image", "size": len(PICTURE), "sha256": "0" * 64, "content_type": "image/png"}
    entries = [{"uri": f"{folder}/{job_id}/{number}.png", **of_file} for number in range(outputs)]
    fields = {"app_id": APP, "job_id": job_id, "status": "COMPLETED", "complete": True, "outputs": entries}
    return f'{json.dumps(fields | {"input": input})[:-1]}, "result": {result}}}'


def store(folder: Path, job_id: str, *, outputs: int = 1, input: Any = None, result: str = "null") -> None:
    """Write the outputs and the manifest of a job."""
    (folder / job_id).mkdir()
    for number in range(outputs):
        (folder / job_id / f"{number}.png").write_bytes(PICTURE)
    text = manifest_text(folder.as_uri(), job_id, outputs, input, result)
    (folder / job_id / "manifest.json").write_text(text)


def save_jobs(world: World, ids: list[str], **more: Any) -> str:
    record = RECORD | {"destination": world.folder.as_uri()}
    return world.save(xcoms={"rungen_page": record, "jobs": ids, "failed": []} | more)


# --- XComs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["rungen_page", "job_id", "failed", "usage", "bill"])
def test_only_what_a_page_needs_and_can_hold_leaves_the_database(world: World, key: str) -> None:
    path = save_jobs(world, ["a"], return_value=LARGE, rungen_log=LARGE)
    world.database.push(world.ti, key, LARGE)
    place = {"dag_id": world.ti.dag_id, "run_id": world.ti.run_id, "task_id": world.ti.task_id}
    with create_session() as session:
        found = xcoms.find(session, place)
    assert key in [stored.key for stored in found]
    assert all(stored.text is None or len(stored.text) <= xcoms.LIMITS[stored.key] for stored in found)
    assert f"The XCom {key} is missing: it is larger than" in world.get(path).text
    for below in ("/progress", "/jobs/a/files/0"):
        assert world.get(path + below).status_code in (200, 404)


def test_pictures_read_no_xcom_once_the_page_is_open_and_a_cleared_task_shows_its_new_jobs(
    world: World, parsed: list[int]
) -> None:
    for job_id in "ab":
        store(world.folder, job_id)
    path = save_jobs(world, ["a", *map(str, range(10_000))])
    [picture] = links(world.get(path).text, "/files/")
    assert picture == f"{path}/jobs/a/files/0"
    parsed.clear()
    assert world.get(picture).status_code == 200
    assert max(parsed, default=0) < 10_000
    page = RECORD | {"destination": world.folder.as_uri(), "jobs": ["b"]}
    world.database.push(world.ti, "rungen_page", page)
    assert links(world.get(path).text, "/files/") == [f"{path}/jobs/b/files/0"]
    assert world.get(picture).status_code == 404


# --- JSON ---------------------------------------------------------------------------------------------------


def test_json_of_many_values_is_not_parsed_and_no_xcom_of_them() -> None:
    few = f"[{'0,' * (MAX_VALUES - 1)}0]"
    assert len(parse_bounded(few)) == len(parse_bounded(few.encode())) == MAX_VALUES
    for text in (f"[{few}]", f"[{few}]".encode(), BOMB):
        with pytest.raises(TooLargeError):
            parse_bounded(text)
    escaped = json.dumps(BOMB).replace("[", "\\u005b").replace(",", "\\u002c")
    errors = xcoms.read([xcoms.StoredXCom("rungen_page", 1, text) for text in (BOMB, escaped)])
    assert [type(error) for error in errors] == [TooLargeError] * 2
    assert "larger than a page reads" in xcoms.notice("rungen_page", errors[0])


def test_a_manifest_of_many_values_is_not_parsed(world: World, request: pytest.FixtureRequest) -> None:
    store(world.folder, "a")
    store(world.folder, "b", result=BOMB)
    path = save_jobs(world, ["a", "b"])
    parsed = request.getfixturevalue("parsed")
    page = world.get(path).text
    assert "The files of 1 job are missing" in page
    assert links(page, "/files/") == [f"{path}/jobs/a/files/0"]
    assert "The files of 1 job are missing" in world.get(f"{path}/jobs/b").text
    assert world.get(f"{path}/jobs/b/files/0").status_code == 404
    assert max(parsed) < 100_000


def test_half_characters_are_replaced(world: World) -> None:
    store(world.folder, "a", result=json.dumps({HALF: HALF}))
    path = save_jobs(world, ["a", HALF], failed=[{"index": 1, "error": HALF}], job_id=HALF)
    for each in (path, *links(world.get(path).text, "/jobs/")):
        assert world.get(each).status_code == 200, each
    page = RECORD | dict.fromkeys(("connection", "app", "results", "new_ledger", HALF), HALF)
    assert world.get(world.again().save(xcoms={"rungen_page": page})).status_code == 200


# --- manifests and texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result", [json.dumps("x" * (3 << 20)), f"[{'[],' * 150_000}[]]"], ids=["bytes", "values"]
)
def test_the_manifests_of_a_page_are_bounded_together(tmp_path: Path, parsed: list[int], result: str) -> None:
    ids = [f"job-{number}" for number in range(30)]
    for job_id in ids:
        store(tmp_path, job_id, result=result)
    parsed.clear()
    found = read_manifests(tmp_path.as_uri(), APP, ids, 60)
    shown = [job_id for job_id, manifest in found.items() if manifest is not None]
    assert 0 < len(shown) < 10
    assert len(found) == 30, "the others are too large for the page"
    assert sum(parsed) < 30 * len(result) / 5
    # on a page of its own it is shown
    assert read_manifests(tmp_path.as_uri(), APP, ["job-29"], 60)["job-29"] is not None
    parsed.clear()
    with pytest.raises(TooSlowError):
        read_manifests(tmp_path.as_uri(), APP, ids, -1)
    assert parsed == []


def test_a_job_with_many_outputs_shows_a_hundred_at_a_time(world: World) -> None:
    store(world.folder, "j", outputs=1000)
    of_task = save_jobs(world, ["j"])
    path = f"{of_task}/jobs/j"
    first, second, last = (world.get(f"{path}?page={page}").text for page in (1, 2, 10))
    for page, start in ((first, 0), (second, 100), (last, 900)):
        assert links(page, "/files/") == [f"{path}/files/{number}" for number in range(start, start + 100)]
        assert page.count('loading="lazy"') == 99
    assert [f"{path}?page=1", f"{path}?page=3"] == links(second, "?page=")
    assert world.get(f"{path}/files/999").content == PICTURE
    page = world.get(of_task).text
    assert len(links(page, "/files/")) < 20
    assert "987 more" in page


def test_a_manifest_is_read_once_for_all_pictures_of_a_page(world: World, counting: CountingStore) -> None:
    place, folder = "memory://counts@bucket/outputs", "/bucket/outputs/j"
    counting.pipe_file(f"{folder}/manifest.json", manifest_text(place, "j", 20, None, "null").encode())
    for number in range(20):
        counting.pipe_file(f"{folder}/{number}.png", PICTURE)
    path = world.save(xcoms={"job_id": "j", "rungen_page": RECORD | {"destination": place}})
    for number in range(20):
        assert world.get(f"{path}/jobs/j/files/{number}").status_code == 200
    assert [path for path in counting.reads if path.endswith("manifest.json")] == [f"{folder}/manifest.json"]


async def make_page(world: World) -> tuple[Any, float]:
    """Return what the page of the task shows, and how long the event loop was held up for it."""
    [task] = database.find_tasks(world.ti.dag_id, world.ti.run_id, world.ti.task_id, -1)
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            before = time.thread_time()  # not of other threads and processes
            await asyncio.sleep(0.01)
            gaps.append(time.thread_time() - before)

    ticking = asyncio.create_task(tick())
    page = await views.task_page(Gathering(task, user=None), Urls("/rungen"), Query())
    await asyncio.sleep(0.02)
    ticking.cancel()
    return page, max(gaps)


def test_a_page_of_large_texts_does_not_hold_up_the_event_loop_and_that_of_a_job_has_them(
    world: World,
) -> None:
    text = PROSE * 300
    ids = [f"job-{number}" for number in range(100)]
    result = json.dumps({"text": text, "all": [text]})
    for job_id in ids:
        given = {"prompt": "a fox", "document": f"{text}the end"}
        store(world.folder, job_id, outputs=0, input=given, result=result)
    path = save_jobs(world, ids)
    page, gap = asyncio.run(make_page(world))
    assert len(page["jobs"]) == 100
    assert all(job.text.startswith("It was dark") and job.input is None for job in page["jobs"])
    assert gap < 0.2
    assert "the end" in world.get(f"{path}/jobs/{ids[0]}").text


def test_large_results_at_the_service_do_not_hold_up_the_event_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job("j", APP, JobStatus.COMPLETED, result=[0] * 200_000, input={"prompt": "a fox"})
    ids = [f"job-{number}" for number in range(30)]
    monkeypatch.setattr(live, "get_jobs", lambda *_: dict.fromkeys(ids, job))
    world.save(xcoms={"rungen_page": RECORD, "jobs": ids, "failed": []})
    world.database.render(world.ti, rungen_conn_id="none")
    page, gap = asyncio.run(make_page(world))
    assert [job.prompt for job in page["jobs"]] == ["a fox"] * 30
    assert gap < 0.2


# --- threads and memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dag", "user", "store"])
def test_what_hangs_fills_only_its_own_share_of_the_threads(kind: Kind) -> None:
    go, begun = threading.Event(), []

    async def attempt(name: str, function: Callable[[], Any]) -> None:
        charge(kind, name)
        await run_within(0.2, "store", function)

    async def attempts(name: str, function: Callable[[], Any]) -> None:
        tasks = [asyncio.create_task(attempt(name, function)) for _ in range(50)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, TooSlowError) for outcome in outcomes)

    async def main() -> None:
        try:
            await attempts("hanging", go.wait)
            await attempts("hanging", lambda: begun.append(1))
            assert not begun, "what nobody waits for any more is not begun"
            await asyncio.create_task(attempt("other", lambda: begun.append(2)))
            assert begun == [2]
        finally:
            go.set()
        await asyncio.create_task(attempt("hanging", lambda: begun.append(3)))  # the threads are free again

    asyncio.run(main())
    assert begun == [2, 3]


def test_so_many_threads_may_hang() -> None:
    go, running = threading.Event(), 0

    def hang() -> None:
        nonlocal running
        running += 1
        go.wait()

    async def main() -> None:
        try:
            await asyncio.gather(*(run_within(1, "files", hang) for _ in range(60)), return_exceptions=True)
            assert running == 48
        finally:
            go.set()
        await run_within(5, "files", lambda: None)

    asyncio.run(main())


def test_what_is_too_large_to_keep_takes_the_room_of_nothing_else() -> None:
    cache = Cache(max_size=10)
    cache.put("a", "kept", 60, size=4)
    cache.put("b", "too large", 60, size=11)
    assert (cache.get("a"), cache.get("b")) == ("kept", None)
    cache.put("a", "too large", 60, size=11)
    assert cache.get("a") is None
