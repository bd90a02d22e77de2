"""
What is known of purchases, and what is done about a row: `verdict`. No I/O, no clock.

**(key, n) is the n-th purchase of that key.** A purchase is a `Record`, whose status tells how far it came.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_provider_rungen.exceptions import RunGenOutputError

#: Seconds after which a claim without a job is lost: whoever made it was killed. A POST starts within 30 s of
#: its claim, and is cut 60 s later.
CLAIM_TIME = 180.0
#: Seconds after which an open job is lost: the service's URLs of outputs work for seven days.
OPEN_TIME = 7 * 86_400.0
_KEY = r"^[0-9a-f]{64}$"
# a number stands before it, so that it names a file below `files/` and nothing else
_NAME = r"^[^/\\\x00-\x1f]+$"


class Status(StrEnum):
    """How far a purchase came, the strongest fact first."""

    COMPLETED = "completed"
    OPEN = "open"
    FAILED = "failed"
    INVALID = "invalid"
    REJECTED = "rejected"
    CANCELED = "canceled"
    LOST = "lost"
    #: The service did not take the input: nothing was bought.
    REFUSED = "refused"
    CLAIMED = "claimed"
    #: It completed, but a file of it is there no more.
    GONE = "gone"


STRENGTH = {status: number for number, status in enumerate(Status)}
#: The job ended, but not as the user wants it.
FAILURES = frozenset({Status.FAILED, Status.INVALID, Status.REJECTED, Status.LOST})


class Output(BaseModel):
    """
    A stored file of a job. Its path follows from its record: see `Record.path_of`.

    :param number: its place among the outputs in the result.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    number: int = Field(ge=0)
    name: str = Field(pattern=_NAME, max_length=200)
    size: int = Field(ge=0)
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    type: str = ""


class Record(BaseModel):
    """
    One purchase: a claim, an open job, or what ended.

    :param key: the key of its input.
    :param n: which purchase of that key it is, from 1.
    :param app: the app; empty for a claim that is being written.
    :param job: the job; empty while there is none, and if its answer was lost.
    :param run: the task run that bought it.
    :param by: the attempt that bought it.
    :param at: when it was claimed (seconds since 1970, by the clock of who claimed it).
    :param status: how far it came.
    :param created_at: when the service created the job, in its words.
    :param seconds: how long the job ran.
    :param why: why it failed.
    :param outputs: its stored files.
    :param result: what the model returned. Paths of its files below the destination stand for their URLs.
    :param fits: the output type that the result fitted as it was returned, if it does not fit as it is kept.
    :param input: what the service says of the input of a job that somebody else submitted.
    :param result_size: the size of a result that is too large for a record, and has a file of its own.
    :param age: how old a claim or an open job is (seconds, by the store's clock). It is not stored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str = Field(pattern=_KEY)
    n: int = Field(ge=1)
    app: str = ""
    job: str = ""
    run: str = ""
    by: str = ""
    at: float = 0.0
    status: Status = Status.CLAIMED
    created_at: str = ""
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    why: str = ""
    outputs: tuple[Output, ...] = ()
    result: Any = None
    fits: str = ""
    input: Any = None
    result_size: int | None = Field(default=None, ge=0)
    age: float = Field(default=0.0, exclude=True)

    def to_line(self) -> bytes:
        """Return it as a line of JSON, in which ``key`` comes first."""
        return self.model_dump_json(exclude_defaults=True).encode("utf-8", "surrogatepass") + b"\n"

    @classmethod
    def of_line(cls, line: bytes, where: str) -> Record:
        """
        Return the record in a line.

        :param where: the file, for the error.
        :raises RunGenOutputError: it is none.
        """
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            [first, *_] = error.errors(include_url=False, include_input=False)
            place = ".".join(map(str, first["loc"])) or "its text"
            raise RunGenOutputError(
                f"the store cannot be read: a record of {where} is not valid ({place}: {first['msg']})",
                hint="Restore that file, or move it away to forget what it has",
                retryable=False,
            ) from None

    def path_of(self, output: Output) -> str:
        """Return the path of one of its outputs, below the destination."""
        return f"{self._stem}.{output.number}-{output.name}"

    @property
    def result_path(self) -> str:
        """The path of the file of a large result, below the destination."""
        return f"{self._stem}.result.json"

    @property
    def paths(self) -> list[str]:
        """The paths of all its files, below the destination."""
        files = [*map(self.path_of, self.outputs)]
        return files if self.result_size is None else [*files, self.result_path]

    @property
    def _stem(self) -> str:
        return f"files/{self.key[:2]}/{self.key}.{self.n}.{quote(self.job, safe='')}"


# --- verdicts ---


@dataclass(frozen=True, slots=True)
class Policy:
    """
    What a task makes of facts.

    :param run: the token of its run.
    :param by: its attempt.
    :param app: its app.
    :param reuse: what of other runs counts: all, nothing, or what is not older than some seconds.
    :param run_start: when the DAG run started (seconds since 1970), to which that age is measured.
    :param max_attempts: how often an input may fail or be lost before it is given up.
    """

    run: str
    by: str
    app: str
    reuse: bool | float = True
    run_start: float = 0.0
    max_attempts: int = 3

    def counts(self, fact: Record) -> bool:
        """Return whether a fact is one for this task."""
        if fact.status in (Status.OPEN, Status.CLAIMED) and fact.app not in (self.app, ""):
            return False  # nobody can wait for jobs of another app
        if fact.run == self.run or (fact.status is Status.CLAIMED and not fact.app):
            return True
        if isinstance(self.reuse, bool):
            return self.reuse
        return self.run_start - fact.at <= self.reuse


@dataclass(frozen=True, slots=True)
class Reuse:
    """Take what was bought."""

    fact: Record


@dataclass(frozen=True, slots=True)
class Adopt:
    """Poll and store the job that is open."""

    fact: Record


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody is buying it."""

    fact: Record


@dataclass(frozen=True, slots=True)
class GivenUp:
    """
    Buy it no more: in this attempt, or at all.

    :param failures: what failed or was lost, the last purchase last.
    """

    failures: tuple[Record, ...]
    is_final: bool


@dataclass(frozen=True, slots=True)
class Buy:
    """Buy it for the n-th time."""

    n: int


Verdict: TypeAlias = Reuse | Adopt | Wait | GivenUp | Buy


def verdict(history: Iterable[Record], policy: Policy) -> Verdict:
    """
    Return what is done about a row, given all that is known of its key. The first line that fits decides:

    ==  ==========================================================  =====================================
    #   history                                                     verdict
    ==  ==========================================================  =====================================
    1   completed by the own run; else completed, counts            Reuse, highest n
    2   open job of the own run; else open, counts                  Adopt, lowest n
    3   claim, counts                                               Wait
    4   failed, canceled, lost or refused, by this very attempt     GivenUp for now: an attempt buys a key at
                                                                    most once
    5   failed + lost that count ≥ ``max_attempts``                 GivenUp
    6   anything else                                               Buy(highest n of all facts + 1)
    ==  ==========================================================  =====================================
    """
    facts = normalize(history)
    counting = [fact for fact in facts if policy.counts(fact)]
    if bought := _of_own_run_first(counting, Status.COMPLETED, policy):
        return Reuse(bought[-1])
    if running := _of_own_run_first(counting, Status.OPEN, policy):
        return Adopt(running[0])
    if claims := _of_own_run_first(counting, Status.CLAIMED, policy):
        return Wait(claims[0])
    failures = tuple(fact for fact in counting if fact.status in FAILURES)
    bad = (*FAILURES, Status.CANCELED, Status.REFUSED)
    if own := tuple(fact for fact in counting if fact.by == policy.by and fact.status in bad):
        return GivenUp(own, is_final=False)
    if len(failures) >= policy.max_attempts:
        return GivenUp(failures, is_final=True)
    return Buy(facts[-1].n + 1 if facts else 1)


def normalize(history: Iterable[Record]) -> list[Record]:
    """Return one fact for each purchase, in order: the strongest. What is too old to end any more is lost."""
    strongest: dict[int, Record] = {}
    for fact in history:
        known = strongest.get(fact.n)
        if known is None or STRENGTH[fact.status] < STRENGTH[known.status]:
            strongest[fact.n] = fact
    return [_age_out(strongest[n]) for n in sorted(strongest)]


def _age_out(fact: Record) -> Record:
    limits: dict[Status, float] = {Status.CLAIMED: CLAIM_TIME, Status.OPEN: OPEN_TIME}
    if fact.age < limits.get(fact.status, float("inf")):
        return fact
    why = "its answer was lost" if fact.status is Status.CLAIMED else "it did not end within seven days"
    return fact.model_copy(update={"status": Status.LOST, "why": why})


def _of_own_run_first(
    facts: Sequence[Record], status: Literal[Status.COMPLETED, Status.OPEN, Status.CLAIMED], policy: Policy
) -> list[Record]:
    found = [fact for fact in facts if fact.status is status]
    return [fact for fact in found if fact.run == policy.run] or found
