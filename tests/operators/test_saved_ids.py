"""Each id is in one store at least: a ledger or log that hangs loses none, and holds up no kill."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout, ObjectStoragePath
from conftest import FakeStore, TrackedTaskInstance
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from operator_kit import statuses
from rungen_emulator import Emulator

from airflow_provider_rungen.execution.task import store_writer
from airflow_provider_rungen.operators import Ledger, RunGenRunTableOperator

ROWS = 16
# Airflow kills a process so many seconds after the signal.
KILL_TIME = 5.0
# Seconds after which jobs fail that are to fail: all are submitted by then.
FAILS_AFTER = 3.0


class Places:
    """What an attempt talks to, each a folder or a file, which hangs while there is a file ``hang …``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def meet(self, place: str) -> None:
        """Hang where the test wants it."""
        while self.flag("hang", place).exists():
            self.flag("met", place).touch()
            time.sleep(0.02)

    def flag(self, trouble: str, place: str) -> Path:
        return self.folder / f"{trouble} {place}"


class Bucket(DirFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A bucket with the folders ``ledger``, ``photos`` and ``results``."""

    cachable = False

    def __init__(self, places: Places) -> None:
        super().__init__(path=str(places.folder), fs=LocalFileSystem(auto_mkdir=True))
        self._places = places

    def _join(self, path: Any) -> Any:
        """Meet what the test wants of a folder, whatever is done there."""
        if isinstance(path, str) and "/" in path.strip("/"):
            self._places.meet(path.strip("/").split("/")[1])
        return super()._join(path)

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> Any:
        self._meet_upload(rpath)
        return super().put_file(lpath, rpath, *args, **kwargs)

    def rm_file(self, path: str) -> None:
        self._meet_upload(path)
        super().rm_file(path)

    def _meet_upload(self, path: str) -> None:
        self._places.meet(f"upload to {path.strip('/').split('/')[1]}")


class Store(FakeStore):
    """Airflow's task state store, in a file."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self._places, self._file = places, places.folder / "store.json"
        if self._file.exists():
            self.kept = json.loads(self._file.read_text())

    def set(self, key: str, value: Any, **_: Any) -> None:
        self._places.meet("store")
        super().set(key, value)
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self.kept))
        new.rename(self._file)


def _exceed_the_time(*_: Any) -> None:
    raise AirflowTaskTimeout("Timeout")


class Night:
    """A table task whose attempts are processes."""

    def __init__(self, emulator: Emulator, folder: Path) -> None:
        self.emulator, self.places = emulator, Places(folder)
        self.rows, self.has_store, self.state = ROWS, True, "running"
        #: So many of the first jobs fail, some time after the submission.
        self.failing = 0
        self.tries = self.process = 0

    def begin(self) -> None:
        """Begin the next attempt."""
        self.tries += 1
        self.process = os.fork()
        if not self.process:
            try:
                self._attempt()
            except BaseException as error:
                self._report.write_text(f"{type(error).__name__}: {error}")
            else:
                self._report.write_text("succeeded")
            finally:
                os._exit(0)

    def _attempt(self) -> None:
        bucket = Bucket(self.places)
        importlib.import_module(ObjectStoragePath.__module__).attach("memory", fs=bucket).fs = bucket
        task = RunGenRunTableOperator(
            task_id="task",
            table=[{"sku": f"sku-{number}"} for number in range(self.rows)],
            key="sku",
            to_input=lambda row: {"prompt": f"photo of {row['sku']}"} | self._options_of(row["sku"]),
            destination="memory://bucket/photos",
            results="memory://bucket/results/results.jsonl",
            ledger=Ledger("memory://bucket/ledger"),
            poll_interval=0.1,
        )
        # as Airflow's task runner does
        signal.signal(signal.SIGTERM, lambda *_: task.on_kill())
        signal.signal(signal.SIGALRM, _exceed_the_time)
        ti = TrackedTaskInstance(self.state)
        ti.try_number, ti.max_tries = self.tries, 1
        ti.on_ask = lambda: self.places.meet("airflow")
        context: Any = {"ti": ti, "task_state_store": Store(self.places) if self.has_store else None}
        try:
            task.execute(context)
        except AirflowTaskTimeout:
            task.on_kill()
            raise

    def _options_of(self, sku: str) -> dict[str, Any]:
        fails = int(sku.removeprefix("sku-")) < self.failing
        return {"emulator": {"fail": "out of memory", "seconds": FAILS_AFTER}} if fails else {}

    @property
    def _report(self) -> Path:
        return self.places.folder / f"report {self.tries}"

    @property
    def entries(self) -> int:
        """How many ids the ledger has. What is claimed has none."""
        texts = [entry.read_text() for entry in (self.places.folder / "bucket" / "ledger").glob("??/*.json")]
        return sum(text != "" and json.loads(text)["job_id"] != "" for text in texts)

    @property
    def logged(self) -> int:
        """How many ids the run log has."""
        parts = (self.places.folder / "bucket" / "photos" / ".rungen").rglob("jobs/*/*.jsonl")
        text = "".join(part.read_text() for part in parts)
        return sum(job["id"] in text for job in self.emulator.service.jobs())

    @property
    def created(self) -> int:
        return len(self.emulator.service.jobs())

    @property
    def statuses(self) -> Counter[str]:
        return Counter(statuses(self.emulator))

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert not self._report.exists(), self._report.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def until_met(self, *hanging: str) -> None:
        for place in hanging:
            self.until(self.places.flag("met", place).exists)

    def hang(self, *places: str) -> None:
        for place in places:
            self.places.flag("hang", place).touch()

    def kill(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Kill the attempt as Airflow does, which gives it some seconds, and return how it ended."""
        started_at = time.monotonic()
        os.kill(self.process, number)
        last_words = self.end(within=KILL_TIME)
        assert time.monotonic() - started_at < KILL_TIME
        return last_words

    def end(self, within: float = 60.0) -> str:
        """Wait for the end of the attempt, and return how it ended; nothing if it was cut off."""
        deadline = time.monotonic() + within
        while self.process and not os.waitpid(self.process, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                os.kill(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)
                break
            time.sleep(0.005)
        self.process = 0
        return self._report.read_text() if self._report.exists() else ""

    def assert_the_retry_buys_nothing_twice(self) -> None:
        """Run the next attempt to its end, when all is well again."""
        for flag in self.places.folder.glob("hang *"):
            flag.unlink()
        self.end_jobs()
        self.emulator.service.job_seconds = 0.1
        self.begin()
        assert self.end() == "succeeded"
        bought = Counter(job["input"]["prompt"] for job in self.emulator.service.jobs())
        assert bought == {f"photo of sku-{number}": 1 for number in range(ROWS)}
        assert self.entries == ROWS

    def end_jobs(self) -> None:
        """Move the clock on, so that what runs is over."""
        self.emulator.service.clock = lambda: time.time() + 3600

    def hold_answers(self, after: int) -> threading.Event:
        """Hold the answer to the next submission, and with it all others, until the event is set."""
        service, is_over = self.emulator.service, threading.Event()
        handle, answers = service.handle, itertools.count(1)

        def hold(method: str, path: str, headers: Any, body: bytes = b"") -> Any:
            reply = handle(method, path, headers, body)
            if method == "POST" and next(answers) > after:
                is_over.wait(10)
            return reply

        service.handle = hold  # type: ignore[method-assign]
        return is_over


@pytest.fixture
def night(rungen_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Night]:
    rungen_emulator.service.scale("flux-schnell", 1000)
    rungen_emulator.service.job_seconds = 600.0
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 60.0)
    made = Night(rungen_emulator, tmp_path)
    yield made
    made.end(within=0)


@pytest.mark.parametrize("place", ["ledger", "photos"])
def test_a_store_that_hangs_loses_no_id_when_the_task_is_killed(night: Night, place: str) -> None:
    """The log is beside the photos. `test_sender` has a ledger or log that fails, or hangs for too long."""
    answers = night.hold_answers(after=8)
    night.begin()
    night.until(lambda: night.created == 9)
    night.hang(place)
    answers.set()
    night.until_met(place)
    night.until(lambda: (night.logged if place == "ledger" else night.entries) == night.created)
    night.kill()
    assert night.statuses == {"RUNNING": night.created}
    night.assert_the_retry_buys_nothing_twice()


@pytest.mark.parametrize("phase", ["submitting", "waiting"])
def test_a_user_cancels_all_jobs_in_time_though_the_ledger_hangs(night: Night, phase: str) -> None:
    night.state, night.rows = "failed", 200 if phase == "submitting" else ROWS
    night.begin()
    night.until(lambda: night.entries >= ROWS)
    night.hang("ledger")
    if phase == "submitting":
        night.until_met("ledger")
    night.kill()
    assert night.statuses == {"CANCELED": night.created}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM], ids=["kill", "time limit"])
@pytest.mark.parametrize(("failing", "place"), [(1, "ledger"), (64, "photos")])
def test_others_are_canceled_in_time_though_what_failed_cannot_be_noted(
    night: Night, failing: int, place: str, number: signal.Signals
) -> None:
    """One that fails is noted at the kill. With 64, a part of the log is done, and saved."""
    night.state, night.failing, night.rows = "failed", failing, ROWS + failing
    night.begin()
    night.until(lambda: night.entries >= night.rows)
    assert "FAILED" not in night.statuses, "the machine is too slow for this test"
    night.hang(place)
    night.until(lambda: night.statuses["FAILED"] == failing)
    if failing == 1:
        polls = night.emulator.service.count("get")
        night.until(lambda: night.emulator.service.count("get") > polls + night.rows)
    else:
        night.until_met(place)
    night.kill(number)
    assert night.statuses == {"FAILED": failing, "CANCELED": ROWS}


STORES = ("ledger", "photos")


@pytest.mark.parametrize("hanging", [("airflow",), ("ledger",), STORES, (*STORES, "airflow")], ids="+".join)
def test_a_kill_without_an_answer_ends_in_time_and_cancels_what_is_lost(
    night: Night, hanging: tuple[str, ...]
) -> None:
    """What neither the ledger nor the log took is lost, without a task state store."""
    night.has_store, night.rows = False, 200
    answers = night.hold_answers(after=8)
    night.begin()
    # until then, the stores are to have all ids that are known
    night.until(lambda: night.created > 8 and min(night.entries, night.logged) >= 8)
    night.hang(*hanging)
    answers.set()
    night.until_met(*(place for place in hanging if place != "airflow"))
    night.kill()
    lost = night.created - 8 if set(STORES) <= set(hanging) else 0
    assert night.created > 8
    assert night.statuses == Counter(RUNNING=night.created - lost) + Counter(CANCELED=lost)


@pytest.mark.parametrize(
    ("place", "is_late"),
    [
        *(("photos", False), ("results", False)),  # while they are tried
        *((place, True) for place in ("photos", "upload to photos", "results", "upload to results")),
    ],
)
def test_a_kill_while_a_bucket_hangs_ends_in_time_and_costs_nothing(
    night: Night, place: str, is_late: bool
) -> None:
    if is_late:
        night.begin()
        night.until(lambda: night.entries >= ROWS)
    night.hang(place)
    night.end_jobs()
    if not is_late:
        night.begin()
    night.until_met(place)
    assert "The task was killed." in night.kill()
    night.assert_the_retry_buys_nothing_twice()
