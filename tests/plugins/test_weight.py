"""What a page costs the API server does not grow with the task, nor with what somebody else pushed."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import APP
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
    state = {"entries": returned}
    return world.save(xcoms=pushed | {"return_value": returned, "batch_state": state} | more)


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


def seconds_of(world: World, *paths: str) -> float:
    """Return the processor time of this process for a request for each path: the machine may be busy."""
    started = time.process_time()
    for path in paths:
        assert world.get(path).status_code == 200, path
    return time.process_time() - started


def test_a_page_and_its_pictures_take_as_long_for_ten_thousand_jobs_as_for_a_hundred(world: World) -> None:
    seconds = {}
    for jobs in (100, 10_000):
        path = save_batch(world.again(), jobs)
        pictures = links(world.get(path).text, "/files/")
        assert len(pictures) == 100
        rounds = [(seconds_of(world, path), seconds_of(world, *pictures[:20])) for _ in range(5)]
        seconds[jobs] = [statistics.median(each) for each in zip(*rounds, strict=True)]
    assert all(many <= 2 * few for many, few in zip(seconds[10_000], seconds[100], strict=True)), seconds


def test_pictures_load_no_xcom_once_the_page_is_open(world: World, loaded: Loaded) -> None:
    path = save_batch(world, 10_000)
    assert loaded.of(world, path) > 39 * 10_000  # the ids
    pictures = links(world.get(path).text, "/files/")
    assert loaded.of(world, path) < 10_000
    assert loaded.of(world, *pictures) < 10_000 * len(pictures)


def test_a_page_loads_only_what_it_shows(world: World, loaded: Loaded) -> None:
    large = ["x" * 1000] * 10_000
    path = save_batch(world, 100, return_value=large, batch_state=large, mine=large)
    assert loaded.of(world, path) < 100_000


@pytest.mark.parametrize(
    "key", ["rungen_page", "job_ids", "job_id", "failed", "refused", "usage", "bill", "scaled"]
)
def test_what_is_too_large_stays_in_the_database(world: World, loaded: Loaded, key: str) -> None:
    path = save_batch(world, 100, **{key: ["x" * 1000] * 10_000})
    for each in (path, f"{path}/progress", "/"):
        assert loaded.of(world, each) < 100_000
    assert f"The XCom {key} is missing" in world.get(path).text


def test_a_cleared_task_shows_its_new_jobs(world: World) -> None:
    path = save_batch(world, 3)
    assert len(links(world.get(path).text, "/files/")) == 3
    world.database.push(world.ti, "job_ids", [job_id_of(1)])
    assert len(links(world.get(path).text, "/files/")) == 1
    assert world.get(f"{path}/jobs/{job_id_of(1)}/files/0").status_code == 200
    assert world.get(f"{path}/jobs/{job_id_of(0)}/files/0").status_code == 404
