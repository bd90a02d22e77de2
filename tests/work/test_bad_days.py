"""Whole lives of whole tasks on bad days: random faults and events, judged by what the server counted."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from airflow.triggers.base import TaskSuccessEvent
from bad_answers import Fault
from client_mistakes import keys_leaked
from conftest import APP, Died, FakeStore, TrackedTaskInstance, rows_in
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rungen_emulator import Emulator, Service

from airflow_provider_rungen.client import job_poller, poll_state, polling, retry
from airflow_provider_rungen.exceptions import RunGenConfigError, RunGenError, RunGenForbiddenError
from airflow_provider_rungen.hooks import base as hook_base
from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
)
from airflow_provider_rungen.sensors import RunGenJobSensor
from airflow_provider_rungen.task import attempts, store_writer
from airflow_provider_rungen.triggers import base
from airflow_provider_rungen.triggers import job as job_trigger
from airflow_provider_rungen.work import client_service, kept_job, single, submit, table_run
from airflow_provider_rungen.work import wait as job_wait

#: How many lives to try. With it set, they are other ones each time.
EXAMPLES = os.environ.get("BAD_DAYS_EXAMPLES")
CONNECTION = "AIRFLOW_CONN_RUNGEN_DEFAULT"
#: Seconds that an attempt may take beyond its timeout: for requests, cancels and a busy machine.
SLACK = 15.0
#: Seconds from a kill to its end: Airflow waits for 5.
KILL_TIME = 5.0

lives = settings(
    max_examples=int(EXAMPLES or 48),
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    # what takes real time cannot be shrunk in a reasonable one, and may be another failure then
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)


# --- what may happen ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something that happens at the nth request, push, write to the store, deferral or end of an attempt."""

    what: str
    on: str
    nth: int


@dataclass(frozen=True)
class Script:
    """All that is decided before a life."""

    kind: str
    deferrable: bool
    airflow: str
    seconds: tuple[float, ...]
    failing: frozenset[int] = frozenset()
    faults: tuple[Fault, ...] = ()
    events: tuple[Event, ...] = ()
    retries: int = 1
    timeout: float = 1.5
    poll_interval: float = 0.1
    stores: bool = False
    max_failed: int = 0


STATUSES = (400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504)
WRONG = (
    *("reset_before", "reset_after", "truncate", "hang", "drip", "drip_headers", "redirect"),
    *("empty", "no_id", "other_id", "garbage", "wrong_types", "deep", "oversize"),
)


@st.composite
def faults(draw: st.DrawFn, operations: tuple[str, ...]) -> Fault:
    on = draw(st.sampled_from(operations))
    times = draw(st.sampled_from([1, 1, 1, 2, 2, 3, 3, None]))
    skip = draw(st.sampled_from([0, 0, 0, 1, 2, 3]))
    if draw(st.booleans()):
        kind = draw(st.sampled_from(WRONG))
        taken = draw(st.booleans()) if kind in ("hang", "drip_headers") else None
        sizes: dict[str, Any] = {"size": 1_100_000, "drip_seconds": 0.05}
        return Fault(on=on, kind=kind, taken=taken, times=times, skip=skip, **sizes)
    status = draw(st.sampled_from((*STATUSES, 429, 502, 503, 503, 504)))
    kind = draw(st.sampled_from(["status", "status", "html"]))
    after = draw(st.sampled_from([None, None, "0", "1"]))
    # what the service itself refuses it does not take; but who knows what a proxy has passed on
    may_be_taken = status in (408, 500, 502, 504) or (status in (429, 503) and kind == "html" and not after)
    return Fault(
        on=on,
        status=status,
        kind=kind,
        headers={"Retry-After": after} if after else None,
        taken=may_be_taken and draw(st.sampled_from([True, True, False])),
        times=times,
        skip=skip,
    )


#: Whose jobs the task submits itself, and whose outputs are stored.
OWNERS = ("job", "table")
REQUESTS = ("run", "get", "get_app", "cancel")
EVENTS = {
    **dict.fromkeys(("rotate", "rotate late", "unplug"), (*REQUESTS, "attempt")),
    **dict.fromkeys(("store", "long store"), (*REQUESTS, "set")),
    **dict.fromkeys(("term", "term by user", "term by clear"), ("run", "get")),
    **dict.fromkeys(("restart", "clear deferred", "mark deferred"), ("get",)),
    "trouble": ("push",),
    "die": ("push", "set"),
    "clear": ("attempt",),
    "fail": ("deferral",),
}


@st.composite
def events(draw: st.DrawFn) -> Event:
    what = draw(st.sampled_from(sorted(EVENTS)))
    on = draw(st.sampled_from(EVENTS[what]))
    return Event(what, on, draw(st.integers(1, 2 if on in ("attempt", "deferral") else 6)))


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    kind = draw(st.sampled_from(["job", "job", "job", "table", "table", "sensor", "collect"]))
    count = 1 if kind == "job" else draw(st.integers(1, 7))
    owns = kind in OWNERS
    seconds = st.sampled_from([0.0, 0.1, 0.1, 0.3, 600.0])
    return Script(
        kind=kind,
        deferrable=draw(st.booleans()),
        airflow=draw(st.sampled_from(["3.2", "3.3", "3.3", "3.3", "3.4"])),
        seconds=tuple(draw(st.lists(seconds, min_size=count, max_size=count))),
        failing=frozenset(draw(st.sets(st.integers(0, count - 1), max_size=1 + count // 4)))
        if draw(st.sampled_from([False, False, True]))
        else frozenset(),
        faults=tuple(
            draw(
                st.lists(
                    faults(("run", *REQUESTS) if owns else ("get", "get_app")),
                    min_size=draw(st.sampled_from([0, 1, 2, 2])),
                    max_size=4,
                )
            )
        ),
        events=tuple(draw(st.lists(events(), max_size=2))),
        retries=draw(st.integers(0, 2)),
        timeout=draw(st.sampled_from([0.5, 0.8, 1.5])),
        poll_interval=draw(st.sampled_from([0.05, 0.1, 0.2])),
        stores=draw(st.booleans()),
        max_failed=draw(st.sampled_from([0, 0, 1])) if owns and kind != "job" else 0,
    )


# --- the stage ----------------------------------------------------------------------------------------------


class TroubleError(Exception):
    """What Airflow raises when its API server cannot be reached."""


@dataclass(frozen=True)
class Made:
    """A job that the service created, and how."""

    id: str
    index: int
    attempt: int
    time: float
    fault: str | None


class Scene(Service):
    """A service that tells of each request before it answers."""

    on_request: Callable[[str], None] = staticmethod(lambda operation: None)
    on_job: Callable[[str, str | None], None] = staticmethod(lambda job_id, fault: None)

    def handle(self, method: str, path: str, headers: Any, body: bytes = b"") -> Any:
        with self._lock:
            before = len(self._jobs)
            reply = super().handle(method, path, headers, body)
            record = self.requests[-1]
            if len(self._jobs) > before:
                self.on_job(next(reversed(self._jobs)), record.fault)
        self.on_request(record.operation)
        return reply


class Log(logging.Handler):
    """Keeps every line, with its traceback."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[tuple[int, logging.LogRecord, str]] = []
        self.attempt = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((self.attempt, record, self.format(record)))


class Store(FakeStore):
    """A store that fails for a while."""

    def __init__(self, on_set: Callable[[], None]) -> None:
        super().__init__()
        self.on_set = on_set
        self.left, self.until = 0, 0.0
        self.is_dead = False

    def set(self, key: str, value: Any, **_: Any) -> None:
        if self.is_dead:
            raise Died
        text = json.dumps(value)
        if self.left > 0 or time.monotonic() < self.until:
            self.left -= 1
            raise TroubleError("the store")
        self.on_set()
        self.kept[key] = text
        if self.is_dead:
            raise Died


class Instance(TrackedTaskInstance):
    """A task instance whose XComs are JSON."""

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        super().xcom_push(key, json.loads(json.dumps(value)))


@dataclass
class Try:
    """One attempt, and its result."""

    number: int
    try_number: int
    is_cleared: bool
    stored: str
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    value: Any = None
    is_success: bool = False
    error: BaseException | None = None
    killed_at: float = 0.0
    seconds_to_die: float = 0.0
    has_died: bool = False
    ordered: str = ""
    pushed: list[tuple[str, Any]] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def chain(self) -> list[BaseException]:
        found: list[BaseException] = []
        error = self.error
        while error is not None and error not in found:
            found.append(error)
            error = error.__cause__ or error.__context__
        return found


class Life:
    """One task from its first attempt to its end, as Airflow leads it."""

    def __init__(self, emulator: Emulator, script: Script, folder: Path, log: Log) -> None:
        self.emulator, self.script, self.folder, self.log = emulator, script, folder, log
        self.service = Scene(workers=16)
        emulator.service = self.service
        self.keys = [self.service.api_key]
        self.counts: Counter[str] = Counter()
        self.timers: list[threading.Timer] = []
        self.store = Store(lambda: self.strike("set")) if script.airflow != "3.2" else None
        self.tries: list[Try] = []
        self.made: list[Made] = []
        self.phase = ""
        self.order = ""
        self.state: str | None = "running"
        self.clear_number = 0
        self.max_tries = script.retries
        self.op: Any = None
        self.given: list[str] = []
        self.discarded_after: set[int] = set()
        self.service.on_job = self._note_job

    @property
    def is_durable(self) -> bool:
        """Whether an attempt can find what an earlier one did."""
        return self.script.kind == "table" or self.store is not None

    def read_store(self) -> str:
        """Return what is kept of jobs: in the task state, and in the names and records of the store."""
        found = "" if self.store is None else " ".join(self.store.kept.values())
        for path in (self.folder / ".rungen").rglob("*"):
            if path.is_file():
                text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                found += f" {path.name} {text.decode()}"
        return found

    # --- what happens ---

    def _note_job(self, job_id: str, fault: str | None) -> None:
        prompt = self.service._jobs[job_id].input["prompt"]
        index = int(prompt.split()[-1])
        self.made.append(Made(job_id, index, len(self.tries), time.time(), fault))

    def strike(self, on: str) -> None:
        """Do what is due now."""
        self.counts[on] += 1
        for event in self.script.events:
            if event.on == on and event.nth == self.counts[on]:
                self.happen(event.what)

    def happen(self, what: str) -> None:
        if what.startswith("rotate"):
            self.keys.append(f"rotated-key-{len(self.keys)}")
            self.service.api_key = self.keys[-1]
            self.later(0.15, self.plug) if what == "rotate late" else self.plug()
        elif what == "unplug":
            os.environ.pop(CONNECTION, None)
            self.later(0.25, self.plug)
        elif what in ("store", "long store") and self.store is not None:
            self.store.left = 2 if what == "store" else 0
            self.store.until = 0.0 if what == "store" else time.monotonic() + 0.8
        elif what.startswith("term") and self.phase == "worker":
            self.state = {"term": "running", "term by user": "failed", "term by clear": "restarting"}[what]
            self.op_ti.state = self.state
            if self.state == "restarting" and self.script.airflow == "3.4":
                self.discard()
            os.kill(os.getpid(), signal.SIGTERM)
        elif what in ("restart", "clear deferred", "mark deferred") and self.phase == "trigger":
            self.order = what
        elif what == "trouble":
            raise TroubleError("the push")
        elif what == "die":
            self.tries[-1].has_died = True
            if self.store is not None:
                self.store.is_dead = True
            if self.phase == "worker":
                raise Died

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        self.timers.append(threading.Timer(seconds, do))
        self.timers[-1].start()

    def plug(self) -> None:
        os.environ[CONNECTION] = self.emulator.airflow_connection(
            timeout={"connect": 0.3, "read": 0.3}, max_response_bytes=1_000_000
        )

    # --- attempts ---

    def inputs(self) -> list[dict[str, Any]]:
        return [
            {
                "prompt": f"{'fail: out of memory, ' if index in self.script.failing else ''}input {index}",
                "emulator": {"seconds": seconds},
                "width": 64,
                "height": 64,
            }
            for index, seconds in enumerate(self.script.seconds)
        ]

    def operator(self) -> Any:
        script = self.script
        common: dict[str, Any] = {
            "task_id": "task",
            "dag": DAG("dag", schedule=None),
            "deferrable": script.deferrable,
            "retries": script.retries,
        }
        if script.kind == "sensor":
            return RunGenJobSensor(
                job_id=list(self.given),
                poke_interval=script.poll_interval,
                timeout=script.timeout,
                **common,
            )
        common |= {"poll_interval": script.poll_interval, "timeout": script.timeout}
        if script.kind == "collect":
            destination = str(self.folder) if script.stores else None
            return RunGenCollectResultsOperator(job_id=list(self.given), destination=destination, **common)
        if script.kind == "job":
            return RunGenRunJobOperator(input=self.inputs()[0], wait_for_completion=True, **common)
        common["max_failed"] = script.max_failed
        results = f"{self.folder}/results.jsonl"
        return RunGenRunTableOperator(
            table=self.inputs(), destination=str(self.folder), results=results, **common
        )

    def lead(self) -> None:
        """Attempt the task until its end."""
        self.plug()
        if self.script.kind in ("sensor", "collect"):
            headers = {"x-api-key": self.keys[0], "content-type": "application/json"}
            for each in self.inputs():
                body = json.dumps({"input": each}).encode()
                assert self.service.handle("POST", f"/app/{APP}/run_async", headers, body).status == 201
            self.given = [made.id for made in self.made]
        for fault in self.script.faults:
            self.service.inject(fault)
        self.service.on_request = self.strike
        before = signal.signal(signal.SIGTERM, self._on_term)
        try:
            try_number, is_cleared = 1, False
            while try_number:
                self.attempt(try_number, is_cleared=is_cleared)
                self.recover()
                try_number, is_cleared = self.next(self.tries[-1])
        finally:
            signal.signal(signal.SIGTERM, before)
            self.service.on_request = lambda operation: None
            self.recover()

    def recover(self) -> None:
        for timer in self.timers:
            timer.cancel()
            timer.join()
        self.timers.clear()
        self.plug()

    def next(self, this: Try) -> tuple[int, bool]:
        """Return the number of the attempt that follows, if one does, and whether it follows a clear."""
        number = this.try_number + 1
        if len(self.tries) >= 6:
            return 0, False
        if this.killed_at and self.state == "restarting":
            return number, True
        was_cleared = this.ordered == "clear deferred"
        self.counts["attempt"] += 1
        for event in self.script.events:
            if event.on == "attempt" and event.nth == self.counts["attempt"]:
                if event.what == "clear":
                    was_cleared = True
                else:
                    self.happen(event.what)
        if was_cleared:
            self.clear_number += 1
            self.max_tries = this.try_number + self.script.retries
            if self.script.airflow == "3.4" and this.ordered != "clear deferred":
                self.discard()
            return number, True
        is_final = (
            this.is_success
            or this.ordered
            or isinstance(this.error, AirflowFailException | AirflowSkipException | AirflowSensorTimeout)
            or (isinstance(this.error, RunGenError) and not this.error.retryable)
            or (this.killed_at and self.state == "failed")
        )
        return (0, False) if is_final or this.try_number > self.max_tries else (number, False)

    def discard(self) -> None:
        if self.store is not None:
            self.store.kept.clear()
        self.discarded_after.add(len(self.tries))

    def attempt(self, try_number: int, *, is_cleared: bool) -> None:
        this = Try(len(self.tries) + 1, try_number, is_cleared, self.read_store())
        self.tries.append(this)
        self.log.attempt = this.number
        self.order, self.state = "", "running"
        self.op_ti = ti = Instance()
        ti.try_number, ti.max_tries = try_number, self.max_tries
        ti.on_push = lambda key, value: self.strike("push")
        if self.store is not None:
            self.store.is_dead = False
            self.store.left, self.store.until = 0, 0.0
        run = SimpleNamespace(clear_number=self.clear_number)
        context = {"ti": ti, "task_instance": ti, "task_state_store": self.store, "dag_run": run}
        try:
            this.value = self._perform(context, this)
            this.is_success = not this.ordered
        except Died:
            this.has_died = True
        except Exception as error:
            this.error = error
        finally:
            self.phase = ""
            this.ended = time.time()
            this.seconds_to_die = time.monotonic() - this.killed_at if this.killed_at else 0.0
            this.pushed = ti.pushed

    def _perform(self, context: Any, this: Try) -> Any:
        self.op = self.operator()
        step = partial(self.op.execute, context)
        while True:
            try:
                self.phase = "worker"
                return step()
            except TaskDeferred as deferral:
                self.phase = "deferring"
                self.strike("deferral")
                is_failed = any(
                    event.on == "deferral" and event.nth == self.counts["deferral"]
                    for event in self.script.events
                )
                trigger, method = deferral.trigger, deferral.method_name
            self.op = self.operator()  # another process goes on
            if is_failed and hasattr(self.op, "resume_execution"):
                step = partial(self.op.resume_execution, "__fail__", {"error": "Trigger timeout"}, context)
                continue
            self.phase = "trigger"
            event = asyncio.run(self._trigger(trigger))
            self.phase = "deferring"
            if event is None:
                this.ordered = self.order
                return None
            if isinstance(event, TaskSuccessEvent):
                return dict(self.op_ti.pushed).get("return_value")
            this.events.append(json.loads(json.dumps(event.payload)))
            step = partial(getattr(self.op, method), context, event=event.payload)

    async def _trigger(self, trigger: Any) -> Any:
        """Wait in a triggerer, which may be started again."""
        _, kwargs = trigger.serialize()
        kwargs = json.loads(json.dumps(kwargs))
        while True:
            this = type(trigger)(**kwargs)
            this._task_instance = self.op_ti
            stream = this.run()
            waiting = asyncio.ensure_future(anext(stream))
            while not waiting.done() and not self.order:
                await asyncio.wait([waiting], timeout=0.01)
            if waiting.done():
                event = waiting.result()
                await stream.aclose()
                return event
            order, self.order = self.order, ""
            if order != "restart":
                self.order = order
                self.state = "failed" if order == "mark deferred" else None
                if order == "clear deferred" and self.script.airflow == "3.4":
                    self.discard()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await stream.aclose()
            if order != "restart":
                await this.on_kill()
                return None

    def _on_term(self, *_: object) -> None:
        if self.phase != "worker":
            return
        self.tries[-1].killed_at = time.monotonic()
        self.op.on_kill()

    def results(self) -> list[dict[str, Any]]:
        """Return the results table."""
        return rows_in(self.folder)

    # --- what is held ---

    def lines(self, *, least: int = logging.INFO) -> list[tuple[int, str]]:
        """Every log line, by attempt."""
        said = [(number, text) for number, record, text in self.log.lines if record.levelno >= least]
        for this in self.tries:
            said += [(this.number, str(error)) for error in this.chain()]
        return said

    def explain(self, what: str) -> str:
        shown = [self.script, *self.tries, *self.made, *self.service.jobs(), *self.service.records()[:150]]
        said = [
            f"  [{number}] {record.levelname} {record.name}: {text[:1500]}"
            for number, record, text in self.log.lines
        ]
        return "\n".join([what, *map(repr, shown), *said])

    def hold(self, is_so: object, what: str) -> None:
        if not is_so:
            pytest.fail(self.explain(what), pytrace=False)

    def judge(self) -> None:
        self._judge_errors()
        self._judge_secrets()
        self._judge_cancels()
        if self.script.kind in OWNERS:
            self._judge_purchases()
            self._judge_fates()
        else:
            self.hold(self.service.count("cancel") == 0, "a job of somebody else was canceled")
        self._judge_success()

    def _judge_errors(self) -> None:
        allowed = (RunGenError, AirflowException, TroubleError)
        for this in self.tries:
            self.hold(
                this.error is None or isinstance(this.error, allowed), f"another exception: {this.error!r}"
            )
            for event in this.events:
                self.hold(
                    "in the triggerer:" not in str(event.get("message")), f"the trigger stumbled: {event}"
                )
            limit = self.script.timeout + SLACK
            self.hold(this.ended - this.began < limit, f"try {this.number} took too long")
            self.hold(this.seconds_to_die < KILL_TIME + 1, f"try {this.number} did not end when killed")
        was_killed = any(this.killed_at for this in self.tries)
        died = {this.number for this in self.tries if this.has_died}
        for number, record, text in self.log.lines:
            if number in died:
                continue  # a process that is gone says nothing more
            is_bad = record.levelno >= logging.ERROR and record.name == "asyncio"
            # the handler of the signal raised in the middle of the event loop
            is_bad = is_bad and not (was_killed and "The task was killed" in text)
            is_bad |= "ended with an error" in text or "Waiting for RunGen failed" in text
            self.hold(not is_bad, f"left behind: {text}")

    def _judge_secrets(self) -> None:
        self.hold(keys_leaked(self.service) == 0, "a key was leaked")
        said = [text for _, _, text in self.log.lines]
        for this in self.tries:
            said += [repr(error) for error in this.chain()]
            said += [json.dumps(pair) for pair in this.pushed] + [json.dumps(event) for event in this.events]
        said.append(self.read_store())
        for text in said:
            self.hold(not any(key in text for key in self.keys), f"a key is in {text}")
            signed = re.search(r"X-Amz-Signature=(?!\*)[0-9a-f]", text)
            self.hold(not signed, f"a signed query is in {text}")

    def _judge_cancels(self) -> None:
        for this in self.tries:
            is_refused = any(
                isinstance(error, RunGenForbiddenError | RunGenConfigError) for error in this.chain()
            )
            if not is_refused or this.is_cleared or this.killed_at:
                continue
            canceled = [
                record
                for record in self.service.records()
                if record.operation == "cancel" and this.began <= record.time <= this.ended
            ]
            self.hold(not canceled, f"try {this.number} canceled jobs because of a refusal")

    def _unknown_told(self, number: int) -> int:
        """Count the submissions whose fate an attempt logged as unknown."""
        said = [text for each, text in self.lines(least=logging.WARNING) if each == number]
        lost = sum(int(found[1]) for text in said if (found := re.match(r"Lost (\d+) answer", text)))
        return max([lost, *(text.count("may have created") for text in said)])

    def _judge_purchases(self) -> None:
        """None bought twice outside *fate unknown*."""
        for place, new in enumerate(self.made):
            for old in self.made[:place]:
                if old.index == new.index:
                    self.hold(
                        self._may_replace(old, new), f"job {new.id} was bought though there was {old.id}"
                    )

    def _may_replace(self, old: Made, new: Made) -> bool:
        if old.attempt == new.attempt:
            return False
        between = self.tries[old.attempt : new.attempt]
        is_cleared = any(this.is_cleared for this in between)
        is_discarded = any(old.attempt <= number < new.attempt for number in self.discarded_after)
        if not self.is_durable or is_discarded or (is_cleared and self.script.kind == "job"):
            return True
        job = next(job for job in self.service.jobs() if job["id"] == old.id)
        is_over = job["status"] in ("FAILED", "CANCELED") and job["finished"] <= new.time
        answers = [
            (record.status, record.time)
            for record in self.service.records()
            if record.operation == "get" and old.id in record.path and record.time <= new.time
        ]
        refused = [time for status, time in answers if status == 400]
        # a 400 that lasts says so, too: see "One wait" in docs/reliability.md
        is_forgotten = 404 in dict(answers) or (
            bool(refused) and max(refused) - min(refused) >= retry.PATIENCE / 2
        )
        # whoever gets another id cannot know
        if is_over or is_forgotten or old.fault == "other_id":
            return True
        if old.id in self.tries[new.attempt - 1].stored:
            return False
        told = sum(self._unknown_told(this.number) for this in self.tries[old.attempt - 1 : new.attempt])
        return told > 0

    def _judge_fates(self) -> None:
        """Check that every job is used, over, or named."""
        said = self.lines()
        # what a client read or found
        known = " ".join(text for _, text in said)
        known += " ".join(json.dumps(this.pushed) for this in self.tries)
        known += self.read_store()
        unknown: Counter[int] = Counter()
        for job in self.service.jobs():
            [made] = [made for made in self.made if made.id == job["id"]]
            if made.id not in known:
                unknown[made.attempt] += 1
            elif job["status"] in ("QUEUED", "RUNNING") and not self._is_lost(made):
                self.hold(self._is_told(made, said), f"job {made.id} runs on, and nobody is told")
        for number, count in unknown.items():
            this = self.tries[number - 1]
            if this.has_died and (not self.is_durable or number == len(self.tries)):
                continue
            if this.has_died and number in self.discarded_after:
                continue
            told = sum(self._unknown_told(each.number) for each in self.tries[number - 1 : number + 1])
            self.hold(told >= count, f"try {number} left {count} jobs of unknown fate, {told} were told")

    def _is_lost(self, made: Made) -> bool:
        """Return whether an attempt that knew the job died, and no other could find it."""
        after = self.tries[made.attempt - 1 :]
        died = [this.number for this in after if this.has_died]
        return bool(died) and (
            not self.is_durable
            or died[-1] == len(self.tries)
            or any(number in self.discarded_after for number in died)
        )

    def _is_told(self, made: Made, said: list[tuple[int, str]]) -> bool:
        last = len(self.tries)
        for number, text in said:
            if number < made.attempt or re.match(r"Submitted |Waiting |Queued |Running ", text):
                continue
            is_left = "attempt resumes" in text or "A retry resumes" in text
            if is_left and number < last and number not in self.discarded_after:
                continue  # then somebody else has to answer for it
            # a refusal may say so, too: "Could not cancel the job (422): …, but it is RUNNING"
            is_refused = text.startswith("Could not cancel") and "; retrying in" not in text
            if made.id in text and (is_refused or not re.search(r" is (QUEUED|RUNNING) ", text)):
                return True
            if re.search(r"resumes \d+ jobs", text):
                return True
            if number == last and re.search(r" and \d+ more, app ", text):
                return True
        return False

    def _judge_success(self) -> None:
        last = self.tries[-1]
        if not last.is_success or last.killed_at:
            return
        statuses = {job["id"]: job["status"] for job in self.service.jobs()}
        if self.script.kind in ("sensor", "collect"):
            used: list[Any] = self.given
        elif self.script.kind == "job":
            used = [last.value]
        else:
            used = [row["job_id"] for row in self.results()]
        bad = [each for each in used if each is None or statuses.get(each) != "COMPLETED"]
        allowed = self.script.max_failed
        self.hold(len(bad) <= allowed, f"it succeeded with {bad}")


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten every wait, in proportion."""
    scales: list[tuple[Any, dict[str, Any]]] = [
        (retry, {"BACKOFF": 0.02, "BACKOFF_CAP": 0.2, "PATIENCE": 0.4, "RETRY_BUDGET": 1.5}),
        (hook_base, {"LOOK_UP_EVERY": 0.05, "KILL_REQUEST_TIMEOUT": 0.3}),
        (single, {"LOOK_TIME": 1.0}),
        (kept_job, {"_SAVE_TIME": 0.2}),
        (client_service, {"PAGE_PAUSE": 0.1}),
        (submit, {"_LEAST_PAUSE": 0.05, "_MOST_PAUSE": 0.2, "OUTAGE_TIME": 1.0}),
        (table_run, {"LOOK_INTERVAL": 0.3, "WAIT_INTERVAL": 0.05}),
        (store_writer, {"STORE_RETRY_BUDGET": 0.4}),
        (job_wait, {"FIRST_INTERVAL": 0.05}),
        (polling, {"FETCH_BUDGET": 1.5}),
        (poll_state, {"RESULT_GRACE": 0.2}),
        (poll_state, dict.fromkeys(("POLL_TIMEOUT", "LAST_POLLS_TIME"), 0.5)),
        (job_poller, {"POLL_TIMEOUT": 0.5}),
        (polling, {"POLL_TIMEOUT": 0.5}),
        (base, {"SETTLING_TIME": 0.0, "CANCEL_TIME": 2.0}),
        (job_trigger, {"MIN_ROUND_TIME": 0.0}),
    ]
    for module, values in scales:
        for name, value in values.items():
            assert hasattr(module, name)
            monkeypatch.setattr(module, name, value)


@pytest.fixture
def log() -> Iterator[Log]:
    """Every line of the root logger and of those below it."""
    log = Log()
    names = ("", "airflow.task", "airflow_provider_rungen")
    before = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in before:
        logger.setLevel(logging.INFO)
    logging.getLogger().addHandler(log)
    yield log
    logging.getLogger().removeHandler(log)
    for logger, level in before.items():
        logger.setLevel(level)


@pytest.fixture
def led(
    hurried: None, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Script], Life]]:
    """Lead a life, and judge it."""
    monkeypatch.setenv(CONNECTION, "")
    current: list[Life] = []
    monkeypatch.setattr(attempts, "task_state", lambda ti: current[-1].state)
    monkeypatch.setattr(attempts, "pushed_job_id", lambda ti: None)

    def lead(script: Script) -> Life:
        log.lines.clear()
        life = Life(emulator, script, tmp_path / str(len(current)), log)
        current.append(life)
        life.lead()
        gc.collect()
        life.judge()
        return life

    gc.collect()
    gc.freeze()
    with Emulator() as emulator:
        yield lead
    gc.unfreeze()


@pytest.mark.timeout(240 + 5 * int(EXAMPLES or 0))  # one after another, many take longer than a test may
@lives
@given(script=scripts())
def test_every_job_is_used_or_canceled_or_told_on_any_bad_day(
    led: Callable[[Script], Life], script: Script
) -> None:
    led(script)
