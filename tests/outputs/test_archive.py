"""Outputs in storage, over real HTTP: what is stored, what faults and kills leave, what is fetched again."""

from __future__ import annotations

import base64
import fcntl
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
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    ObjectStoragePath,
)
from bad_answers import Fault
from client_mistakes import early_retries, keys_leaked
from conftest import SOON, Outcome, rows_in, run_task, signal_when
from object_store import ObjectStore, attach
from rungen_emulator import Emulator
from wire import Connections

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenJobFailedError, RunGenOutputError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenCollectResultsOperator
from airflow_provider_rungen.outputs import archiver, outage, output_store
from airflow_provider_rungen.outputs.storage import Storage

pytestmark = pytest.mark.usefixtures("unsettled")

SIGNED = "https://storage.example/in.png?X-Amz-Signature=s3cret"
PNG = b"\x89PNG"


def job(**emulator: Any) -> dict[str, Any]:
    return {"prompt": "a red fox", "emulator": {"seconds": 0, **emulator}}


def submitted(*inputs: dict[str, Any]) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input=one).id for one in inputs]


def collect_op(job_id: Any, destination: Any, **options: Any) -> RunGenCollectResultsOperator:
    options = {"poll_interval": 0.02, "destination": destination, **options}
    return RunGenCollectResultsOperator(task_id="collect", job_id=job_id, **options)


def files(folder: Path) -> dict[str, bytes]:
    """Return all there is below a folder, hidden files, too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Archive:
    """Collects jobs of the emulator in a folder, again and again."""

    def __init__(self, emulator: Emulator, context: Any, folder: Path) -> None:
        self.url, self.service, self.context, self.folder = emulator.url, emulator.service, context, folder
        self.store = folder / "store"
        self.tries = 0

    def begin(self, job_id: Any, **options: Any) -> Any:
        self.tries += 1
        self.context["ti"].id = self.tries
        own = {"destination": self.store.as_uri(), "results": f"{self.folder}/results.jsonl"}
        return collect_op(job_id, **own | options)

    def collect(self, job_id: Any, **options: Any) -> Outcome:
        return run_task(self.begin(job_id, **options), self.context)

    def failure(self, job_id: Any, kind: type[Exception] = RunGenJobFailedError, **options: Any) -> str:
        """Return the error of a task that fails, which is of this very kind."""
        error = self.collect(job_id, **options).error
        assert type(error) is kind
        return str(error)

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in rows_in(self.folder)]

    @property
    def stored(self) -> dict[tuple[str, str], bytes]:
        """The stored files, by job and name."""
        found = (path.name.split(".", 3) for path in self.store.glob("files/*/*") if path.name[0] != ".")
        paths = {(each[2], each[3]): ".".join(each) for each in found}
        return {key: (self.store / "files" / name[:2] / name).read_bytes() for key, name in paths.items()}

    def path_of(self, number: int = 0) -> Path:
        """The first file of a row."""
        return Path(self.column("outputs")[0][number].removeprefix("file://"))

    def inject(self, on: str = "output", **fault: Any) -> None:
        self.service.inject(Fault(on=on, **fault))

    def answer(self, job_id: str, times: int | None = None, **found: Any) -> None:
        """Set what the service answers about a job."""
        data = {"id": job_id, "status": "COMPLETED", **found}
        self.inject("get", status=200, times=times, body={"data": data}, job_id=job_id)

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


# --- what is stored -----------------------------------------------------------------------------------------


@pytest.mark.contract
def test_a_data_url_is_stored_as_a_file(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "data:image/png;base64," + base64.b64encode(b"\x89PNG picture").decode()
    [job_id] = submitted(job(result={"images": [{"image": text}, {"image": "output:0.png"}]}))
    for _ in range(2):
        assert archive.collect(job_id).error is None
        assert archive.stored[job_id, "0-output.png"] == b"\x89PNG picture"
        images = json.loads(archive.column("result")[0])["images"]
        assert [image["image"] for image in images] == archive.column("outputs")[0]
    assert archive.fetches.total() == 1
    monkeypatch.setattr(output_store, "MAX_OUTPUT_BYTES", 5)
    error = archive.failure(job_id, AirflowFailException, destination=f"{archive.folder}/other")
    assert "result.images[0].image: the file has over 5 bytes" in error


@pytest.mark.contract
def test_what_cannot_be_stored_is_told_for_its_row(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiver, "MAX_OUTPUTS", 12)
    monkeypatch.setattr(archiver, "_MAX_RESULT_FILE", 100_000)
    inputs = [job(images=13), job(images=12), job(result={"x": "http://169.254.169.254/x?k=s3cret"})]
    ids = submitted(*inputs, job(result="x" * 100_000))
    assert archive.collect(ids, max_failed=3).error is None
    assert archive.column("status") == ["invalid", "completed", "invalid", "invalid"]
    many, _, inside, large = archive.column("error")
    assert "Could not store the outputs: it has more than 12 outputs" in many
    assert "result.x" in inside
    assert "s3cret" not in inside
    assert "its result has more than" in large
    assert {job_id for job_id, _ in archive.stored} == {ids[1]}


@pytest.mark.contract
def test_a_result_that_does_not_fit_is_not_downloaded(archive: Archive) -> None:
    [job_id] = submitted(job(result={"image": "output:x.png"}))
    assert "does not fit" in archive.failure(job_id, AirflowFailException, output_type="flux-schnell")
    assert (archive.fetches, archive.stored) == ({}, {})


# --- where --------------------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize(
    "to", [str, lambda path: f"{path.as_uri()}/", lambda path: ObjectStoragePath(path.as_uri()), Path]
)
def test_a_destination_may_be_any_object_storage_path(archive: Archive, to: Callable[[Path], Any]) -> None:
    [job_id] = submitted(job())
    value = archive.collect(job_id, destination=to(archive.store), results=None).value
    [row] = map(json.loads, ObjectStoragePath(value["results"]).read_text().splitlines())
    assert ObjectStoragePath(row["output"]).read_bytes().startswith(PNG)
    assert [*archive.stored] == [(job_id, "0-0.png")]


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
    op = collect_op("job", "{{ params.folder }}", results=f"{archive.folder}/results.jsonl")
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
    fs.refuse("read", error)
    [job_id] = submitted(job())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(fs.attached), "fs", property(look_up))
        outcome = archive.collect(job_id, destination="memory://KEY:S3CRET@bucket/x?sig=S3CRET")
    # a secrets backend may not answer for a moment
    assert isinstance(outcome.error, RunGenInputError)
    assert "destination" in str(outcome.error)
    assert "S3CRET" not in "".join(traceback.format_exception(outcome.error)) + caplog.text


# as each library of a cloud raises them
ANSWERS = {
    "azure": (
        "Server failed to authenticate the request.\nRequestId:7a9c1f0e-501e-0012\n"
        "Time:2026-12-06T02:11:12.1234567Z\nErrorCode:AuthenticationFailed\nauthenticationerrordetail:its "
        'signature\nContent: <?xml version="1.0"?><Error><Code>AuthenticationFailed</Code><Message>Server '
        "failed.\nRequestId:7a9c1f0e-501e-0012</Message></Error>",
        "Server failed to authenticate the request. (AuthenticationFailed)",
    ),
    "google": (
        "<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access denied.</Message></Error>, 403",
        "Access denied. (AccessDenied)",
    ),
    "a proxy": ("<!DOCTYPE html><html><body>Log in</body></html>", "it answered with a page"),
}


@pytest.mark.parametrize(("text", "shown"), ANSWERS.values(), ids=ANSWERS)
def test_what_a_store_answers_is_a_line(
    archive: Archive, uploads: ObjectStore, text: str, shown: str
) -> None:
    uploads.refuse("write", RuntimeError(text))
    [job_id] = submitted(job())
    error = archive.failure(job_id, RunGenInputError, destination="memory://bucket/x")
    assert error == (
        f"the destination cannot be used: RuntimeError: {shown} (could not write a small file). Check "
        "destination, and that the worker may write to it."
    )


def test_wrong_credentials_of_google_are_told_before_a_file_is_tried(archive: Archive) -> None:
    def refuse() -> None:
        raise RuntimeError("Invalid Credentials, 401")

    fs = attach("gs", "my_google")
    fs.protocol, fs.credentials = ("gs", "gcs"), SimpleNamespace(maybe_refresh=refuse)
    [job_id] = submitted(job())
    assert "Invalid Credentials, 401" in archive.failure(
        job_id, RunGenInputError, destination="gs://my_google@bucket/x"
    )
    assert not fs.counts, "gcsfs tries each request for half a minute"


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

    def outputs() -> list[str]:
        return [name for name in uploads.names() if "/files/" in name]

    monkeypatch.setattr("tempfile.tempdir", str(archive.folder))
    job_id, lost = submitted(job(images=3), job())
    failures = [0] * 3  # an upload is repeated
    uploads.before = half
    value = archive.collect(job_id, destination="memory://bucket/x/").value
    [uris] = archive.column("outputs")
    assert sorted(uris) == sorted(f"memory://{name}" for name in outputs())
    assert [uploads.cat_file(uri)[:4] for uri in uris] == [PNG] * 3
    fetched = archive.fetches
    assert archive.collect(job_id, destination="memory://bucket/x").value == value
    assert archive.fetches == fetched
    assert "RuntimeError" in caplog.text
    assert "s3cret" not in caplog.text

    failures = [0] * 99
    assert "lost the connection" in archive.failure(lost, destination="memory://bucket/x")
    assert not [name for name in outputs() if lost in name]
    assert not [name for name in files(archive.folder) if "rungen-" in name]


# --- many small files at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_many_files_are_written_read_measured_and_listed(
    uploads: ObjectStore, tmp_path: Path, kind: str
) -> None:
    place = tmp_path.as_uri() if kind == "file" else "memory://bucket/x"
    storage = Storage(place).prepare()
    files = {(folder, f"{n}.txt"): b"x" * n for folder in ("", "a", "b/c") for n in range(4)}
    for (folder, name), content in files.items():
        storage.write(folder, name, content)
    storage.write("a", "1.txt", b"new")
    files["a", "1.txt"] = b"new"
    wanted = [*files, ("a", "none"), ("none", "1.txt"), ("", "a")]
    reader = Storage(place, read_only=True)
    sizes = {file: len(content) for file, content in files.items()}
    assert reader.read_all(wanted) == files
    assert reader.read_all(wanted, 1) == {file: content[:2] for file, content in files.items()}
    assert reader.sizes_of(wanted) == sizes
    assert reader.list_folder("a") == {name: size for (folder, name), size in sizes.items() if folder == "a"}
    assert reader.times("a").keys() == reader.list_folder("a").keys()
    assert reader.find("b") == {f"b/c/{n}.txt" for n in range(4)}
    assert ObjectStoragePath(reader.uri_of("a", "1.txt")).read_bytes() == b"new"
    assert (storage.create("a", "1.txt", b"other"), storage.create("a", "9.txt", b"9")) == (False, True)
    assert [*reader.read_all([("a", "1.txt"), ("a", "9.txt")]).values()] == [b"new", b"9"]


def test_nothing_is_created_where_files_are_only_read(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "none", read_only=True)
    looks: list[Any] = [storage.read_all([("a", "1.txt")]), storage.sizes_of([("a", "1.txt")])]
    assert not any([*looks, storage.list_folder("a"), storage.times("a"), storage.find("a")])
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_visible_before_it_is_complete(uploads: ObjectStore) -> None:
    seen = []

    def lose(kind: str, path: str) -> None:
        if kind == "write":
            with uploads.open(path, "wb") as file:
                file.write(b"n")
            seen.append(Storage("memory://bucket/x").read_all([("a", "1.txt")]))
            raise OSError("lost the connection")

    Storage("memory://bucket/x").write("a", "1.txt", b"old")
    uploads.before = lose
    with pytest.raises(RunGenOutputError, match="lost the connection"):
        Storage("memory://bucket/x").write("a", "1.txt", b"new")
    assert seen == [{("a", "1.txt"): b"old"}]
    assert uploads.names() == {"bucket/x/a/1.txt"}


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    storage = Storage(tmp_path / "link").prepare()  # the destination itself may be one
    storage.write("a", "1.txt", b"x")
    folder = tmp_path / "real" / "a"
    (folder / "2.txt").symlink_to(folder / "1.txt")
    (tmp_path / "real" / "b").symlink_to(folder)
    wanted = [(folder, f"{n}.txt") for folder in "ab" for n in (1, 2)]
    assert storage.sizes_of(wanted) == {("a", "1.txt"): 1}
    steps: list[Callable[[], object]] = [partial(storage.read_all, [file]) for file in wanted[1:]]
    steps.append(partial(storage.write, "b", "1.txt", b"new"))
    for step in steps:
        with pytest.raises(RunGenOutputError, match="symbolic link"):
            step()
    for target in (folder / "1.txt", folder / "nothing"):  # one in the place of a file is replaced
        (folder / "2.txt").unlink()
        (folder / "2.txt").symlink_to(target)
        storage.write("a", "2.txt", b"new")
        assert not (folder / "2.txt").is_symlink()
        assert files(folder) == {"1.txt": b"x", "2.txt": b"new"}


# --- what is there already ----------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize("harm", ["gone", "link", "pipe"])
def test_what_is_not_as_it_was_stored_is_fetched_again(archive: Archive, harm: str) -> None:
    [job_id] = submitted(job(images=2))
    assert archive.collect(job_id).error is None
    path = archive.path_of(1)
    path.rename(archive.folder / "aside")
    if harm == "link":
        path.symlink_to(archive.folder / "aside")
    elif harm == "pipe":
        os.mkfifo(path)
    outcome = archive.collect(job_id)
    assert outcome.error is None
    assert (outcome.value["completed"], outcome.value["jobs"]) == (1, 1)
    assert archive.path_of(1).read_bytes() == (archive.folder / "aside").read_bytes()
    assert archive.fetches[f"/outputs/{job_id}/1.png"] == 2
    assert archive.collect(job_id).error is None
    assert archive.fetches.total() == 4


@pytest.mark.contract
def test_what_is_stored_has_to_fit_the_schema(archive: Archive) -> None:
    good, odd = submitted(job(), job(result={"n": 7}))
    assert archive.collect([good, odd]).error is None
    asked = archive.gets(good)
    assert archive.collect(good, output_type="flux-schnell").error is None
    assert archive.gets(good) == asked, "the schema wants URLs"
    archive.failure(odd, AirflowFailException, output_type="flux-schnell")
    # what only the real URL fits is asked for
    schema = {"properties": {"images": {"items": {"properties": {"image": {"pattern": "^http://127"}}}}}}
    for _ in range(2):
        assert archive.collect(good, output_type=schema).error is None
    assert archive.gets(good) == asked + 2, "once"


def test_files_that_another_attempt_is_at_work_on_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Storage(tmp_path.as_uri())
    with ours.incoming("job", "0-a.png") as (file, path):
        file.write(b"image")
        (tmp_path / "job" / ".left.part").touch()
        Storage(tmp_path.as_uri()).remove_leftovers("job")
        assert list(files(tmp_path)) == [f"job/{Path(path).name}"]
        ours.put(file, path, "job", "0-a.png")
    assert files(tmp_path) == {"job/0-a.png": b"image"}

    # until a new one is locked, the other takes it for a leftover
    lock, removed = fcntl.flock, list[Path]()

    def remove_and_lock(file: Any, how: int) -> None:
        if not removed:
            removed.extend((tmp_path / "job").glob(".*"))
            Storage(tmp_path.as_uri()).remove_leftovers("job")
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    ours.write("job", "1.json", b"{}")
    assert len(removed) == 1
    assert files(tmp_path) == {"job/0-a.png": b"image", "job/1.json": b"{}"}


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
    assert archive.fetches.total() == 4
    assert (early_retries(archive.service), keys_leaked(archive.service)) == (0, 0)
    assert [content[:4] for content in archive.stored.values()] == [PNG] * 3


@pytest.mark.contract
def test_a_fault_that_does_not_pass_may_the_next_time_and_the_rest_is_kept(archive: Archive) -> None:
    bad, *good = ids = submitted(job(images=2), *[job()] * 3)
    archive.inject(status=500, times=None, job_id=bad)
    error = archive.failure(ids)
    assert "Could not store the outputs: result.images[" in error
    assert "127.0.0.1 answered 500" in error
    assert "X-Amz" not in error
    assert archive.column("status") == ["failed", *["completed"] * 3]
    # the other one of its files is there
    assert archive.fetches == dict.fromkeys(
        (f"/outputs/{bad}/{n}.png" for n in (0, 1)), retry.ATTEMPTS
    ) | dict.fromkeys((f"/outputs/{each}/0.png" for each in good), 1)
    archive.service.clear_faults()
    assert archive.collect(ids).error is None
    assert archive.fetches[f"/outputs/{good[0]}/0.png"] == 1


@pytest.mark.parametrize("status", [503, 403])
def test_an_outage_of_many_is_outlasted(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(outage, "OUTAGE_TIME", 30.0)
    ids = submitted(*[job() for _ in range(40)])
    archive.inject(status=status, times=retry.ATTEMPTS * 40)
    assert archive.collect(ids).error is None
    assert set(archive.fetches.values()) == {retry.ATTEMPTS + 1}


@pytest.mark.parametrize(("jobs", "files"), [(40, 1), (1, 40), (2, 20)])
def test_an_outage_that_lasts_ends_before_everything_was_tried(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, jobs: int, files: int
) -> None:
    monkeypatch.setattr(output_store, "MAX_CONCURRENCY", 1)
    monkeypatch.setattr(archiver, "MAX_CONCURRENCY", 1)
    monkeypatch.setattr(outage, "OUTAGE_TIME", 0.0)
    ids = submitted(*[job(images=files) for _ in range(jobs)])
    archive.inject(status=503, times=None)
    for _ in range(2):
        error = archive.failure(ids)
        assert f"{jobs} of {jobs} rows failed" in error
        assert "answered 503" in error
    assert jobs < 40 or set(archive.fetches.values()) == {1, 2}, "not the same again"
    assert archive.fetches.total() <= 2 * (outage.OUTAGE_FAILURES + 2)


@pytest.mark.contract
def test_a_few_that_are_broken_or_wait_are_no_outage(archive: Archive) -> None:
    slow, other, *broken = ids = submitted(*[job() for _ in range(5)])
    archive.inject(status=429, headers={"Retry-After": "3600"}, times=None, job_id=slow)
    archive.inject(status=503, job_id=other)
    for job_id in broken:
        archive.inject(status=503, times=None, job_id=job_id)
    assert archive.collect(ids, max_failed=4).error is None
    assert archive.column("status") == ["failed", "completed", *["failed"] * 3]
    fetched = archive.fetches
    assert (fetched[f"/outputs/{slow}/0.png"], fetched[f"/outputs/{other}/0.png"]) == (1, 2)
    # the second round stores one, so that the rounds begin again
    assert {fetched[f"/outputs/{job_id}/0.png"] for job_id in broken} == {retry.ATTEMPTS + 1}


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
    archive.answer(job_id, 2, result=[first, first, second])  # of a poll, and of the result
    archive.answer(job_id, result=[f"{first_anew}#one", f"{first_anew}#two", second_anew])
    assert archive.collect(job_id).error is None
    assert sorted(name for _, name in archive.stored) == ["0-0.png", "1-1.png"]
    assert len({*archive.stored.values()}) == 2
    assert set(archive.fetches.values()) == {2}


@pytest.mark.contract
@pytest.mark.parametrize("times", [1, None])
def test_a_job_is_not_given_up_because_its_urls_cannot_be_renewed(
    archive: Archive, times: int | None
) -> None:
    [job_id] = submitted(job())
    archive.inject(status=403, times=times)
    archive.inject("get", status=404, times=None, skip=2)  # after a poll and the result
    if times == 1:
        assert archive.collect(job_id).error is None
        return
    assert "answered 403" in archive.failure(job_id)  # a retry may help
    archive.service.clear_faults()
    assert archive.collect(job_id).error is None


@pytest.mark.contract
def test_a_replica_that_lags_behind_loses_no_job_that_is_over(archive: Archive) -> None:
    ids = submitted(job(), job(), job())
    for job_id in ids:  # after the poll that finds it over
        archive.inject("get", status=404, job_id=job_id, skip=1)
    assert archive.collect(ids).error is None
    assert len(archive.stored) == 3


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
    created_at = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    # signed again, though the file may be deleted
    result = {"image": f"{archive.url}/outputs/{job_id}/0.png"}
    archive.answer(job_id, created_at=created_at, result=result)
    archive.inject(status=status, body=body, times=None)
    text = archive.failure(job_id, AirflowFailException if expired else RunGenJobFailedError)
    assert "Could not store the outputs: result.image: " in text
    assert f"127.0.0.1 answered {status}" in text
    assert archive.column("status") == ["invalid" if expired else "failed"]
    if expired:
        assert f"the outputs of the job {expired}" in text
        assert set(archive.fetches.values()) == {2}
    else:
        assert "expired" not in text
        assert "check that the worker may reach it" in text
        assert "buys nothing" in text


def test_many_outputs_that_have_expired_are_all_given_up(archive: Archive) -> None:
    ids = submitted(*[job() for _ in range(outage.OUTAGE_FAILURES + 4)])
    archive.inject(status=400, body=EXPIRED, times=None)
    archive.failure(ids, AirflowFailException, max_failed=len(ids) - 1)
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
    archive.answer(job_id, input=given, result=result)
    assert archive.collect(job_id).error is None
    assert [*archive.stored] == [(job_id, "0-output.png")]


@pytest.mark.contract
def test_no_job_is_given_up_for_an_input_that_its_result_repeats(archive: Archive) -> None:
    [job_id] = submitted(job())
    archive.inject("output", status=403, times=None, body=EXPIRED)
    given = {"image": f"{archive.url}/outputs/private/photo.png?sig=abc"}
    archive.answer(job_id, input=given, result=given | {"caption": "a fox"})
    assert "check that the worker may reach it" in archive.failure(job_id)
    assert archive.column("status") == ["failed"]


@pytest.mark.contract
@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_in_the_middle_ends_it(archive: Archive, status: int) -> None:
    ids = submitted(*[job() for _ in range(30)])
    archive.inject("get", status=status, times=None)
    error = archive.failure(ids, AirflowFailException, wait_for_completion=False)
    assert "Check the password" in error
    assert archive.service.count("get") <= len(ids), "none is sent again"


# --- many ---------------------------------------------------------------------------------------------------


@pytest.mark.contract
def test_many_outputs_are_stored_few_at_a_time(archive: Archive, connections: Connections) -> None:
    ids = submitted(*[job(images=4, output_bytes=500) for _ in range(100)])
    connections.most = 0
    assert archive.collect(ids, wait_for_completion=False).value["completed"] == 100
    counts = archive.fetches
    assert len(counts) == counts.total() == len(archive.stored) == 400
    assert connections.most <= 2 * 16 + 1
    assert {len(content) for content in archive.stored.values()} == {500}
    assert len({uri for uris in archive.column("outputs") for uri in uris}) == 400


def test_the_log_shows_the_progress(
    archive: Archive, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(output_store, "PROGRESS_INTERVAL", 0.0)
    monkeypatch.setattr(output_store, "MAX_CONCURRENCY", 1)
    ids = submitted(*[job(output_bytes=500) for _ in range(5)])
    archive.inject(kind="drip", times=None, drip_seconds=0.0005)
    archive.collect(ids, wait_for_completion=False)
    lines = [line for line in caplog.messages if line.startswith("Stored")]
    assert any("of 4 of 5 jobs" in line and "left" in line for line in lines)
    assert re.match(r"Stored 5 files \([\d.]+ kB\) of 5 jobs in \S+; ", lines[-1])


# --- kills --------------------------------------------------------------------------------------------------


@pytest.mark.contract
def test_a_kill_leaves_no_half_file(archive: Archive) -> None:
    ids = submitted(*[job(output_bytes=5000) for _ in range(12)])
    archive.inject(kind="drip", times=None, skip=5)
    op = archive.begin(ids, wait_for_completion=False)

    def is_under_way() -> bool:
        return archive.service.count("output") > 8 and len(archive.stored) == 5

    with signal_when(signal.SIGTERM, is_under_way, op.on_kill) as sent:
        error = run_task(op, archive.context).error
    assert time.monotonic() - sent[0] < SOON
    assert isinstance(error, AirflowException)
    assert "killed" in str(error)
    assert [len(content) for content in archive.stored.values()] == [5000] * 5
    assert not [path for path in files(archive.store) if path.endswith(".part")]
    archive.service.clear_faults()
    assert archive.collect(ids).value["completed"] == 12


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
    assert archive.stored == {}


SCRIPT = """
import sys
from rungen_emulator.testing import run_operator
from airflow_provider_rungen.operators import RunGenCollectResultsOperator
from airflow_provider_rungen.store import ended
ended.FLUSH_RECORDS = 4
folder, *ids = sys.argv[1:]
options = {"wait_for_completion": False}
run_operator(RunGenCollectResultsOperator(task_id="collect", job_id=ids, destination=folder, **options))
"""


@pytest.mark.contract
def test_an_attempt_after_a_kill_fetches_what_is_not_recorded(archive: Archive) -> None:
    ids = submitted(*[job(images=2, output_bytes=3000) for _ in range(20)])
    # what comes after the first 20 never comes to its end
    archive.inject(kind="drip", times=None, skip=20, drip_seconds=60)
    command = [sys.executable, "-c", SCRIPT, archive.store.as_uri(), *ids]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while archive.service.count("output") < 24 or not [*archive.store.glob(".rungen/done/*.gz")]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert {len(content) for content in archive.stored.values()} == {3000}
    assert [name for name in files(archive.store) if name.endswith(".part")]
    before = archive.fetches
    archive.service.clear_faults()

    assert archive.collect(ids, wait_for_completion=False).value["completed"] == 20
    again = archive.fetches - before
    assert 20 <= again.total() <= 40 - 2 * 4, "of a block that was recorded, nothing"
    assert {len(content) for content in archive.stored.values()} == {3000}
    assert len(archive.stored) == 40
    touched = {archive.path_of().parent.name for _ in ids}
    left = [name for name in files(archive.store) if name.endswith(".part")]
    assert not [name for name in left if Path(name).parent.name in touched]
