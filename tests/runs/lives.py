"""Random lives of a task run: a service, a scheduler of attempts, and what one attempt does with the log."""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from greenlet import getcurrent, greenlet
from places import Died, GoneError, MemoryPlace, OutageError, Trouble, announce

from airflow_provider_rungen.execution.jobs.places import StorePlace
from airflow_provider_rungen.runs.adoption import adopt_rows
from airflow_provider_rungen.runs.attempt_record import AttemptRecord, End, next_turn
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog, read_attempts, read_parts
from airflow_provider_rungen.runs.part_files import PART_ROWS, PartFile, PartName
from airflow_provider_rungen.runs.place import Place
from airflow_provider_rungen.runs.plan import input_digest
from airflow_provider_rungen.runs.records import InvalidRecordError
from airflow_provider_rungen.runs.rows import SUBMITTABLE, InputState, Job, JobState, Row, Writer

BLOCK = 5
MAX_IN_FLIGHT = 20


class UnknownFateError(Exception):
    """An input may have a job that nobody knows, and nothing is sent."""


class DeferredError(Exception):
    """The attempt was deferred."""


class Process:
    """
    A function that runs until it calls `pause`.

    :param work: the function.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._greenlet = greenlet(self._run)
        self._is_killed = False
        #: What it raised, other than its death.
        self.error: Exception | None = None

    def _run(self) -> None:
        try:
            self._work()
        except Died:
            pass
        except Exception as error:
            self.error = error

    @property
    def is_over(self) -> bool:
        return bool(self._greenlet.dead)

    def step(self) -> None:
        """Run it to its next pause."""
        self._greenlet.parent = getcurrent()
        self._greenlet.switch()

    def kill(self) -> None:
        """End it where it is: it does nothing more."""
        self._is_killed = True
        while not self.is_over:
            self.step()

    def pause(self) -> None:
        """Wait for the next step. To be called by the function."""
        if not self._is_killed:
            self._greenlet.parent.switch()
        if self._is_killed:
            raise Died


@dataclass
class Made:
    """A job that the service created."""

    id: str
    input: str
    writer: Writer | None
    time: int
    state: JobState = JobState.OPEN
    polls: int = 2
    end: JobState = JobState.COMPLETED
    rivals: tuple[str, ...] = ()
    is_double: bool = False
    canceled_by: Writer | None = None
    is_answered: bool = True


@dataclass(frozen=True)
class Event:
    """
    Something that happens at a step of an attempt.

    :param what: ``kill``, ``freeze``, ``clear``, ``defer``, or ``forge``: somebody else writes into the log.
    """

    what: str
    attempt: int
    step: int


@dataclass(frozen=True)
class Script:
    """All that is decided before a life."""

    seed: int
    inputs: tuple[str, ...]
    events: tuple[Event, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    #: By the nth POST: ``lost`` (a job, no answer), ``nothing`` (neither), ``busy``, ``refuse``, ``other``.
    answers: tuple[tuple[int, str], ...] = ()
    #: By the nth job: how it ends.
    ends: tuple[tuple[int, JobState], ...] = ()
    #: By attempt: how the source changes before it.
    changes: tuple[tuple[int, str], ...] = ()
    resubmits: bool = True
    resumes_clears: bool = False
    shows_input: bool = True
    attempts: int = 6


@dataclass
class Post:
    """A submission."""

    number: int
    input: str
    writer: Writer
    time: int
    is_intent_durable: bool
    was_outage: bool


class Life:
    """One task run from its first attempt to its end."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.random = random.Random(script.seed)  # noqa: S311 - the same in each run
        self.place = MemoryPlace(script.troubles, before=self._before, shuffle=self.random.shuffle)
        self.jobs: dict[str, Made] = {}
        self.posts: list[Post] = []
        self.source = list(script.inputs)
        self.time = self.attempt = 0
        self.running: Process | None = None
        self.current: Process | None = None
        self.frozen: list[Process] = []
        self.kills = self.clears = 0
        self.cut_off: set[Writer] = set()
        self.results: dict[str, str] | None = None
        self.errors: list[Exception] = []
        self.waves = 0
        self.began: dict[Writer, int] = {}
        self.since: dict[Writer, int] = {}
        self.known_at_begin: dict[Writer, set[str]] = {}
        self.intents_at_begin: dict[Writer, set[tuple[Writer, str]]] = {}
        self.canceled: list[str] = []
        self.forged = False
        self._plans: dict[str, list[str]] = {}
        for number in range(3):
            self._make(f"foreign {number}", None, polls=40)

    def place_of(self, attempt: int) -> Place:
        """Return where an attempt keeps the log."""
        return self.place

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files of the log."""
        return self.place.files

    # --- the service ---

    def _make(self, job_input: str, writer: Writer | None, wanted: int = 0, *, polls: int = 2) -> Made:
        ends = dict(self.script.ends)
        ours = sum(made.writer is not None for made in self.jobs.values())
        end = ends.get(ours, JobState.COMPLETED) if writer else JobState.COMPLETED
        made = Made(f"job-{len(self.jobs)}", job_input, writer, self.time, polls=polls, end=end)
        if writer is not None:
            made.rivals = self._usable(job_input, writer)
            made.is_double = len(made.rivals) >= wanted
        self.jobs[made.id] = made
        return made

    def _usable(self, job_input: str, writer: Writer) -> tuple[str, ...]:
        states = (JobState.OPEN, JobState.COMPLETED)
        return tuple(
            made.id
            for made in self.jobs.values()
            if made.writer is not None
            and made.input == job_input
            and made.state in states
            and self.since[made.writer] == self.since[writer]
        )

    @property
    def is_honest(self) -> bool:
        """Whether nobody lied about a job."""
        return not self.forged and "other" not in dict(self.script.answers).values()

    @property
    def is_plain(self) -> bool:
        """Whether all inputs are different, and nobody lied about a job."""
        return self.is_honest and all(len(set(source)) == len(source) for source in self._plans.values())

    @property
    def bought_twice(self) -> int:
        """How many jobs were created beyond those that the inputs needed, and the repeats of failures."""
        good = Counter(
            (self.since[made.writer], made.input)
            for made in self.jobs.values()
            if made.writer is not None and made.end is JobState.COMPLETED
        )
        return sum(max(count - self._wanted(job_input), 0) for (_, job_input), count in good.items())

    def _wanted(self, job_input: str) -> int:
        return max(source.count(job_input) for source in self._plans.values())

    def post(self, number: int, job_input: str, writer: Writer, plan: str) -> str:
        """Submit an input, and return the id of its job, or what went wrong."""
        self.pause()
        durable = intents(self.files, plan, writer)
        self.posts.append(Post(number, job_input, writer, self.time, number in durable, self.is_outage))
        answer = dict(self.script.answers).get(len(self.posts), "")
        if answer in ("busy", "refuse", "nothing"):
            return answer
        made = self._make(job_input, writer, self.inputs_of(plan).count(job_input))
        made.is_answered = answer != "lost"
        self.pause()
        if answer == "other":  # the id of the first job
            first = next(each for each in self.jobs.values() if each.writer is not None)
            made.is_answered = first is made
            return first.id
        return answer or made.id

    def get(self, job_id: str) -> Made:
        self.pause()
        made = self.jobs.get(job_id)
        if made is None:
            return Made(job_id, "", None, 0, state=JobState.LOST)
        if made.state is JobState.OPEN:
            made.polls -= 1
            if made.polls <= 0:
                made.state = made.end
        return made

    def cancel(self, job_id: str, writer: Writer) -> None:
        self.pause()
        self.canceled.append(job_id)
        made = self.jobs[job_id]
        if made.state is JobState.OPEN:
            made.state, made.canceled_by = JobState.CANCELED, writer

    # --- the scheduler ---

    def _before(self, kind: str, name: str) -> None:
        self.pause()

    def clock(self) -> float:
        return float(self.time)

    def pause(self) -> None:
        self.time += 1
        if self.running is not None:
            self.running.pause()

    @property
    def is_outage(self) -> bool:
        """Whether the storage refuses everything at the moment."""
        return any(
            trouble.what == "forbidden"
            and 0 <= self.place.counts[trouble.on] - trouble.nth < trouble.requests
            for trouble in self.script.troubles
        )

    def step(self, process: Process) -> None:
        self.running = process
        process.step()
        self.running = None

    def lead(self) -> Life:
        """Run attempts until one succeeds, or none is left."""
        for attempt in range(1, self.script.attempts + 1):
            self.attempt = attempt
            self._change_source(attempt)
            handed: dict[str, Any] | None = None
            while True:
                work = Attempt(self, attempt, handed)
                process = Process(work.run)
                is_over = self._run(process, attempt)
                if not is_over or not isinstance(process.error, DeferredError):
                    break
                handed = work.handed
                self.waves += 1
            if process.error is not None:
                self.errors.append(process.error)
            if self.results is not None:
                break
        self._thaw()
        self.place.before = lambda kind, name: None
        self.place.troubles = ()
        self.place.settle()
        return self

    def _run(self, process: Process, attempt: int) -> bool:
        """Step a process to its end; return ``False`` if it was killed or frozen before."""
        events = {event.step: event.what for event in self.script.events if event.attempt == attempt}
        self.current = process
        step = 0
        while not process.is_over:
            step += 1
            match events.get(step):
                case "kill":
                    self.kills += 1
                    process.kill()
                    return False
                case "forge":
                    self.forge()
                case "freeze":
                    self.frozen.append(process)
                    return False
            self.step(process)
            if self.frozen and self.random.random() < 0.3:
                # it thaws beside its successor
                self.step(self.frozen[0])
                self.frozen = [each for each in self.frozen if not each.is_over]
        return True

    def _thaw(self) -> None:
        for process in self.frozen:
            while not process.is_over:
                self.step(process)
        self.frozen = []

    def _change_source(self, attempt: int) -> None:
        for number, change in self.script.changes:
            if number == attempt:
                match change:
                    case "shuffle":
                        # in the same way, whatever has happened before
                        same = random.Random(self.script.seed + attempt)  # noqa: S311 - the same in each run
                        same.shuffle(self.source)
                    case "drop":
                        del self.source[: len(self.source) // 3]
                    case "add":
                        self.source[:0] = [f"new {attempt}", self.source[0] if self.source else "x"]
        for event in self.script.events:
            if event.what == "clear" and event.attempt == attempt:
                self.clears += 1

    def forge(self) -> None:
        """Write a later copy of a file, as anybody could: with jobs of others for all of its inputs."""
        files = [(path, file) for path, file in files_of(self.files) if path.startswith("jobs/")]
        if not files:
            return
        path, file = self.random.choice(files)
        folder, _, text = path.rpartition("/")
        name = PartName.parse(text)
        assert name is not None
        ours = sorted(file.rows)
        foreign = [made.id for made in self.jobs.values() if made.writer is None]
        rows = dict(file.rows) | {
            number: Row().with_job(Job(job_id, file.writer.turn))
            for number, job_id in zip(ours, foreign, strict=False)
        }
        forged = replace(file, rows=rows, save=file.save + self.random.randint(0, 9))
        self.place.files[f"{folder}/{replace(name, copy=name.copy + 1)}"] = forged.encode()
        self.forged = True

    def plan_of(self, source: list[str]) -> str:
        plan = input_digest(source)
        self._plans[plan] = list(source)
        return plan

    def inputs_of(self, plan: str) -> list[str]:
        return self._plans[plan]


def load(jobs: Jobs, place: Place, writers: list[Writer]) -> None:
    """Load what these writers have saved of a plan."""
    for _, files in read_parts(place, jobs.plan, writers):
        jobs.load((), *files)


@dataclass
class Attempt:
    """What one attempt does: the runner, in short."""

    life: Life
    number: int
    handed: dict[str, Any] | None
    _place: Place = field(init=False)
    _log: RunLog = field(init=False)
    _jobs: Jobs = field(init=False)
    _source: list[str] = field(init=False)

    def run(self) -> None:
        self._place = self.life.place_of(self.number)
        if self.handed is None:
            self._begin()
        else:
            self._go_on(self.handed)
        self._work()
        self._log.save(self._jobs, self._jobs.unsaved_parts)
        totals = self._jobs.totals()
        if totals.completed < totals.inputs:
            self._log.note(end=End.FAILED)
            raise RuntimeError(f"{totals.inputs - totals.completed} inputs failed")
        # one that was cut off is not to replace the results of its successor
        self._log.fence()
        results = self._results()
        if self.number == self.life.attempt:  # Airflow takes it from nobody else
            self.life.results = results
        self._log.note(end=End.SUCCEEDED)

    def _begin(self) -> None:
        life = self.life
        earlier = read_attempts(self._place)
        turn = next_turn(earlier, self.number, 0.0)
        is_cleared = (
            any(event.what == "clear" and event.attempt == self.number for event in life.script.events)
            and not life.script.resumes_clears
        )
        since = turn if is_cleared or not earlier else earlier[-1].since
        self._source = list(life.source)
        plan = life.plan_of(self._source)
        record = AttemptRecord(
            turn, f"{life.random.getrandbits(32):08x}", since, self.number, app_id="flux", plan=plan
        )
        self._log = log = RunLog(self._place, record, life.clock)
        log.note()
        writer = record.writer
        life.began[writer], life.since[writer] = life.time, since
        life.known_at_begin[writer] = durable_ids(life.files)
        life.intents_at_begin[writer] = durable_intents(life)
        self._jobs = jobs = Jobs(plan, writer, since=since, stores=True)
        writers = [each.writer for each in earlier] + [writer]
        load(jobs, self._place, writers)
        jobs.load(range(len(self._source)))
        others = {each.plan for each in earlier if each.plan and each.plan != plan}
        rows = [pair for other in sorted(others) for pair in self._rows_of(other, writers)]
        digests = dict(enumerate(self._source))
        left = adopt_rows(jobs, digests, rows)
        for job in (job for _, row in left for job in row.jobs):
            if job.state is JobState.OPEN and not job.is_shared:
                self._cancel_left(job.id, {each for each, row in rows if job in row.jobs})
        if jobs.inputs(InputState.UNKNOWN) and not life.script.resubmits and not is_cleared:
            raise UnknownFateError
        for job_id in jobs.unchecked:
            self._poll(job_id)
        for job_id in jobs.outdated:
            if jobs.may_cancel(job_id):
                life.cancel(job_id, writer)
                jobs.end(job_id, JobState.CANCELED)

    def _rows_of(self, plan: str, writers: list[Writer]) -> Iterator[tuple[str, Row]]:
        inputs = self.life.inputs_of(plan)
        earlier = Jobs(plan, self._log.attempt.writer)
        load(earlier, self._place, writers)
        return ((inputs[number], row) for number, row in sorted(earlier.table.rows.items()))

    def _cancel_left(self, job_id: str, inputs: set[str]) -> None:
        made = self.life.get(job_id)
        if made.input in inputs and made.state is JobState.OPEN:
            self.life.cancel(job_id, self._log.attempt.writer)

    def _work(self) -> None:
        jobs, life = self._jobs, self.life
        # in an attempt, an input of unknown fate is not submitted again
        doubtful: set[int] = set(jobs.inputs(InputState.ANNOUNCED))
        step = 0
        while True:
            step += 1
            todo = [number for number in jobs.inputs(*SUBMITTABLE) if number not in doubtful]
            room = MAX_IN_FLIGHT - len(jobs.running)
            if block := todo[: min(BLOCK, max(room, 0))]:
                self._submit(block, doubtful)
            # as in a thread, whose failure does not end the wait
            with suppress(OutageError), self._log.saving(jobs) as files:
                for job_id in jobs.running[:7]:
                    self._poll(job_id)
                self._place.put(files)
            for number in jobs.inputs(InputState.COMPLETED):
                job = jobs.table.rows[number].current(jobs.since)
                if job is not None and not job.stored:
                    jobs.store(job.id)
            self._log.save(jobs)
            if not todo and not jobs.running:
                return
            if any(
                event.what == "defer" and event.attempt == self.number and event.step == step + 3 * life.waves
                for event in life.script.events
            ):
                self._defer()

    def _submit(self, block: list[int], doubtful: set[int]) -> None:
        jobs, writer = self._jobs, self._log.attempt.writer
        announce(self._log, jobs, block)
        for number in block:
            answer = self.life.post(number, self._source[number], writer, jobs.plan)
            if answer == "busy":
                jobs.withdraw([number])
            elif answer == "refuse":
                jobs.refuse(number, "invalid")
            elif answer in ("lost", "nothing") or not jobs.accept(number, answer):
                doubtful.add(number)

    def _poll(self, job_id: str) -> None:
        made = self.life.get(job_id)
        number = self._jobs.table.input_of[job_id]
        if made.state is not JobState.LOST:
            is_ours = not self.life.script.shows_input or made.input == self._source[number]
            self._jobs.check(job_id, is_ours=is_ours)
            if not is_ours:
                return
        if made.state is not JobState.OPEN:
            self._jobs.end(job_id, made.state, seconds=1.0)

    def _defer(self) -> None:
        self._log.save(self._jobs, self._jobs.unsaved_parts)
        self._jobs.close_parts()
        parts = {number // PART_ROWS for number in self._jobs.table.rows}
        self.handed = {
            "log": self._log.handover(parts),
            "attempt": self._log.attempt,
            "source": self._source,
            "inputs": sorted(self._jobs.table.rows),
            "closed": self._jobs.closed,
        }
        raise DeferredError

    def _go_on(self, handed: dict[str, Any]) -> None:
        record: AttemptRecord = handed["attempt"]
        self._source = handed["source"]
        self._log = RunLog(self._place, record, self.life.clock)
        self._jobs = Jobs(
            record.plan, record.writer, since=record.since, stores=True, closed=handed["closed"]
        )
        self._log.take(self._jobs, self._place.get(self._log.resume(self._jobs, handed["log"])))
        self._jobs.load(handed["inputs"])

    def _results(self) -> dict[str, str]:
        """Read everything, as the end does, and return the job of each input."""
        jobs = Jobs(self._jobs.plan, self._log.attempt.writer, since=self._log.attempt.since, stores=True)
        load(jobs, self._place, [each.writer for each in read_attempts(self._place)])
        for job_id in sorted(jobs.table.unchecked):
            # the manifest of a stored job has its input, as the service has that of another one
            number = jobs.table.input_of[job_id]
            made = self.life.jobs.get(job_id)
            is_known = not self.life.script.shows_input or made is None or made.input == self._source[number]
            jobs.check(job_id, is_ours=is_known)
        return {
            f"{number} {job_input}": job.id
            for number, job_input in enumerate(self._source)
            if (job := jobs.table.row(number).current(jobs.since))
        }


# --- a log in Airflow's task state store, of which each request is a step -----------------------------------


class _Store:
    """
    A store that fails as a place does.

    :param values: where the values are, by key.
    :param check: raises an error if a later attempt has begun.
    """

    def __init__(self, values: MemoryPlace, check: Callable[[], None]) -> None:
        self._values = values
        self._check = check

    def get(self, key: str) -> Any:
        content = self._values.get([key]).get(key)
        return None if content is None else json.loads(content)

    def set(self, key: str, value: Any) -> None:
        self._values.put({key: json.dumps(value).encode()}, self._check)


class StoreLife(Life):
    """One task run without storage."""

    def place_of(self, attempt: int) -> Place:
        def check() -> None:
            if self.attempt > attempt:
                raise GoneError

        return StorePlace(_Store(self.place, check), attempt)

    @property
    def files(self) -> Mapping[str, bytes]:
        values = [_decode_value(content) for content in self.place.files.values()]
        # a file is there once the names of its attempt have it
        listed = {each for name, content in values if name == "names" for each in json.loads(content)}
        return {name: content for name, content in values if name in listed}


@lru_cache(1000)
def _decode_value(content: bytes) -> tuple[str, bytes]:
    try:
        value = json.loads(content)
    except ValueError:  # half of one
        return "", b""
    # each file of these lives is one value
    return value["name"], zlib.decompress(base64.b64decode(value["content"]))


# --- what is durable, read without the log's own code for it ------------------------------------------------


@lru_cache(1000)
def _decode(content: bytes) -> PartFile | None:
    try:
        return PartFile.decode(content)
    except InvalidRecordError:
        return None


def files_of(files: Mapping[str, bytes]) -> Iterator[tuple[str, PartFile]]:
    for path, content in files.items():
        is_part = path.startswith("jobs/") and PartName.parse(path.rpartition("/")[2])
        if is_part and (file := _decode(content)) is not None:
            yield path, file


def intents(files: Mapping[str, bytes], plan: str, writer: Writer) -> set[int]:
    """Return the inputs that a writer has announced, and that it has not withdrawn."""
    newest: dict[int, PartFile] = {}
    for path, file in files_of(files):
        if path.startswith(f"jobs/{plan}/") and file.writer == writer:
            known = newest.get(file.number)
            if known is None or known.save < file.save:
                newest[file.number] = file
    return {
        number
        for file in newest.values()
        for number, row in file.rows.items()
        if any(intent.refusal is None for intent in row.intents)
    }


def durable_intents(life: Life) -> set[tuple[Writer, str]]:
    return {
        (file.writer, life.inputs_of(file.plan)[number])
        for _, file in files_of(life.files)
        for number, row in file.rows.items()
        if any(intent.refusal is None for intent in row.intents)
    }


def durable_ids(files: Mapping[str, bytes]) -> set[str]:
    return {job.id for _, file in files_of(files) for row in file.rows.values() for job in row.jobs}
