"""Outputs in storage, over real HTTP: what is stored, what faults and kills leave, what is fetched again."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    Asset,
    ObjectStoragePath,
)
from bad_answers import Fault
from client_mistakes import early_retries, keys_leaked
from conftest import APP, KEY, SOON, Outcome, OutletEvents, run_task, signal_when
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.flow import Flow, Gather, Request
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.output_urls import MAX_CONTENT_TYPE_CHARS
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenForbiddenError,
    RunGenInputError,
    RunGenJobError,
    RunGenOutputError,
    RunGenResultError,
)
from airflow_provider_rungen.execution.archive import job_archiver, output_store, stored_jobs
from airflow_provider_rungen.execution.archive.manifests import Manifest, parse_manifest
from airflow_provider_rungen.execution.archive.output_store import OutputStore
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
from airflow_provider_rungen.execution.task.options import CollectOptions
from airflow_provider_rungen.execution.task.outcomes import is_useless
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenCollectResultsOperator

pytestmark = pytest.mark.usefixtures("unsettled", "_hasty")

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
INPUT = {"prompt": "a red fox", "width": 64, "height": 64}
SIGNED = "https://storage.example/in.png?X-Amz-Signature=s3cret"


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF", 0.01)


def job(**emulator: Any) -> dict[str, Any]:
    return {**INPUT, "emulator": {"seconds": 0, **emulator}}


def submitted(*inputs: dict[str, Any]) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input=one).id for one in inputs]


def collect_op(job_id: Any, destination: Any, **options: Any) -> RunGenCollectResultsOperator:
    options = {"poll_interval": 0.02, "defer_after": 0, **options}
    return RunGenCollectResultsOperator(task_id="collect", job_id=job_id, destination=destination, **options)


def archive(context: Any, job_id: Any, folder: Path, **options: Any) -> Outcome:
    return run_task(collect_op(job_id, folder.as_uri(), **options), context)


def files(folder: Path) -> dict[str, bytes]:
    """Return all there is below a folder, hidden files, too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def archive_results(folder: Path, results: dict[str, list[Any]]) -> dict[str, StoredJob | RunGenError]:
    """Store jobs with these results, of which each request gets the next; return the outcomes."""

    async def perform(flow: Flow[Job]) -> Job:
        asked = next(flow)
        while not isinstance(asked, Request):
            if isinstance(asked, Gather):
                flow = asked.flows[0]
                asked = next(flow)
            else:  # it asks for the time
                asked = flow.send(0.0)
        flow.close()
        job_id = asked.path.rpartition("/")[2]
        left = results[job_id]
        result = left.pop(0) if len(left) > 1 else left[0]
        return Job(job_id, APP, JobStatus.COMPLETED, result)

    async def close() -> None:
        pass

    hook = SimpleNamespace(settings=Settings("http://127.0.0.1:1", KEY), aperform=perform, aclose=close)
    guard = SimpleNamespace(defer_signals=nullcontext, check=lambda: None)
    options = CollectOptions.of(collect_op("x", folder.as_uri(), max_concurrency=4))
    run: Any = SimpleNamespace(hook=hook, guard=guard)
    stored: dict[str, StoredJob | RunGenError] = {}
    store = OutputStore(run, options, None)
    return stored | store.store(APP, list(results), lambda job: stored.update({job.job_id: job}))


def manifest_of(folder: Path, job_id: str) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / job_id / "manifest.json").read_text())
    return manifest


def outputs_in(folder: Path) -> set[str]:
    """Return the names of the stored outputs below a folder that a manifest lists."""
    manifests = [json.loads(path.read_text()) for path in folder.glob("*/manifest.json")]
    uris = [entry["uri"] for manifest in manifests for entry in manifest["outputs"]]
    return {uri.removeprefix(f"{folder.as_uri()}/") for uri in uris}


def forget(emulator: Emulator) -> None:
    """Have the service know no job any more."""
    emulator.service.inject(Fault(on="get", status=404, times=None))


def gets_of(emulator: Emulator, job_id: str) -> int:
    """Count the requests for a job."""
    records = emulator.service.records()
    return sum(record.operation == "get" and record.path.endswith(job_id) for record in records)


def fetches(emulator: Emulator) -> Counter[str]:
    """Count the requests for each output."""
    records = emulator.service.records()
    return Counter(record.path.partition("?")[0] for record in records if record.operation == "output")


# --- what is stored -----------------------------------------------------------------------------------------


@MODES
def test_outputs_are_stored_and_small_manifests_returned(  # noqa: PLR0917 - fixtures
    rungen_emulator: Emulator, context: Any, ti: Any, tmp_path: Path, caplog: Any, deferrable: bool
) -> None:
    caplog.set_level("DEBUG")
    ids = submitted(job(seconds=0.2, images=2), {**job(), "like": SIGNED})
    outcome = archive(context, ids, tmp_path, deferrable=deferrable)
    assert outcome.error is None
    assert len(outcome.events) == deferrable
    stored = files(tmp_path)
    names = ["0-0.png", "1-1.png", "manifest.json"]
    expected = [f"{ids[0]}/{name}" for name in names] + [f"{ids[1]}/{name}" for name in names[::2]]
    assert sorted(stored) == sorted(expected)
    for job_id, small in zip(ids, outcome.value, strict=True):
        assert small.keys() == {"job_id", "manifest", "outputs"}
        assert small["manifest"] == (tmp_path / job_id / "manifest.json").as_uri()
        for number, output in enumerate(small["outputs"]):
            content = stored[f"{job_id}/{number}-{number}.png"]
            assert content.startswith(b"\x89PNG")
            assert output == {
                "uri": (tmp_path / job_id / f"{number}-{number}.png").as_uri(),
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "content_type": "image/png",
            }
    manifest = manifest_of(tmp_path, ids[1])
    uri = outcome.value[1]["outputs"][0]["uri"]
    assert manifest["result"] == {"images": [{"image": uri}]}
    assert manifest["input"] == {**job(), "like": "https://storage.example/in.png"}
    assert (manifest["job_id"], manifest["app_id"], manifest["status"]) == (ids[1], APP, "COMPLETED")
    assert manifest["complete"] is True
    assert manifest["created_at"].endswith("+00:00")
    assert manifest["execution_time"] == 0
    assert [{**output, "at": "result.images[0].image"} for output in outcome.value[1]["outputs"]] == manifest[
        "outputs"
    ]
    assert ti.xcoms["failed"] == []
    everything = f"{stored} {outcome} {ti.pushed} {caplog.text}"
    assert "X-Amz-Signature" not in everything
    assert "s3cret" not in everything
    assert KEY not in everything
    assert keys_leaked(rungen_emulator.service) == 0
    assert sum(fetches(rungen_emulator).values()) == 3


def test_one_id_gives_one_manifest(rungen_emulator: Emulator, context: Any, tmp_path: Path) -> None:
    [job_id] = submitted(job())
    assert archive(context, job_id, tmp_path).value["job_id"] == job_id
    assert archive(context, [job_id], tmp_path).value[0]["job_id"] == job_id
    assert archive(context, [], tmp_path).value == []
    assert [small["job_id"] for small in archive(context, [job_id, job_id], tmp_path).value] == [job_id] * 2
    assert sum(fetches(rungen_emulator).values()) == 1


@pytest.mark.parametrize("result", [None, {"text": f"see {SIGNED}"}])
def test_a_job_without_outputs_has_its_manifest(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, result: Any
) -> None:
    [job_id] = submitted(job(result=result))
    assert archive(context, job_id, tmp_path).value["outputs"] == []
    manifest = manifest_of(tmp_path, job_id)
    assert manifest["complete"] is True
    assert manifest["result"] == json.loads(json.dumps(result).replace("?X-Amz-Signature=s3cret", ""))


@pytest.mark.parametrize("depth", [250, 950])
def test_a_result_that_is_nested_deeply_is_stored(
    rungen_emulator: Emulator, tmp_path: Path, depth: int
) -> None:
    with RunGenHook() as hook:
        url = hook.get_job(job_id=submitted(job())[0]).result["images"][0]["image"]
    deep: Any = url
    for _ in range(depth):
        deep = {"in": [deep]} if depth < 400 else [deep]
    for _ in range(2):
        outcomes = archive_results(tmp_path, {"deep": [deep], "flat": ["text"]})
        assert isinstance(outcomes["flat"], StoredJob)
        assert isinstance(outcomes["deep"], StoredJob)
        assert len(outcomes["deep"].outputs) == 1
    assert sum(fetches(rungen_emulator).values()) == 1
    text = (tmp_path / "deep" / "manifest.json").read_text()
    assert "X-Amz-Signature" not in text
    result = json.loads(text)["result"]
    while not isinstance(result, str):
        [result] = result if isinstance(result, list) else result.values()
    # Python's own parser reads nothing as deep
    assert "nested too deeply" in result if depth > 400 else json.loads(result)


# --- where --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "slash", "object", "pathlib"])
def test_a_destination_may_be_any_object_storage_path(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, kind: str
) -> None:
    [job_id] = submitted(job())
    destination = {
        "path": str(tmp_path),
        "slash": f"{tmp_path.as_uri()}/",
        "object": ObjectStoragePath(tmp_path.as_uri()),
        "pathlib": tmp_path,
    }[kind]
    outcome = run_task(collect_op(job_id, destination), context)
    assert ObjectStoragePath(outcome.value["outputs"][0]["uri"]).read_bytes().startswith(b"\x89PNG")
    assert ObjectStoragePath(outcome.value["manifest"]).exists()
    assert sorted(files(tmp_path)) == [f"{job_id}/0-0.png", f"{job_id}/manifest.json"]


@pytest.mark.parametrize(
    ("destination", "may_pass"),
    [
        *(("", False), ("some/folder", False), ("nosuch://bucket/x", False), (7, False)),
        *(("/proc/no", True), ("file:///dev/null/x", True)),
    ],
)
def test_a_destination_that_cannot_be_used_is_reported_before_the_wait(
    rungen_emulator: Emulator, context: Any, destination: Any, may_pass: bool
) -> None:
    op = collect_op("job", "{{ params.folder }}")
    op.destination = destination  # as rendered
    outcome = run_task(op, context)
    assert isinstance(outcome.error, RunGenInputError if may_pass else AirflowFailException)
    assert "destination" in str(outcome.error)
    assert rungen_emulator.service.records() == []


@pytest.mark.parametrize(
    "error",
    [OSError("Forbidden: KEY:S3CRET"), AirflowNotFoundException("The conn_id `KEY:S3CRET` isn't defined")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("when", ["looked up", "read"])
def test_no_secret_of_a_destination_is_shown(
    rungen_emulator: Emulator, context: Any, caplog: pytest.LogCaptureFixture, error: Exception, when: str
) -> None:
    class Refusing(Uploads):
        def open(self, *_: Any, **__: Any) -> Any:
            raise error

    class Lookup:
        def __get__(self, *_: Any) -> Any:
            if when == "looked up":
                raise error
            return fs

    fs = Refusing()
    attach = import_module(ObjectStoragePath.__module__).attach
    store = attach("memory", conn_id="KEY:S3CRET", fs=fs)
    store.fs = fs
    monkey = pytest.MonkeyPatch()
    monkey.setattr(type(store), "fs", Lookup())
    [job_id] = submitted(job())
    try:
        outcome = run_task(collect_op(job_id, "memory://KEY:S3CRET@bucket/x?sig=S3CRET"), context)
    finally:
        monkey.undo()
    assert isinstance(outcome.error, RunGenInputError | AirflowFailException)
    assert "destination" in str(outcome.error)
    assert "S3CRET" not in "".join(traceback.format_exception(outcome.error)) + caplog.text


@pytest.mark.parametrize("name", ["max_concurrency", "max_output_bytes", "max_xcom_bytes", "max_failed"])
@pytest.mark.parametrize("bad", [-1, "1", 1.5, None, True])
def test_a_number_that_is_none_breaks_the_dag_file(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=name):
        collect_op("j", "/x", **{name: bad})


class Uploads(MemoryFileSystem):  # type: ignore[misc]  # it has no types
    """A file system that is not local, and fails as often as it should, in the middle of a file."""

    cachable = False
    failures = 0
    unreadable = 0

    def open(self, path: Any, mode: str = "rb", **kwargs: Any) -> Any:
        if self.unreadable and mode == "rb":
            self.unreadable -= 1
            raise RuntimeError(f"lost the connection to {SIGNED}")
        return super().open(path, mode, **kwargs)

    def cat_file(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        if self.unreadable and path.endswith("manifest.json"):
            self.unreadable -= 1
            raise RuntimeError(f"lost the connection to {SIGNED}")
        return super().cat_file(path, *args, **kwargs)

    def put_file(self, lpath: Any, rpath: Any, *args: Any, **kwargs: Any) -> None:
        if self.failures:
            self.failures -= 1
            with self.open(rpath, "wb") as file:
                file.write(b"hal")
            raise RuntimeError(f"lost the connection to {SIGNED}")
        super().put_file(lpath, rpath, *args, **kwargs)

    def names(self) -> set[str]:
        return {name.lstrip("/") for name in self.store}


@pytest.fixture
def uploads() -> Iterator[Uploads]:
    attach = import_module(ObjectStoragePath.__module__).attach  # it moved with Airflow 3
    fs = Uploads()
    attach("memory", fs=fs).fs = fs
    fs.store.clear()
    yield fs
    fs.store.clear()


def test_files_are_uploaded(
    rungen_emulator: Emulator, context: Any, uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    [job_id] = submitted(job(images=3))
    value = run_task(collect_op(job_id, "memory://bucket/x/"), context).value
    names = {f"bucket/x/{job_id}/{name}" for name in ("0-0.png", "1-1.png", "2-2.png", "manifest.json")}
    assert uploads.names() == names
    assert {output["uri"] for output in value["outputs"]} | {value["manifest"]} == {
        f"memory://{name}" for name in names
    }
    for output in value["outputs"]:
        content = uploads.cat_file(output["uri"])
        assert (len(content), hashlib.sha256(content).hexdigest()) == (output["size"], output["sha256"])
    assert run_task(collect_op(job_id, "memory://bucket/x"), context).value == value
    assert sum(fetches(rungen_emulator).values()) == 3
    assert files(tmp_path) == {}


def test_an_upload_that_fails_is_repeated_and_shows_no_half_file(
    rungen_emulator: Emulator, context: Any, uploads: Uploads, caplog: pytest.LogCaptureFixture
) -> None:
    [job_id] = submitted(job())
    uploads.failures = 3
    assert run_task(collect_op(job_id, "memory://bucket/x"), context).error is None
    assert uploads.names() == {f"bucket/x/{job_id}/{name}" for name in ("0-0.png", "manifest.json")}
    assert "RuntimeError" in caplog.text
    assert "s3cret" not in caplog.text
    uploads.failures = 99
    [job_id] = submitted(job())
    outcome = run_task(collect_op(job_id, "memory://bucket/x"), context)
    assert type(outcome.error) is RunGenOutputError
    assert outcome.error.retryable
    assert not {name for name in uploads.names() if job_id in name}


# --- many small files at once -------------------------------------------------------------------------------


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        request.getfixturevalue("uploads")
        return "memory://bucket/x"
    return tmp_path.as_uri()


def test_many_files_are_written_read_measured_and_listed(place: str) -> None:
    storage = Storage(place).prepare()
    files = {(folder, f"{n}.txt"): b"x" * n for folder in ("", "a", "b") for n in range(4)}
    storage.write_all(files)
    storage.write_all({("a", "1.txt"): b"new"})
    files["a", "1.txt"] = b"new"
    wanted = [*files, ("a", "none"), ("none", "1.txt"), ("", "a")]
    reader = Storage(place, read_only=True)
    sizes = {file: len(content) for file, content in files.items()}
    assert reader.read_all(wanted) == files
    assert reader.read_all(wanted, 1) == {file: content[:2] for file, content in files.items()}
    assert reader.sizes_of(wanted) == sizes
    in_folders = {file: size for file, size in sizes.items() if file[0]}
    assert reader.list_all(["a", "b", "none"]) == in_folders
    assert reader.uri_of("", "1.txt") == f"{place}/1.txt"
    assert ObjectStoragePath(reader.uri_of("a", "1.txt")).read_bytes() == b"new"


def test_nothing_is_created_where_files_are_only_read(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "none", read_only=True)
    assert storage.read_all([("a", "1.txt")]) == {}
    assert storage.sizes_of([("a", "1.txt")]) == {}
    assert storage.list_folder("a") == {}
    for look in (lambda: storage.list_all(["a"]), lambda: storage.confirm_missing([("a", "1.txt")])):
        with pytest.raises(RunGenOutputError) as outage:
            look()
        assert outage.value.retryable
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_visible_before_it_is_complete(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def pipe_file(path: str, value: bytes, **_: Any) -> None:
        with uploads.open(path, "wb") as file:
            file.write(value[:1])
        seen.append(Storage("memory://bucket/x").read_all([("a", "1.txt")]))
        raise OSError("lost the connection")

    Storage("memory://bucket/x").write_all({("a", "1.txt"): b"old"})
    monkeypatch.setattr(uploads, "pipe_file", pipe_file)
    with pytest.raises(RunGenOutputError, match="lost the connection"):
        Storage("memory://bucket/x").write_all({("a", "1.txt"): b"new"})
    assert seen == [{("a", "1.txt"): b"old"}]
    assert uploads.names() == {"bucket/x/a/1.txt"}


def test_links_are_not_followed_in_many_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_bytes(b"x")
    (tmp_path / "a" / "2.txt").symlink_to(tmp_path / "a" / "1.txt")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    storage = Storage(tmp_path)
    wanted = [(folder, f"{n}.txt") for folder in "ab" for n in (1, 2)]
    assert storage.sizes_of(wanted) == storage.list_all(["a"]) == {("a", "1.txt"): 1}
    for file in wanted[1:]:
        with pytest.raises(RunGenOutputError, match="symbolic link"):
            storage.read_all([file])
    with pytest.raises(RunGenOutputError, match="symbolic link"):
        storage.list_all(["a", "b"])
    with pytest.raises(RunGenOutputError, match="symbolic link"):
        storage.write("b", "1.txt", b"new")


@pytest.mark.parametrize("to", ["something", "nothing"])
def test_a_link_in_the_place_of_a_file_is_replaced(tmp_path: Path, to: str) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "place" / "a"
    folder.mkdir(parents=True)
    (folder / "1.txt").symlink_to(elsewhere)
    if to == "something":
        elsewhere.write_bytes(b"old")
    Storage(tmp_path / "place").write("a", "1.txt", b"new")
    assert files(tmp_path) == {"place/a/1.txt": b"new"} | ({"elsewhere": b"old"} if to == "something" else {})
    assert not (folder / "1.txt").is_symlink()


def test_the_destination_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    storage = Storage(tmp_path / "link").prepare()
    storage.write("a", "1.txt", b"x")
    assert storage.list_all(["a"]) == {("a", "1.txt"): 1}
    assert (tmp_path / "real" / "a" / "1.txt").read_bytes() == b"x"


# --- what is there already ----------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("wait", [True, False])
def test_the_service_is_not_asked_for_what_is_stored(  # noqa: PLR0917 - fixtures
    rungen_emulator: Emulator,
    context: Any,
    ti: Any,
    tmp_path: Path,
    deferrable: bool,
    wait: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = submitted(job(images=2), job(images=0))
    first = archive(context, ids, tmp_path)
    before = files(tmp_path)
    forget(rungen_emulator)
    requests = len(rungen_emulator.service.records())
    caplog.set_level("INFO")
    again = archive(context, ids, tmp_path, deferrable=deferrable, wait_for_completion=wait)
    assert (again.value, again.events) == (first.value, [])
    assert f"Reused 2 jobs: stored in {tmp_path.as_uri()}" in caplog.text
    assert len(rungen_emulator.service.records()) == requests
    assert ti.xcoms["failed"] == []
    assert files(tmp_path) == before


@MODES
def test_the_service_is_asked_for_the_others_alone(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, deferrable: bool
) -> None:
    stored, other = submitted(job(), job(seconds=0.3))
    first = archive(context, [stored], tmp_path).value
    asked = gets_of(rungen_emulator, stored)
    outcome = archive(context, [other, None, stored], tmp_path, deferrable=deferrable, max_failed=1)
    assert [value and value["job_id"] for value in outcome.value] == [other, None, stored]
    assert outcome.value[2] == first[0]
    assert len(outcome.events) == deferrable
    assert gets_of(rungen_emulator, stored) == asked
    assert gets_of(rungen_emulator, other) > 0


@pytest.mark.parametrize("options", [{}, {"wait_for_completion": False, "max_failed": 1}], ids=str)
def test_a_store_that_cannot_be_read_fails_the_task_and_can_be_tried_again(
    rungen_emulator: Emulator, context: Any, uploads: Uploads, options: dict[str, Any]
) -> None:
    [job_id] = submitted(job())
    first = run_task(collect_op(job_id, "memory://bucket/x"), context).value
    forget(rungen_emulator)
    before = len(rungen_emulator.service.records())
    uploads.unreadable = 99
    outcome = run_task(collect_op(job_id, "memory://bucket/x", **options), context)
    assert type(outcome.error) is RunGenOutputError
    assert outcome.error.retryable
    assert len(rungen_emulator.service.records()) == before
    uploads.unreadable = 0
    assert run_task(collect_op(job_id, "memory://bucket/x"), context).value == first


def test_what_is_stored_has_to_fit_the_schema(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    good, odd = submitted(job(), job(result={"n": 7}))
    assert archive(context, [good, odd], tmp_path).error is None
    asked = gets_of(rungen_emulator, good)
    assert archive(context, good, tmp_path, result_schema="flux-schnell").error is None
    assert gets_of(rungen_emulator, good) == asked, "the schema wants URLs"
    outcome = archive(context, odd, tmp_path, result_schema="flux-schnell")
    assert type(outcome.error) is AirflowFailException
    # what only the real URL fits is asked for
    schema = {"properties": {"images": {"items": {"properties": {"image": {"pattern": "^http://127"}}}}}}
    assert archive(context, good, tmp_path, result_schema=schema).error is None
    assert gets_of(rungen_emulator, good) > asked


@pytest.mark.parametrize("harm", ["cut", "gone", "folder"])
def test_what_is_not_as_it_was_stored_is_fetched_again(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, harm: str
) -> None:
    [job_id] = submitted(job(images=3))
    first = archive(context, job_id, tmp_path)
    before = files(tmp_path)
    harmed = tmp_path / job_id / "1-1.png"
    content = harmed.read_bytes()
    harmed.unlink()
    if harm == "cut":
        harmed.write_bytes(content[:-1])
    elif harm == "folder":
        harmed.mkdir()
        assert archive(context, job_id, tmp_path).error.retryable  # type: ignore[union-attr]
        harmed.rmdir()
        rungen_emulator.service.requests.clear()
    assert archive(context, job_id, tmp_path).value == first.value
    after = files(tmp_path)
    del before[f"{job_id}/manifest.json"], after[f"{job_id}/manifest.json"]
    assert after == before
    assert fetches(rungen_emulator)[f"/outputs/{job_id}/1.png"] == (1 if harm == "folder" else 2)


POISONS: dict[str, Any] = {
    "a long type": {"content_type": "x" * 3_000_000},
    "a type that is none": {"content_type": {"__classname__": "airflow.sdk.Connection"}},
    "a list": {"content_type": [["x"]]},
    "control characters": {"content_type": "a\0\ud800"},
    "no size": {"size": None},
    "a negative size": {"size": -1},
    "a huge size": {"size": 2**70},
    "a size that is a bool": {"size": True},
    "a size that is a number": {"size": 1e999},
    "a digest that is none": {"sha256": {"__type": "dict", "__var": 1}},
    "a URI that is none": {"uri": {}},
    "a place that is none": {"at": ["result"]},
}


ENTRY = {"uri": "/x/0.png", "at": "result", "size": 1, "sha256": "0" * 64, "content_type": None}


def parsed(**fields: Any) -> Manifest:
    manifest = {"app_id": APP, "job_id": "job", "complete": True, "outputs": [ENTRY], **fields}
    return parse_manifest(json.dumps(manifest).encode(), APP, "job")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"app_id": 1}', b"[" * 100_000])
def test_a_manifest_that_is_none_has_no_entries(content: bytes) -> None:
    assert parse_manifest(content, APP, "job") == Manifest({}, is_complete=False, invalid_count=1)


def test_only_known_fields_of_an_entry_are_read() -> None:
    entry = {**ENTRY, "__classname__": "airflow.sdk.Connection", "more": "x"}
    assert list(parsed(outputs=[entry]).entries.values()) == [ENTRY]


@pytest.mark.parametrize("name", ["image/png", "x" * 999, "\0" * 999, "\U0001f600\ue000" * 99])
def test_the_type_that_a_host_names_is_valid_once_it_is_cleaned(name: str) -> None:
    content_type = clean_text(name, MAX_CONTENT_TYPE_CHARS)
    assert parsed(outputs=[{**ENTRY, "content_type": content_type}]).invalid_count == 0


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
def test_an_invalid_entry_is_counted_and_left_out(poison: Any) -> None:
    manifest = parsed(outputs=[{**ENTRY, **poison}, {**ENTRY, "at": "else"}])
    assert ([at for _, at in manifest.entries], manifest.invalid_count) == (["else"], 1)


@pytest.mark.parametrize(
    ("poison", "is_invalid"),
    [({"size": None}, True), ({"size": 7}, False), ({"uri": "file:///etc/passwd"}, False)],
    ids=str,
)
def test_what_a_poisoned_manifest_names_is_fetched_again(  # noqa: PLR0917 - fixtures
    rungen_emulator: Emulator,
    context: Any,
    tmp_path: Path,
    poison: Any,
    is_invalid: bool,
    caplog: Any,
) -> None:
    [job_id] = submitted(job(images=2))
    first = archive(context, job_id, tmp_path).value
    path = tmp_path / job_id / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"][0] |= poison
    path.write_text(json.dumps(manifest))
    assert archive(context, job_id, tmp_path).value == first
    assert fetches(rungen_emulator)[f"/outputs/{job_id}/0.png"] == 2
    assert sum(fetches(rungen_emulator).values()) == 3
    assert sorted(files(tmp_path)) == [f"{job_id}/{name}" for name in ("0-0.png", "1-1.png", "manifest.json")]
    assert ("Ignored 1 invalid manifest entries" in caplog.text) == is_invalid


@pytest.mark.parametrize("name", ["", "manifest.json"])
@pytest.mark.parametrize("to", ["something", "nothing"])
def test_no_symbolic_link_is_followed(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, name: str, to: str
) -> None:
    [job_id] = submitted(job())
    elsewhere = tmp_path / "elsewhere"
    assert archive(context, job_id, elsewhere).error is None
    destination = tmp_path / "destination"
    assert archive(context, job_id, destination).error is None
    link = destination / job_id / name if name else destination / job_id
    link.rename(tmp_path / "aside")
    link.symlink_to(elsewhere / job_id / name if to == "something" else tmp_path / "nothing")
    before = files(elsewhere)
    error = archive(context, job_id, destination).error
    assert type(error) is AirflowFailException
    assert "Could not store the outputs: " in str(error)
    assert f"(job {job_id}, app {APP})" in str(error)
    assert "is a symbolic link, which is not followed (job " in str(error)
    assert files(elsewhere) == before
    assert not (tmp_path / "nothing").exists()
    link.unlink()
    assert archive(context, job_id, destination).error is None


@pytest.mark.parametrize("name", ["manifest.json", "0-0.png"])
def test_a_pipe_in_the_place_of_a_file_holds_nothing_up(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, name: str
) -> None:
    [job_id] = submitted(job())
    assert archive(context, job_id, tmp_path).error is None
    (tmp_path / job_id / name).unlink()
    os.mkfifo(tmp_path / job_id / name)
    assert archive(context, job_id, tmp_path).error is None
    assert (tmp_path / job_id / name).is_file()


def test_files_that_another_attempt_is_at_work_on_are_left_alone(tmp_path: Path) -> None:
    ours, other = Storage(tmp_path.as_uri()), Storage(tmp_path.as_uri())
    with ours.incoming("job", "0-a.png") as (file, path):
        file.write(b"image")
        (tmp_path / "job" / ".left.part").touch()
        other.remove_leftovers("job")
        assert list(files(tmp_path)) == [f"job/{Path(path).name}"]
        ours.put(file, path, "job", "0-a.png")
    assert files(tmp_path) == {"job/0-a.png": b"image"}


# --- faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(on="output", status=status) for status in (408, 429, 500, 502, 503, 504)),
        *(Fault(on="output", kind=kind) for kind in ("reset_before", "reset_after", "truncate")),
        *(Fault(on="output", kind="html", status=status) for status in (200, 502)),
        Fault(on="output", kind="empty"),
        Fault(on="output", status=200, body={"error": "no"}),
        Fault(on="output", status=429, headers={"Retry-After": "1"}),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.headers}",
)
def test_a_fault_that_may_pass_is_outlasted(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, fault: Fault
) -> None:
    [job_id] = submitted(job(images=3))
    rungen_emulator.service.inject(fault)
    outcome = archive(context, job_id, tmp_path)
    assert outcome.error is None
    assert sum(fetches(rungen_emulator).values()) == 4
    assert early_retries(rungen_emulator.service) == 0
    stored = {name: content for name, content in files(tmp_path).items() if name.endswith(".png")}
    assert len(stored) == 3
    assert all(content.startswith(b"\x89PNG") for content in stored.values())


def test_a_fault_that_does_not_pass_may_the_next_time_and_the_rest_is_kept(
    rungen_emulator: Emulator, context: Any, ti: Any, tmp_path: Path
) -> None:
    bad, good = submitted(job(images=2), job())
    rungen_emulator.service.inject(Fault(on="output", status=500, times=None, job_id=bad))
    outcome = archive(context, [bad, good], tmp_path)
    assert type(outcome.error) is RunGenOutputError
    assert outcome.error.retryable
    message = str(outcome.error)
    assert "Could not store the outputs: result.images[" in message
    assert "127.0.0.1 answered 500" in message
    assert "X-Amz" not in message
    assert [each["index"] for each in ti.xcoms["failed"]] == [0]
    assert manifest_of(tmp_path, good)["complete"] is True
    assert not [name for name in files(tmp_path) if name.endswith(".part")]
    rungen_emulator.service.clear_faults()
    assert archive(context, [bad, good], tmp_path).error is None
    assert fetches(rungen_emulator)[f"/outputs/{good}/0.png"] == 1


def test_an_outage_stops_before_everything_was_tried(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    ids = submitted(*[job() for _ in range(40)])
    rungen_emulator.service.inject(Fault(on="output", status=503, times=None))
    outcome = archive(context, ids, tmp_path, max_concurrency=2)
    assert type(outcome.error) is RunGenOutputError
    assert outcome.error.retryable
    assert "40 jobs were not collected" in str(outcome.error)
    assert len(fetches(rungen_emulator)) <= output_store.OUTAGE_FAILURES + 2


def test_a_few_that_are_broken_are_no_outage(rungen_emulator: Emulator, context: Any, tmp_path: Path) -> None:
    ids = submitted(*[job() for _ in range(6)])
    for job_id in ids[:3]:
        rungen_emulator.service.inject(Fault(on="output", status=503, times=None, job_id=job_id))
    outcome = archive(context, ids, tmp_path, max_concurrency=1, max_failed=3)
    assert outcome.error is None
    assert [small and small["job_id"] for small in outcome.value] == [None] * 3 + ids[3:]


def test_a_job_has_so_many_outputs_at_most(
    rungen_emulator: Emulator, context: Any, ti: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_archiver, "MAX_OUTPUTS", 12)
    many, few = submitted(job(images=13), job(images=12))
    outcome = archive(context, [many, few], tmp_path, max_failed=1)
    assert outcome.error is None
    assert [each["index"] for each in ti.xcoms["failed"]] == [0]
    assert sum(fetches(rungen_emulator).values()) == 12
    assert not (tmp_path / many).exists()
    error = archive(context, many, tmp_path).error
    assert type(error) is AirflowFailException
    assert "Could not store the outputs: it has more than 12 outputs" in str(error)


def test_a_manifest_that_would_not_be_read_is_not_written(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job_id] = submitted(job(result={"text": "x" * 1000}))
    small, same, large = (tmp_path / name for name in ("small", "same", "large"))
    assert archive(context, job_id, small).error is None
    size = len(files(small)[f"{job_id}/manifest.json"])
    for module in (job_archiver, stored_jobs):
        monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", size)
    assert archive(context, job_id, same).error is None
    asked = gets_of(rungen_emulator, job_id)
    assert archive(context, job_id, same).error is None
    assert gets_of(rungen_emulator, job_id) == asked
    for module in (job_archiver, stored_jobs):
        monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", size - 1)
    error = archive(context, job_id, large).error
    assert type(error) is AirflowFailException
    assert "its manifest would have more than" in str(error)
    assert "URLs of files" in str(error)
    assert files(large) == {}


def test_what_must_not_be_downloaded_fails_permanently(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    [job_id] = submitted(job(result={"x": "http://169.254.169.254/x?k=s3cret"}))
    outcome = archive(context, job_id, tmp_path)
    assert type(outcome.error) is AirflowFailException
    assert "result.x" in str(outcome.error)
    assert "s3cret" not in repr(outcome.error.__cause__)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 407, 410, 451])
@pytest.mark.parametrize("times", [1, retry.ATTEMPTS - 1])
def test_a_url_that_is_refused_before_it_expires_is_renewed(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, status: int, times: int
) -> None:
    [job_id] = submitted(job())
    rungen_emulator.service.inject(Fault(on="output", status=status, times=times))
    gets = []
    for _ in range(2):
        before = rungen_emulator.service.count("get")
        assert archive(context, job_id, tmp_path).error is None
        gets.append(rungen_emulator.service.count("get") - before)
    assert gets == [2 + times, 0], "a poll, the result, and new URLs"
    assert set(fetches(rungen_emulator).values()) == {1 + times}


def test_a_page_in_place_of_an_output_is_not_stored(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    [job_id] = submitted(job())
    rungen_emulator.service.inject(Fault(on="output", kind="html", status=200, times=None))
    error = archive(context, job_id, tmp_path).error
    assert type(error) is RunGenOutputError
    assert error.retryable
    assert "sent text/html in place of a .png file; check that the worker may reach it" in str(error)
    assert files(tmp_path) == {}
    rungen_emulator.service.clear_faults()
    assert archive(context, job_id, tmp_path).error is None
    assert files(tmp_path)[f"{job_id}/0-0.png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("times", [1, None])
def test_a_job_is_not_given_up_because_its_urls_cannot_be_renewed(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, times: int | None
) -> None:
    [job_id] = submitted(job())
    rungen_emulator.service.inject(Fault(on="output", status=403, times=times))
    # after a poll and the result
    rungen_emulator.service.inject(Fault(on="get", status=404, times=None, skip=2))
    error = archive(context, job_id, tmp_path).error
    if times is None:
        assert type(error) is RunGenOutputError
        assert error.retryable
        assert not is_useless(error)
    else:
        assert error is None


def test_a_replica_that_lags_behind_loses_no_job_that_is_over(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    ids = submitted(job(), job(), job())
    for job_id in ids:  # after the poll that finds it over
        rungen_emulator.service.inject(Fault(on="get", status=404, job_id=job_id, skip=1))
    assert archive(context, ids, tmp_path).error is None
    assert len(outputs_in(tmp_path)) == 3


def test_a_new_url_is_found_by_its_place(rungen_emulator: Emulator, tmp_path: Path) -> None:
    [job_id] = submitted(job(images=2))

    def urls(seconds: int) -> list[str]:
        rungen_emulator.service.url_seconds = seconds
        with RunGenHook() as hook:
            return [image["image"] for image in hook.get_job(job_id=job_id).result["images"]]

    (first, second), (first_anew, second_anew) = urls(0), urls(1000)
    # signed again, what was one URL in two places need not be one any more
    results = [[first, first, second], [f"{first_anew}#one", f"{first_anew}#two", second_anew]]
    outcome = archive_results(tmp_path, {"job": results})["job"]
    assert isinstance(outcome, StoredJob)
    assert [output["uri"].rpartition("/")[2] for output in outcome.outputs] == ["0-0.png", "1-1.png"]
    assert files(tmp_path)["job/0-0.png"] != files(tmp_path)["job/1-1.png"]
    assert set(fetches(rungen_emulator).values()) == {2}


def test_a_data_url_is_stored_as_a_file(rungen_emulator: Emulator, context: Any, tmp_path: Path) -> None:
    text = "data:image/png;base64," + base64.b64encode(b"\x89PNG picture").decode()
    [job_id] = submitted(job(result={"images": [{"image": text}, {"image": "output:0.png"}]}))
    for _ in range(2):
        outcome = archive(context, job_id, tmp_path)
        assert outcome.error is None
        first, second = outcome.value["outputs"]
        assert first["content_type"] == "image/png"
        assert first["uri"].endswith("/0-output.png")
        assert files(tmp_path)[f"{job_id}/0-output.png"] == b"\x89PNG picture"
        images = manifest_of(tmp_path, job_id)["result"]["images"]
        assert [image["image"] for image in images] == [first["uri"], second["uri"]]
    assert sum(fetches(rungen_emulator).values()) == 1
    error = archive(context, job_id, tmp_path / "other", max_output_bytes=5).error
    assert type(error) is AirflowFailException
    assert "result.images[0].image: the file has over 5 bytes (max_output_bytes)" in str(error)


EXPIRED = "<Error><Code>ExpiredToken</Code></Error>"


@pytest.mark.parametrize(
    ("status", "body", "days", "expired"),
    [
        *((status, "no", 8, "expired on 20") for status in (403, 404, 407)),
        *((status, "no", 6, "") for status in (302, 400, 403, 404, 407, 409, 451)),
        (400, EXPIRED, 6, "expired early, before 20"),
    ],
)
def test_a_refused_output_has_expired_if_its_time_is_over_or_its_host_says_so(  # noqa: PLR0917 - fixtures
    rungen_emulator: Emulator,
    context: Any,
    tmp_path: Path,
    status: int,
    body: str,
    days: int,
    expired: str,
) -> None:
    [job_id] = submitted(job())
    old_job = {
        "id": job_id,
        "status": "COMPLETED",
        "created_at": (datetime.now(UTC) - timedelta(days=days)).isoformat(),
        # signed again, though the file may be deleted
        "result": {"image": f"{rungen_emulator.url}/outputs/{job_id}/0.png"},
    }
    rungen_emulator.service.inject(Fault(on="get", status=200, times=None, body={"data": old_job}))
    rungen_emulator.service.inject(Fault(on="output", status=status, body=body, times=None))
    error = archive(context, job_id, tmp_path).error
    text = str(error)
    assert text.startswith("Could not store the outputs: result.image: ")
    assert f"127.0.0.1 answered {status}" in text
    if expired:
        assert type(error) is AirflowFailException
        assert f"the outputs of the job {expired}" in text
        assert "paid for again" in text
        assert set(fetches(rungen_emulator).values()) == {2}
    else:
        assert type(error) is RunGenOutputError
        assert error.retryable
        assert "expired" not in text
        assert "check that the worker may reach it" in text
        assert "buys nothing" in text


# --- which may fail -----------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("to", ["destination", "xcom"])
def test_some_may_fail(  # noqa: PLR0917 - fixtures
    rungen_emulator: Emulator, context: Any, ti: Any, tmp_path: Path, deferrable: bool, to: str
) -> None:
    good, bad, odd, large = submitted(
        job(seconds=0.2), job(fail="out of memory"), job(result=7), job(output_bytes=10_000)
    )
    ids = [None, good, bad, odd, large, good]
    options: dict[str, Any] = {
        "deferrable": deferrable,
        "result_schema": "flux-schnell",
        "max_output_bytes": 9000,
        "destination": tmp_path.as_uri() if to == "destination" else None,
    }
    failed = [0, 2, 3, 4] if to == "destination" else [0, 2, 3]
    outlet = Asset("s3://bucket/pictures")
    context["outlet_events"] = OutletEvents()
    outcome = run_task(collect_op(ids, max_failed=len(failed), outlets=[outlet], **options), context)
    assert outcome.error is None
    assert [index for index, value in enumerate(outcome.value) if value is None] == failed
    assert outcome.value[1] == outcome.value[5]
    assert [each["index"] for each in ti.xcoms["failed"]] == failed
    extra = context["outlet_events"][outlet].extra
    assert extra["failed_count"] == len(failed)
    assert extra["job_ids"] == ([good] if to == "destination" else [good, large])
    if to == "destination":
        assert (extra["destination"], extra["file_count"]) == (tmp_path.as_uri(), 1)

    outcome = run_task(collect_op(ids, max_failed=len(failed) - 1, **options), context)
    assert type(outcome.error) is AirflowFailException
    assert all(
        text in str(outcome.error) for text in ("out of memory", odd, f"{len(failed) - 1} of 6 may fail")
    )
    assert [each["index"] for each in ti.xcoms["failed"]] == failed


def test_more_without_a_job_than_may_fail_are_reported_at_once(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    outcome = archive(context, ["a", None, None], tmp_path, max_failed=1)
    assert type(outcome.error) is AirflowFailException
    assert "2 of 3 have no job, 1 may" in str(outcome.error)
    assert rungen_emulator.service.records() == []


def test_what_is_not_over_is_no_failure_that_may_be(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    ids = submitted(job(seconds=60), job())
    outcome = archive(context, ids, tmp_path, max_failed=1, wait_for_completion=False)
    assert type(outcome.error) is RunGenJobError
    assert "Not over yet" in str(outcome.error)


def test_many_that_are_not_over_keep_no_other_from_being_stored(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    rungen_emulator.service.scale(APP, 20)
    *_, over = ids = submitted(*[job(seconds=60)] * 5, job())
    outcome = archive(context, ids, tmp_path, max_concurrency=1, wait_for_completion=False)
    assert "5 jobs were not collected" in str(outcome.error)
    assert manifest_of(tmp_path, over)["complete"] is True


def test_a_result_that_does_not_fit_is_not_downloaded(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    [job_id] = submitted(job(result={"image": "output:x.png"}))
    outcome = archive(context, job_id, tmp_path, result_schema="flux-schnell")
    assert type(outcome.error) is AirflowFailException
    assert type(outcome.error.__cause__) is RunGenResultError
    assert not fetches(rungen_emulator)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_in_the_middle_ends_it(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, status: int
) -> None:
    ids = submitted(*[job() for _ in range(30)])
    rungen_emulator.service.inject(Fault(on="get", status=status, times=None))
    outcome = archive(context, ids, tmp_path, wait_for_completion=False)
    assert type(outcome.error) is RunGenForbiddenError
    assert "API key" in str(outcome.error)
    assert rungen_emulator.service.count("get") <= 16


# --- XCom ---------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("many", [False, True])
def test_results_too_large_for_xcom_fail_permanently(
    rungen_emulator: Emulator, context: Any, deferrable: bool, many: bool
) -> None:
    ids = submitted(job(seconds=0.1, result="x" * 1000), job(seconds=0.1, result="y"))
    wanted, size = (ids, 2 + 1002 + 2 + 3) if many else (ids[0], 1002)
    op = collect_op(wanted, None, deferrable=deferrable, max_xcom_bytes=size)
    assert run_task(op, context).error is None
    op = collect_op(wanted, None, deferrable=deferrable, max_xcom_bytes=size - 1)
    outcome = run_task(op, context)
    assert type(outcome.error) is AirflowFailException
    assert all(text in str(outcome.error) for text in ("destination", "max_xcom_bytes", str(size - 1)))


def test_a_result_that_is_too_large_ends_the_wait(rungen_emulator: Emulator, context: Any) -> None:
    ids = submitted(job(result="x" * 2_000_000), job(seconds=60))
    outcome = run_task(collect_op(ids, None), context)
    assert type(outcome.error) is AirflowFailException
    assert "max_xcom_bytes" in str(outcome.error)


# --- many ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_the_wire")
def test_a_thousand_outputs_are_stored_few_at_a_time(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    ids = submitted(*[job(images=4, output_bytes=500) for _ in range(250)])
    rungen_emulator.service.max_open_connections = 0
    outcome = archive(context, ids, tmp_path, max_concurrency=6, wait_for_completion=False)
    assert outcome.error is None
    assert [small["job_id"] for small in outcome.value] == ids
    counts = fetches(rungen_emulator)
    assert len(counts) == sum(counts.values()) == 1000
    assert rungen_emulator.service.max_open_connections <= 2 * 6 + 1
    stored = files(tmp_path)
    assert len(stored) == 1250
    for small in outcome.value:
        for output in small["outputs"]:
            content = stored[output["uri"].removeprefix(f"{tmp_path.as_uri()}/")]
            assert hashlib.sha256(content).hexdigest() == output["sha256"]
    assert archive(context, ids, tmp_path, wait_for_completion=False).value == outcome.value
    assert rungen_emulator.service.count("output") == 1000


@pytest.mark.usefixtures("on_the_wire")
def test_the_log_shows_the_progress(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(output_store, "PROGRESS_INTERVAL", 0.0)
    ids = submitted(*[job() for _ in range(5)])
    rungen_emulator.service.inject(Fault(on="output", kind="drip", job_id=ids[4], drip_seconds=0.0005))
    archive(context, ids, tmp_path, max_concurrency=1)
    lines = [line for line in caplog.messages if line.startswith("Stored")]
    assert any("of 4 of 5 jobs" in line and "left" in line for line in lines)
    assert re.match(r"Stored 5 files \([\d.]+ kB\) of 5 jobs in \S+; ", lines[-1])


# --- kills --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_the_wire")
def test_a_kill_leaves_no_half_file(rungen_emulator: Emulator, context: Any, tmp_path: Path) -> None:
    ids = submitted(*[job(output_bytes=5000) for _ in range(12)])
    rungen_emulator.service.inject(Fault(on="output", kind="drip", times=None, skip=5))
    op = collect_op(ids, tmp_path.as_uri(), wait_for_completion=False)

    def is_under_way() -> bool:
        return rungen_emulator.service.count("output") > 8 and len(outputs_in(tmp_path)) == 5

    with signal_when(signal.SIGTERM, is_under_way, op.on_kill) as sent:
        outcome = run_task(op, context)
    assert time.monotonic() - sent[0] < SOON
    assert isinstance(outcome.error, AirflowException)
    assert "killed" in str(outcome.error)
    there = {name: content for name, content in files(tmp_path).items() if "manifest" not in name}
    assert there.keys() == outputs_in(tmp_path)
    assert {len(content) for content in there.values()} == {5000}
    rungen_emulator.service.clear_faults()
    fetched = fetches(rungen_emulator)
    assert run_task(collect_op(ids, tmp_path.as_uri()), context).error is None
    again = fetches(rungen_emulator) - fetched
    assert sum(again.values()) == 12 - len(there)


class TimeIsUp(BaseException):
    """What Airflow raises when execution_timeout has passed."""


@pytest.mark.usefixtures("on_the_wire")
def test_a_time_limit_ends_it(rungen_emulator: Emulator, context: Any, tmp_path: Path) -> None:
    [job_id] = submitted(job())
    rungen_emulator.service.inject(Fault(on="output", kind="hang", times=None))
    op = collect_op(job_id, tmp_path.as_uri())

    def strike() -> None:
        raise TimeIsUp

    with (
        pytest.raises(TimeIsUp),
        signal_when(signal.SIGALRM, lambda: rungen_emulator.service.count("output") > 0, strike) as sent,
    ):
        run_task(op, context)
    assert time.monotonic() - sent[0] < SOON
    assert files(tmp_path) == {}


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
from airflow_provider_rungen.operators import RunGenCollectResultsOperator
class TI:
    dag_id = task_id = run_id = "x"
    map_index = -1
    def xcom_push(self, *args, **kwargs): pass
folder, concurrency, *ids = sys.argv[1:]
RunGenCollectResultsOperator(
    task_id="collect",
    job_id=ids,
    destination=folder,
    max_concurrency=int(concurrency),
    wait_for_completion=False,
).execute({"ti": TI()})
"""


@pytest.mark.usefixtures("on_the_wire")
def test_an_attempt_after_a_kill_fetches_only_what_is_missing(
    rungen_emulator: Emulator, tmp_path: Path
) -> None:
    ids = submitted(*[job(images=2, output_bytes=3000) for _ in range(20)])
    # what comes after the first 20 never comes to its end
    rungen_emulator.service.inject(Fault(on="output", kind="drip", times=None, skip=20, drip_seconds=60))
    command = [sys.executable, "-c", SCRIPT, tmp_path.as_uri(), "4", *ids]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while rungen_emulator.service.count("output") < 24 or len(outputs_in(tmp_path)) < 16:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    # of the jobs that were being stored, what they had got is fetched again
    there, left = outputs_in(tmp_path), files(tmp_path)
    assert all(len(left[name]) == 3000 for name in there)
    assert [name for name in left if name.endswith(".part")]
    before = fetches(rungen_emulator)
    rungen_emulator.service.clear_faults()

    assert subprocess.run(command, check=False, timeout=60, capture_output=True).returncode == 0
    again = fetches(rungen_emulator) - before
    assert sum(again.values()) == len(again) == 40 - len(there)
    assert not {f"/outputs/{name.partition('/')[0]}/{name.rpartition('-')[2]}" for name in there} & set(again)
    after = files(tmp_path)
    assert not [name for name in after if name.endswith(".part")]
    assert outputs_in(tmp_path) == {name for name in after if not name.endswith(".json")}
    assert len(outputs_in(tmp_path)) == 40
    assert all(manifest_of(tmp_path, job_id)["complete"] for job_id in ids)
