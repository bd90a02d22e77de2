"""Runs that are killed or stopped at each call, and runs that begin together: what the server counted."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from processes import Attempt, environment_of, named, recorded
from rungen_emulator import Emulator, Service
from rungen_emulator.messages import Reply

pytestmark = pytest.mark.contract

ROWS = 2
#: ``make test`` takes one in so many calls, and ``make test-system`` the others.
SHARES = 16
SHARE = pytest.mark.parametrize(
    "share", [0, *(pytest.param(each, marks=pytest.mark.system) for each in range(1, SHARES))]
)
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
#: The package's waits, all shorter by the same factor.
SHORT_WAITS = {
    "work.submit.START_TIME": 0.5,
    "work.client_service.SUBMIT_TIME": 1.0,
    "store.records.CLAIM_TIME": 3.0,
    "work.table_run.WAIT_INTERVAL": 0.2,
}


class Striking(Service):
    """A service that can strike who sends its n-th request: before it is performed, or after."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.on_request: Callable[[int, bool], None] = lambda number, is_performed: None
        self.number = 0
        self.busy = threading.Lock()

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        with self.busy:
            self.number += 1
            self.on_request(self.number, False)
            reply = super().handle(method, path, headers, body)
            self.on_request(self.number, True)
            return reply


class Stage:
    """A table, in a folder and with a service of its own."""

    def __init__(self, folder: Path, emulator: Emulator, **options: Any) -> None:
        folder.mkdir()
        self.folder, self.service = folder / "store", cast("Striking", emulator.service)
        # as a mount: a place that is missing may be one that an earlier attempt has used
        self.folder.mkdir()
        self.options: dict[str, Any] = {
            "destination": self.folder.as_uri(),
            "folder": folder,
            "environment": environment_of(emulator),
            "rows": ROWS,
            **options,
        }

    def attempt(self, **changes: Any) -> Attempt:
        return Attempt(**self.options | changes)

    def strike_at_request(self, request: tuple[int, bool], number: signal.Signals) -> Attempt:
        """Start an attempt that the service strikes at a request."""
        attempt, is_started = self.attempt(), threading.Event()

        def on_request(*found: Any) -> None:
            if found == request:
                is_started.wait()
                attempt.send_signal(number)

        self.service.on_request = on_request
        attempt.start()
        is_started.set()
        return attempt

    def _contents(self) -> dict[str, bytes]:
        files = (path for path in (self.folder / ".rungen").rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}

    def known(self) -> set[str]:
        """Return the jobs that the store has."""
        contents = self._contents()
        return named(contents) | {each["job"] for each in recorded(contents) if each.get("job")}

    def cut(self) -> int:
        """Return how many jobs the store does not have."""
        with self.service.busy:
            return len({job["id"] for job in self.service.jobs()} - self.known())

    def check(self, outcome: Mapping[str, Any], known: set[str], cut: int) -> str:
        """
        Return what is wrong after the last attempt.

        :param known: the jobs that the store had at the strike.
        :param cut: how many it did not have.
        """
        # one that two have polled is recorded by each of them, as the same purchase
        purchases = {
            (each["job"], each["key"], each["n"]) for each in recorded(self._contents()) if each.get("job")
        }
        jobs = Counter(job for job, _, _ in purchases)
        wrong = {
            "error": outcome.get("error", "it was killed"),
            "not completed": (outcome.get("value") or {}).get("completed") != ROWS,
            "ids not kept": cut if cut > 1 else 0,  # one is sent at a time
            "bought": len(bought) if len(bought := self.service.jobs()) > ROWS + cut else 0,
            "not recorded": known - jobs.keys(),
            "of two purchases": [job for job, count in jobs.items() if count > 1],
            "still open": named(self._contents()) - jobs.keys(),
        }
        return ", ".join(f"{name}: {each}" for name, each in wrong.items() if each)

    def age_claims(self) -> None:
        """Make claims as old as those of the dead."""
        for path in (self.folder / ".rungen" / "open").glob("*"):
            os.utime(path, (time.time() - 200,) * 2)

    def check_retry(self) -> str:
        """Retry three minutes later, and return what is wrong then."""
        known, cut = self.known(), self.cut()
        self.age_claims()
        return self.check(self.attempt().result(), known, cut)

    def check_while_stopped(self, stopped: Attempt) -> str:
        """Run another that buys the same rows while one is stopped, and wake that. Return what is wrong."""
        while not stopped.is_stopped:
            if not stopped.is_alive:
                return ""  # it was over before
            time.sleep(0.02)
        known, cut = self.known(), self.cut()
        other = self.attempt(run="night 2").result()
        stopped.send_signal(signal.SIGCONT)
        woken = stopped.wait()
        # while it was stopped, the time for an answer was over
        if is_lost := "no answer to the submission" in woken.get("error", ""):
            woken = self.attempt().result()
        outcomes = {"of the other": other, "of the stopped one": woken}
        cut = min(cut + is_lost, 1) if is_lost else cut
        found = {name: self.check(outcome, known, cut) for name, outcome in outcomes.items()}
        return "; ".join(f"{name}: {wrong}" for name, wrong in found.items() if wrong)


def failures(
    cases: Iterable[Any], folder: Path, check: Callable[[Stage, Any], str], **options: Any
) -> dict[Any, str]:
    """Return what goes wrong in which of many cases: several at a time, as they mainly wait."""

    def perform(number: int, case: Any) -> str:
        with Emulator(Striking(job_seconds=0, workers=100)) as emulator:
            return check(Stage(folder / str(number), emulator, **options), case)

    cases = list(cases)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(perform, range(len(cases)), cases)
        return {case: wrong for case, wrong in zip(cases, found, strict=True) if wrong}


def count_calls(folder: Path, **options: Any) -> tuple[int, int]:
    """Return how many calls an attempt sends to the store and to the service."""
    with Emulator(service := Striking(job_seconds=0, workers=100)) as emulator:
        outcome = Stage(folder / "undisturbed", emulator, **options).attempt().result()
        assert outcome["error"] == ""
        assert len(service.jobs()) == ROWS
        return outcome["calls"], service.number


@SHARE
@MODES
def test_a_kill_at_any_call_to_the_store(tmp_path: Path, share: int, deferrable: bool) -> None:
    calls, _ = count_calls(tmp_path, deferrable=deferrable)

    def check(stage: Stage, call: int) -> str:
        return "" if stage.attempt(strike=(call, signal.SIGKILL)).result() else stage.check_retry()

    assert failures(range(1 + share, calls, SHARES), tmp_path, check, deferrable=deferrable) == {}


@SHARE
@MODES
def test_a_kill_at_any_call_to_the_service(tmp_path: Path, share: int, deferrable: bool) -> None:
    _, calls = count_calls(tmp_path, deferrable=deferrable)

    def check(stage: Stage, request: tuple[int, bool]) -> str:
        return "" if stage.strike_at_request(request, signal.SIGKILL).wait() else stage.check_retry()

    requests = [(number, is_performed) for number in range(1, calls + 1) for is_performed in (False, True)]
    assert failures(requests[share::SHARES], tmp_path, check, deferrable=deferrable) == {}


@SHARE
def test_a_process_that_is_stopped_at_any_call_and_woken(tmp_path: Path, share: int) -> None:
    to_store, to_service = count_calls(tmp_path)

    def check(stage: Stage, case: tuple[str, int]) -> str:
        kind, number = case
        if kind == "service":
            return stage.check_while_stopped(stage.strike_at_request((number, True), signal.SIGSTOP))
        return stage.check_while_stopped(stage.attempt(strike=(number, signal.SIGSTOP)).start())

    cases = [("store", number) for number in range(1, to_store)]
    cases += [("service", number) for number in range(1, to_service + 1)]
    assert failures(cases[share::SHARES], tmp_path, check, waits=SHORT_WAITS) == {}


@MODES
def test_of_a_slow_store_few_paid_jobs_are_unknown_and_a_kill_buys_only_those_again(
    tmp_path: Path, deferrable: bool
) -> None:
    rows, counts, lost = 300, [0], set[str]()

    def unknown() -> set[str]:
        open_files = (stage.folder / ".rungen" / "open").glob("*")
        return {job["id"] for job in service.jobs()} - named(map(str, open_files)) - lost

    def on_request(number: int, is_performed: bool) -> None:
        if (count := len(service.jobs())) > len(counts) - 1:  # one was bought
            counts.append(len(unknown()))
            if count == rows // 2:
                attempt.send_signal(signal.SIGKILL)

    with Emulator(service := Striking(job_seconds=0, workers=1000)) as emulator:
        stage = Stage(tmp_path / "stage", emulator, rows=rows, id_seconds=0.5, deferrable=deferrable)
        service.on_request = on_request
        attempt = stage.attempt().start()
        assert attempt.wait() == {}
        emulator.stop()  # what the attempt had sent may be on its way
        lost = unknown()
        emulator.start()
        stage.age_claims()
        outcome = stage.attempt().result()
        assert (outcome["error"], outcome["value"]["completed"]) == ("", rows)
        assert max(counts) <= 32
        assert len(service.jobs()) == rows + len(lost) <= rows + 32


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.system)])
@MODES
def test_runs_that_begin_together_buy_each_input_once(
    request: pytest.FixtureRequest, tmp_path: Path, place: str, count: int, deferrable: bool
) -> None:
    rows, options = 60, {"deferrable": deferrable}
    if place == "s3":
        options["destination"] = request.getfixturevalue("s3")
    with Emulator(Striking(job_seconds=0.3, workers=100)) as emulator:
        stage = Stage(tmp_path / "stage", emulator, rows=rows, **options)
        begin_at = time.time() + 2
        runs = [stage.attempt(run=f"night {number}", begin_at=begin_at).start() for number in range(count)]
        outcomes = [run.wait() for run in runs]
        assert [outcome.get("error") for outcome in outcomes] == [""] * count
        assert [outcome["value"]["completed"] for outcome in outcomes] == [rows] * count
        assert len({job["input"]["prompt"] for job in emulator.service.jobs()}) == rows
        assert len(emulator.service.jobs()) == rows
        assert sum(outcome["value"]["jobs"] for outcome in outcomes) == rows, "each is on one bill"
