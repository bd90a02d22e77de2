"""Large tasks, and what hangs, hold up nobody else."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import APP

from airflow_provider_rungen.execution.archive.manifests import Manifest
from airflow_provider_rungen.pages.models import JobView
from airflow_provider_rungen.plugins import airflow_data, task_pages
from airflow_provider_rungen.plugins.gather import Gathering
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.plugins.threads import Kind, TooSlowError, charge, run_within
from airflow_provider_rungen.plugins.urls import Urls
from airflow_provider_rungen.plugins.views import job_view
from plugins.conftest import World

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.filterwarnings("ignore")]

SIGNED = "https://files.example.org/a.png?X-Amz-Signature=SECRET"
PROSE = "It was dark, and a = b; 100% of the ships returned. See https://example.org/story?a=b for more.\n"


def write_manifest(world: World, job_id: str, **fields: Any) -> None:
    folder = world.folder / job_id
    folder.mkdir()
    manifest = {"app_id": APP, "job_id": job_id, "status": "COMPLETED", "complete": True, "outputs": []}
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))


def test_a_page_of_large_texts_does_not_hold_up_the_event_loop(world: World) -> None:
    text = PROSE * 300
    ids = [f"job-{number}" for number in range(100)]
    for job_id in ids:
        write_manifest(
            world, job_id, input={"prompt": "a fox", "document": text}, result={"text": text, "all": [text]}
        )
    record = {"connection": "none", "app": APP, "destination": world.folder.as_uri()}
    world.save(xcoms={"job_ids": ids, "failed": [], "rungen_page": record})
    task = airflow_data.find_task(world.ti.dag_id, world.ti.run_id, world.ti.task_id, -1)
    assert task is not None
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            before = time.thread_time()  # not of other threads and processes
            await asyncio.sleep(0.01)
            gaps.append(time.thread_time() - before)

    async def make() -> Any:
        ticking = asyncio.create_task(tick())
        page = await task_pages.task_page(Gathering(task, may_ask=True), Urls("/rungen"), 1)
        ticking.cancel()
        return page

    page = asyncio.run(make())
    assert len(page.jobs) == 100
    assert all(job.text.startswith("It was dark") and job.input is None for job in page.jobs)
    assert max(gaps) < 0.2


@pytest.mark.parametrize("length", [0, 3900, 7900, 7950, 7990, 8100])
def test_a_text_that_is_cut_has_no_signed_url(length: int) -> None:
    text = ("word " * 2000)[:length] + f" {SIGNED} https://user:SECRET@example.org/ " + "word " * 1000
    task = TaskRecord(dag_id="d", run_id="r", task_id="t", state="success")
    manifest = Manifest({}, True, 0, status="COMPLETED", input={"prompt": text}, result={"text": text})
    for is_whole in (False, True):
        view = job_view(
            JobView(index=0, status="completed", job_id="j"),
            task=task,
            urls=Urls("/rungen"),
            manifest=manifest,
            is_whole=is_whole,
        )
        assert view.text is not None
        assert len(view.text) <= 4000
        assert "SECRET" not in f"{view}"
        assert view.prompt.startswith(text.strip()[:3900] if length > 3900 else "")


def test_the_page_of_a_job_has_its_whole_input(world: World) -> None:
    write_manifest(world, "j", input={"prompt": "a fox", "document": f"{PROSE * 200}the end"}, result={})
    record = {"connection": "none", "app": APP, "destination": world.folder.as_uri()}
    path = world.save(xcoms={"job_id": "j", "rungen_page": record})
    assert "the end" in world.get(f"{path}/jobs/j").text


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
            for _ in range(10):
                calls = (run_within(0.1, "files", hang) for _ in range(20))
                await asyncio.gather(*calls, return_exceptions=True)
            assert running == 48
        finally:
            go.set()
        await run_within(5, "files", lambda: None)

    asyncio.run(main())
