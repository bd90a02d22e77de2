"""The contact sheet that operators write beside the outputs, in every mode."""

from __future__ import annotations

import os
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import pytest
from conftest import APP, FakeTaskInstance, run_task, table_of
from reader import Reader
from rungen_emulator import Emulator

from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.sinks.contact_sheet import JOBS_A_PAGE, SheetWriter, describe_job
from airflow_provider_rungen.execution.table.result_rows import ResultRow, Status
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import (
    Ledger,
    RunGenCollectResultsOperator,
    RunGenRunTableOperator,
)

pytestmark = pytest.mark.usefixtures("unsettled")
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
QUICK: Any = {"task_id": "paint", "poll_interval": 0.02}


class Page(Reader):
    """A page in a file."""

    def __init__(self, file: Path) -> None:
        super().__init__(file.read_text())
        self.folder = file.parent

    def files(self) -> Iterator[Path]:
        """Yield what the links lead to, from the page on."""
        for link in self.links():
            assert not urlsplit(link).scheme, link
            assert not urlsplit(link).netloc, link
            yield self.folder / unquote(link)


def job(**emulator: Any) -> dict[str, Any]:
    given = {"prompt": "a red fox", "width": 640, "height": 512, "seed": 7}
    return given | {"emulator": {"seconds": 0.3} | emulator}


def submitted(*inputs: dict[str, Any]) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input=one).id for one in inputs]


def check(page: Page) -> None:
    """Check what holds for each page of a task: links work, and nothing is secret."""
    for file in page.files():
        assert file.exists(), file
    assert "X-Amz" not in page.html


# --- each operator, in each mode ---


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("results", [False, True], ids=["manifests", "table"])
def test_collected_jobs_are_on_the_sheet(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, deferrable: bool, results: bool
) -> None:
    # neither is over before the task defers
    seconds = 2 if deferrable else 0
    good, bad = submitted(job(seconds=seconds), job(seconds=seconds, fail="out of memory"))
    more: Any = {"results": f"{tmp_path}/results.csv"} if results else {}
    options = {**QUICK, **more, "destination": str(tmp_path), "deferrable": deferrable, "max_failed": 2}
    outcome = run_task(RunGenCollectResultsOperator(job_id=[good, None, bad, good], **options), context)
    assert outcome.error is None
    assert len(outcome.events) == deferrable
    page = Page(tmp_path / "index.html")
    check(page)
    assert {source.partition("/")[0] for source in page.all("img", "src")} == {good}
    for file in page.files():
        assert file.read_bytes().startswith(b"\x89PNG")
    assert page.all("img", "width") == ["640", "640"]
    for text in ("a red fox", "640 x 512", "seed 7", "out of memory", "it has no job", "4 jobs", APP):
        assert text in page.text
    assert page.text.count("out of memory") == 2, "once as a reason, once at the job"


@MODES
def test_the_rows_of_a_table_are_on_the_sheet(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, deferrable: bool
) -> None:
    rows: list[dict[str, Any]] = [{"sku": f"sku-{n}", "title": f"lamp {n}"} for n in range(5)]

    def to_input(row: dict[str, Any]) -> Any:
        given = {"sku-1": None, "sku-2": {"prompt": 7}, "sku-3": job(fail="out of memory")}
        return given.get(row["sku"], {"prompt": f"photo of {row['title']}"})

    def sheet_of(run_id: str) -> Page:
        context["ti"].run_id = run_id
        op = RunGenRunTableOperator(
            table=rows,
            key="sku",
            to_input=to_input,
            columns=["title"],
            destination=tmp_path.as_uri(),
            ledger=Ledger((tmp_path / "ledger").as_uri()),
            input_schema="flux-schnell",
            max_failed=2,
            deferrable=deferrable,
            **QUICK,
        )
        assert run_task(op, context).error is None
        page = Page(tmp_path / "index.html")
        check(page)
        assert len(page.all("img", "src")) == 2
        return page

    page = sheet_of("night 1")
    for text in ("sku-0", "lamp 0", "photo of lamp 4", "2 completed", "2 failed", "1 skipped", "night 1"):
        assert text in page.text
    assert "sku-1" not in page.text, "a row without a job needs no place"
    assert "reused" not in page.text
    page = sheet_of("night 2")
    assert "2 reused" in page.text
    assert "photo of lamp 4" in page.text


@pytest.mark.contract
def test_a_batch_that_fails_has_a_sheet(rungen_emulator: Emulator, context: Any, tmp_path: Path) -> None:
    inputs = [job(), {"prompt": 7}, job(fail="out of memory")]
    op = table_of(inputs=inputs, destination=str(tmp_path), **QUICK)
    assert run_task(op, context).error is not None
    page = Page(tmp_path / "index.html")
    check(page)
    assert len(page.all("img", "src")) == 1
    assert "1 completed" in page.text
    assert "2 failed" in page.text


@pytest.mark.contract
@pytest.mark.parametrize("is_one", [True, False], ids=["one picture", "texts"])
def test_neither_one_job_nor_texts_have_a_sheet(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, is_one: bool
) -> None:
    ids = submitted(job(seconds=0) if is_one else job(seconds=0, result="a text"))
    op = RunGenCollectResultsOperator(job_id=ids[0] if is_one else ids, destination=str(tmp_path), **QUICK)
    assert run_task(op, context).error is None
    assert (tmp_path / ids[0] / "manifest.json").exists()
    assert not (tmp_path / "index.html").exists()


def test_each_mapped_task_has_a_sheet_of_its_own(ti: FakeTaskInstance, tmp_path: Path) -> None:
    for _ in range(2):
        for index, count in ((-1, 2 * JOBS_A_PAGE), (0, 3 * JOBS_A_PAGE), (1, 1)):
            ti.map_index = index
            SheetWriter(tmp_path).write(lambda count=count: rows(tmp_path, count), ti, APP)  # type: ignore[misc]
    pages = [len(pages_from(tmp_path / name)) for name in ("index.html", "index-0.html", "index-1.html")]
    assert pages == [2, 3, 1]
    assert len(os.listdir(tmp_path)) == 6, "the pages of the earlier sheets are removed"


def test_only_the_first_jobs_are_shown(
    ti: FakeTaskInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.execution.sinks.contact_sheet.MAX_JOBS", JOBS_A_PAGE)
    SheetWriter(tmp_path).write(lambda: rows(tmp_path, 3 * JOBS_A_PAGE), ti, APP)
    [page] = pages_from(tmp_path / "index.html")
    assert "600 jobs" in page.text
    assert "the first 200 jobs" in page.text


# --- whole or not at all ---


class FailingStorage(Storage):
    """A store that goes down after some files."""

    writes_left = 10**9

    def put(self, file: BinaryIO, path: str, folder: str, name: str) -> None:
        if self.writes_left <= 0:
            raise OSError("the store is down")
        FailingStorage.writes_left -= 1
        super().put(file, path, folder, name)


def rows(folder: Path, count: int) -> Iterator[ResultRow]:
    for index in range(count):
        given = {"prompt": f"picture {index} of a fox", "width": 1024, "height": 1024, "seed": index}
        has_failed = index % 100 == 99
        outputs = () if has_failed else [{"size": 24_000, "content_type": "image/png"}]
        yield ResultRow(
            index=index,
            status=Status.FAILED if has_failed else Status.COMPLETED,
            values={"sku": f"sku-{index}"},
            error=f"Failed: out of memory (job id-{index}, app {APP})" if has_failed else None,
            job_id=f"id-{index}",
            outputs=() if has_failed else [f"{folder}/id-{index}/0-a.png"],
            about=describe_job(given, outputs),
        )


def pages_from(index: Path) -> list[Page]:
    """Return the pages of a sheet, by the link to the next one."""
    pages = [Page(index)]
    while following := [attrs["href"] for tag, attrs in pages[-1].tags if attrs.get("rel") == "next"]:
        pages.append(Page(index.parent / str(following[0])))
    return pages


@pytest.mark.parametrize("writes", range(4))
def test_a_store_that_fails_midway_leaves_the_earlier_sheet_whole(
    ti: FakeTaskInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    writes: int,
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.execution.sinks.contact_sheet.Storage", FailingStorage)
    count = 3 * JOBS_A_PAGE
    monkeypatch.setattr(FailingStorage, "writes_left", 10**9)
    ti.run_id = "night 1"
    SheetWriter(tmp_path, ["sku"]).write(lambda: rows(tmp_path, count), ti, APP)
    monkeypatch.setattr(FailingStorage, "writes_left", writes)
    ti.run_id = "night 2"
    SheetWriter(tmp_path, ["sku"]).write(lambda: rows(tmp_path, count), ti, APP)
    pages = pages_from(tmp_path / "index.html")
    night = "night 2" if writes == 3 else "night 1"
    assert [night in page.text for page in pages] == [True] * 3
    assert ("No contact sheet" in caplog.text) == (writes < 3)
    assert [str(number) for number in range(count)] == [
        found for page in pages for found in re.findall(r'id="job-(\d+)"', page.html)
    ]


def test_pages_of_the_earlier_sheet_are_removed(ti: FakeTaskInstance, tmp_path: Path) -> None:
    (tmp_path / "index-of-mine.html").write_text("not a page of a sheet")
    for count in (3 * JOBS_A_PAGE, 2 * JOBS_A_PAGE, 1):
        SheetWriter(tmp_path).write(lambda count=count: rows(tmp_path, count), ti, APP)  # type: ignore[misc]
        names = [name for name in os.listdir(tmp_path) if name != "index-of-mine.html"]
        assert len(names) == len(pages_from(tmp_path / "index.html")) == max(1, count // JOBS_A_PAGE)
    assert (tmp_path / "index-of-mine.html").exists()


def test_many_jobs_in_bounded_memory(ti: FakeTaskInstance, tmp_path: Path) -> None:
    SheetWriter(tmp_path).write(lambda: rows(tmp_path, 1), ti, APP)  # loads Jinja2 and the templates
    tracemalloc.start()
    try:
        SheetWriter(tmp_path, ["sku"]).write(lambda: rows(tmp_path, 4000), ti, APP)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6
    pages = pages_from(tmp_path / "index.html")
    assert len(pages) == 4000 // JOBS_A_PAGE
    assert "4,000 jobs" in pages[0].text
    assert "40 out of memory" in re.sub(r"\s+", " ", pages[0].text)
    assert max(len(page.html) for page in pages) < 500_000


# --- where files are ---


def test_names_that_need_escaping_and_files_elsewhere(ti: FakeTaskInstance, tmp_path: Path) -> None:
    names = ["0-a b#c?d%.png", '0-"><img src=x>.png', "0-page.html", "0-x.svg", "0-javascript:alert(1)"]
    (tmp_path / "id").mkdir()
    for name in names:
        (tmp_path / "id" / name).touch()
    uris = [f"{tmp_path}/id/{name}" for name in names] + ["s3://user:secret@other/id/0-a.png"]
    row = ResultRow(index=0, status=Status.COMPLETED, job_id="id", outputs=uris)
    SheetWriter(tmp_path).write(lambda: [row], ti, APP)
    page = Page(tmp_path / "index.html")
    check(page)
    assert len(page.all("img", "src")) == 2
    downloads = [attrs["href"] for _, attrs in page.tags if "download" in attrs]
    assert downloads == ["id/0-page.html", "id/0-x.svg", "id/0-javascript%3Aalert%281%29"]
    assert "other/id/0-a.png" in page.text
    assert "secret" not in page.html


def test_s3(
    rungen_emulator: Emulator, context: Any, s3: str, s3_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.execution.sinks.contact_sheet.JOBS_A_PAGE", 5)
    folder = s3.rpartition("/")[2]
    ids = submitted(*[job(seconds=0)] * 6)
    for _ in range(2):
        op = RunGenCollectResultsOperator(task_id="collect", job_id=ids, destination=s3)
        assert run_task(op, context).error is None
        listed = s3_client.list_objects_v2(Bucket="bucket", Prefix=f"{folder}/index")["Contents"]
        names = sorted(entry["Key"].removeprefix(f"{folder}/") for entry in listed)
        assert len(names) == 2, "the page of the earlier sheet is removed"
        answer = s3_client.get_object(Bucket="bucket", Key=f"{folder}/index.html")
        assert answer["ContentType"] == "text/html"
        html = answer["Body"].read().decode()
        assert names[0] in html
        assert "X-Amz" not in html
        sources = re.findall(r'<img src="(.*?)"', html)
        assert len(sources) == 5
        picture = s3_client.get_object(Bucket="bucket", Key=f"{folder}/{sources[0]}")
        assert picture["Body"].read().startswith(b"\x89PNG")
