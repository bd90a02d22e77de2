"""What the service and the stores see of a sender: no POST without a durable intent, no id is lost."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias, cast

import pytest
from places import MemoryPlace

from airflow_provider_rungen.client.daemon_threads import in_daemon_thread
from airflow_provider_rungen.client.flow import Flow, Request, Response
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.retry import ATTEMPTS
from airflow_provider_rungen.client.transport import adrive, drive
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenBadRequestError,
    RunGenError,
    RunGenForbiddenError,
    RunGenRateLimitedError,
    RunGenServerError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution.sending import log_writer, sender
from airflow_provider_rungen.execution.sending.log_writer import Saver
from airflow_provider_rungen.execution.sending.sender import Sender, Throttle
from airflow_provider_rungen.execution.task import store_writer
from airflow_provider_rungen.runs.attempt_record import AttemptRecord
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog, read_attempts, read_parts
from airflow_provider_rungen.runs.place import SupersededError
from airflow_provider_rungen.runs.rows import InputState, Writer

APP = "flux"
PLAN = "cd" * 16
LIMIT = 4


class Store:
    """What may fail or hang. It does what is asked of it as soon as it works."""

    def __init__(self) -> None:
        self.trouble = ""
        self.met = threading.Event()
        self.counts: Counter[str] = Counter()

    def request(self, kind: str) -> None:
        self.counts[kind] += 1
        # of a method, or of all of them
        while (trouble := self.trouble.removesuffix(f" at {kind}")) == "hang":
            self.met.set()
            time.sleep(0.002)
        if trouble == "503":
            self.met.set()
            raise OSError("503 Service Unavailable")


class LogPlace(Store, MemoryPlace):
    """A place of a log."""

    def __init__(self) -> None:
        MemoryPlace.__init__(self)
        Store.__init__(self)

    def vouches(self, name: str) -> bool:
        return True

    def _request(self, kind: str, name: str, *, may_raise: bool = True) -> str:
        if kind != "get":
            self.request(kind)
        return ""


class VolatilePlace(LogPlace):
    """A place that no later attempt finds."""

    is_durable = False


class FakeLedger(Store):
    """
    A ledger.

    :param known: jobs of other task runs, by input.
    """

    def __init__(self, known: Mapping[int, str] | None = None) -> None:
        super().__init__()
        self.known = dict(known or {})
        #: What another run is about to submit, and what the sender has claimed.
        self.held: set[int] = set()
        self.claimed: set[int] = set()
        self.asked: list[int] = []
        self.renewed: list[set[int]] = []
        self.pending: dict[int, str] = {}
        self.jobs: Jobs | None = None

    def find(self, numbers: Collection[int]) -> dict[int, str]:
        self.request("find")
        self.asked += numbers
        self.claimed.update(set(numbers) - self.held - self.known.keys())
        return {number: self.known[number] for number in numbers if number in self.known}

    def note(self, found: Any) -> Collection[int]:
        assert self.jobs is not None
        for number, job_id in found.items():
            self.jobs.share(number, job_id)
        return list(found)

    def renew(self, numbers: Collection[int]) -> None:
        self.renewed.append(set(numbers))
        self.request("renew")
        self.claimed.update(numbers)
        for number in numbers:  # a claim has no id
            self.pending.pop(number, None)

    def add_pending(self, jobs: Mapping[int, str]) -> None:
        self.request("add")
        self.pending |= jobs
        self.claimed.difference_update(jobs)

    def is_claimed(self, number: int) -> bool:
        return number in self.claimed

    def release(self, unsent: Collection[int]) -> None:
        self.request("release")
        self.claimed.difference_update(unsent)


class Scene:
    """An attempt that sends, its service, and its stores. The service checks each POST."""

    def __init__(self, place: LogPlace | None = None, *, ledger: FakeLedger | None = None) -> None:
        self.place, self.ledger = place or LogPlace(), cast("Any", ledger)
        self.spare: LogPlace | None = None
        self.log = RunLog(self.place, AttemptRecord(1, "1" * 8, 1, app_id=APP, plan=PLAN), time.time)
        self.log.note()
        self.place.counts.clear()
        self.jobs = Jobs(PLAN, self.log.attempt.writer)
        self.saver = Saver(self.jobs, self.log)
        if ledger is not None:
            ledger.jobs = self.jobs
        self.posts: list[int] = []
        self.in_flight: set[int] = set()
        self.created: set[int] = set()
        self.held: set[int] = set()
        self.answers: dict[int, list[Response]] = {}
        self.on_post: Callable[[int], None] = lambda number: None
        self.is_stopping = False
        self.violations: list[str] = []
        self.sender: Sender | None = None

    # --- the service ---

    async def perform(self, flow: Flow[Job]) -> Job:
        return await adrive(flow, self._post, asyncio.sleep)

    async def _post(self, request: Request) -> Response:
        number = self._receive(request)
        await asyncio.sleep(0)
        while number in self.held:  # noqa: ASYNC110 - any thread may change it
            await asyncio.sleep(0.002)
        return self._answer(number)

    def _receive(self, request: Request) -> int:
        number = int(json.loads(request.body or b"")["input"]["number"])
        later = self.later()
        if later.state(number) is not InputState.UNKNOWN:
            self.violations.append(f"input {number} was sent while it is {later.state(number)}")
        self.posts.append(number)
        self.in_flight.add(number)
        if self.place.is_durable and (lost := len(self.lost())) > LIMIT:
            self.violations.append(f"kill -9 would lose {lost} inputs")
        self.on_post(number)
        return number

    def _answer(self, number: int) -> Response:
        self.in_flight.discard(number)
        if scripted := self.answers.get(number):
            return scripted.pop(0)
        self.created.add(number)
        return answer(201, job_id=job_id(number))

    # --- what is durable ---

    def later(self, *, spare: bool = False) -> Jobs:
        """Return what the next attempt would know."""
        jobs = Jobs(PLAN, Writer(9, 9, "9" * 8))
        quiet = LogPlace()
        quiet.files = self.place.files | (self.spare.files if spare and self.spare else {})
        for _, files in read_parts(quiet, PLAN, [record.writer for record in read_attempts(quiet)]):
            jobs.load((), *files)
        jobs.load(range(200))
        return jobs

    def logged(self, *, spare: bool = False) -> set[str]:
        return set(self.later(spare=spare).table.input_of)

    def lost(self) -> set[int]:
        """Return the inputs whose job a kill -9 would lose now."""
        logged, ledger = self.logged(), self.ledger
        return {
            number
            for number in self.in_flight | self.created
            if job_id(number) not in logged or (ledger is not None and number not in ledger.pending)
        }

    # --- the attempt ---

    def send(self, todo: Iterator[tuple[int, Any]] | int, **options: Any) -> Sender:
        """Send inputs."""
        perform = options.pop("perform", self.perform)
        inputs = ((number, {"number": number}) for number in range(todo)) if isinstance(todo, int) else todo
        self.jobs.load(range(200))

        async def run() -> Sender:
            made = self.sender = Sender(
                perform,
                APP,
                self.saver,
                self.ledger,
                throttle=options.pop("throttle", None) or open_throttle(LIMIT),
                deadline=options.pop("deadline", None) or time.time() + 60,
                is_stopping=lambda: self.is_stopping,
                fallback=self.spare,
                **options,
            )
            try:
                await asyncio.wait_for(made.run(inputs, 10), 30)
            finally:
                assert asyncio.all_tasks() == {asyncio.current_task()}
            return made

        try:
            return asyncio.run(run())
        finally:
            assert not self.violations

    def heal(self) -> None:
        """Make everything work again, and wait for the threads that hung."""
        self.place.trouble = ""
        if self.ledger is not None:
            self.ledger.trouble = ""
        give_up_at = time.monotonic() + 5
        while any(thread.name == "rungen-daemon" for thread in threading.enumerate()):
            assert time.monotonic() < give_up_at, "a thread is left behind"
            time.sleep(0.002)

    def send_one(self, number: int = 0, *, within: float = 3.0, **options: Any) -> Sender:
        """Send a single input as a task with one input does: with blocking requests."""
        begun_at = time.monotonic()
        todo = iter([(number, {"number": number})])
        made = self.send(todo, perform=self.perform_blocking, throttle=Throttle(1, ATTEMPTS), **options)
        assert time.monotonic() < begun_at + within
        return made

    async def perform_blocking(self, flow: Flow[Job]) -> Job:
        return await in_daemon_thread(drive, flow, lambda request: self._answer(self._receive(request)))

    def states(self, count: int) -> Counter[str]:
        """Return what this attempt knows of the first inputs."""
        return Counter(self.jobs.state(number).name for number in range(count))

    def watch(self, condition: Callable[[], Any], act: Callable[[], Any]) -> None:
        """Act in another thread as soon as a condition holds."""

        def work() -> None:
            give_up_at = time.monotonic() + 20
            while not condition() and time.monotonic() < give_up_at:
                time.sleep(0.002)
            act()

        threading.Thread(target=work, daemon=True).start()


def job_id(number: int) -> str:
    return f"7a6e5d52-2f4a-4c1e-9d2b-{number:012d}"


def ids(*numbers: int) -> set[str]:
    return {job_id(number) for number in numbers}


def answer(status: int, *, job_id: str = "", **headers: str) -> Response:
    body = {"id": job_id} if job_id else {"error": f"status {status}"}
    return Response(status, {"content-type": "application/json", **headers}, json.dumps(body).encode())


#: The service's own word that it is busy.
BUSY = {"retry-after": "0"}


#: Makes a scene, whose stores are healed after the test.
Make: TypeAlias = Callable[..., Scene]


@pytest.fixture
def make() -> Iterator[Make]:
    scenes: list[Scene] = []

    def make_scene(*args: Any, **options: Any) -> Scene:
        scenes.append(Scene(*args, **options))
        return scenes[-1]

    yield make_scene
    for scene in scenes:
        scene.heal()


# --- all is well ---


@pytest.mark.parametrize("has_ledger", [False, True])
def test_an_intent_is_durable_before_its_post_and_an_id_before_the_next(make: Make, has_ledger: bool) -> None:
    """The service of a `Scene` checks both at each POST."""
    ledger = FakeLedger() if has_ledger else None
    scene = make(ledger=ledger)
    made = scene.send(50)
    assert sorted(scene.posts) == list(range(50))
    assert scene.logged() == ids(*range(50))
    assert not made.unsaved_ids()
    assert not scene.later().inputs(InputState.UNKNOWN)
    if ledger is not None:
        assert ledger.pending == {number: job_id(number) for number in range(50)}
        assert sorted(ledger.asked) == list(range(50))


def test_ids_and_the_next_intents_share_a_write_while_other_inputs_are_in_flight(make: Make) -> None:
    scene = make(ledger=FakeLedger())
    scene.held = set(range(8))
    in_flight: list[set[int]] = []

    def go_on(number: int) -> None:
        if number == 3:  # the next block is looked up while this one is in flight
            scene.watch(lambda: len(scene.ledger.asked) == 8, lambda: release(0, 1))
        if number == 5:
            in_flight.append(set(scene.in_flight))
            release(2, 3, 4, 5, 6, 7)

    def release(*numbers: int) -> None:
        scene.held.difference_update(numbers)

    scene.on_post = go_on
    scene.send(8)
    assert in_flight == [{2, 3, 4, 5}]
    assert scene.place.counts["list"] < scene.place.counts["put"] <= 5


def test_a_place_that_is_not_durable_holds_up_nothing(make: Make) -> None:
    scene = make(VolatilePlace())
    assert set(scene.send(10).unsaved_ids()) == ids(*range(10))
    scene = make(VolatilePlace(), ledger=FakeLedger())
    assert not scene.send(10).unsaved_ids()


def test_what_another_run_is_about_to_submit_is_left_to_it(make: Make) -> None:
    ledger = FakeLedger({0: job_id(100)})
    ledger.held = {*range(1, 6)}
    scene = make(ledger=ledger)
    assert scene.send(8).claimed_elsewhere == {1, 2, 3, 4, 5}
    assert sorted(scene.posts) == [6, 7]
    assert scene.states(8) == {"RUNNING": 3, "UNSENT": 5}
    # the other run submits four, and leaves the last
    ledger.known = {number: job_id(100 + number) for number in range(1, 5)}
    ledger.held.clear()
    rest = iter([(number, {"number": number}) for number in range(1, 6)])
    assert scene.send(rest).claimed_elsewhere == set()
    assert sorted(scene.posts) == [5, 6, 7]
    assert scene.states(8) == {"RUNNING": 8}
    assert not ledger.claimed


def test_a_claim_that_is_too_old_is_made_again(make: Make) -> None:
    ledger = FakeLedger()
    scene = make(ledger=ledger)
    scene.answers = {0: [answer(429, **{"retry-after": "1"})]}

    def lose() -> None:  # it took too long, and another run has submitted one of them
        ledger.claimed.clear()
        ledger.known.update({6: job_id(106)})

    # the next block was claimed before
    scene.watch(lambda: len(ledger.asked) >= 8, lose)
    # those that it had just looked up are left to the next wave
    left = scene.send(8).claimed_elsewhere
    scene.send(iter([(number, {"number": number}) for number in sorted(left)]))
    assert sorted(scene.posts) == [0, 0, 1, 2, 3, 4, 5, 7]
    assert scene.states(8) == {"RUNNING": 8}


def test_the_claims_of_submissions_that_take_long_are_renewed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "PROGRESS_INTERVAL", 0.02)
    ledger = FakeLedger()
    scene = make(ledger=ledger)
    scene.held = {0, 1}

    def grow_old() -> None:
        ledger.trouble = "hang at renew"
        ledger.claimed.clear()

    def answer_one() -> None:
        scene.held.clear()
        while scene.in_flight:
            time.sleep(0.002)
        ledger.trouble = ""

    scene.watch(lambda: ledger.pending.keys() == {2, 3}, grow_old)
    scene.watch(ledger.met.is_set, answer_one)
    scene.send(4)
    assert ledger.renewed == [{0, 1}]
    # no id is lost, though the claims were written while it arrived
    assert ledger.pending == {number: job_id(number) for number in range(4)}
    assert not ledger.claimed


def test_what_is_claimed_and_not_sent_is_released(make: Make) -> None:
    ledger = FakeLedger()
    scene = make(ledger=ledger)
    scene.answers = {number: [answer(422)] for number in range(20)}
    assert scene.send(20).is_broken
    assert ledger.counts["release"] == 1
    assert not ledger.claimed


# --- answers ---


def test_refused_inputs_are_noted_and_enough_in_a_row_end_it(make: Make) -> None:
    scene = make()
    scene.answers = {number: [answer(422)] for number in (1, 3, *range(6, 200))}
    made = scene.send(200, refusals=1)
    assert made.is_broken
    assert made.refusals >= 100
    assert all(isinstance(error, RunGenBadRequestError) for error in made.errors.values())
    assert scene.states(6) == {"RUNNING": 4, "REFUSED": 2}
    assert len(scene.posts) <= 6 + 100 + 2 * LIMIT
    # nothing is unknown to the next attempt, which asks for nothing that was refused or not sent
    assert not scene.later().inputs(InputState.UNKNOWN)


def test_a_busy_service_gets_all_inputs_in_the_end(make: Make) -> None:
    scene, throttle = make(ledger=FakeLedger()), open_throttle(LIMIT)
    scene.answers = {number: [answer(429, **BUSY), answer(503, **BUSY)] for number in (2, 3)}
    scene.send(10, throttle=throttle)
    assert Counter(scene.posts) == {number: 3 if number in (2, 3) else 1 for number in range(10)}
    assert scene.states(10) == {"RUNNING": 10}
    # what is claimed stays so
    assert Counter(scene.ledger.asked)[2] == 1


def test_what_was_not_accepted_until_the_deadline_is_withdrawn(make: Make) -> None:
    scene = make()
    scene.answers = {number: [answer(429, **BUSY)] * 1000 for number in range(2, 10)}
    scene.send(10, deadline=time.time() + 0.5)
    assert scene.states(10) == {"RUNNING": 2, "UNSENT": 8}
    assert not scene.later().inputs(InputState.UNKNOWN)


def test_an_input_of_unknown_fate_stays_announced_and_is_not_sent_again(make: Make) -> None:
    scene = make()
    scene.answers = {1: [answer(502)], 3: [answer(201, job_id=job_id(0))]}
    made = scene.send(8)
    assert sorted(scene.posts) == list(range(8))
    assert {1, 3} == made.errors.keys() == set(scene.later().inputs(InputState.UNKNOWN))
    assert all(isinstance(error, RunGenSubmissionUnknownError) for error in made.errors.values())
    assert f"job {job_id(0)}, as did that of inputs[0]: see whose it is" in str(made.errors[3])


def test_a_refused_key_ends_it_and_leaves_nothing_unknown(make: Make) -> None:
    scene = make()
    scene.answers = {number: [answer(403)] * 99 for number in range(6, 40)}
    with pytest.raises(RunGenForbiddenError):
        scene.send(40)
    assert scene.logged() == ids(*range(6))
    assert not scene.later().inputs(InputState.UNKNOWN)
    assert scene.states(40) == {"RUNNING": 6, "UNSENT": 34}


def test_the_log_says_how_long_a_pause_is(caplog: pytest.LogCaptureFixture) -> None:
    error = RunGenRateLimitedError("busy", status_code=429)
    error.retry_after = 86400.0
    open_throttle(4).note_failure(error)
    assert "busy; continuing in 1 d with 2 in flight" in caplog.text


@pytest.mark.parametrize("status", [401, 402, 403, 404, 409, 451])
def test_the_first_submission_goes_alone_and_a_refusal_ends_it_at_once(make: Make, status: int) -> None:
    ledger = FakeLedger()
    scene = make(ledger=ledger)
    scene.answers = {number: [answer(status)] for number in range(40)}
    with pytest.raises(RunGenAPIError) as failure:
        scene.send(40, throttle=Throttle(LIMIT))
    assert (scene.posts, failure.value.retryable) == ([0], False)
    assert scene.states(40) == {"UNSENT": 40}
    assert not ledger.claimed


def test_after_the_first_answer_all_go_that_may() -> None:
    throttle = Throttle(LIMIT)
    throttle.note_failure(RunGenRateLimitedError("busy", status_code=429))
    assert throttle.limit == 1
    throttle.note_success()
    assert throttle.limit == LIMIT


def test_each_trouble_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    throttle, failure = Throttle(LIMIT), RunGenServerError("out", status_code=503)
    for seconds, error in (
        (0, RunGenRateLimitedError("busy", status_code=429)),
        (150, failure),
        (115, failure),
    ):
        now += seconds
        throttle.note_failure(error)
    now += 10
    with pytest.raises(RunGenServerError):
        throttle.note_failure(failure)


def open_throttle(limit: int) -> Throttle:
    """Return a throttle that has seen a submission succeed."""
    throttle = Throttle(limit)
    throttle.note_success()
    return throttle


def page(status: int) -> Response:
    return Response(status, {"content-type": "text/html"}, b"<h1>default backend</h1>")


@pytest.mark.parametrize("status", [400, 404, 413])
def test_the_page_of_a_gateway_ends_nothing_and_refuses_no_input(make: Make, status: int) -> None:
    scene = make()
    scene.answers = {number: [page(status)] for number in range(LIMIT)}
    scene.answers[7] = [page(413), page(413)]
    made = scene.send(10)
    assert scene.states(10) == {"RUNNING": 9, "REFUSED": 1}
    assert made.errors.keys() == {7}
    assert scene.created == {*range(10)} - {7}


def test_inputs_to_send_once_more_hold_up_no_other(make: Make) -> None:
    scene = make()
    scene.answers = {number: [page(413), page(413)] for number in range(5)}
    scene.send(12, throttle=Throttle(1))
    assert scene.posts == [*range(12), *range(5)]
    assert scene.states(12) == {"REFUSED": 5, "RUNNING": 7}


def test_inputs_that_cannot_be_read_on_lose_no_id(make: Make) -> None:
    def todo() -> Iterator[tuple[int, Any]]:
        yield from ((number, {"number": number}) for number in range(6))
        raise ValueError("line 7 is not JSON")

    scene = make()
    with pytest.raises(ValueError, match="line 7"):
        scene.send(todo())
    assert scene.logged() == ids(*scene.posts)
    assert not scene.later().inputs(InputState.UNKNOWN)


# --- stores that fail or hang ---


@pytest.mark.parametrize("method", ["put", "list", "add", "find"])
def test_nothing_is_sent_while_a_store_fails_and_all_of_it_later(make: Make, method: str) -> None:
    scene = make(ledger=FakeLedger())
    store: Store = scene.place if method in ("put", "list") else scene.ledger
    sent: list[int] = []

    def heal() -> None:
        sent.append(len(scene.posts))
        store.trouble = ""

    def fail(number: int) -> None:
        if number == 5:
            store.trouble = f"503 at {method}"
            tries = store.counts[method] + 4
            scene.watch(lambda: store.counts[method] >= tries, heal)

    scene.on_post = fail
    scene.send(30)
    assert sorted(scene.posts) == list(range(30))
    assert 6 <= sent[0] <= 5 + 3 * LIMIT
    assert scene.logged() == ids(*range(30))
    assert len(scene.ledger.pending) == 30


@pytest.mark.parametrize("what", ["503", "hang"])
@pytest.mark.parametrize("method", ["put", "list", "add", "find"])
def test_a_store_that_fails_for_too_long_ends_it_and_the_other_has_the_ids(
    make: Make, monkeypatch: pytest.MonkeyPatch, method: str, what: str
) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.3)
    scene = make(ledger=FakeLedger())
    is_log = method in ("put", "list")
    store: Store = scene.place if is_log else scene.ledger

    def fail(number: int) -> None:
        if number == 5:
            store.trouble = f"{what} at {method}"

    scene.on_post = fail
    with pytest.raises((OSError, RunGenError), match="503" if what == "503" else "does not answer"):
        scene.send(40)
    assert scene.sender is not None
    assert not scene.sender.unsaved_ids()
    assert len(scene.posts) < 20
    assert set(scene.ledger.pending if method != "add" else scene.posts) == set(scene.posts)
    if method in ("add", "find"):
        assert scene.logged() == ids(*scene.posts)
        assert not scene.later().inputs(InputState.UNKNOWN)
    # what was announced and not sent is withdrawn, whether or not that could be saved
    assert scene.states(40) == {"RUNNING": len(scene.posts), "UNSENT": 40 - len(scene.posts)}


def test_without_a_ledger_the_spare_place_has_the_ids(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.3)
    scene = make()
    scene.spare = LogPlace()
    scene.on_post = lambda number: setattr(scene.place, "trouble", "503 at put" if number >= 5 else "")
    with pytest.raises(OSError, match="503"):
        scene.send(40)
    assert scene.sender is not None
    assert not scene.sender.unsaved_ids()
    assert scene.logged() < ids(*scene.posts) == scene.logged(spare=True)


def test_an_attempt_that_was_cut_off_sends_one_block_at_most(make: Make) -> None:
    scene = make(ledger=FakeLedger())
    begun: list[int] = []

    def supersede(number: int) -> None:
        if number == 6:
            later = RunLog(scene.place, AttemptRecord(2, "2" * 8, 1, 2, app_id=APP, plan=PLAN), time.time)
            later.note()
            begun.append(len(scene.posts))

    scene.on_post = supersede
    with pytest.raises(SupersededError):
        scene.send(60)
    assert len(scene.posts) <= begun[0] + LIMIT
    assert scene.logged() == ids(*scene.posts)
    assert not scene.ledger.counts["release"], "the claims are those of its successor"
    assert not scene.later().inputs(InputState.UNKNOWN)


# --- a kill ---


def kill_when(scene: Scene, number: int, begin: Callable[[Callable[[], None]], None]) -> list[float]:
    """
    Kill the attempt after the service got an input. Return when, once it happened.

    :param begin: called with the kill when the input comes.
    """
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.monotonic())
        scene.is_stopping = True

    scene.on_post = lambda posted: begin(kill) if posted == number else None
    return killed


def assert_in_time(killed: list[float]) -> None:
    assert time.monotonic() - killed[0] < sender.LAST_ANSWERS + log_writer.LAST_SAVES + 1


def test_a_kill_saves_what_was_sent_and_withdraws_the_rest(make: Make) -> None:
    scene = make()
    scene.held = {13}
    killed = kill_when(scene, 13, lambda kill: kill())
    made = scene.send(60)
    assert_in_time(killed)
    assert len(scene.posts) <= 14 + 2 * LIMIT
    assert not made.unsaved_ids()
    assert scene.logged() == ids(*scene.posts) - ids(13)
    assert scene.later().inputs(InputState.UNKNOWN) == [13]


@pytest.mark.parametrize("what", ["503", "hang"])
@pytest.mark.parametrize("store", ["log", "ledger", "log with a spare place"])
def test_a_kill_leaves_each_id_in_the_store_that_works(make: Make, store: str, what: str) -> None:
    scene = make(ledger=None if "spare" in store else FakeLedger())
    if "spare" in store:
        scene.spare = LogPlace()
    broken: Store = scene.ledger if store == "ledger" else scene.place

    def fail(kill: Callable[[], None]) -> None:
        broken.trouble = what
        scene.watch(broken.met.is_set, kill)

    killed = kill_when(scene, 9, fail)
    made = scene.send(60)
    assert_in_time(killed)
    assert not made.unsaved_ids()
    found = scene.logged(spare=True) | ids(*(scene.ledger.pending if scene.ledger else ()))
    assert found == ids(*scene.posts)


def test_a_kill_while_nothing_can_be_saved_names_what_is_lost(make: Make) -> None:
    scene = make()
    scene.watch(lambda: len(scene.posts) >= 9, lambda: setattr(scene.place, "trouble", "hang at put"))
    scene.watch(scene.place.met.is_set, lambda: setattr(scene, "is_stopping", True))
    made = scene.send(60)
    lost = {job_id(number) for number in scene.lost()}
    assert 0 < len(lost) <= LIMIT
    assert set(made.unsaved_ids()) == lost
    # the last write goes on meanwhile
    scene.heal()
    assert set(made.unsaved_ids()) == {job_id(number) for number in scene.lost()} < lost


# --- a single job ---


def test_a_single_job_is_retried_a_few_times_like_any_other_request(make: Make) -> None:
    scene = make()
    scene.answers[0] = [answer(429, **BUSY)] * (ATTEMPTS + 1)
    with pytest.raises(RunGenRateLimitedError):
        scene.send_one(within=15)
    assert scene.posts == [0] * ATTEMPTS
    assert scene.states(1) == {"UNSENT": 1}
    assert not scene.later().inputs(InputState.UNKNOWN)
