"""An outage of storage is not an absence: whole tasks, whose stores fail, by the number of jobs they buy."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from airflow.providers.common.compat.sdk import AirflowException, ObjectStoragePath
from conftest import FakeTaskInstance, Outcome, run_task, stopped_when
from faulty_s3 import CUT, HANG, FaultyS3, S3Fault, S3Request
from object_store import attach
from rungen_emulator import Emulator

from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.task import store_writer
from airflow_provider_rungen.operators import Ledger, RunGenPlanTableOperator, RunGenRunTableOperator

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
    """A table task with a ledger, that runs again and again."""

    def __init__(self, emulator: Emulator, base: str, **options: Any) -> None:
        emulator.service.job_seconds = 0.0
        emulator.service.scale("flux-schnell", 1000)
        self.emulator = emulator
        self.options: dict[str, Any] = {
            "table": [{"n": n, "prompt": f"picture {n}"} for n in range(ROWS)],
            "key": "n",
            "destination": f"{base}/photos",
            "ledger": Ledger(f"{base}/ledger"),
            "poll_interval": 0.02,
        } | options
        self.runs = 0

    def run(self, *, retry: bool = False, **changes: Any) -> Outcome:
        """Run the first attempt of a run, or a retry."""
        return run_task(*self.begin(retry=retry, **changes))

    def begin(self, *, retry: bool = False, max_tries: int = 2, **changes: Any) -> tuple[Any, Any]:
        """Return the operator and the context of an attempt."""
        self.runs += not retry
        self.ti = FakeTaskInstance()
        self.ti.run_id = f"run {self.runs}"
        self.ti.try_number = 1 + retry
        self.ti.max_tries = max_tries
        return RunGenRunTableOperator(task_id="task", **self.options | changes), {"ti": self.ti}

    @property
    def bought(self) -> int:
        return int(self.emulator.service.stats()["jobs_created"])


@pytest.fixture(autouse=True)
def short_of_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 1.0)


def retryable(outcome: Outcome) -> bool:
    """Return whether an attempt failed with an error that Airflow retries."""
    return bool(getattr(outcome.error, "retryable", False))


# --- S3, behind a proxy ---


@pytest.fixture
def task(faulty_s3: FaultyS3, rungen_emulator: Emulator, tmp_path: Path) -> Task:
    return Task(rungen_emulator, f"s3://faulty_s3@bucket/{tmp_path.name}")


Where = Callable[[S3Request], bool]


def in_folder(name: str, *operations: str) -> Where:
    return lambda request: f"/{name}/" in f"/{request.key}/" and request.operation in operations


LOGIN_PAGE = S3Fault(200, "LogIn")
EVERYTHING = ("GET", "HEAD", "LIST", "PUT", "DELETE", "BULK_DELETE")
PLACES: dict[str, Where] = {
    "GET of stored files": in_folder("photos", "GET"),
    "GET and HEAD of stored files": in_folder("photos", "GET", "HEAD"),
    "all of the destination": in_folder("photos", *EVERYTHING),
    "GET of entries": lambda request: (
        in_folder("ledger", "GET")(request) and "ledger.json" not in request.key
    ),
    "all of the ledger": in_folder("ledger", *EVERYTHING),
}


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
        bought[name_of(fault)] = task.bought - before if retryable(outcome) else f"not retryable: {outcome}"
    assert task.run(retry=True).value["reused"] == ROWS
    return bought


@pytest.mark.contract
@pytest.mark.parametrize("where", PLACES)
def test_no_outage_of_s3_buys_again_what_is_stored(task: Task, faulty_s3: FaultyS3, where: str) -> None:
    def cause(fault: S3Fault) -> None:
        faulty_s3.find_fault = lambda request: fault if PLACES[where](request) else None

    faults = [*CODES, CUT, HANG, LOGIN_PAGE]
    assert bought_in(task, faults, cause, faulty_s3.reset) == {name_of(fault): 0 for fault in faults}


@pytest.mark.contract
@pytest.mark.parametrize(
    "operations", [["PUT"], ["GET", "HEAD"], ["LIST"], ["DELETE", "BULK_DELETE"]], ids=str
)
@pytest.mark.parametrize("has_ledger", [True, False])
def test_each_right_on_the_destination_is_tried_before_anything_is_bought(
    task: Task, faulty_s3: FaultyS3, operations: list[str], has_ledger: bool
) -> None:
    changes: dict[str, Any] = {} if has_ledger else {"ledger": None}
    faulty_s3.find_fault = lambda request: (
        S3Fault(403, "AccessDenied") if in_folder("photos", *operations)(request) else None
    )
    outcome = task.run(**changes)
    assert task.bought == 0
    assert retryable(outcome)
    assert "destination" in str(outcome.error)
    faulty_s3.reset()
    assert task.run(retry=True, **changes).value["jobs"] == ROWS


@pytest.mark.contract
def test_a_place_is_tried_with_few_requests_and_left_as_it_was(
    task: Task, faulty_s3: FaultyS3, s3_client: Any, tmp_path: Path
) -> None:
    assert task.run().error is None
    found = [request for request in faulty_s3.requests if "/.rungen/" in request.key]
    probes = [request.operation for request in found if "/.rungen/runs/" not in request.key]
    # of the ledger and of the destination
    assert probes == 2 * ["PUT", "LIST", "GET", "DELETE"]
    keys = {
        each["Key"] for each in s3_client.list_objects_v2(Bucket="bucket", Prefix=tmp_path.name)["Contents"]
    }
    assert not [key for key in keys if "/.rungen/" in key and "/.rungen/runs/" not in key]


def test_an_upload_that_the_store_does_not_confirm_is_none(
    faulty_s3: FaultyS3, s3_client: Any, tmp_path: Path
) -> None:
    storage = Storage(f"s3://faulty_s3@bucket/{tmp_path.name}")

    def put() -> None:
        with storage.incoming("job", "0.png") as (file, path):
            file.write(b"picture")
            storage.put(file, path, "job", "0.png")

    uploads: list[Callable[[], None]] = [put, lambda: storage.write("job", "manifest.json", b"{}")]
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
    assert storage.list_folder("job") == {"0.png": 7, "manifest.json": 2}
    stored = s3_client.head_object(Bucket="bucket", Key=f"{tmp_path.name}/job/0.png")
    assert stored["ContentType"] == "image/png"


@pytest.mark.contract
@pytest.mark.parametrize("name", ["photos", "ledger"])
def test_a_login_page_in_place_of_a_store_loses_nothing(task: Task, faulty_s3: FaultyS3, name: str) -> None:
    assert task.run(table=[{"n": "first", "prompt": "the ledger is there"}]).error is None
    is_stored = in_folder(name, "PUT")
    # outputs, manifests and entries
    faulty_s3.find_fault = lambda request: (
        LOGIN_PAGE if is_stored(request) and "/.rungen/" not in request.key else None
    )
    assert retryable(task.run())
    faulty_s3.reset()
    outcome = task.run(retry=True)
    assert outcome.error is None
    assert task.bought == 1 + ROWS
    assert task.run().value["reused"] == ROWS
    assert task.bought == 1 + ROWS


@pytest.mark.contract
def test_an_entry_of_a_stored_job_is_written_again(task: Task, faulty_s3: FaultyS3) -> None:
    is_stored, is_entry, refused = in_folder("photos", "PUT"), in_folder("ledger", "PUT"), list[str]()

    def refuse_once(request: S3Request) -> S3Fault | None:
        stored = any(is_stored(each) and "manifest" in each.key for each in faulty_s3.requests)
        if refused or not (stored and is_entry(request)):
            return None
        refused.append(request.key)
        return S3Fault(403, "AccessDenied")

    faulty_s3.find_fault = refuse_once
    assert task.run().error is None
    assert len(refused) == 1
    assert (task.run().value["reused"], task.bought) == (ROWS, ROWS)


@pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM], ids=["kill", "time limit"])
def test_neither_a_kill_nor_a_time_limit_waits_for_the_ledger(
    task: Task, faulty_s3: FaultyS3, monkeypatch: pytest.MonkeyPatch, *, deferrable: bool, number: Any
) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 60.0)
    is_file, is_entry = in_folder("photos", "PUT"), in_folder("ledger", "PUT")
    refused, hung = list[str](), list[str]()

    def refuse(request: S3Request) -> S3Fault | None:
        """Refuse the entry of the first stored job, and hang for the files of the next."""
        if is_entry(request) and any("manifest" in each.key for each in faulty_s3.requests if is_file(each)):
            refused.append(request.key)
            return S3Fault(403, "AccessDenied")
        if is_file(request) and refused:
            hung.append(request.key)
            return HANG
        return None

    faulty_s3.find_fault = refuse
    op, context = task.begin(
        max_tries=0,
        table=[{"n": n, "prompt": "a fox", "seconds": seconds} for n, seconds in enumerate((0, 1, 60, 61))],
        to_input=lambda row: {"prompt": row["prompt"], "emulator": {"seconds": row["seconds"]}},
        deferrable=deferrable,
    )
    with stopped_when(op, number, lambda: len(refused) > 2 if deferrable else bool(hung)):
        run_task(op, context)
    statuses = [job["status"] for job in task.emulator.service.jobs()]
    assert statuses[0] == "COMPLETED"
    assert statuses[2:] == ["CANCELED"] * 2


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
@pytest.mark.parametrize("where", ["photos", "ledger"])
def test_no_outage_of_another_cloud_buys_again_what_is_stored(
    scheme: str, rungen_emulator: Emulator, where: str, broken: tuple[str, ...]
) -> None:
    cloud, current = attach(scheme), list[Exception]()

    def fail(kind: str, path: str) -> None:
        if current and kind in broken and f"/{where}/" in f"{path}/":
            raise current[0]

    cloud.before = fail
    task = Task(rungen_emulator, f"{scheme}://bucket/x")
    bought = bought_in(task, OUTAGES[scheme], current.append, current.clear)
    assert bought == {name_of(error): 0 for error in OUTAGES[scheme]}


# --- folders of this machine, and mounts ---


@pytest.fixture
def local(rungen_emulator: Emulator, tmp_path: Path) -> Task:
    (tmp_path / "mount").mkdir()
    return Task(rungen_emulator, f"{tmp_path}/mount")


@pytest.mark.contract
def test_a_destination_on_a_missing_mount_buys_nothing(local: Task, tmp_path: Path) -> None:
    mount, ledger = tmp_path / "mount", Ledger(str(tmp_path / "ledger"))
    assert local.run(ledger=ledger).error is None
    mount.rename(tmp_path / "elsewhere")
    mount.mkdir()  # as where a mount would be
    for attempt in range(3):
        outcome = local.run(ledger=ledger, retry=attempt > 0)
        assert retryable(outcome)
        assert str(mount / "photos") in str(outcome.error)
    assert local.bought == ROWS
    assert not list(mount.iterdir())
    mount.rmdir()
    (tmp_path / "elsewhere").rename(mount)
    assert local.run(ledger=ledger, retry=True).value["reused"] == ROWS


@pytest.mark.contract
def test_a_ledger_that_had_to_be_created_is_named(
    local: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = f"{tmp_path}/mount/ledger"
    for shown in (ledger, None):
        caplog.clear()
        assert local.run().error is None
        assert any("New ledger" in line and ledger in line for line in caplog.messages) == (shown is not None)
        assert not [record for record in caplog.records if record.levelname == "WARNING"]
        assert local.ti.xcoms.get("rungen_page", {}).get("new_ledger") == shown


@pytest.mark.contract
def test_a_plan_creates_no_ledger_and_no_folder(local: Task, tmp_path: Path) -> None:
    context = {"ti": FakeTaskInstance()}
    outcome = run_task(RunGenPlanTableOperator(task_id="plan", **local.options), context)
    assert outcome.value == ROWS
    assert not list((tmp_path / "mount").iterdir())


@pytest.mark.contract
@pytest.mark.parametrize("what", [r"manifest\.json", r"0-0\.png", r"[0-9a-f]{64}\.json"])
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
        Storage(tmp_path).list_all(["ab"])
