"""The rows of a table in one attempt: what is done about each, and how it ended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.progress import are_too_many
from airflow_provider_rungen.exceptions import RunGenError, RunGenOutputError
from airflow_provider_rungen.store.records import (
    FAILURES,
    Adopt,
    Buy,
    GivenUp,
    Policy,
    Record,
    Reuse,
    Status,
    Verdict,
    Wait,
    verdict,
)
from airflow_provider_rungen.work.submit import Bought

if TYPE_CHECKING:
    from airflow_provider_rungen.store.store import Store
    from airflow_provider_rungen.work.plan import Plan

# A record of more bytes is shown without its result while the task runs.
_MAX_SHOWN = 4000
#: How many stored files may be gone before a task without ``max_jobs`` stops.
MOST_GONE = 100


@dataclass
class Counts:
    """
    What the first line of a table says.

    :param rows: all rows, those without a job among them.
    :param equal: rows that share the job of an earlier one.
    """

    rows: int = 0
    equal: int = 0
    known: int = 0
    running: int = 0
    waiting: int = 0
    given_up: int = 0
    gone: int = 0
    new: int = 0


class Rows:
    """
    What one attempt knows of its rows.

    :param plan: the rows.
    :param store: what is known of purchases.
    :param policy: the task's.
    :param fits: whether a result that was bought is useful to the task; ``None`` if all are.
    :param collects: whether the rows have jobs, which the plan has in place of inputs.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        policy: Policy,
        *,
        fits: Callable[[Record], bool] | None = None,
        collects: bool = False,
    ) -> None:
        self.plan, self._store, self._policy, self._fits = plan, store, policy, fits
        self._collects = collects
        #: The rows to buy, by key.
        self.new: dict[str, int] = {}
        #: The open purchase of each job that is waited for.
        self.open: dict[str, Record] = {}
        #: The rows that others are buying, by key.
        self.claimed: dict[str, int] = {}
        #: Why outputs of jobs are not stored yet, by job.
        self.unstored: dict[str, RunGenError] = {}
        self.lost = 0  #: How many answers were lost.
        self.bought = 0  #: How many jobs this process has bought.
        self.bought_before = 0  #: How many this attempt had bought before it was deferred.
        self.counts = Counts()
        # in a row, of this attempt's own
        self.failures = self.refusals = 0
        self.has_success = False
        #: The purchases that ended last, without their large results, and the row of each.
        self.last_ended: deque[tuple[int, Record]] = deque(maxlen=100)
        #: How many ended in this attempt, and how many of them completed.
        self.ended = self.completed = 0
        self._order: deque[str] = deque()
        # those that are being bought
        self._taken: dict[str, int] = {}
        # the row of each key that is bought or adopted
        self._numbers: dict[str, int] = {}

    async def decide(self) -> Counts:
        """
        Decide about all rows.

        :raises RunGenOutputError: the store cannot be read.
        """
        self.counts = counts = Counts(rows=self.plan.count)
        counts.gone = await self._store.mark_gone()
        for number, row in enumerate(self.plan.rows()):
            counts.equal += row.first is not None
            if not row.needs_job:
                continue
            if self._store.is_known(row.digest) and self._is_of_use(row.digest):
                counts.known += 1
            else:
                self._take(row.digest, number, counts)
        return counts

    def check_gone(self, *, has_limit: bool) -> None:
        """Stop if so many files are gone that it may be a mount that is missing."""
        if self.counts.gone > MOST_GONE and not has_limit:
            raise RunGenOutputError(
                f"the files of {self.counts.gone:,} purchases are gone; nothing was sent",
                hint="Restore them, or set max_jobs to buy so many again",
                retryable=False,
            )

    def decide_again(self, keys: Mapping[str, int]) -> None:
        """Decide about some rows once more, after a look at the store."""
        for key, number in keys.items():
            self.claimed.pop(key, None)
            self._take(key, number, Counts())

    def _is_of_use(self, key: str) -> bool:
        """Return whether what is known to have completed fits, and note for this attempt if it does not."""
        if self._fits is None or not isinstance(found := self.verdict(key), Reuse):
            return True
        if fits := self._fits(found.fact):
            return fits
        self._store.note_invalid(found.fact, "it does not fit output_type")
        return False

    def verdict(self, key: str) -> Verdict:
        """Return what is done about a key, as far as is known."""
        if (known := self._store.known(key)) is not None:  # as is most, and this takes less
            return Reuse(known)
        return verdict(self._store.history(key), self._policy)

    def _take(self, key: str, number: int, counts: Counts) -> None:
        found = self.verdict(key)
        if isinstance(found, Adopt | Buy):
            self._numbers[key] = number
        match found:
            case Reuse():
                counts.known += 1
            case Adopt(fact):
                counts.running += 1
                self.open[fact.job] = fact
            case Wait():
                counts.waiting += 1
                self.claimed[key] = number
            case GivenUp():
                counts.given_up += 1
            case Buy(n) if self._collects:
                counts.running += 1
                job, policy = self.plan.input(number), self._policy
                self.open[job] = Record(
                    key=key,
                    n=n,
                    app=policy.app,
                    job=job,
                    run=policy.run,
                    by=policy.by,
                    at=time.time(),
                    status=Status.OPEN,
                )
            case Buy():
                counts.new += 1
                if key not in self.new:
                    self._order.append(key)
                self.new[key] = number

    def go_on(self, facts: Iterable[Record]) -> int:
        """
        Count what this attempt bought before it was deferred, and its failures and refusals in a row.

        :param facts: those of the run.
        :return: how many purchases of the run there are.
        """
        count, own = 0, list[tuple[float, Status]]()
        for each in facts:
            count += each.status is not Status.REFUSED
            if each.by == self._policy.by and not self._collects:  # what others bought is no reason to stop
                own.append((each.at, each.status))
        bought = [at for at, status in own if status is not Status.REFUSED]
        self.bought_before = len(bought)
        last_bought = max(bought, default=0.0)
        self.refusals = sum(status is Status.REFUSED and at >= last_bought for at, status in own)
        last = max((at for at, status in own if status is Status.COMPLETED), default=0.0)
        self.has_success = last > 0
        self.failures = sum(status in FAILURES and at > last for at, status in own)
        return count

    # --- buying ---

    def take(self, most: int) -> dict[str, Mapping[str, Any]]:
        """Return the inputs of the next rows to buy, by key: at most so many."""
        taken: dict[str, Mapping[str, Any]] = {}
        while self._order and len(taken) < most:
            key = self._order.popleft()
            if key in self.new:
                taken[key] = self.plan.input(self.new[key])
        self._taken |= {key: self.new.pop(key) for key in taken}
        return taken

    def note_bought(self, bought: Bought) -> None:
        """Note how the purchases of a block ended."""
        for record in bought.opened:
            self._taken.pop(record.key, None)
            self.open[record.job] = record
            self.bought += 1
            self.refusals = 0
        for record in bought.refused:
            self._taken.pop(record.key, None)
            self._note(record)
            self.refusals += 1
        for record in bought.lost:
            self._taken.pop(record.key, None)
            self._note(record)
            self.lost += 1
            self.failures += 1

    def put_back(self) -> None:
        """Decide again about what was taken, and neither bought nor refused."""
        taken, self._taken = self._taken, {}
        self.decide_again(taken)

    # --- ends ---

    def note_end(self, record: Record) -> None:
        """Note how a job ended. What others bought says nothing about the model as it is now."""
        self.open.pop(record.job, None)
        self.unstored.pop(record.job, None)
        self._note(record)
        if self._collects:  # what others bought is no reason to stop
            return
        if record.by != self._policy.by:
            if record.status is not Status.COMPLETED and record.key in self._numbers:
                self.decide_again({record.key: self._numbers[record.key]})  # this attempt may buy it
            return
        if record.status is Status.COMPLETED:
            self.failures, self.has_success = 0, True
        elif record.status is not Status.CANCELED:
            self.failures += 1

    def note_canceled(self, jobs: Iterable[str]) -> None:
        """Note that jobs were canceled as the attempt was killed. The next one records them."""
        for job in jobs:
            self._note(self.open.pop(job).model_copy(update={"status": Status.CANCELED, "why": "canceled"}))

    def _note(self, record: Record) -> None:
        """Note what the page of a running task shows."""
        if (number := self._numbers.get(record.key)) is None:
            return
        self.ended += 1
        self.completed += record.status is Status.COMPLETED
        if record.result_size is not None or len(record.to_line()) > _MAX_SHOWN:
            record = record.model_copy(update={"result": None, "result_size": None, "input": None})
        self.last_ended.append((number, record))

    @property
    def waiting(self) -> list[str]:
        """The jobs to wait for: those that run, or whose outputs were not tried yet."""
        return [job for job in self.open if job not in self.unstored]

    @property
    def is_failing(self) -> bool:
        """Whether everything fails, so that nothing more is bought."""
        return are_too_many(self.failures, has_success=self.has_success)

    @property
    def is_refused(self) -> bool:
        """Whether everything is refused."""
        return are_too_many(self.refusals, has_success=self.bought + self.bought_before > 0)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.new or self.open or self.claimed)

    def keys(self) -> Iterator[tuple[int, str]]:
        """Yield the first row of each key, with it."""
        return ((number, row.digest) for number, row in enumerate(self.plan.rows()) if row.needs_job)
