"""The metrics that are sent on a worker and in a triggerer. A broken backend breaks nothing."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import FakeStore, FakeTaskInstance, run_task, table_of
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen._airflow import metrics, stats_module
from airflow_provider_rungen.exceptions import RunGenConnectionError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenRunJobOperator
from airflow_provider_rungen.sensors import RunGenJobSensor

pytestmark = pytest.mark.usefixtures("unsettled")

STATS_MODULE = stats_module(is_in_triggerer=False)


class Backend:
    """As much of a backend of Airflow's metrics as the provider may use."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.gauges: dict[str, list[float]] = {}
        self.timings: dict[str, list[timedelta]] = {}

    def incr(self, stat: str, count: int = 1, **_: Any) -> None:
        self.counts[stat] += count

    def gauge(self, stat: str, value: float, **_: Any) -> None:
        self.gauges.setdefault(stat, []).append(value)

    def timing(self, stat: str, dt: timedelta, **_: Any) -> None:
        self.timings.setdefault(stat, []).append(dt)

    def timer(self, *_: Any, **__: Any) -> Any:
        """Airflow times its own storage with this."""
        return contextlib.nullcontext(SimpleNamespace(duration=0))


def fail(*_: Any, **__: Any) -> None:
    raise OSError("the metrics are down")


def _send_to(stats: Any, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Airflow send its metrics to a backend, or to nobody."""
    if not hasattr(stats, "initialize"):  # before Airflow 3.2 it sets itself up
        monkeypatch.setattr(stats, "instance", backend, raising=False)
        return
    known = inspect.signature(stats.initialize).parameters
    more = {"export_legacy_names": False} if "export_legacy_names" in known else {}
    stats.initialize(factory=backend and (lambda: backend), **more)


class Sent:
    """What was sent on a worker, and in a triggerer: to the same backend if Airflow has only one."""

    def __init__(self) -> None:
        self.worker, self.triggerer = Backend(), Backend()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    from airflow.providers.common.compat.sdk import Stats

    def as_a_new_process() -> None:
        metrics._is_in_triggerer = False
        metrics._stats.cache_clear()

    sent, of_triggerers = Sent(), None
    try:
        of_triggerers = importlib.import_module("airflow.observability.stats").Stats
        _send_to(of_triggerers, sent.triggerer, monkeypatch)
    except ImportError:
        sent.triggerer = sent.worker
    _send_to(Stats, sent.worker, monkeypatch)
    as_a_new_process()
    yield sent
    for stats in filter(None, (Stats, of_triggerers)):
        _send_to(stats, None, monkeypatch)
    as_a_new_process()


def run(**options: Any) -> RunGenRunJobOperator:
    given = {"prompt": "x", "emulator": options.pop("emulator", {"seconds": 0.3})}
    wait = {"wait_for_completion": True, "poll_interval": 0.05}
    return RunGenRunJobOperator(**{"task_id": "run", "input": given} | wait | options)


@pytest.mark.contract
def test_a_task_on_a_worker_is_counted(rungen_emulator: Emulator, context: Any, sent: Sent) -> None:
    assert run_task(run(), context).error is None
    counts = sent.worker.counts
    assert counts["rungen.jobs.submitted"] == counts["rungen.jobs.completed"] == 1
    assert counts["rungen.requests.post.2xx"] == 1
    assert counts["rungen.requests.get.2xx"] == rungen_emulator.service.count("get")
    [waited] = sent.worker.timings["rungen.wait.worker"]
    assert timedelta(seconds=0.2) < waited < timedelta(seconds=20)


@pytest.mark.contract
def test_a_wait_in_a_triggerer_is_measured_there(rungen_emulator: Emulator, context: Any, sent: Sent) -> None:
    assert run_task(run(deferrable=True), context).error is None
    assert sent.worker.counts["rungen.jobs.submitted"] == 1
    assert sent.triggerer.counts["rungen.jobs.completed"] == 1
    [waited] = sent.triggerer.timings["rungen.wait.triggerer"]
    assert timedelta(seconds=0.1) < waited < timedelta(seconds=20)
    [(name, sizes)] = sent.triggerer.gauges.items()
    assert name.startswith("rungen.watched_jobs.")
    assert (max(sizes), sizes[-1]) == (1, 0)


@pytest.mark.contract
def test_a_job_that_a_retry_takes_up_is_counted(
    rungen_emulator: Emulator, ti: FakeTaskInstance, sent: Sent
) -> None:
    context: Any = {"ti": ti, "task_state_store": FakeStore()}
    for _ in range(2):
        assert run_task(run(wait_for_completion=False), context).error is None
    assert counted(sent, "rungen.jobs.submitted", "rungen.jobs.resumed") == [1, 1]


def counted(sent: Sent, *names: str) -> list[int]:
    # after a trigger, this process counts as a triggerer
    return [sent.worker.counts[name] or sent.triggerer.counts[name] for name in names]


@pytest.mark.contract
@pytest.mark.parametrize("deferrable", [False, True])
def test_what_jobs_used_is_counted(
    rungen_emulator: Emulator, context: Any, sent: Sent, deferrable: bool
) -> None:
    good, bad = ({"prompt": "x", "emulator": {"seconds": 0.6, **more}} for more in ({}, {"fail": "no luck"}))
    options: dict[str, Any] = {"poll_interval": 0.05, "deferrable": deferrable}
    task = table_of(task_id="batch", inputs=[good, good, bad], **options)
    assert run_task(task, context).error is not None
    usage = ("jobs", "completed", "failed", "reused", "execution_seconds")
    assert counted(sent, *(f"rungen.usage.{name}" for name in usage)) == [2, 1, 1, 1, 1], "1.2 s"
    # each job once, in one of the two
    assert counted(sent, "rungen.jobs.completed", "rungen.jobs.failed") == [1, 1]


@pytest.mark.contract
def test_a_sensor_counts_each_job_once(rungen_emulator: Emulator, context: Any, sent: Sent) -> None:
    with RunGenHook() as hook:
        given: list[Any] = [{"prompt": "x", "emulator": {"seconds": seconds}} for seconds in (0, 1.5)]
        job_ids = [hook.run_job(input=each).id for each in given]
    options: dict[str, Any] = {"deferrable": True, "poke_interval": 0.05}
    assert run_task(RunGenJobSensor(task_id="wait", job_id=job_ids, **options), context).error is None
    assert counted(sent, "rungen.jobs.completed") == [2]


@pytest.mark.contract
def test_a_job_is_counted_once_however_often_a_sensor_is_rescheduled(
    rungen_emulator: Emulator, context: Any, sent: Sent
) -> None:
    with RunGenHook() as hook:
        job_ids = [hook.run_job(input={"prompt": "x", "emulator": {"seconds": n}}).id for n in (0, 0.5)]
    for _ in range(200):
        if RunGenJobSensor(task_id="wait", job_id=job_ids, mode="reschedule").poke(context):
            break
        time.sleep(0.02)
    assert counted(sent, "rungen.jobs.completed") == [2]


@pytest.mark.contract
def test_requests_are_counted_by_their_status(rungen_emulator: Emulator, sent: Sent) -> None:
    rungen_emulator.service.inject(Fault(on="list_apps", status=404))
    with RunGenHook() as hook:
        hook.test_connection()
        assert hook.test_connection()[0]
    assert sent.worker.counts == {"rungen.requests.get.4xx": 1, "rungen.requests.get.2xx": 1}


def test_a_request_without_an_answer_is_counted(
    monkeypatch: pytest.MonkeyPatch, free_port: int, sent: Sent
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.001)
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", f"rungen://:key@127.0.0.1:{free_port}/http")
    with pytest.raises(RunGenConnectionError), RunGenHook() as hook:
        hook.list_apps()
    assert sent.worker.counts == {"rungen.requests.get.unanswered": 5}


@pytest.mark.contract
@pytest.mark.parametrize("deferrable", [False, True])
def test_metrics_that_are_down_fail_nothing(
    rungen_emulator: Emulator, context: Any, sent: Sent, deferrable: bool
) -> None:
    for backend in (sent.worker, sent.triggerer):
        vars(backend).update(incr=fail, gauge=fail, timing=fail)
    assert run_task(run(deferrable=deferrable), context).error is None


@pytest.mark.contract
def test_an_airflow_whose_metrics_moved_is_warned_about_once(
    rungen_emulator: Emulator, sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, STATS_MODULE, None)
    with caplog.at_level(logging.WARNING, metrics.__name__), RunGenHook() as hook:
        hook.list_apps()
        hook.list_apps()
    [warning] = [record for record in caplog.records if record.name == metrics.__name__]
    assert warning.getMessage().startswith(f"No RunGen metrics are sent: this Airflow has no {STATS_MODULE}")


@pytest.mark.contract
def test_metrics_that_are_functions_of_a_module_are_counted(
    rungen_emulator: Emulator, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType(STATS_MODULE)
    module.incr = sent.worker.incr
    monkeypatch.setitem(sys.modules, STATS_MODULE, module)
    with RunGenHook() as hook:
        hook.list_apps()
    assert sent.worker.counts == {"rungen.requests.get.2xx": 1}


@pytest.mark.contract
def test_a_real_listener_hears_them(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, sent: Sent
) -> None:
    statsd = pytest.importorskip("statsd")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(10)
        client = statsd.StatsClient("127.0.0.1", listener.getsockname()[1], prefix="airflow")
        from airflow.providers.common.compat.sdk import Stats

        _send_to(Stats, client, monkeypatch)
        with RunGenHook() as hook:
            hook.list_apps()
        client.close()
        assert listener.recv(1000) == b"airflow.rungen.requests.get.2xx:1|c"
