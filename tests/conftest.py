"""What the tests share: a private Airflow home, a fake clock, and three ways to perform a flow."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import email.utils
import gc
import itertools
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import hypothesis.internal.conjecture.providers
import pytest

# Before anything imports airflow, which reads its settings then.
HOME = Path(tempfile.mkdtemp(prefix="rungen-airflow-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
for _name in list(os.environ):
    if _name.startswith(("AIRFLOW_", "RUNGEN_")) or _name.lower().endswith("_proxy"):
        del os.environ[_name]
os.environ |= {
    "AIRFLOW_HOME": str(HOME),
    "AIRFLOW_CONFIG": str(HOME / "airflow.cfg"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(HOME / "dags"),
    "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
    "NO_PROXY": "",
    "NETRC": os.devnull,
}

import bad_answers  # noqa: E402
from faulty_s3 import FaultyS3  # noqa: E402
from odd_answers import OddService  # noqa: E402
from rungen_emulator import Emulator, fakes  # noqa: E402
from rungen_emulator.fakes import FakeStore, OutletEvents  # noqa: E402
from rungen_emulator.testing import TaskResult as Outcome  # noqa: E402
from rungen_emulator.testing import run_operator  # noqa: E402
from wire import Connections, Server, Talk  # noqa: E402

from airflow_provider_rungen.client.flow import Flow, Request, Response  # noqa: E402
from airflow_provider_rungen.client.polling import wait_for_jobs  # noqa: E402
from airflow_provider_rungen.client.senders import AsyncSender, Sender  # noqa: E402
from airflow_provider_rungen.client.settings import Settings  # noqa: E402
from airflow_provider_rungen.client.transport import adrive, drive  # noqa: E402
from airflow_provider_rungen.exceptions import RunGenConnectionError  # noqa: E402
from airflow_provider_rungen.operators import RunGenRunTableOperator  # noqa: E402

hypothesis.settings.register_profile("steady", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("steady")
# Hypothesis also draws constants of the modules loaded so far, which differ between test processes.
vars(hypothesis.internal.conjecture.providers)["is_local_module_file"] = lambda _: False

__all__ = ["FakeStore", "Outcome", "OutletEvents", "wait_for_jobs"]

T = TypeVar("T")
KEY = "rungen-emulator-key"
APP = "flux-schnell"
# Seconds in which a busy machine, too, ends what is cut short. What the tests let hang lasts longer, and the
# system tests hold the five seconds that Airflow gives a task.
SOON = 12.0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return more workers than there are cores, since most tests mainly wait."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(3 * cores, cores + 4)


# One process runs all tests of these files, since they share what is expensive to make, or write one table.
UNDIVIDED = {"tests/emulator/test_faults.py", "tests/test_dags.py", "tests/test_docs.py"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule the undivided files first, and then test by test."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist_group fails with pytest 9.2
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in UNDIVIDED else nodeid

    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the tests that need more than this package only if ``-m`` names what they need."""
    asked = str(config.getoption("markexpr"))
    left_out = {name for name in ("system", "browser", "distributed") if name not in asked}
    chosen, others = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        if "s3_client" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.system)  # moto is installed there
        is_left_out = any(item.get_closest_marker(name) for name in left_out)
        (others if is_left_out else chosen).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = chosen


def pytest_collection_finish() -> None:
    """Look for garbage among what tests make alone: what was imported before stays."""
    gc.collect()
    gc.freeze()


# Whether a signal has struck in this test.
_was_interrupted = threading.Event()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None]:
    """Drop what a signal handler left half made when it raised, before another test is blamed for it."""
    yield
    if _was_interrupted.is_set():
        _was_interrupted.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """
    Format a failure with garbage collection disabled.

    A finalizer may format a traceback, too, such as that of a task that was not awaited. If it does so while
    pytest parses the test's source, Python 3.11 raises a SystemError (python/cpython#106905).
    """
    if call.excinfo is None:
        return (yield)
    gc.collect()
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return  # the tests run in other processes
    # pytest-asyncio, if it is installed, warns about an unset option of its own
    warnings.filterwarnings("ignore", ".*asyncio_default_fixture_loop_scope", DeprecationWarning)
    warnings.filterwarnings("ignore", ".*asyncio_default_fixture_loop_scope", pytest.PytestWarning)
    with warnings.catch_warnings():
        # Airflow and its dependencies warn when they are imported, and when the tables are mapped. This
        # imports what a later lookup of a connection needs, too.
        warnings.simplefilter("ignore")
        import airflow.models.connection
        import airflow.providers.common.compat.sdk
        import airflow.serialization.serialized_objects
        import airflow.triggers.base  # noqa: F401
        import sqlalchemy.orm

        sqlalchemy.orm.configure_mappers()


class FakeTime:
    """A clock that moves only when something sleeps."""

    def __init__(self) -> None:
        self.now = time.time()
        self.slept: list[float] = []
        self.on_sleep: Callable[[float], None] | None = None

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds
        if self.on_sleep is not None:
            self.on_sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


#: The emulator of the test, whose jobs do not end before `run_task` has deferred what defers at once.
_emulator_of_test: list[Emulator] = []


@pytest.fixture(autouse=True)
def unconfined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow a test services of its own, though a fixture of a module or session has an emulator."""
    monkeypatch.delenv("RUNGEN_EMULATOR", raising=False)


@pytest.fixture
def rungen_emulator(rungen_emulator: Emulator) -> Iterator[Emulator]:
    """Run an emulator that `run_task` knows."""
    _emulator_of_test.append(rungen_emulator)
    yield rungen_emulator
    _emulator_of_test.clear()


@dataclass
class Via:
    """Performs flows against a service: in process, blocking, or in an event loop."""

    kind: str
    emulator: Emulator
    clock: FakeTime = field(default_factory=FakeTime)
    service: OddService = field(init=False)
    overrides: dict[str, Any] = field(default_factory=dict)
    sent: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.service = OddService(clock=self.clock.time, job_seconds=2.0)
        self.emulator.service = self.service

    @property
    def slept(self) -> list[float]:
        return self.clock.slept

    def settings(self) -> Settings:
        return replace(Settings(base_url=self.emulator.url, api_key=KEY), **self.overrides)

    def __call__(self, flow: Flow[T]) -> T:
        if self.kind == "loop":
            return asyncio.run(self._aperform(flow))
        if self.kind == "direct":
            return drive(flow, self._recording(self._handle), self.clock.sleep, self.clock.time)
        sender = Sender(self.settings())
        try:
            return drive(flow, self._recording(sender), self.clock.sleep, self.clock.time)
        finally:
            sender.close()

    def posts(self) -> int:
        """Return how many requests to run a job the service received."""
        return self.service.count("run")

    def _recording(self, send: Callable[[Request], T]) -> Callable[[Request], T]:
        def recording(request: Request) -> T:
            self.sent.append(request)
            return send(request)

        return recording

    async def _aperform(self, flow: Flow[T]) -> T:
        sender = AsyncSender(self.settings())
        send: Callable[[Request], Awaitable[Response]] = self._recording(sender)
        try:
            return await adrive(flow, send, self.clock.asleep, self.clock.time)
        finally:
            await sender.close()

    def _handle(self, request: Request) -> Response:
        """Send a request and read the answer like a sender, without sockets."""
        settings = self.settings()
        if settings.base_url != self.emulator.url:
            raise RunGenConnectionError(request.failure("connection refused"), sent=False)
        headers = settings.headers(request)
        reply = self.service.handle(request.method, f"/{request.path}", headers, request.body or b"")
        if reply.send not in (None, bad_answers.stream):
            raise RunGenConnectionError(request.failure("lost"), sent=True)
        settings.check_size(len(reply.body), request)
        date = email.utils.formatdate(self.clock.now, usegmt=True)
        return settings.response(reply.status, {"Date": date, **reply.headers}, [reply.body])


@pytest.fixture(scope="session")
def _emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


VIAS = ("direct", "blocking")  # tests/emulator/test_faults.py compares blocking calls and event loops


@pytest.fixture(params=VIAS)
def via(request: pytest.FixtureRequest, _emulator: Emulator) -> Via:
    """Each way to perform a flow, with a new service that uses the fake clock."""
    return Via(request.param, _emulator)


def pairwise(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Return rows in which each value of an axis meets each value of each other axis."""
    values = [[*axis] for axis in axes]
    met: set[tuple[int, int, int, int]] = set()
    rows = []
    places = [*itertools.product(*(range(len(axis)) for axis in values))]
    # first the rows in which the values of the last axis take turns
    for row in sorted(places, key=lambda row: sum(row[:-1]) % len(values[-1]) != row[-1]):
        pairs = {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)}
        if pairs - met:
            met |= pairs
            rows.append(tuple(axis[place] for axis, place in zip(values, row, strict=True)))
    return rows


@pytest.fixture
def direct(_emulator: Emulator) -> Via:
    """Perform flows in process only, for tests that do not depend on the wire."""
    return Via("direct", _emulator)


@pytest.fixture
def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers that send given bytes, or follow a script."""
    servers: list[Server] = []

    def start(what: bytes | Talk, **options: Any) -> Server:
        def send_bytes(connection: socket.socket) -> None:
            assert isinstance(what, bytes)
            connection.sendall(what)

        servers.append(Server(send_bytes if isinstance(what, bytes) else what, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Connections:
    return Connections(monkeypatch)


class Clock:
    """A clock that can jump: the tasks' and the emulator's."""

    def __init__(self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self._ahead)
        monkeypatch.setattr(emulator.service, "now", time.time)
        # what performs flows has kept the real clock
        for name in ("drive", "adrive"):
            perform = getattr(import_module("airflow_provider_rungen.client.transport"), name)
            monkeypatch.setattr(
                f"airflow_provider_rungen.hooks.base.{name}", partial(perform, clock=time.time)
            )

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


class FakeTaskInstance(fakes.FakeTaskInstance):
    """The task instance of the test kit, which here pulls from whatever task."""

    #: Called after each push.
    on_push: Callable[[str, Any], None] | None = None

    def xcom_push(self, key: str, value: Any, **more: Any) -> None:
        super().xcom_push(key, value, **more)
        if self.on_push is not None:
            self.on_push(key, value)

    def xcom_pull(
        self, task_ids: Any = None, key: str = "return_value", default: Any = None, **_: Any
    ) -> Any:
        return self.xcoms.get(key, default)


_FOLDERS = contextlib.ExitStack()
atexit.register(_FOLDERS.close)


def table_of(*, inputs: Any, **options: Any) -> RunGenRunTableOperator:
    """Return a table task of a list of inputs, with results in a folder of its own."""
    if "destination" not in options:
        folder = _FOLDERS.enter_context(tempfile.TemporaryDirectory())
        options |= {"destination": folder, "results": f"{folder}/results.jsonl"}
    return RunGenRunTableOperator(
        **{"task_id": "task"} | options, table=inputs if hasattr(inputs, "operator") else list(inputs)
    )


class Died(BaseException):
    """Ends an attempt as SIGKILL does: nothing that comes after it is done."""


class TrackedTaskInstance(FakeTaskInstance):
    """A task instance whose state can be requested, as in Airflow 3."""

    def __init__(self, state: str | None = "running") -> None:
        super().__init__()
        self.state = state
        self.asked = 0
        #: Called when the state is requested.
        self.on_ask: Callable[[], Any] = lambda: None

    def get_task_states(self, **_: Any) -> dict[str, dict[str, str | None]]:
        self.asked += 1
        self.on_ask()
        return {self.run_id: {self.task_id: self.state}}


@pytest.fixture
def ti() -> FakeTaskInstance:
    return FakeTaskInstance()


@pytest.fixture
def context(ti: FakeTaskInstance) -> Any:
    """A context for ``execute``, without a database."""
    return {"ti": ti, "task_instance": ti}


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the results table in a folder."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


# Shorter waits for all tests. A test of such a wait sets its own.
_SHORT_WAITS = {
    "client.retry.BACKOFF": 0.05,
    "client.retry.PATIENCE": 0.5,
    "client.apps.DOWN_TIME": 1.0,
    "client.apps.PAUSE": 0.05,
    "apps.lifecycle.LOOK_EVERY": 0.1,
    "client.poll_state.RESULT_GRACE": 0.5,
    "client.polling.FETCH_BUDGET": 2.0,
    "work.single.LOOK_TIME": 0.5,
    "work.wait.FIRST_INTERVAL": 0.05,
    "work.client_service.PAGE_PAUSE": 0.1,
    "outputs.outage.OUTAGE_TIME": 2.0,
}


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in _SHORT_WAITS.items():
        monkeypatch.setattr(f"airflow_provider_rungen.{name}", seconds)


@pytest.fixture
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fire triggers at once, instead of waiting for the end of the deferring process."""
    monkeypatch.setattr("airflow_provider_rungen.triggers.base.SETTLING_TIME", 0.0)


@contextlib.contextmanager
def signal_when(
    number: signal.Signals, condition: Callable[[], bool], handler: Callable[[], None]
) -> Iterator[list[float]]:
    """Send this process a signal as soon as a condition holds, and yield the list of times it was sent."""
    sent: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            if condition():
                sent.append(time.monotonic())
                _was_interrupted.set()
                # the thread whose sleep it has to interrupt
                main = threading.main_thread().ident or 0
                signal.pthread_kill(main, number)
                # one that strikes just before the thread blocks is noticed at the next one
                while not over.wait(0.05):
                    signal.pthread_kill(main, signal.SIGURG)
                return

    before = signal.signal(number, lambda *_: handler())
    unused = signal.signal(signal.SIGURG, lambda *_: None)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield sent
    finally:
        over.set()
        watcher.join()
        signal.signal(number, before)
        signal.signal(signal.SIGURG, unused)


@contextlib.contextmanager
def stopped_when(op: Any, number: signal.Signals, condition: Callable[[], bool]) -> Iterator[None]:
    """Kill a task, or end its time, as Airflow's task runner does, as soon as a condition holds."""
    from airflow.providers.common.compat.sdk import AirflowTaskTimeout

    def end_time() -> None:
        raise AirflowTaskTimeout("Timeout")

    with signal_when(number, condition, op.on_kill if number == signal.SIGTERM else end_time) as sent:
        try:
            yield
        except AirflowTaskTimeout:
            op.on_kill()
    assert time.monotonic() - sent[0] < SOON


def linger(seconds: float = 60) -> None:
    """Hang as a server does. A signal does not interrupt a long sleep if it strikes just before it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)


def run_task(op: Any, context: Any, timeout: float | None = 200) -> Outcome:
    """Run a task as `run_operator` does, with a context that has no task state store unless it is given."""
    emulator = _emulator_of_test[0] if getattr(op, "deferrable", False) and _emulator_of_test else None
    given = {"task_state_store": None, **context}
    return run_operator(op, context=given, emulator=emulator, timeout=timeout)


@pytest.fixture(scope="session")
def s3_client() -> Iterator[Any]:
    """Run an S3 server with the bucket `bucket`, and return a client of it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="me-myself",
        aws_secret_access_key="a-secret",
    )
    client.create_bucket(Bucket="bucket")
    try:
        yield client
    finally:
        server.stop()


@pytest.fixture(scope="session")
def _s3_proxy(s3_client: Any) -> Iterator[FaultyS3]:
    with FaultyS3(s3_client.meta.endpoint_url.removeprefix("http://")) as proxy:
        yield proxy


@pytest.fixture
def faulty_s3(_s3_proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A proxy before S3, for the connection `faulty_s3`. There is one, as Airflow keeps its file system."""
    extra = {
        "endpoint_url": _s3_proxy.url,
        "region_name": "us-east-1",
        "config_kwargs": {"retries": {"max_attempts": 0}, "read_timeout": 0.5},
    }
    connection = {"conn_type": "aws", "login": "me-myself", "password": "a-secret", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_FAULTY_S3", json.dumps(connection))
    _s3_proxy.reset()
    yield _s3_proxy
    _s3_proxy.reset()


@pytest.fixture
def s3(s3_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URI of a folder in S3, with the name of Airflow's connection."""
    extra = {"endpoint_url": s3_client.meta.endpoint_url, "region_name": "us-east-1"}
    own = {"conn_type": "aws", "login": "me-myself", "password": "a-secret", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_MY_S3", json.dumps(own))
    return f"s3://my_s3@bucket/{tmp_path.name}"
