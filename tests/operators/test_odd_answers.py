"""Whole tasks of which one answer of the service is odd, judged by what the service counted."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSensorTimeout
from bad_answers import Fault
from client_mistakes import keys_leaked
from conftest import APP, KEY, FakeStore, Outcome, rows_in, run_task, signal_when
from operator_kit import KILLED, Attempts, Inputs, taking, workers
from rungen_emulator import Emulator, Service
from rungen_emulator.fakes import TODAY, make_context, make_dag_run
from rungen_emulator.messages import Reply
from rungen_emulator.testing import run_operator

from airflow_provider_rungen import operators
from airflow_provider_rungen.apps import lifecycle
from airflow_provider_rungen.client import apps, job_poller, poll_state, polling, retry
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.outputs import outage
from airflow_provider_rungen.sensors import RunGenJobSensor
from airflow_provider_rungen.store import records
from airflow_provider_rungen.triggers import job as trigger
from airflow_provider_rungen.work import client_service, single, submit, table_run
from airflow_provider_rungen.work import wait as job_wait

pytestmark = [KILLED, pytest.mark.contract]

#: How many cases to try, of all that there are; ``all``, or a number. The sample is the same each time.
CASES = os.environ.get("ODD_ANSWERS", "120")
#: All that takes seconds is so much shorter here, in proportion.
PACE = 1 / 20
WAITS = {
    *("BACKOFF", "BACKOFF_CAP", "PATIENCE", "RETRY_BUDGET", "UNSURE_GRACE", "FETCH_BUDGET"),
    *("REFETCH_INTERVAL", "FIRST_INTERVAL", "PAGE_PAUSE", "PAUSE", "DOWN_TIME", "LOOK_EVERY", "OUTAGE_TIME"),
    *("MIN_ROUND_TIME", "FULL_PASS", "RESULT_GRACE", "LOOK_TIME", "LOOK_INTERVAL", "WAIT_INTERVAL"),
    *("_LEAST_PAUSE", "_MOST_PAUSE", "CLAIM_TIME"),
}
CLIENT = (retry, poll_state, polling, job_poller, apps)
WORK = (client_service, single, submit, table_run, job_wait, outage, lifecycle, trigger, records)
MODULES = (*CLIENT, *WORK)
SECONDS = [(module, name, vars(module)[name]) for module in MODULES for name in WAITS & vars(module).keys()]
OUTAGE = 20 * PACE
GPU = "gpu"


# --- what may be odd ----------------------------------------------------------------------------------------

STATUSES = (400, 401, 402, 403, 404, 408, 409, 410, 413, 422, 429, 500, 502, 503, 504)
ODD_SUCCESSES: dict[str, dict[str, Any]] = {
    **{f"200 {name}": {"status": 200, "body": name} for name in ("", "{}", "null")},
    "204": {"status": 204, "body": ""},
    "200 page": {"kind": "html"},
}
ANSWERS: dict[str, dict[str, Any]] = {
    **{f"{status} of its own": {"status": status} for status in STATUSES},
    **{f"{status} page": {"status": status, "kind": "html"} for status in STATUSES},
    **{f"{status} empty": {"status": status, "body": ""} for status in STATUSES},
    **{f"{status} page, taken": {"status": status, "kind": "html", "taken": True} for status in (502, 504)},
    "503 empty, taken": {"status": 503, "body": "", "taken": True},
    **ODD_SUCCESSES,
    **{f"{name}, taken": {**answer, "taken": True} for name, answer in ODD_SUCCESSES.items()},
    **{kind: {"kind": kind} for kind in ("wrong_types", "other_id", "no_id", "truncate", "redirect")},
    **{kind: {"kind": kind} for kind in ("reset_before", "reset_after", "stale", "new_word")},
}
HOW_LONG = {"once": 1, "twice": 2, "for 20 s": None}
#: Scenario, operation, how many of its requests come before, answer, and how long.
Case = tuple[str, str, int, str, str]
LOST_ID = pytest.mark.xfail(strict=True, reason="a retry does not run a single job whose id is unknown again")
#: What the service itself says of an input, or at the first look at what is not of the task, ends it.
REFUSALS = {f"{status} of its own" for status in STATUSES if 400 <= status < 500 and status not in (408, 429)}


class Odd(Fault):
    """A fault, also the answer of before (which the `Witness` knows), or a status that nobody knows."""

    kinds = (*Fault.kinds, "stale", "new_word")

    def apply(self, reply: Reply) -> Reply:
        if self.kind == "new_word":
            return replace(reply, body=re.sub(rb'("status": )"\w+"', rb'\1"HIBERNATING"', reply.body))
        return reply if self.kind == "stale" else super().apply(reply)


class Witness(Service):
    """A service that notes what an odd answer leads to."""

    #: How many jobs an odd answer may have hidden.
    hidden = 0
    #: How many jobs were queued or running when the app was scaled to zero.
    hurt = 0
    struck_at = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        self.before: dict[str, Reply] = {}
        self.add_app(GPU, workers=0)

    def handle(self, method: str, path: str, headers: Any, body: bytes = b"") -> Reply:
        with self._lock:
            if time.monotonic() > self.struck_at + OUTAGE:
                self.clear_faults()
            if b'"flaky"' in body and not any("fail" in job["input"]["emulator"] for job in self.jobs()):
                body = body.replace(b'"flaky"', b'"fail"')
            gpu, jobs = self._apps[GPU], len(self._jobs)
            live = gpu.active_workers and sum(
                gpu.shown()["jobs"][each] for each in ("in_queue", "in_progress")
            )
            reply = super().handle(method, path, headers, body)
            fault, was = self.requests[-1].fault, self.before.get(path, reply)
            if fault is not None:
                self.struck_at = min(self.struck_at, time.monotonic())
                self.hidden += fault != "new_word" and len(self._jobs) - jobs
            if not gpu.active_workers:
                self.hurt = self.hurt or live
            if fault == "stale":
                return was
            if method == "GET" and reply.status == 200:
                self.before[path] = reply
            return reply


# --- the scenarios ------------------------------------------------------------------------------------------


@dataclass
class Play:
    """
    Tasks that are attempted as Airflow does, and how they ended.

    :param odd: the odd answer, if there is one.
    :param may_fail: whether a task may fail for good.
    """

    emulator: Emulator
    folder: Path
    odd: Odd | None
    may_fail: bool
    service: Witness = field(default_factory=partial(Witness, workers=1000))
    inputs: int = 0
    foreign: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    stores: list[FakeStore] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.emulator.service = self.service

    @property
    def failures(self) -> list[BaseException]:
        return [each.error for each in self.outcomes if each.error is not None]

    def others(self, count: int, seconds: float = 0.1, app_id: str = APP) -> list[str]:
        """Submit jobs that are not those of the task."""
        with RunGenHook() as hook:
            self.foreign += [hook.run_job(app_id=app_id, input=each).id for each in pictures(count, seconds)]
        return self.foreign

    def begin(self) -> None:
        if self.odd is not None:
            self.service.inject(self.odd)

    def lead(self, kind: Callable[..., Any], **options: Any) -> Any:
        """Attempt a task until it succeeds, or fails for good, and return what it returned."""
        self.begin()
        task = Attempts(self.emulator, kind, **options)
        self.stores.append(task.store)
        return self.attempt(lambda _: run_task(task.begin(), task.context, timeout=60)).value

    def attempt(self, run: Callable[[int], Outcome]) -> Outcome:
        for number in (1, 2, 3):
            self.outcomes.append(outcome := run(number))
            if outcome.error is None:
                return outcome
            if isinstance(outcome.error, AirflowFailException | AirflowSensorTimeout):
                break
            self.service.struck_at -= 300  # that long a retry waits
        self.hold(self.may_fail, f"failed for good: {outcome.error}")
        return outcome

    def hold(self, is_so: object, what: str) -> None:
        self.broken += [] if is_so else [what]

    def judge(self) -> list[str]:
        """Return what is not as it must be."""
        jobs = {job["id"]: job["status"] for job in self.service.jobs()}
        foreign = [jobs.pop(job_id) for job_id in self.foreign]
        self.hold("CANCELED" not in foreign, "a job of somebody else was canceled")
        limit = self.inputs + self.service.hidden + [*jobs.values()].count("FAILED")
        self.hold(len(jobs) <= limit, f"{len(jobs)} jobs were bought, and {limit} are enough")
        told = "\n".join(f"{each.log}\n{each.error}" for each in self.outcomes)
        live = [each for each, status in jobs.items() if status in ("QUEUED", "RUNNING") and each not in told]
        hidden = self.service.hidden if "Fate unknown" in told else 0
        self.hold(len(live) <= hidden, f"no log and no error names {live}")
        self.hold(not keys_leaked(self.service), "the key was sent to the storage")
        for where, text in self.texts().items():
            is_leaked = KEY in text or re.search(r"X-Amz-Signature=(?!\*)", text)
            self.hold(not is_leaked, f"a key or signed URL is in {where}")
        return self.broken

    def texts(self) -> dict[str, str]:
        """Return all that is left behind."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        texts = {str(path): path.read_bytes().decode("latin-1") for path in files}
        texts["the store"] = repr([store.kept for store in self.stores])
        for each in self.outcomes:
            texts |= {"the log": each.log, "an XCom": repr((each.xcoms, each.value, each.events))}
            error = each.error
            while error is not None:
                texts["an error"] = f"{error!r} {vars(error)}"
                error = error.__cause__ or error.__context__
        return texts


def pictures(count: int, seconds: float = 0.1, **emulator: Any) -> list[dict[str, Any]]:
    size = {"width": 64, "height": 64}
    return [taking(seconds, **emulator) | size | {"prompt": f"picture {n}"} for n in range(count)]


def job(play: Play, **options: Any) -> None:
    play.inputs = 1
    play.lead(operators.RunGenRunJobOperator, input=pictures(1)[0], wait_for_completion=True, **options)


def inputs(play: Play, **options: Any) -> None:
    play.inputs, folder = 6, play.folder.as_uri()
    options |= {"destination": f"{folder}/out", "max_in_flight": 4}
    value = play.lead(operators.RunGenRunTableOperator, table=pictures(6), **options)
    play.hold(value is None or value["completed"] == 6, f"results are lost: {value}")


def table(play: Play) -> None:
    """One job fails, and so does the first attempt."""
    play.inputs, folder = 3, play.folder
    inputs = [*pictures(2), *pictures(1, flaky="out of memory")]
    options: dict[str, Any] = {"key": "n", "to_input": lambda row: json.loads(row["input"])}
    rows = [{"n": n, "input": json.dumps(each)} for n, each in enumerate(inputs)]
    options |= {"destination": (folder / "out").as_uri(), "results": (folder / "results.jsonl").as_uri()}
    value = play.lead(operators.RunGenRunTableOperator, table=rows, **options)
    play.hold(value is None or all(row["status"] == "completed" for row in rows_in(folder)), "rows are lost")


def collect(play: Play, **options: Any) -> None:
    ids = play.others(3)
    destination = (play.folder / "out").as_uri()
    value = play.lead(operators.RunGenCollectResultsOperator, job_id=ids, destination=destination, **options)
    play.hold(value is None or value["completed"] == len(ids), f"results are lost: {value}")


def sensor(play: Play, **options: Any) -> None:
    ids = play.others(2)
    play.lead(
        lambda **_: RunGenJobSensor(task_id="task", job_id=ids, poke_interval=0.02, timeout=60, **options)
    )


def kill(on: str, state: str, play: Play) -> None:
    """A task is killed at the sixth request. It is attempted again if only its worker was stopped."""
    play.inputs, is_last = 6, state == "failed"
    inputs = pictures(6, 600 if is_last else 1)
    task = Inputs(play.emulator, play.folder / "out", inputs)
    task.state = state
    op = task.begin()
    play.stores.append(task.store)
    play.begin()
    with signal_when(signal.SIGTERM, lambda: play.service.count(on) >= 6, op.on_kill):
        play.outcomes.append(run_task(op, task.context, timeout=60))
    play.hold(play.outcomes[-1].error, "it went on after the kill")
    if not is_last:
        play.attempt(lambda _: run_task(task.begin(), task.context, timeout=60))


def app(play: Play, workers_after: int, busy: float = 0.1, **options: Any) -> None:
    """An app is scaled up around a table, and somebody else has a job there, too."""
    play.inputs = 3
    play.others(1, busy, GPU)
    pace: Any = {"poll_interval": 0.02, "timeout": 10}
    with DAG("dag", schedule=None), operators.scaled_app(GPU, 2, **pace, **options) as gpu:
        place = (play.folder / "out").as_uri()
        run = operators.RunGenRunTableOperator(
            task_id="run", app_id=GPU, table=pictures(3), destination=place, **pace
        )
    play.begin()
    done: dict[str, Any] = {}
    for op in (gpu.up, run, gpu.down):
        store, play.service.hurt = FakeStore(), 0
        play.stores.append(store)

        def attempt(number: int, op: Any = op, store: FakeStore = store) -> Outcome:
            ti = make_context(op, make_dag_run("dag", TODAY, None), done)["ti"]
            ti.try_number, ti.max_tries = number, 2
            context = {"ti": ti, "task_instance": ti, "task_state_store": store}
            outcome = run_operator(op, upstream=done, context=context)
            has = workers(play.emulator, GPU)
            if op is gpu.down and has != workers_after:
                play.hold("STILL BILLED" in str(outcome.error), f"no error names the {has} workers")
            return outcome

        if op is not run or done["app_up"].error is None:
            done[op.task_id] = play.attempt(attempt)
    play.hold(workers(play.emulator, GPU) == workers_after, "the app was not brought to its workers")


#: The scenarios, with the requests that are answered oddly, from 0.
SCENARIOS: dict[str, tuple[Callable[[Play], None], dict[str, tuple[int, ...]]]] = {
    "job": (job, {"run": (0,), "get": (0, 1)}),
    "deferred job": (partial(job, deferrable=True), {"run": (0,), "get": (0, 1)}),
    "inputs": (inputs, {"run": (0, 1, 5), "get": (0, 1, 3, 8), "output": (0, 3)}),
    "deferred inputs": (
        partial(inputs, deferrable=True),
        {"run": (0, 5), "get": (0, 1, 3, 8), "output": (0,)},
    ),
    "table": (table, {"run": (0, 2, 3), "get": (0, 1, 3), "output": (0,)}),
    "collect": (collect, {"get": (0, 1, 3), "output": (0,)}),
    "deferred collect": (partial(collect, deferrable=True), {"get": (0, 1, 3)}),
    "sensor": (sensor, {"get": (0, 1)}),
    "deferred sensor": (partial(sensor, deferrable=True), {"get": (0, 1)}),
    "kill": (partial(kill, "get", "failed"), {"run": (0, 5), "get": (0, 4), "cancel": (0, 5)}),
    "early kill": (partial(kill, "run", "failed"), {"run": (0, 5), "cancel": (0, 3)}),
    "stop": (partial(kill, "run", "running"), {"run": (0, 5), "get": (0, 3)}),
    "deferred app": (
        partial(app, workers_after=0, deferrable=True),
        {"get_app": (0, 1, 2, 3), "update_app": (0, 1)},
    ),
    "blocking app": (partial(app, workers_after=0), {"get_app": (0, 1, 2, 3), "update_app": (0, 1)}),
}


# --- the scan -----------------------------------------------------------------------------------------------


@pytest.fixture
def perform(
    rungen_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Play]:
    """Perform a scenario with shorter waits."""
    for module, name, seconds in SECONDS:
        monkeypatch.setattr(module, name, seconds * PACE)

    def run(name: str, odd: Odd | None = None, *, may_fail: bool = False) -> Play:
        play = Play(rungen_emulator, tmp_path, odd, may_fail)
        SCENARIOS[name][0](play)
        return play

    return run


def attempts_that_fail(name: str) -> int:
    return int(name == "table" or name.endswith(("kill", "stop")))


@pytest.mark.parametrize("name", SCENARIOS)
def test_without_an_odd_answer_all_is_well(perform: Callable[..., Play], name: str) -> None:
    assert {wait for _, wait, _ in SECONDS} == WAITS, "each of them is shortened"
    play = perform(name)
    assert play.judge() == []
    assert len(play.failures) == attempts_that_fail(name)
    unasked = [on for on, places in SCENARIOS[name][1].items() if play.service.count(on) <= max(places)]
    assert not unasked, "these places are never reached"


def cases() -> list[Case]:
    found = [
        (name, on, place, answer, how_long)
        for name, (_, requests) in SCENARIOS.items()
        for on, places in requests.items()
        for place, answer, how_long in itertools.product(places, ANSWERS, HOW_LONG)
        if answer != "stale" or on.startswith("get")
    ]
    if CASES == "all":
        return found
    return random.Random(1).sample(found, int(CASES))  # noqa: S311 - no secret


@pytest.mark.parametrize("case", cases(), ids=lambda case: "-".join(map(str, case)))
def test_no_odd_answer_ends_or_buys_what_it_should_not(
    perform: Callable[..., Play], case: Case, request: pytest.FixtureRequest
) -> None:
    name, on, place, answer, how_long = case
    if on == "run" and answer == "other_id" and name.endswith("job"):
        request.applymarker(LOST_ID)
    odd = Odd(on=on, skip=place, times=HOW_LONG[how_long], **ANSWERS[answer])
    is_first_look = on == "get_app" or (on == "get" and name.endswith(("collect", "sensor")))
    may_fail = answer in REFUSALS and (on == "run" or is_first_look)
    play = perform(name, odd, may_fail=may_fail)
    if how_long == "once" and on != "run" and not may_fail:
        play.hold(len(play.failures) <= attempts_that_fail(name), f"it cost an attempt: {play.failures[:1]}")
    assert play.judge() == []
