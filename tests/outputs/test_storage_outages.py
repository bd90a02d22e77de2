"""An outage of storage is not an absence: whole tasks, whose store fails, by the number of jobs they buy."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from airflow.providers.common.compat.sdk import AirflowException, ObjectStoragePath
from conftest import FakeTaskInstance, Outcome, run_task
from faulty_s3 import CUT, HANG, FaultyS3, S3Fault, S3Request
from object_store import attach
from rungen_emulator import Emulator

from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.operators import RunGenPlanTableOperator, RunGenRunTableOperator
from airflow_provider_rungen.outputs.storage import Storage

pytestmark = pytest.mark.usefixtures("unsettled")

ROWS = 4
CODES = [
    *(S3Fault(400, "ExpiredToken"), S3Fault(404, "NoSuchBucket"), S3Fault(503, "SlowDown")),
    *(S3Fault(403, code) for code in ("ExpiredToken", "RequestTimeTooSkewed", "InvalidAccessKeyId")),
    *(S3Fault(403, code) for code in ("SignatureDoesNotMatch", "InvalidObjectState", "AccessDenied")),
]


def name_of(fault: S3Fault | Exception) -> str:
    return f"{fault.code} {fault.status}" if isinstance(fault, S3Fault) else repr(fault)


class Task:
    """A table task that runs again and again."""

    def __init__(self, emulator: Emulator, base: str, **options: Any) -> None:
        emulator.service.job_seconds = 0.0
        emulator.service.scale("flux-schnell", 1000)
        self.emulator = emulator
        self.options: dict[str, Any] = {
            "table": [{"n": n, "prompt": f"picture {n}"} for n in range(ROWS)],
            "key": "n",
            "destination": f"{base}/photos",
            "poll_interval": 0.02,
        } | options
        self.runs = self.tries = 0

    def run(self, *, retry: bool = False, **changes: Any) -> Outcome:
        """Run the first attempt of a run, or a retry."""
        self.runs += not retry
        self.tries += 1
        ti: Any = FakeTaskInstance()
        ti.run_id, ti.id = f"run {self.runs}", f"try {self.tries}"
        ti.try_number, ti.max_tries = 1 + retry, 2
        return run_task(RunGenRunTableOperator(task_id="task", **self.options | changes), {"ti": ti})

    @property
    def bought(self) -> int:
        return int(self.emulator.service.stats()["jobs_created"])


def retryable(outcome: Outcome) -> bool:
    """Return whether an attempt failed with an error that Airflow retries."""
    return bool(getattr(outcome.error, "retryable", False))


def bought_in(
    task: Task, faults: Iterable[Any], cause: Callable[[Any], None], end: Callable[[], None]
) -> dict[str, int | str]:
    """Buy once, then run in each of several outages. Return what each of these runs bought."""
    assert task.run().error is None
    bought: dict[str, int | str] = {}
    for fault in faults:
        before = task.bought
        cause(fault)
        outcome = task.run()
        end()
        # it may not have needed what failed
        is_good = retryable(outcome) or (outcome.error is None and outcome.value["reused"] == ROWS)
        bought[name_of(fault)] = task.bought - before if is_good else f"not retryable: {outcome}"
    assert task.run(retry=True).value["reused"] == ROWS
    return bought


# --- S3, behind a proxy ---


@pytest.fixture
def task(faulty_s3: FaultyS3, rungen_emulator: Emulator, tmp_path: Path) -> Task:
    return Task(rungen_emulator, f"s3://faulty_s3@bucket/{tmp_path.name}")


Where = Callable[[S3Request], bool]


def in_folder(name: str, *operations: str) -> Where:
    return lambda request: f"/{name}/" in f"/{request.key}/" and request.operation in operations


LOGIN_PAGE = S3Fault(200, "LogIn")
PLACES: dict[str, Where] = {
    "all": in_folder("photos", "GET", "HEAD", "LIST", "PUT", "DELETE", "BULK_DELETE"),
    "GET of all": in_folder("photos", "GET"),
    "HEAD of outputs": in_folder("files", "HEAD"),
    "HEAD and LIST of outputs": in_folder("files", "HEAD", "LIST"),
    "GET of records": in_folder("done", "GET"),
    "LIST of records": in_folder("done", "LIST"),
    "LIST of claims": in_folder("open", "LIST"),
}


@pytest.mark.contract
@pytest.mark.parametrize("where", PLACES)
def test_no_outage_of_s3_buys_again_what_is_stored(task: Task, faulty_s3: FaultyS3, where: str) -> None:
    def cause(fault: S3Fault) -> None:
        faulty_s3.find_fault = lambda request: fault if PLACES[where](request) else None

    faults = [*CODES, CUT, HANG, LOGIN_PAGE]
    if "HEAD" in where:  # a file that is missing has the same answer
        faults.remove(S3Fault(404, "NoSuchBucket"))
    assert bought_in(task, faults, cause, faulty_s3.reset) == {name_of(fault): 0 for fault in faults}


@pytest.mark.contract
@pytest.mark.parametrize(
    "operations", [["PUT"], ["GET", "HEAD"], ["LIST"], ["DELETE", "BULK_DELETE"]], ids=str
)
def test_each_right_on_the_destination_is_tried_before_anything_is_bought(
    task: Task, faulty_s3: FaultyS3, operations: list[str]
) -> None:
    faulty_s3.find_fault = lambda request: (
        S3Fault(403, "AccessDenied") if in_folder("photos", *operations)(request) else None
    )
    outcome = task.run()
    assert task.bought == 0
    assert retryable(outcome)
    assert "destination" in str(outcome.error)
    faulty_s3.reset()
    assert task.run(retry=True).value["jobs"] == ROWS


@pytest.mark.contract
def test_a_place_is_tried_with_few_requests_and_left_as_it_was(
    task: Task, faulty_s3: FaultyS3, s3_client: Any, tmp_path: Path
) -> None:
    assert task.run().error is None
    probes = [request.operation for request in faulty_s3.requests if request.key.endswith(".part")]
    assert probes == ["PUT", "GET", "DELETE"]
    listed = s3_client.list_objects_v2(Bucket="bucket", Prefix=tmp_path.name)["Contents"]
    left = {each["Key"].partition("/.rungen/")[2].partition("/")[0] for each in listed}
    assert left == {"", "store.json", "done", "runs"}


def test_an_upload_that_the_store_does_not_confirm_is_none(
    faulty_s3: FaultyS3, s3_client: Any, tmp_path: Path
) -> None:
    storage = Storage(f"s3://faulty_s3@bucket/{tmp_path.name}")

    def put() -> None:
        with storage.incoming("job", "0.png") as (file, path):
            file.write(b"picture")
            storage.put(file, path, "job", "0.png")

    uploads: list[Callable[[], None]] = [put, lambda: storage.write("job", "1.json", b"{}")]
    faulty_s3.find_fault = lambda request: LOGIN_PAGE if request.operation == "PUT" else None
    for each in uploads:
        # newer versions of botocore refuse the page themselves
        with pytest.raises(RunGenOutputError, match=r"no ETag|LogIn") as caught:
            each()
        assert caught.value.retryable
    faulty_s3.reset()
    for each in uploads:
        each()
    assert [request.operation for request in faulty_s3.requests] == ["PUT", "PUT"]
    assert storage.list_folder("job") == {"0.png": 7, "1.json": 2}
    stored = s3_client.head_object(Bucket="bucket", Key=f"{tmp_path.name}/job/0.png")
    assert stored["ContentType"] == "image/png"


@pytest.mark.contract
@pytest.mark.parametrize("name", ["files", "done", "open"])
def test_a_login_page_in_place_of_a_store_loses_nothing(task: Task, faulty_s3: FaultyS3, name: str) -> None:
    assert task.run(table=[{"n": "first", "prompt": "the store is there"}]).error is None
    is_stored = in_folder(name, "PUT")
    faulty_s3.find_fault = lambda request: LOGIN_PAGE if is_stored(request) else None
    assert retryable(task.run())
    faulty_s3.reset()
    outcome = task.run(retry=True)
    assert outcome.error is None
    assert task.bought == 1 + ROWS
    assert task.run().value["reused"] == ROWS
    assert task.bought == 1 + ROWS


@pytest.mark.contract
def test_a_store_that_removes_one_file_at_a_time_is_no_outage(task: Task, faulty_s3: FaultyS3) -> None:
    # some that speak S3 do not know DeleteObjects, or want another checksum than botocore sends
    faulty_s3.find_fault = lambda request: (
        S3Fault(400, "MissingContentMD5") if request.operation == "BULK_DELETE" else None
    )
    outcome = task.run()
    assert (outcome.error, task.bought) == (None, ROWS)


# --- Google Cloud Storage and Azure: the exceptions of gcsfs and adlfs ---


class GcsHttpError(Exception):
    """As `gcsfs.retry.HttpError`, for 401 and all that gcsfs does not know."""


class RefreshError(Exception):
    """As `google.auth.exceptions.RefreshError`, when no new token can be had."""


class AzureError(Exception):
    """As `azure.core.exceptions.AzureError`."""


class ClientAuthenticationError(AzureError):
    """As that of `azure.core`, for an expired token or a wrong clock."""


@pytest.fixture(params=["gs", "abfs"])
def scheme(request: pytest.FixtureRequest) -> Iterator[str]:
    """The scheme of a cloud, whose file systems are those of before after the test."""
    stores = import_module(import_module(ObjectStoragePath.__module__).attach.__module__)._STORE_CACHE
    before = dict(stores)
    yield request.param
    stores.clear()
    stores |= before


OUTAGES = {
    "gs": [
        OSError("Forbidden: https://storage.googleapis.com/b/bucket/o\nInvalid JWT signature"),  # 403
        ValueError("Bad Request: invalid_grant"),  # 400
        GcsHttpError("Invalid Credentials, 401"),
        RefreshError("('invalid_grant: Token has been expired or revoked.', {})"),
        FileNotFoundError("gs://bucket"),  # a bucket that is gone, too
    ],
    "abfs": [
        ClientAuthenticationError("AuthenticationFailed: Signature not valid in the specified time frame"),
        AzureError("ServerBusy"),
        PermissionError("AuthorizationPermissionMismatch"),
        FileNotFoundError("abfs://container"),  # a container that is gone, too
    ],
}


@pytest.mark.contract
@pytest.mark.parametrize("broken", [("read",), ("list", "info", "read")], ids=str)
@pytest.mark.parametrize("where", ["photos", "files", "done", "open"])
def test_no_outage_of_another_cloud_buys_again_what_is_stored(
    scheme: str, rungen_emulator: Emulator, where: str, broken: tuple[str, ...]
) -> None:
    cloud, current = attach(scheme), list[Exception]()

    def fail(kind: str, path: str) -> None:
        if current and kind in broken and f"/{where}/" in f"/{path}/":
            raise current[0]

    cloud.before = fail
    task = Task(rungen_emulator, f"{scheme}://bucket/x")
    outages = [
        each for each in OUTAGES[scheme] if where == "photos" or not isinstance(each, FileNotFoundError)
    ]
    bought = bought_in(task, outages, current.append, current.clear)
    assert bought == {name_of(error): 0 for error in outages}


# --- folders of this machine, and mounts ---


@pytest.fixture
def local(rungen_emulator: Emulator, tmp_path: Path) -> Task:
    (tmp_path / "mount").mkdir()
    return Task(rungen_emulator, f"{tmp_path}/mount")


@pytest.mark.contract
def test_a_mount_that_is_missing_buys_as_many_as_may_be_and_loses_nothing(
    local: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for is_new in (True, False):
        caplog.clear()
        assert local.run().error is None
        assert any("A new store" in line for line in caplog.messages) == is_new
        assert not [each for each in caplog.records if each.levelname == "WARNING" and ".work." in each.name]
    mount = tmp_path / "mount"
    mount.rename(tmp_path / "elsewhere")
    mount.mkdir()  # as where a mount would be
    caplog.clear()
    assert "max_jobs" in str(local.run(max_jobs=ROWS - 1).error)
    assert any("A new store" in line for line in caplog.messages)
    assert local.bought == ROWS
    local.run(max_jobs=ROWS)
    assert local.bought == 2 * ROWS
    for path in sorted(mount.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    mount.rmdir()
    (tmp_path / "elsewhere").rename(mount)
    assert local.run().value["reused"] == ROWS


@pytest.mark.contract
def test_a_plan_creates_no_folder(local: Task, tmp_path: Path) -> None:
    context = {"ti": FakeTaskInstance()}
    outcome = run_task(RunGenPlanTableOperator(task_id="plan", **local.options), context)
    assert outcome.value == ROWS
    assert not list((tmp_path / "mount").iterdir())


@pytest.mark.contract
@pytest.mark.parametrize("what", [r"done/.*\.gz", r"files/../.*0-0\.png", r"store\.json"])
def test_a_local_file_that_cannot_be_read_is_an_outage(
    local: Task, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A network file system has such errors, and nobody is refused as root."""
    current: list[OSError] = []
    for function in ("open", "stat"):
        real: Callable[..., Any] = getattr(os, function)

        def broken(path: Any, *args: Any, original: Callable[..., Any] = real, **kwargs: Any) -> Any:
            if current and isinstance(path, str) and re.search(f"/{what}$", path):
                raise current[0]
            return original(path, *args, **kwargs)

        monkeypatch.setattr(os, function, broken)

    numbers = [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES, errno.EPERM]
    errors = [OSError(number, os.strerror(number)) for number in numbers]
    assert bought_in(local, errors, current.append, current.clear) == {name_of(error): 0 for error in errors}


@pytest.mark.parametrize("step", ["is_file", "stat"])
def test_a_file_that_goes_while_its_folder_is_listed_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    # the temporary files of other tasks do, when they are renamed: then nothing is lost, and no probe fails
    storage, scandir, gone = Storage(tmp_path), os.scandir, MagicMock()
    getattr(gone, step).side_effect = FileNotFoundError(errno.ENOENT, "renamed meanwhile")

    @contextmanager
    def listing(path: str) -> Iterator[Iterable[Any]]:
        with scandir(path) as entries:
            yield [gone, *entries]

    storage.write("a", "1.txt", b"x")
    monkeypatch.setattr(os, "scandir", listing)
    assert storage.prepare().list_folder("a") == {"1.txt": 1}


def test_a_kill_while_storage_is_read_is_no_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: Any) -> None:
        raise AirflowException("The task was killed")

    monkeypatch.setattr(os, "scandir", killed)
    with pytest.raises(AirflowException, match=r"^The task was killed$"):
        Storage(tmp_path).list_folder("ab")
