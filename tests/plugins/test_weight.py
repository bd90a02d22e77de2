"""What a page costs the API server does not grow with the task, nor with what somebody else pushed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from airflow.sdk.io import attach
from conftest import APP
from fsspec.implementations.memory import MemoryFileSystem
from sqlalchemy import event

from plugins.conftest import World, links

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.filterwarnings("ignore")]

PICTURE = b"\x89PNG\r\n\x1a\n" + b"x" * 100
ENTRY = {"at": "image", "size": len(PICTURE), "sha256": "0" * 64, "content_type": "image/png"}


def job_id_of(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def store(world: World, job_id: str, outputs: int = 1) -> dict[str, Any]:
    """Write the outputs of a job, as the archive does, and return its small manifest."""
    folder = world.folder / job_id
    folder.mkdir()
    names = [f"{number}-image.png" for number in range(outputs)]
    for name in names:
        (folder / name).write_bytes(PICTURE)
    entries = [{"uri": f"{folder.as_uri()}/{name}", **ENTRY} for name in names]
    manifest = {"app_id": APP, "job_id": job_id, "status": "COMPLETED", "complete": True}
    result = {"images": [entry["uri"] for entry in entries]}
    manifest |= {"input": {"prompt": "a fox"}, "result": result, "outputs": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return {"job_id": job_id, "manifest": f"{folder.as_uri()}/manifest.json", "outputs": entries}


def save_batch(world: World, jobs: int, **more: Any) -> str:
    """Write a batch of which the first 100 jobs are looked at, with all that such a task pushes."""
    ids = [job_id_of(number) for number in range(jobs)]
    small = [store(world, job_id) for job_id in ids[:100]]
    returned = [{**small[0], "job_id": job_id} for job_id in ids]
    record = {"connection": "none", "app": APP, "destination": world.folder.as_uri(), "rows": jobs}
    pushed = {"rungen_page": record, "job_ids": ids, "failed": [], "usage": {"jobs": jobs, "completed": jobs}}
    state = {"memory": returned}
    return world.save(xcoms=pushed | {"return_value": returned, "rungen_log": state} | more)


@dataclass
class Loaded:
    """The characters that the database handed over."""

    size: int = 0

    def of(self, world: World, *paths: str) -> int:
        """Return how many a request for each path took."""
        before = self.size
        for path in paths:
            assert world.get(path).status_code == 200, path
        return self.size - before


@pytest.fixture
def loaded(server: Any) -> Iterator[Loaded]:
    from airflow.settings import engine

    found = Loaded()

    def count(cursor: Any, row: tuple[Any, ...]) -> tuple[Any, ...]:
        found.size += sum(len(value) for value in row if isinstance(value, str | bytes))
        return row

    def checkout(connection: Any, *_: Any) -> None:
        connection.row_factory = count

    def reset(connection: Any, *_: Any) -> None:
        connection.row_factory = None

    assert engine is not None
    event.listen(engine, "checkout", checkout)
    event.listen(engine, "reset", reset)
    yield found
    event.remove(engine, "checkout", checkout)
    event.remove(engine, "reset", reset)


def test_pictures_load_no_xcom_once_the_page_is_open(world: World, loaded: Loaded) -> None:
    path = save_batch(world, 10_000)
    assert loaded.of(world, path) > 39 * 10_000  # the ids
    pictures = links(world.get(path).text, "/files/")
    assert loaded.of(world, path) < 10_000
    assert loaded.of(world, *pictures) < 10_000 * len(pictures)


def test_a_page_loads_only_what_it_shows(world: World, loaded: Loaded) -> None:
    large = ["x" * 1000] * 10_000
    path = save_batch(world, 100, return_value=large, rungen_log=large, mine=large)
    assert loaded.of(world, path) < 100_000


@pytest.mark.parametrize("key", ["rungen_page", "job_ids", "job_id", "failed", "usage", "bill", "scaled"])
def test_what_is_too_large_stays_in_the_database(world: World, loaded: Loaded, key: str) -> None:
    others = loaded.of(world, "/")  # the database has the tasks of other tests, too
    path = save_batch(world, 100, **{key: ["x" * 1000] * 10_000})
    for each in (path, f"{path}/progress"):
        assert loaded.of(world, each) < 100_000
    assert loaded.of(world, "/") < others + 100_000
    assert f"The XCom {key} is missing" in world.get(path).text


def test_a_cleared_task_shows_its_new_jobs(world: World) -> None:
    path = save_batch(world, 3)
    assert len(links(world.get(path).text, "/files/")) == 3
    world.database.push(world.ti, "job_ids", [job_id_of(1)])
    assert len(links(world.get(path).text, "/files/")) == 1
    assert world.get(f"{path}/jobs/{job_id_of(1)}/files/0").status_code == 200
    assert world.get(f"{path}/jobs/{job_id_of(0)}/files/0").status_code == 404


def save_job(world: World, outputs: int) -> str:
    """Write a task with one job that has many outputs, and return the path of the page of the job."""
    store(world, "j", outputs)
    record = {"connection": "none", "app": APP, "destination": world.folder.as_uri()}
    return f"{world.save(xcoms={'job_id': 'j', 'rungen_page': record})}/jobs/j"


def test_a_job_with_many_outputs_shows_a_hundred_at_a_time(world: World) -> None:
    path = save_job(world, 10_000)
    first, second, last = (world.get(f"{path}?page={page}").text for page in (1, 2, 100))
    assert len(first) < 300_000
    for page, start in ((first, 0), (second, 100), (last, 9900)):
        assert links(page, "/files/") == [f"{path}/files/{number}" for number in range(start, start + 100)]
        assert page.count('loading="lazy"') == 99
    assert [f"{path}?page=1", f"{path}?page=3"] == links(second, "?page=")
    assert world.get(f"{path}/files/9999").content == PICTURE
    of_task = world.get(path.removesuffix("/jobs/j")).text
    assert len(links(of_task, "/files/")) < 20
    assert "9,987 more" in of_task


class CountingStore(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store that counts how often a manifest is read."""

    reads = 0

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.reads += path.endswith("manifest.json")
        return super().cat_file(path, *args, **kwargs)


def test_a_manifest_is_read_once_for_all_pictures_of_a_page(world: World) -> None:
    fs = CountingStore()
    attach("memory", conn_id="counts", fs=fs).fs = fs
    place = "memory://counts@bucket/outputs"
    entries = [{"uri": f"{place}/j/{number}.png", **ENTRY} for number in range(20)]
    manifest = {"app_id": APP, "job_id": "j", "status": "COMPLETED", "complete": True, "outputs": entries}
    fs.pipe_file("/bucket/outputs/j/manifest.json", json.dumps(manifest).encode())
    for number in range(20):
        fs.pipe_file(f"/bucket/outputs/j/{number}.png", PICTURE)
    record = {"connection": "none", "app": APP, "destination": place}
    path = f"{world.save(xcoms={'job_id': 'j', 'rungen_page': record})}/jobs/j/files"
    assert [world.get(f"{path}/{number}").status_code for number in range(20)] == [200] * 20
    assert fs.reads == 1
