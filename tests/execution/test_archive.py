"""Outputs in storage, over real HTTP: what is stored, what faults and kills leave, what is fetched again."""

from __future__ import annotations

import base64
import fcntl
import gc
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
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
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
from object_store import ObjectStore, attach
from rungen_emulator import Emulator
from wire import Connections

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.output_urls import MAX_CONTENT_TYPE_CHARS, redact_value
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import (
    RunGenInputError,
    RunGenJobError,
    RunGenOutputError,
    RunGenResultError,
)
from airflow_provider_rungen.execution.archive import job_archiver, output_store, stored_jobs
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob, manifest_text, parse_manifest
from airflow_provider_rungen.execution.task import store_writer
from airflow_provider_rungen.execution.task.outcomes import is_useless
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenCollectResultsOperator

pytestmark = pytest.mark.usefixtures("unsettled")

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
INPUT = {"prompt": "a red fox", "width": 64, "height": 64}
SIGNED = "https://storage.example/in.png?X-Amz-Signature=s3cret"


def job(**emulator: Any) -> dict[str, Any]:
    return {**INPUT, "emulator": {"seconds": 0, **emulator}}


def submitted(*inputs: dict[str, Any]) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input=one).id for one in inputs]


def collect_op(job_id: Any, destination: Any, **options: Any) -> RunGenCollectResultsOperator:
    options = {"poll_interval": 0.02, **options}
    return RunGenCollectResultsOperator(task_id="collect", job_id=job_id, destination=destination, **options)


def files(folder: Path) -> dict[str, bytes]:
    """Return all there is below a folder, hidden files, too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Archive:
    """Collects jobs of the emulator in a folder."""

    def __init__(self, emulator: Emulator, context: Any, folder: Path) -> None:
        self.url, self.service, self.context, self.folder = emulator.url, emulator.service, context, folder

    def collect(self, job_id: Any, to: Any = ..., **options: Any) -> Outcome:
        to = self.folder if to is ... else to
        destination = to.as_uri() if isinstance(to, Path) else to
        return run_task(collect_op(job_id, destination, **options), self.context)

    @property
    def failed(self) -> list[int]:
        """The positions that the last task has pushed as failed."""
        return [each["index"] for each in self.context["ti"].xcoms["failed"]]

    @property
    def files(self) -> dict[str, bytes]:
        """All files but the contact sheet."""
        return {name: content for name, content in files(self.folder).items() if not name.endswith(".html")}

    def manifest(self, job_id: str) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.folder / job_id / "manifest.json").read_text())
        return manifest

    @property
    def outputs(self) -> set[str]:
        """The names of the stored outputs that a manifest lists."""
        manifests = [json.loads(path.read_text()) for path in self.folder.glob("*/manifest.json")]
        uris = [entry["uri"] for manifest in manifests for entry in manifest["outputs"]]
        return {uri.removeprefix(f"{self.folder.as_uri()}/") for uri in uris}

    def inject(self, on: str = "output", **fault: Any) -> None:
        self.service.inject(Fault(on=on, **fault))

    def gets(self, job_id: str) -> int:
        """Count the requests for a job."""
        records = self.service.records()
        return sum(record.operation == "get" and record.path.endswith(job_id) for record in records)

    @property
    def fetches(self) -> Counter[str]:
        """Count the requests for each output."""
        records = self.service.records()
        return Counter(record.path.partition("?")[0] for record in records if record.operation == "output")


@pytest.fixture
def archive(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Archive:
    monkeypatch.setattr(retry, "BACKOFF", 0.01)
    return Archive(rungen_emulator, context, tmp_path)


@pytest.fixture
def uploads() -> ObjectStore:
    """The store of ``memory://…``."""
    return attach()


def lose_the_connection(times: int, *kinds: str) -> Callable[[str, str], None]:
    """Return what fails at the first requests of some kinds, which have secrets in their error."""
    left = [times]

    def lose(kind: str, path: str) -> None:
        # manifests are read as a whole, and outputs are opened
        if kind in kinds and left[0] and (kind != "read" or path.endswith("manifest.json")):
            left[0] -= 1
            raise RuntimeError(f"lost the connection to {SIGNED}")

    return lose


# --- what is stored -----------------------------------------------------------------------------------------


@pytest.mark.contract
@MODES
def test_outputs_are_stored_and_small_manifests_returned(
    archive: Archive, caplog: pytest.LogCaptureFixture, deferrable: bool
) -> None:
    caplog.set_level("DEBUG")
    ids = submitted(job(seconds=0.2, images=2), {**job(), "like": SIGNED})
    outcome = archive.collect(ids, deferrable=deferrable)
    assert outcome.error is None
    assert len(outcome.events) == deferrable
    stored = archive.files
    names = ["0-0.png", "1-1.png", "manifest.json"]
    expected = [f"{ids[0]}/{name}" for name in names] + [f"{ids[1]}/{name}" for name in names[::2]]
    assert sorted(stored) == sorted(expected)
    for job_id, small in zip(ids, outcome.value, strict=True):
        assert small.keys() == {"job_id", "manifest", "outputs"}
        assert small["manifest"] == (archive.folder / job_id / "manifest.json").as_uri()
        for number, output in enumerate(small["outputs"]):
            content = stored[f"{job_id}/{number}-{number}.png"]
            assert content.startswith(b"\x89PNG")
            assert output == {
                "uri": (archive.folder / job_id / f"{number}-{number}.png").as_uri(),
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "content_type": "image/png",
            }
    manifest = archive.manifest(ids[1])
    [output] = outcome.value[1]["outputs"]
    assert all(manifest.pop(name).endswith("+00:00") for name in ("created_at", "landed_at"))
    assert manifest == {
        "job_id": ids[1],
        "app_id": APP,
        "status": "COMPLETED",
        "complete": True,
        "execution_time": 0,
        "input": {**job(), "like": "https://storage.example/in.png"},
        "result": {"images": [{"image": output["uri"]}]},
        "outputs": [{**output, "at": "result.images[0].image"}],
    }
    assert archive.failed == []
    everything = f"{stored} {outcome} {archive.context['ti'].pushed} {caplog.text}"
    assert not [secret for secret in ("X-Amz-Signature", "s3cret", KEY) if secret in everything]
    assert keys_leaked(archive.service) == 0
    assert sum(archive.fetches.values()) == 3


@pytest.mark.contract
def test_one_id_gives_one_manifest(archive: Archive) -> None:
    [job_id] = submitted(job())
    assert archive.collect(job_id).value["job_id"] == job_id
    assert archive.collect([job_id]).value[0]["job_id"] == job_id
    assert archive.collect([]).value == []
    assert [small["job_id"] for small in archive.collect([job_id, job_id]).value] == [job_id] * 2
    assert sum(archive.fetches.values()) == 1


@pytest.mark.contract
@pytest.mark.parametrize("result", [None, {"text": f"see {SIGNED}"}])
def test_a_job_without_outputs_has_its_manifest(archive: Archive, result: Any) -> None:
    [job_id] = submitted(job(result=result))
    assert archive.collect(job_id).value["outputs"] == []
    manifest = archive.manifest(job_id)
    assert manifest["complete"] is True
    assert manifest["result"] == json.loads(json.dumps(result).replace("?X-Amz-Signature=s3cret", ""))


@pytest.mark.contract
def test_a_data_url_is_stored_as_a_file(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "data:image/png;base64," + base64.b64encode(b"\x89PNG picture").decode()
    [job_id] = submitted(job(result={"images": [{"image": text}, {"image": "output:0.png"}]}))
    for _ in range(2):
        first, second = archive.collect(job_id).value["outputs"]
        assert first["content_type"] == "image/png"
        assert first["uri"].endswith("/0-output.png")
        assert archive.files[f"{job_id}/0-output.png"] == b"\x89PNG picture"
        images = archive.manifest(job_id)["result"]["images"]
        assert [image["image"] for image in images] == [first["uri"], second["uri"]]
    assert sum(archive.fetches.values()) == 1
    monkeypatch.setattr(output_store, "MAX_OUTPUT_BYTES", 5)
    error = archive.collect(job_id, archive.folder / "other").error
    assert type(error) is AirflowFailException
    assert "result.images[0].image: the file has over 5 bytes" in str(error)


def test_a_job_has_so_many_outputs_at_most(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_archiver, "MAX_OUTPUTS", 12)
    many, few = submitted(job(images=13), job(images=12))
    assert archive.collect([many, few], max_failed=1).error is None
    assert archive.failed == [0]
    assert sum(archive.fetches.values()) == 12
    assert not (archive.folder / many).exists()
    error = archive.collect(many).error
    assert type(error) is AirflowFailException
    assert "Could not store the outputs: it has more than 12 outputs" in str(error)


def test_a_manifest_that_would_not_be_read_is_not_written(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job_id] = submitted(job(result={"text": "x" * 1000}))
    small, same, large = (archive.folder / name for name in ("small", "same", "large"))
    assert archive.collect(job_id, small).error is None
    size = len(files(small)[f"{job_id}/manifest.json"])

    def allow(size: int) -> None:
        for module in (job_archiver, stored_jobs):
            monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", size)

    allow(size)
    assert archive.collect(job_id, same).error is None
    asked = archive.gets(job_id)
    assert archive.collect(job_id, same).error is None
    assert archive.gets(job_id) == asked
    allow(size - 1)
    error = archive.collect(job_id, large).error
    assert type(error) is AirflowFailException
    assert "its manifest would have more than" in str(error)
    assert "URLs of files" in str(error)
    assert files(large) == {}


@pytest.mark.contract
def test_what_must_not_be_downloaded_fails_permanently(archive: Archive) -> None:
    [job_id] = submitted(job(result={"x": "http://169.254.169.254/x?k=s3cret"}))
    error = archive.collect(job_id).error
    assert type(error) is AirflowFailException
    assert "result.x" in str(error)
    assert "s3cret" not in repr(error.__context__)
    assert archive.files == {}


# --- where --------------------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize(
    "to", [str, lambda path: f"{path.as_uri()}/", lambda path: ObjectStoragePath(path.as_uri()), Path]
)
def test_a_destination_may_be_any_object_storage_path(archive: Archive, to: Callable[[Path], Any]) -> None:
    [job_id] = submitted(job())
    value = archive.collect(job_id, to(archive.folder)).value
    assert ObjectStoragePath(value["outputs"][0]["uri"]).read_bytes().startswith(b"\x89PNG")
    assert ObjectStoragePath(value["manifest"]).exists()
    assert sorted(archive.files) == [f"{job_id}/0-0.png", f"{job_id}/manifest.json"]


@pytest.mark.contract
@pytest.mark.parametrize(
    ("destination", "may_pass"),
    [
        *(("", False), ("some/folder", False), ("nosuch://bucket/x", False), (7, False)),
        ("memory://bucket//x", False),
        *(("/proc/no", True), ("file:///dev/null/x", True)),
    ],
)
def test_a_destination_that_cannot_be_used_is_reported_before_the_wait(
    archive: Archive, destination: Any, may_pass: bool
) -> None:
    op = collect_op("job", "{{ params.folder }}")
    op.destination = destination  # as rendered
    error = run_task(op, archive.context).error
    assert isinstance(error, RunGenInputError if may_pass else AirflowFailException)
    assert "destination" in str(error)
    assert archive.service.records() == []


@pytest.mark.contract
@pytest.mark.parametrize(
    "error",
    [OSError("Forbidden: KEY:S3CRET"), AirflowNotFoundException("The conn_id `KEY:S3CRET` isn't defined")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("when", ["looked up", "read"])
def test_no_secret_of_a_destination_is_shown(
    archive: Archive, caplog: pytest.LogCaptureFixture, error: Exception, when: str
) -> None:
    def look_up(_: Any) -> Any:
        if when == "looked up":
            raise error
        return fs

    fs = attach(conn_id="KEY:S3CRET")
    fs.refuse("open", error)
    [job_id] = submitted(job())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(fs.attached), "fs", property(look_up))
        outcome = archive.collect(job_id, "memory://KEY:S3CRET@bucket/x?sig=S3CRET")
    # a secrets backend may not answer for a moment
    assert isinstance(outcome.error, RunGenInputError)
    assert "destination" in str(outcome.error)
    assert "S3CRET" not in "".join(traceback.format_exception(outcome.error)) + caplog.text


@pytest.mark.contract
@pytest.mark.parametrize("name", ["max_failed"])
@pytest.mark.parametrize("bad", [-1, "1", 1.5, None, True])
def test_a_number_that_is_none_breaks_the_dag_file(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=name):
        collect_op("j", "/x", **{name: bad})


@pytest.mark.contract
def test_files_are_uploaded_whole_or_not_at_all(
    archive: Archive,
    uploads: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def half(kind: str, path: str) -> None:
        if kind == "put" and failures:
            failures.pop()
            uploads.pipe_file(path, b"hal")
            raise RuntimeError(f"lost the connection to {SIGNED}")

    monkeypatch.setattr("tempfile.tempdir", str(archive.folder))
    job_id, lost = submitted(job(images=3), job())
    failures = [0] * 3  # an upload is repeated
    uploads.before = half
    value = archive.collect(job_id, "memory://bucket/x/").value
    names = {f"bucket/x/{job_id}/{name}" for name in ("0-0.png", "1-1.png", "2-2.png", "manifest.json")}
    assert uploads.names() == names
    uris = {output["uri"] for output in value["outputs"]} | {value["manifest"]}
    assert uris == {f"memory://{name}" for name in names}
    for output in value["outputs"]:
        content = uploads.cat_file(output["uri"])
        assert (len(content), hashlib.sha256(content).hexdigest()) == (output["size"], output["sha256"])
    fetched = archive.fetches
    assert archive.collect(job_id, "memory://bucket/x").value == value
    assert archive.fetches == fetched
    assert archive.files == {}
    assert "RuntimeError" in caplog.text
    assert "s3cret" not in caplog.text

    failures = [0] * 99
    error = archive.collect(lost, "memory://bucket/x").error
    assert type(error) is RunGenOutputError
    assert error.retryable
    assert not {name for name in uploads.names() if lost in name}


# --- many small files at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_many_files_are_written_read_measured_and_listed(
    uploads: ObjectStore, tmp_path: Path, kind: str
) -> None:
    place = tmp_path.as_uri() if kind == "file" else "memory://bucket/x"
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


def test_a_file_is_not_visible_before_it_is_complete(uploads: ObjectStore) -> None:
    seen = []

    def lose(kind: str, path: str) -> None:
        if kind == "write":
            with uploads.open(path, "wb") as file:
                file.write(b"n")
            seen.append(Storage("memory://bucket/x").read_all([("a", "1.txt")]))
            raise OSError("lost the connection")

    Storage("memory://bucket/x").write_all({("a", "1.txt"): b"old"})
    uploads.before = lose
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
    steps: list[Callable[[], object]] = [partial(storage.read_all, [file]) for file in wanted[1:]]
    steps += [partial(storage.list_all, ["a", "b"]), partial(storage.write, "b", "1.txt", b"new")]
    for step in steps:
        with pytest.raises(RunGenOutputError, match="symbolic link"):
            step()


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


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("wait", [True, False])
def test_the_service_is_not_asked_for_what_is_stored(
    archive: Archive, caplog: pytest.LogCaptureFixture, deferrable: bool, wait: bool
) -> None:
    ids = submitted(job(images=2), job(images=0))
    first = archive.collect(ids)
    before, requests = archive.files, len(archive.service.records())
    caplog.set_level("INFO")
    again = archive.collect(ids, deferrable=deferrable, wait_for_completion=wait)
    assert (again.value, again.events) == (first.value, [])
    assert f"Found 2 jobs: stored in {archive.folder.as_uri()}" in caplog.text
    assert len(archive.service.records()) == requests
    assert archive.failed == []
    assert archive.files == before


@pytest.mark.contract
@MODES
def test_the_service_is_asked_for_the_others_alone(archive: Archive, deferrable: bool) -> None:
    stored, other = submitted(job(), job(seconds=0.3))
    first = archive.collect([stored]).value
    asked = archive.gets(stored)
    outcome = archive.collect([other, None, stored], deferrable=deferrable, max_failed=1)
    assert [value and value["job_id"] for value in outcome.value] == [other, None, stored]
    assert outcome.value[2] == first[0]
    assert len(outcome.events) == deferrable
    assert archive.gets(stored) == asked
    assert archive.gets(other) > 0


@pytest.mark.parametrize("options", [{}, {"wait_for_completion": False, "max_failed": 1}], ids=str)
def test_a_store_that_cannot_be_read_fails_the_task_and_can_be_tried_again(
    archive: Archive, uploads: ObjectStore, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.5)
    [job_id] = submitted(job())
    first = archive.collect(job_id, "memory://bucket/x").value
    before = len(archive.service.records())
    uploads.before = lose_the_connection(99, "open rb", "read")
    error = archive.collect(job_id, "memory://bucket/x", **options).error
    assert type(error) is RunGenOutputError
    assert error.retryable
    uploads.before = lose_the_connection(0)
    assert archive.collect(job_id, "memory://bucket/x").value == first
    assert len(archive.service.records()) == before


@pytest.mark.contract
def test_what_is_stored_has_to_fit_the_schema(archive: Archive) -> None:
    good, odd = submitted(job(), job(result={"n": 7}))
    assert archive.collect([good, odd]).error is None
    asked = archive.gets(good)
    assert archive.collect(good, output_type="flux-schnell").error is None
    assert archive.gets(good) == asked, "the schema wants URLs"
    assert type(archive.collect(odd, output_type="flux-schnell").error) is AirflowFailException
    # what only the real URL fits is asked for
    schema = {"properties": {"images": {"items": {"properties": {"image": {"pattern": "^http://127"}}}}}}
    assert archive.collect(good, output_type=schema).error is None
    assert archive.gets(good) > asked


@pytest.mark.contract
@pytest.mark.parametrize("harm", ["cut", "gone", "folder"])
def test_what_is_not_as_it_was_stored_is_fetched_again(archive: Archive, harm: str) -> None:
    [job_id] = submitted(job(images=3))
    first, before = archive.collect(job_id), archive.files
    harmed = archive.folder / job_id / "1-1.png"
    content = harmed.read_bytes()
    harmed.unlink()
    if harm == "cut":
        harmed.write_bytes(content[:-1])
    elif harm == "folder":
        harmed.mkdir()
        assert archive.collect(job_id).error.retryable  # type: ignore[union-attr]
        harmed.rmdir()
        archive.service.requests.clear()
    assert archive.collect(job_id).value == first.value
    after = archive.files
    del before[f"{job_id}/manifest.json"], after[f"{job_id}/manifest.json"]
    assert after == before
    assert archive.fetches[f"/outputs/{job_id}/1.png"] == (1 if harm == "folder" else 2)


ENTRY = {"uri": "/x/0.png", "at": "result", "size": 1, "sha256": "0" * 64, "content_type": None}
POISONS: list[dict[str, Any]] = [
    *({"content_type": "x" * 3_000_000}, {"content_type": {"__classname__": "airflow.sdk.Connection"}}),
    *({"content_type": [["x"]]}, {"content_type": "a\0\ud800"}),
    *({"size": size} for size in (None, -1, 2**70, True, 1e999)),
    *({"sha256": {"__type": "dict", "__var": 1}}, {"uri": {}}, {"at": ["result"]}),
]


def parsed(*entries: dict[str, Any]) -> StoredJob:
    manifest = {"app_id": APP, "job_id": "job", "complete": True, "outputs": entries}
    return parse_manifest(json.dumps(manifest).encode(), APP, "job")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"app_id": 1}', b"[" * 100_000])
def test_a_manifest_that_is_none_has_no_entries(content: bytes) -> None:
    stored = parse_manifest(content, APP, "job")
    assert (stored.outputs, stored.is_complete, stored.invalid_count) == ([], False, 1)


def test_a_result_that_no_parser_could_read_is_no_part_of_a_manifest() -> None:
    deep: Any = SIGNED
    for _ in range(100_000):
        deep = [deep]
    text = manifest_text({"app_id": APP, "job_id": "job", "result": redact_value(deep)})
    assert b"nested too deeply to be stored" in text
    assert b"s3cret" not in text


def test_only_known_fields_of_an_entry_are_read() -> None:
    entry = {**ENTRY, "__classname__": "airflow.sdk.Connection", "more": "x"}
    assert parsed(entry).outputs == [ENTRY]


@pytest.mark.parametrize("name", ["image/png", "x" * 999, "\0" * 999, "\U0001f600\ue000" * 99])
def test_the_type_that_a_host_names_is_valid_once_it_is_cleaned(name: str) -> None:
    content_type = clean_text(name, MAX_CONTENT_TYPE_CHARS)
    assert parsed({**ENTRY, "content_type": content_type}).invalid_count == 0


@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: str(poison)[:40])
def test_an_invalid_entry_is_counted_and_left_out(poison: Any) -> None:
    stored = parsed({**ENTRY, **poison}, {**ENTRY, "at": "else"})
    assert ([output["at"] for output in stored.outputs], stored.invalid_count) == (["else"], 1)


@pytest.mark.contract
@pytest.mark.parametrize(
    ("poison", "is_invalid"),
    [({"size": None}, True), ({"size": 7}, False), ({"uri": "file:///etc/passwd"}, False)],
    ids=str,
)
def test_what_a_poisoned_manifest_names_is_fetched_again(
    archive: Archive, caplog: pytest.LogCaptureFixture, poison: Any, is_invalid: bool
) -> None:
    [job_id] = submitted(job(images=2))
    first = archive.collect(job_id).value
    manifest = archive.manifest(job_id)
    manifest["outputs"][0] |= poison
    (archive.folder / job_id / "manifest.json").write_text(json.dumps(manifest))
    assert archive.collect(job_id).value == first
    assert archive.fetches == {f"/outputs/{job_id}/0.png": 2, f"/outputs/{job_id}/1.png": 1}
    assert sorted(archive.files) == [f"{job_id}/{name}" for name in ("0-0.png", "1-1.png", "manifest.json")]
    assert ("Ignored 1 invalid manifest entries" in caplog.text) == is_invalid


@pytest.mark.contract
@pytest.mark.parametrize("name", ["", "manifest.json"])
@pytest.mark.parametrize("to", ["something", "nothing"])
def test_no_symbolic_link_is_followed(archive: Archive, name: str, to: str) -> None:
    [job_id] = submitted(job())
    elsewhere, destination = archive.folder / "elsewhere", archive.folder / "destination"
    for folder in (elsewhere, destination):
        assert archive.collect(job_id, str(folder)).error is None
    link = destination / job_id / name
    link.rename(archive.folder / "aside")
    link.symlink_to(elsewhere / job_id / name if to == "something" else archive.folder / "nothing")
    before = files(elsewhere)
    error = archive.collect(job_id, destination).error
    assert type(error) is AirflowFailException
    assert "Could not store the outputs: " in str(error)
    assert f"is a symbolic link, which is not followed (job {job_id}, app {APP})" in str(error)
    assert files(elsewhere) == before
    assert not (archive.folder / "nothing").exists()
    link.unlink()
    assert archive.collect(job_id, destination).error is None


@pytest.mark.contract
@pytest.mark.parametrize("name", ["manifest.json", "0-0.png"])
def test_a_pipe_in_the_place_of_a_file_holds_nothing_up(archive: Archive, name: str) -> None:
    [job_id] = submitted(job())
    assert archive.collect(job_id).error is None
    (archive.folder / job_id / name).unlink()
    os.mkfifo(archive.folder / job_id / name)
    assert archive.collect(job_id).error is None
    assert (archive.folder / job_id / name).is_file()


def test_files_that_another_attempt_is_at_work_on_are_left_alone(tmp_path: Path) -> None:
    ours, other = Storage(tmp_path.as_uri()), Storage(tmp_path.as_uri())
    with ours.incoming("job", "0-a.png") as (file, path):
        file.write(b"image")
        (tmp_path / "job" / ".left.part").touch()
        other.remove_leftovers("job")
        assert list(files(tmp_path)) == [f"job/{Path(path).name}"]
        ours.put(file, path, "job", "0-a.png")
    assert files(tmp_path) == {"job/0-a.png": b"image"}


def test_a_file_that_another_attempt_removes_before_it_is_locked_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = Storage(tmp_path.as_uri()), Storage(tmp_path.as_uri())
    lock, removed = fcntl.flock, list[Path]()

    def remove_and_lock(file: Any, how: int) -> None:
        if not removed:
            removed.extend((tmp_path / "job").iterdir())
            other.remove_leftovers("job")
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    ours.write("job", "manifest.json", b"{}")
    assert len(removed) == 1
    assert files(tmp_path) == {"job/manifest.json": b"{}"}


# --- faults -------------------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        *({"kind": kind} for kind in ("reset_after", "truncate", "empty")),
        *({"kind": "html", "status": status} for status in (200, 502)),
        {"status": 200, "body": {"error": "no"}},
        {"status": 429, "headers": {"Retry-After": "1"}},
    ],
    ids=str,
)
def test_a_fault_that_may_pass_is_outlasted(archive: Archive, fault: dict[str, Any]) -> None:
    [job_id] = submitted(job(images=3))
    archive.inject(**fault)
    assert archive.collect(job_id).error is None
    assert sum(archive.fetches.values()) == 4
    assert early_retries(archive.service) == 0
    stored = [content for name, content in archive.files.items() if name.endswith(".png")]
    assert [content[:4] for content in stored] == [b"\x89PNG"] * 3


@pytest.mark.contract
def test_a_fault_that_does_not_pass_may_the_next_time_and_the_rest_is_kept(archive: Archive) -> None:
    bad, good = submitted(job(images=2), job())
    archive.inject(status=500, times=None, job_id=bad)
    error = archive.collect([bad, good]).error
    assert type(error) is RunGenOutputError
    assert error.retryable
    assert "Could not store the outputs: result.images[" in str(error)
    assert "127.0.0.1 answered 500" in str(error)
    assert "X-Amz" not in str(error)
    assert archive.failed == [0]
    assert archive.manifest(good)["complete"] is True
    assert not [name for name in archive.files if name.endswith(".part")]
    archive.service.clear_faults()
    assert archive.collect([bad, good]).error is None
    assert archive.fetches[f"/outputs/{good}/0.png"] == 1


@pytest.mark.parametrize("status", [503, 403])
def test_an_outage_of_many_is_outlasted(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(output_store, "OUTAGE_TIME", 30.0)
    ids = submitted(*[job() for _ in range(40)])
    archive.inject(status=status, times=retry.ATTEMPTS * 40)
    assert archive.collect(ids).error is None
    assert set(archive.fetches.values()) == {retry.ATTEMPTS + 1}


@pytest.mark.parametrize(("jobs", "files"), [(40, 1), (1, 40), (2, 20)])
def test_an_outage_that_lasts_ends_before_everything_was_tried(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, jobs: int, files: int
) -> None:
    monkeypatch.setattr(output_store, "MAX_CONCURRENCY", 1)
    monkeypatch.setattr(job_archiver, "MAX_CONCURRENCY", 1)
    monkeypatch.setattr(output_store, "OUTAGE_TIME", 0.0)
    ids = submitted(*[job(images=files) for _ in range(jobs)])
    archive.inject(status=503, times=None)
    for _ in range(2):
        error = archive.collect(ids).error
        assert type(error) is RunGenOutputError
        assert error.retryable
        assert jobs == 1 or f"{jobs} jobs were not collected" in str(error)
        assert "answered 503" in str(error)
    assert jobs < 40 or set(archive.fetches.values()) == {1, 2}, "not the same again"
    assert archive.fetches.total() <= 2 * (output_store.OUTAGE_FAILURES + 2)


def test_a_moment_in_which_all_downloads_fail_is_no_outage_that_has_lasted(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_store, "OUTAGE_TIME", 0.0)
    ids = submitted(*[job() for _ in range(40)])
    archive.inject(status=503, times=output_store.OUTAGE_FAILURES - 1)
    assert archive.collect(ids, max_failed=15).error is None
    assert len(archive.fetches) == 40


def test_few_of_the_results_that_cannot_be_stored_are_in_memory(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_store, "MAX_CONCURRENCY", 1)
    ids = submitted(*[job() for _ in range(60)])
    archive.inject(status=503, times=None)
    handle, at_once = archive.service.handle, list[int]()

    def count(*request: Any) -> Any:
        if archive.fetches.total() in (60, 100):
            gc.collect()
            at_once.append(sum(isinstance(each, job_archiver.JobArchiver) for each in gc.get_objects()))
        return handle(*request)

    monkeypatch.setattr(archive.service, "handle", count)
    assert archive.collect(ids).error is not None
    assert 0 < max(at_once) <= output_store.OUTAGE_FAILURES + 2


@pytest.mark.contract
def test_a_host_that_asks_for_a_long_pause_holds_no_other_up(archive: Archive) -> None:
    slow, other = submitted(job(), job())
    archive.inject(status=429, headers={"Retry-After": "3600"}, times=None, job_id=slow)
    archive.inject(status=503, job_id=other)
    assert archive.collect([slow, other], max_failed=1).value[1]["job_id"] == other
    assert archive.fetches == {f"/outputs/{slow}/0.png": 1, f"/outputs/{other}/0.png": 2}


@pytest.mark.contract
def test_a_few_that_are_broken_are_no_outage(archive: Archive) -> None:
    ids = submitted(*[job() for _ in range(6)])
    for job_id in ids[:3]:
        archive.inject(status=503, times=None, job_id=job_id)
    outcome = archive.collect(ids, max_failed=3)
    assert [small and small["job_id"] for small in outcome.value] == [None] * 3 + ids[3:]
    assert Counter(archive.fetches.values()) == {retry.ATTEMPTS: 3, 1: 3}


@pytest.mark.contract
@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 407, 410, 451])
@pytest.mark.parametrize("times", [1, retry.ATTEMPTS - 1])
def test_a_url_that_is_refused_before_it_expires_is_renewed(
    archive: Archive, status: int, times: int
) -> None:
    [job_id] = submitted(job())
    archive.inject(status=status, times=times)
    gets = []
    for _ in range(2):
        before = archive.gets(job_id)
        assert archive.collect(job_id).error is None
        gets.append(archive.gets(job_id) - before)
    assert gets == [2 + times, 0], "a poll, the result, and new URLs"
    assert set(archive.fetches.values()) == {1 + times}


@pytest.mark.contract
def test_a_new_url_is_found_by_its_place(archive: Archive) -> None:
    [job_id] = submitted(job(images=2))

    def urls(seconds: int) -> list[str]:
        archive.service.url_seconds = seconds
        with RunGenHook() as hook:
            return [image["image"] for image in hook.get_job(job_id=job_id).result["images"]]

    (first, second), (first_anew, second_anew) = urls(0), urls(1000)
    # signed again, what was one URL in two places need not be one any more
    results = [[first, first, second], [f"{first_anew}#one", f"{first_anew}#two", second_anew]]
    for result, times in zip(results, (2, None), strict=True):  # a poll and the result have the first
        body = {"data": {"id": job_id, "status": "COMPLETED", "result": result}}
        archive.inject("get", status=200, body=body, times=times)
    outputs = archive.collect(job_id).value["outputs"]
    assert [output["uri"].rpartition("/")[2] for output in outputs] == ["0-0.png", "1-1.png"]
    assert archive.files[f"{job_id}/0-0.png"] != archive.files[f"{job_id}/1-1.png"]
    assert set(archive.fetches.values()) == {2}


@pytest.mark.parametrize("times", [1, None])
def test_a_job_is_not_given_up_because_its_urls_cannot_be_renewed(
    archive: Archive, times: int | None
) -> None:
    [job_id] = submitted(job())
    archive.inject(status=403, times=times)
    archive.inject("get", status=404, times=None, skip=2)  # after a poll and the result
    error: Any = archive.collect(job_id).error
    assert error is None or type(error) is RunGenOutputError
    assert (error is None) == (times == 1)
    assert error is None or (error.retryable and not is_useless(error))


@pytest.mark.contract
def test_a_replica_that_lags_behind_loses_no_job_that_is_over(archive: Archive) -> None:
    ids = submitted(job(), job(), job())
    for job_id in ids:  # after the poll that finds it over
        archive.inject("get", status=404, job_id=job_id, skip=1)
    assert archive.collect(ids).error is None
    assert len(archive.outputs) == 3


EXPIRED = "<Error><Code>ExpiredToken</Code></Error>"


@pytest.mark.contract
@pytest.mark.parametrize(
    ("status", "body", "days", "expired"),
    [
        *((status, "no", 8, "expired on 20") for status in (403, 404, 407)),
        *((status, "no", 6, "") for status in (302, 400, 403, 404, 407, 409, 451)),
        (400, EXPIRED, 6, "expired early, before 20"),
    ],
)
def test_a_refused_output_has_expired_if_its_time_is_over_or_its_host_says_so(
    archive: Archive, *, status: int, body: str, days: int, expired: str
) -> None:
    [job_id] = submitted(job())
    old_job = {
        "id": job_id,
        "status": "COMPLETED",
        "created_at": (datetime.now(UTC) - timedelta(days=days)).isoformat(),
        # signed again, though the file may be deleted
        "result": {"image": f"{archive.url}/outputs/{job_id}/0.png"},
    }
    archive.inject("get", status=200, times=None, body={"data": old_job})
    archive.inject(status=status, body=body, times=None)
    error: Any = archive.collect(job_id).error
    text = str(error)
    assert text.startswith("Could not store the outputs: result.image: ")
    assert f"127.0.0.1 answered {status}" in text
    if expired:
        assert type(error) is AirflowFailException
        assert f"the outputs of the job {expired}" in text
        assert "paid for again" in text
        assert set(archive.fetches.values()) == {2}
    else:
        assert type(error) is RunGenOutputError
        assert error.retryable
        assert "expired" not in text
        assert "check that the worker may reach it" in text
        assert "buys nothing" in text


def test_many_outputs_that_have_expired_are_all_given_up(archive: Archive) -> None:
    ids = submitted(*[job() for _ in range(output_store.OUTAGE_FAILURES + 4)])
    archive.inject(status=400, body=EXPIRED, times=None)
    error = archive.collect(ids, max_failed=len(ids) - 1).error
    assert type(error) is AirflowFailException
    assert set(archive.fetches.values()) == {2}


@pytest.mark.contract
@pytest.mark.parametrize("place", ["init_image", "parameters", "source"])
@pytest.mark.parametrize("host", ["refuses", "expired", "unreachable"])
def test_an_input_that_the_result_repeats_need_not_be_readable(
    archive: Archive, place: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "BACKOFF", 0.001)
    [job_id] = submitted(job())
    base = "http://127.0.0.1:9" if host == "unreachable" else archive.url
    url = f"{base}/outputs/private/photo.png?sig=abc"
    if host == "expired":
        archive.inject("output", status=403, times=None, body=EXPIRED)
    given = {"init_image": url}
    places: dict[str, Any] = {"init_image": url, "source": url, "parameters": given}
    result = {"image": "data:image/png;base64,iVBORw0KGgo=", place: places[place]}
    found = {"id": job_id, "status": "COMPLETED", "input": given}
    archive.inject("get", status=200, times=None, body={"data": found | {"result": result}})
    assert archive.collect(job_id).error is None
    assert archive.outputs == {f"{job_id}/0-output.png"}
    assert archive.manifest(job_id)["complete"]


@pytest.mark.contract
def test_no_job_is_given_up_for_an_input_that_its_result_repeats(archive: Archive) -> None:
    [job_id] = submitted(job())
    archive.inject("output", status=403, times=None, body=EXPIRED)
    given = {"image": f"{archive.url}/outputs/private/photo.png?sig=abc"}
    found = {"id": job_id, "status": "COMPLETED", "input": given, "result": given | {"caption": "a fox"}}
    archive.inject("get", status=200, times=None, body={"data": found})
    error = archive.collect(job_id).error
    assert isinstance(error, RunGenOutputError)
    assert not error.is_expired
    assert "check that the worker may reach it" in str(error)


# --- which may fail -----------------------------------------------------------------------------------------


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("to", ["destination", "xcom"])
def test_some_may_fail(archive: Archive, deferrable: bool, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_store, "MAX_OUTPUT_BYTES", 9000)
    good, bad, odd, large = submitted(
        job(seconds=0.2), job(fail="out of memory"), job(result=7), job(output_bytes=10_000)
    )
    ids = [None, good, bad, odd, large, good]
    is_stored = to == "destination"
    outlet = Asset("s3://bucket/pictures")
    options: dict[str, Any] = {
        "to": ... if is_stored else None,
        "deferrable": deferrable,
        "output_type": "flux-schnell",
        "outlets": [outlet],
    }
    failed = [0, 2, 3, 4] if is_stored else [0, 2, 3]
    archive.context["outlet_events"] = OutletEvents()
    outcome = archive.collect(ids, max_failed=len(failed), **options)
    assert outcome.error is None
    assert [index for index, value in enumerate(outcome.value) if value is None] == failed
    assert outcome.value[1] == outcome.value[5]
    assert archive.failed == failed
    extra = archive.context["outlet_events"][outlet].extra
    assert extra["failed_count"] == len(failed)
    assert extra["job_ids"] == ([good] if is_stored else [good, large])
    if is_stored:
        assert (extra["destination"], extra["file_count"]) == (archive.folder.as_uri(), 1)

    error = archive.collect(ids, max_failed=len(failed) - 1, **options).error
    assert type(error) is AirflowFailException
    assert all(text in str(error) for text in ("out of memory", odd, f"{len(failed) - 1} of 6 may fail"))
    assert archive.failed == failed


@pytest.mark.contract
def test_more_without_a_job_than_may_fail_are_reported_at_once(archive: Archive) -> None:
    error = archive.collect(["a", None, None], max_failed=1).error
    assert type(error) is AirflowFailException
    assert "2 of 3 have no job, 1 may (max_failed). Raise max_failed to collect the others" in str(error)
    assert archive.service.records() == []


@pytest.mark.contract
def test_those_that_are_not_over_are_no_failures_and_keep_no_other_from_being_stored(
    archive: Archive,
) -> None:
    archive.service.scale(APP, 20)
    *_, over = ids = submitted(*[job(seconds=60)] * 5, job())
    error = archive.collect(ids, max_failed=5, wait_for_completion=False).error
    assert type(error) is RunGenJobError
    assert "Not over yet" in str(error)
    assert "5 jobs were not collected" in str(error)
    assert archive.manifest(over)["complete"] is True


@pytest.mark.contract
def test_a_result_that_does_not_fit_is_not_downloaded(archive: Archive) -> None:
    [job_id] = submitted(job(result={"image": "output:x.png"}))
    error = archive.collect(job_id, output_type="flux-schnell").error
    assert type(error) is AirflowFailException
    assert type(error.__context__) is RunGenResultError
    assert not archive.fetches
    assert archive.files == {}


@pytest.mark.contract
@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_in_the_middle_ends_it(archive: Archive, status: int) -> None:
    ids = submitted(*[job() for _ in range(30)])
    archive.inject("get", status=status, times=None)
    error = archive.collect(ids, wait_for_completion=False).error
    assert type(error) is AirflowFailException
    assert "Check the password" in str(error)
    assert archive.service.count("get") <= len(ids), "none is sent again"


# --- XCom ---------------------------------------------------------------------------------------------------


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("many", [False, True])
def test_results_too_large_for_xcom_fail_permanently(archive: Archive, deferrable: bool, many: bool) -> None:
    # as JSON, with the quotation marks, and a list with what is around its items
    fitting = 1_000_000 - (2 + 2 + 2 + 3 if many else 2)
    for excess in (0, 1):
        ids = submitted(job(seconds=0.1, result="x" * (fitting + excess)), job(seconds=0.1, result="y"))
        outcome = archive.collect(ids if many else ids[0], None, deferrable=deferrable)
        if not excess:
            assert outcome.error is None
            continue
        assert type(outcome.error) is AirflowFailException
        assert "over 1000000 bytes, too much for XCom. Set destination" in str(outcome.error)


@pytest.mark.contract
def test_a_result_that_is_too_large_ends_the_wait(archive: Archive) -> None:
    ids = submitted(job(result="x" * 2_000_000), job(seconds=60))
    error = archive.collect(ids, None).error
    assert type(error) is AirflowFailException
    assert "too much for XCom" in str(error)


# --- many ---------------------------------------------------------------------------------------------------


@pytest.mark.contract
def test_a_thousand_outputs_are_stored_few_at_a_time(archive: Archive, connections: Connections) -> None:
    ids = submitted(*[job(images=4, output_bytes=500) for _ in range(250)])
    connections.most = 0
    value = archive.collect(ids, wait_for_completion=False).value
    assert [small["job_id"] for small in value] == ids
    counts = archive.fetches
    assert len(counts) == sum(counts.values()) == 1000
    assert connections.most <= 2 * 16 + 1
    stored = archive.files
    assert len(stored) == 1250
    for output in (output for small in value for output in small["outputs"]):
        content = stored[output["uri"].removeprefix(f"{archive.folder.as_uri()}/")]
        assert hashlib.sha256(content).hexdigest() == output["sha256"]


def test_the_log_shows_the_progress(
    archive: Archive, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(output_store, "PROGRESS_INTERVAL", 0.0)
    monkeypatch.setattr(output_store, "MAX_CONCURRENCY", 1)
    ids = submitted(*[job() for _ in range(5)])
    archive.inject(kind="drip", times=None, drip_seconds=0.0005)
    archive.collect(ids)
    lines = [line for line in caplog.messages if line.startswith("Stored")]
    assert any("of 4 of 5 jobs" in line and "left" in line for line in lines)
    assert re.match(r"Stored 5 files \([\d.]+ kB\) of 5 jobs in \S+; ", lines[-1])


# --- kills --------------------------------------------------------------------------------------------------


@pytest.mark.contract
def test_a_kill_leaves_no_half_file(archive: Archive) -> None:
    ids = submitted(*[job(output_bytes=5000) for _ in range(12)])
    archive.inject(kind="drip", times=None, skip=5)
    op = collect_op(ids, archive.folder.as_uri(), wait_for_completion=False)

    def is_under_way() -> bool:
        return archive.service.count("output") > 8 and len(archive.outputs) == 5

    with signal_when(signal.SIGTERM, is_under_way, op.on_kill) as sent:
        error = run_task(op, archive.context).error
    assert time.monotonic() - sent[0] < SOON
    assert isinstance(error, AirflowException)
    assert "killed" in str(error)
    there = {name: content for name, content in archive.files.items() if "manifest" not in name}
    assert there.keys() == archive.outputs
    assert {len(content) for content in there.values()} == {5000}
    archive.service.clear_faults()
    fetched = archive.fetches
    assert archive.collect(ids).error is None
    again = archive.fetches - fetched
    assert sum(again.values()) == 12 - len(there)


class TimeIsUp(BaseException):
    """What Airflow raises when execution_timeout has passed."""


@pytest.mark.contract
def test_a_time_limit_ends_it(archive: Archive) -> None:
    [job_id] = submitted(job())
    archive.inject(kind="hang", times=None)

    def strike() -> None:
        raise TimeIsUp

    with (
        pytest.raises(TimeIsUp),
        signal_when(signal.SIGALRM, lambda: archive.service.count("output") > 0, strike) as sent,
    ):
        archive.collect(job_id)
    assert time.monotonic() - sent[0] < SOON
    assert archive.files == {}


SCRIPT = """
import sys
from rungen_emulator.testing import run_operator
from airflow_provider_rungen.operators import RunGenCollectResultsOperator
folder, *ids = sys.argv[1:]
options = {"wait_for_completion": False}
run_operator(RunGenCollectResultsOperator(task_id="collect", job_id=ids, destination=folder, **options))
"""


@pytest.mark.contract
def test_an_attempt_after_a_kill_fetches_only_what_is_missing(archive: Archive) -> None:
    ids = submitted(*[job(images=2, output_bytes=3000) for _ in range(20)])
    # what comes after the first 20 never comes to its end
    archive.inject(kind="drip", times=None, skip=20, drip_seconds=60)
    command = [sys.executable, "-c", SCRIPT, archive.folder.as_uri(), *ids]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while archive.service.count("output") < 24 or len(archive.outputs) < 16:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    # of the jobs that were being stored, what they had got is fetched again
    there, left = archive.outputs, archive.files
    assert all(len(left[name]) == 3000 for name in there)
    assert [name for name in left if name.endswith(".part")]
    before = archive.fetches
    archive.service.clear_faults()

    assert archive.collect(ids, wait_for_completion=False).error is None
    again = archive.fetches - before
    assert sum(again.values()) == len(again) == 40 - len(there)
    assert not {f"/outputs/{name.partition('/')[0]}/{name.rpartition('-')[2]}" for name in there} & set(again)
    after = archive.files
    assert not [name for name in after if name.endswith(".part")]
    assert archive.outputs == {name for name in after if not name.endswith(".json")}
    assert len(archive.outputs) == 40
    assert all(archive.manifest(job_id)["complete"] for job_id in ids)
