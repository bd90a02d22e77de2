"""What is known of one input and its jobs, how two snapshots of it merge, and the totals of many."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import Enum, IntEnum, auto
from operator import add, attrgetter, sub

_WRITER = re.compile(r"(\d{4,9})-(\d{4,9})-([0-9a-f]{8,64})")


@dataclass(frozen=True, slots=True, order=True)
class Writer:
    """
    One attempt of the task, with all of its deferrals. A later attempt is greater.

    :param turn: the number of the attempt in this run, from 1.
    :param try_number: Airflow's number, which decides between two attempts that began at the same moment.
    :param nonce: differs between two processes that Airflow started for one attempt.
    """

    turn: int
    try_number: int
    nonce: str

    def __str__(self) -> str:
        return f"{self.turn:04d}-{self.try_number:04d}-{self.nonce}"

    @classmethod
    def parse(cls, text: str) -> Writer | None:
        """Return the writer that a text names; ``None`` for any other text."""
        found = _WRITER.fullmatch(text)
        writer = cls(int(found[1]), int(found[2]), found[3]) if found else None
        return writer if writer is not None and str(writer) == text else None


class JobState(IntEnum):
    """How a job ended, as far as it is known. In a merge, the greater counts."""

    OPEN = 0
    #: The service does not know the job.
    LOST = 1
    CANCELED = 2
    FAILED = 3
    COMPLETED = 4
    #: It completed, but its result cannot be used.
    INVALID = 5
    #: It completed, but the function ``check`` rejected what it made.
    REJECTED = 6


# The states that may follow each state.
_NEXT = {
    JobState.OPEN: set(JobState) - {JobState.OPEN},
    JobState.LOST: set(JobState) - {JobState.OPEN, JobState.LOST},
    JobState.COMPLETED: {JobState.INVALID, JobState.REJECTED},
}


_USE = {JobState.COMPLETED: 2, JobState.OPEN: 1}


@dataclass(frozen=True, slots=True)
class Job:
    """
    A job of an input.

    :param id: its id.
    :param turn: the attempt that submitted it, or found it in the ledger.
    :param state: how it ended.
    :param seconds: how long it ran, if known.
    :param stored: where it is stored: ``.`` in the task's own destination, otherwise the URI of its manifest.
    :param why: why it cannot be used.
    :param is_shared: whether another task run submitted it. It is never canceled, and not billed here.
    """

    id: str
    turn: int
    state: JobState = JobState.OPEN
    seconds: float | None = None
    stored: str = ""
    why: str = ""
    is_shared: bool = False

    @property
    def use(self) -> int:
        """2 if the job has a result, 1 if it may have one, 0 if it never will."""
        return _USE.get(self.state, 0)

    @property
    def repeat_turn(self) -> int:
        """The first attempt that may submit the input again, if the job cannot be used."""
        return self.turn if self.is_shared else self.turn + 1

    def may_become(self, state: JobState) -> bool:
        """Return whether a job of this state can end, or turn out to have ended, like this."""
        return state in _NEXT.get(self.state, ())

    def merged(self, other: Job) -> Job:
        """Return what two snapshots of a job say together. Their order does not matter."""
        best = max(self, other, key=_rank)
        return replace(
            best,
            turn=max(self.turn, other.turn),
            stored=max(self.stored, other.stored),
            is_shared=self.is_shared or other.is_shared,
        )


def _rank(job: Job) -> tuple[JobState, float, str]:
    return job.state, -1.0 if job.seconds is None else job.seconds, job.why


@dataclass(frozen=True, slots=True)
class Intent:
    """
    A submission that was announced, and whose job id is not known.

    :param writer: the attempt that announced it. No other can withdraw it.
    :param refusal: why the input has no job; ``None`` while the fate is open.
    :param is_given_up: whether it was not sent, since several of its jobs failed before.
    """

    writer: Writer
    refusal: str | None = None
    is_given_up: bool = False


class InputState(Enum):
    """What one attempt has to do about an input."""

    #: Nothing was submitted, or it was refused in an earlier attempt.
    UNSENT = auto()
    #: This attempt announced it, and does not know the job yet.
    ANNOUNCED = auto()
    #: Another attempt announced it, and ended before it knew the job.
    UNKNOWN = auto()
    #: The service refused it in this attempt, or it was given up.
    REFUSED = auto()
    RUNNING = auto()
    COMPLETED = auto()
    #: Its last job cannot be used, and an earlier attempt or another task run submitted it: it runs again.
    TO_REPEAT = auto()
    #: Its last job cannot be used, and was submitted in this attempt.
    FAILED = auto()


#: The states of inputs that may be announced.
SUBMITTABLE = frozenset({InputState.UNSENT, InputState.UNKNOWN, InputState.TO_REPEAT})
_HAVE_A_JOB = frozenset({InputState.RUNNING, InputState.COMPLETED, InputState.FAILED})


@dataclass(frozen=True, slots=True)
class Row:
    """
    An input.

    :param jobs: its jobs, the latest last. All are billed, and one is used: see `current`.
    :param intents: its submissions that are not known to have a job, the latest last.
    """

    jobs: tuple[Job, ...] = ()
    intents: tuple[Intent, ...] = ()

    @property
    def times(self) -> dict[str, float]:
        """How long the jobs of this task run ran, as far as that is known."""
        return {job.id: job.seconds for job in self.jobs if not job.is_shared and job.seconds is not None}

    def with_job(self, job: Job) -> Row:
        """Return the row with a job, in place of what it had of this job."""
        jobs = [*(each for each in self.jobs if each.id != job.id), job]
        return replace(self, jobs=tuple(sorted(jobs, key=lambda each: (each.turn, each.id))))

    def without_job(self, job_id: str) -> Row:
        return replace(self, jobs=tuple(job for job in self.jobs if job.id != job_id))

    def with_intent(self, writer: Writer, intent: Intent | None) -> Row:
        """Return the row with the one intent of a writer, or without any of it."""
        others: Iterable[Intent] = (each for each in self.intents if each.writer != writer)
        intents = [*others, *([intent] if intent else [])]
        return replace(self, intents=tuple(sorted(intents, key=lambda each: each.writer)))

    def intent_of(self, writer: Writer) -> Intent | None:
        return next((intent for intent in self.intents if intent.writer == writer), None)

    def current(self, since: int) -> Job | None:
        """
        Return the job that has the input's result: the most useful one, and of equals the latest.

        :param since: the first attempt that counts; a clear raises it.
        """
        jobs = [job for job in self.jobs if job.turn >= since]
        if len(jobs) == 1:
            return jobs[0]
        return max(jobs, key=lambda job: (job.use, job.repeat_turn, job.id), default=None)

    def state(self, writer: Writer, since: int) -> InputState:
        """Return what an attempt has to do about the input."""
        job = self.current(since)
        intent = self.intents[-1] if self.intents else None
        if intent is not None and intent.writer.turn >= max(since, job.repeat_turn if job else 0):
            if intent.writer == writer:
                return InputState.ANNOUNCED if intent.refusal is None else InputState.REFUSED
            # an older job is more useful than a submission whose fate is unknown
            if intent.refusal is None and not (job and job.use):
                return InputState.UNKNOWN
        if job is None:
            return InputState.UNSENT
        if job.use:
            return InputState.RUNNING if job.state is JobState.OPEN else InputState.COMPLETED
        return InputState.TO_REPEAT if job.repeat_turn <= writer.turn else InputState.FAILED

    def outdated(self, since: int) -> list[Job]:
        """Return the jobs of this task run that may run, and are not waited for."""
        current = self.current(since)
        return [
            job
            for job in self.jobs
            if job.state is JobState.OPEN and job is not current and not job.is_shared
        ]

    def is_done(self, writer: Writer, since: int, *, stores: bool) -> bool:
        """
        Return whether an attempt has nothing more to do about the input.

        :param stores: whether outputs are stored.
        """
        if self.outdated(since):
            return False
        state, job = self.state(writer, since), self.current(since)
        if state is InputState.COMPLETED:
            return not stores or (job is not None and bool(job.stored))
        return state in (InputState.REFUSED, InputState.FAILED)


_ENDED_WELL = (JobState.COMPLETED, JobState.INVALID, JobState.REJECTED)
#: The states of a job that never had a result.
ENDED_BADLY = (JobState.FAILED, JobState.CANCELED, JobState.LOST)


@dataclass(frozen=True, slots=True)
class Totals:
    """
    Counts of inputs and jobs. They add up over parts.

    :param inputs: the inputs that need a job.
    :param completed: those whose job completed.
    :param failed: those whose job did not, or cannot be used.
    :param canceled: those of the failed whose job was canceled.
    :param refused: those that the service refused in this attempt, or that were given up.
    :param given_up: those of the refused that were given up.
    :param shared: those whose job another task run submitted.
    :param own: those that have a job of this task run, and need no other.
    :param submitted: the jobs of this task run, of all attempts: what the bill is about.
    :param jobs_completed: those of them that completed at the service, even if their result cannot be used.
    :param jobs_failed: those that failed, were canceled, or are not known there any more. The others may run.
    :param timed: those whose run time is known.
    :param seconds: the sum of these run times.
    :param unknown: the submissions that may have created a job whose id is not known.
    """

    inputs: int = 0
    completed: int = 0
    failed: int = 0
    canceled: int = 0
    refused: int = 0
    given_up: int = 0
    shared: int = 0
    own: int = 0
    submitted: int = 0
    jobs_completed: int = 0
    jobs_failed: int = 0
    timed: int = 0
    seconds: float = 0.0
    unknown: int = 0

    @classmethod
    def of(cls, row: Row, writer: Writer, since: int) -> Totals:
        """Return the totals of one input, as an attempt sees it."""
        state, current = row.state(writer, since), row.current(since)
        is_failed = state in (InputState.FAILED, InputState.TO_REPEAT)
        ours = [job for job in row.jobs if not job.is_shared]
        return cls(
            inputs=1,
            completed=int(state is InputState.COMPLETED),
            failed=int(is_failed),
            canceled=int(is_failed and current is not None and current.state is JobState.CANCELED),
            refused=int(state is InputState.REFUSED),
            given_up=int(state is InputState.REFUSED and row.intents[-1].is_given_up),
            shared=int(current is not None and current.is_shared),
            own=int(state in _HAVE_A_JOB and current is not None and not current.is_shared),
            submitted=len(ours),
            jobs_completed=sum(job.state in _ENDED_WELL for job in ours),
            jobs_failed=sum(job.state in ENDED_BADLY for job in ours),
            timed=sum(job.seconds is not None for job in ours),
            seconds=round(sum(job.seconds or 0.0 for job in ours), 3),
            unknown=sum(intent.refusal is None for intent in row.intents),
        )

    def __add__(self, other: Totals) -> Totals:
        return Totals(*map(add, _values(self), _values(other)))

    def __sub__(self, other: Totals) -> Totals:
        return Totals(*map(sub, _values(self), _values(other)))


_values = attrgetter(*(field.name for field in fields(Totals)))
