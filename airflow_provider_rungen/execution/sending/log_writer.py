"""Makes intents and job ids durable: in the run log, in the ledger, and in a spare place if the log fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

from airflow_provider_rungen.execution.sending.store_calls import StoreCalls
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog, Writes
from airflow_provider_rungen.runs.part_files import PART_ROWS
from airflow_provider_rungen.runs.place import Place

#: A number, and its input.
Item: TypeAlias = tuple[int, Any]

# Seconds that the last tries take, when a store fails at once.
_LAST_TRIES = 2.0
# Seconds after which a kill counts on the log no more, and puts the same files into the spare place.
_LOG_TIME = 0.25


class IdStore(Protocol):
    """What remembers submitted jobs beside the log: the ledger."""

    def add_pending(self, jobs: Mapping[int, str]) -> None:
        """Remember submitted jobs, by input. Blocks."""


class LogWriter:
    """
    Writes to the log, one write at a time, and to the ledger beside it.

    The owner polls, in the thread that changes `jobs`. The writes are made in daemon threads.

    :param budget: seconds in which a store may fail, or not answer.
    :param wake: called in another thread when a write has ended.
    """

    def __init__(
        self,
        jobs: Jobs,
        log: RunLog,
        ledger: IdStore | None,
        spare: Place | None,
        *,
        budget: float,
        wake: Callable[[], None],
    ) -> None:
        self._jobs, self._log, self._ledger, self._spare = jobs, log, ledger, spare
        self._log_calls = StoreCalls("save job ids in the run log", budget, wake)
        self._ledger_calls = StoreCalls("save job ids in the ledger", budget, wake)
        self._spare_calls = StoreCalls("save job ids in the spare place", _LAST_TRIES, wake)
        #: The inputs whose intent is not durable yet, or not fenced.
        self.announced: list[Item] = []
        self._on_announced: Callable[[list[Item]], None] = lambda _: None
        self._unlogged: dict[int, str] = {}
        self._unledgered: dict[int, str] = {}
        # the jobs that no later attempt would find
        self._at_risk: dict[int, str] = {}
        self._taken_back: set[int] = set()

    # --- what happened ---

    def add_id(self, number: int, job_id: str) -> None:
        """Note the job of an input."""
        self._unlogged[number] = self._at_risk[number] = job_id
        if self._ledger is not None:
            self._unledgered[number] = job_id

    def take_back(self, numbers: Iterable[int]) -> None:
        """Note that intents were withdrawn or refused: the last write has to say so."""
        self._taken_back.update(number // PART_ROWS for number in numbers)

    def give_up(self) -> list[Item]:
        """Return the inputs whose intent is not durable yet, and forget about them."""
        announced, self.announced = self.announced, []
        return announced

    def take(self) -> None:
        """Handle the writes that have ended."""
        for calls in self._all_calls:
            calls.take()

    def check(self) -> None:
        """
        Raise what keeps a store from working.

        :raises Exception: it failed for too long.
        """
        self._log_calls.check()
        self._ledger_calls.check()

    # --- questions ---

    @property
    def held(self) -> int:
        """How many submissions keep their slot, because their id is not in each durable store."""
        waiting = self._unledgered.keys()
        return len(waiting | self._unlogged.keys() if self._log.place.is_durable else waiting)

    @property
    def has_ids(self) -> bool:
        """Whether the next write to the log has ids."""
        return bool(self._unlogged)

    @property
    def is_ready(self) -> bool:
        """Whether the log can be written now."""
        return self._log_calls.is_ready

    @property
    def failure(self) -> BaseException | None:
        """Why a store was given up."""
        return self._log_calls.failure or self._ledger_calls.failure

    def unsaved_ids(self) -> list[str]:
        """Return the jobs that no later attempt would find."""
        self.take()
        return list(self._at_risk.values())

    # --- writes ---

    def begin(self, block: list[Item], on_announced: Callable[[list[Item]], None]) -> None:
        """
        Begin to save what is due, together with the intent to submit some inputs.

        :param block: these inputs; none if the last ones are still to be announced.
        :param on_announced: called with them when they may be sent.
        """
        if block:
            self._jobs.announce([number for number, _ in block])
            self.announced, self._on_announced = block, on_announced
        self._begin_write(None)

    def begin_ledger(self) -> None:
        """Begin to save ids in the ledger, unless there are none, or it is busy."""
        if self._ledger is not None and self._unledgered and self._ledger_calls.is_ready:
            ids = dict(self._unledgered)

            def note_saved(_: None) -> None:
                _forget(ids, self._unledgered, self._at_risk)

            self._ledger_calls.begin(partial(self._ledger.add_pending, ids), note_saved)

    def _begin_write(self, parts: Sequence[int] | None) -> None:
        writes = self._log.writes(self._jobs, parts)
        write, ids = _Write(self._log, writes, has_intents=bool(self.announced)), dict(self._unlogged)

        def note_written() -> None:
            self._log.note_written(self._jobs, writes)
            _forget(ids, self._unlogged, *([self._at_risk] if self._log.place.is_durable else []))

        def on_done(_: None) -> None:
            note_written()
            self._on_announced(self.give_up())

        def on_failed() -> None:
            if write.is_put:
                note_written()
            else:
                self._log.note_doubt(writes)

        self._log_calls.begin(write, on_done, on_failed)

    # --- the end ---

    def begin_end(self) -> None:
        """Try stores that fail once more."""
        for calls in self._all_calls:
            calls.try_again(_LAST_TRIES)

    def begin_last(self, *, is_killed: bool) -> None:
        """Begin to save what is left, where that is possible now. Call it again and again."""
        if self._log_calls.is_ready and (parts := self._last_parts):
            self._begin_write(parts)
        self.begin_ledger()
        if self._spare is not None and self._is_savable and self._is_log_doubtful(is_killed=is_killed):
            self._begin_spare(self._spare)

    def is_done(self, *, is_killed: bool) -> bool:
        """Return whether all is saved, or cannot be. For a kill, it is enough if one store has each id."""
        is_log_done = _is_done(self._log_calls, self._last_parts)
        if is_killed:
            return not self._is_savable and (is_log_done or self._is_log_doubtful(is_killed=True))
        is_ledger_done = _is_done(self._ledger_calls, self._unledgered)
        has_spare = self._spare is not None and self._is_log_doubtful(is_killed=False)
        return is_log_done and is_ledger_done and _is_done(self._spare_calls, has_spare and self._at_risk)

    def _begin_spare(self, place: Place) -> None:
        if self._spare_calls.is_ready:
            ids, files = dict(self._at_risk), self._log.writes(self._jobs, self._last_parts).files

            def note_saved(_: None) -> None:
                _forget(ids, self._at_risk)

            self._spare_calls.begin(partial(place.put, files), note_saved)

    def _is_log_doubtful(self, *, is_killed: bool) -> bool:
        calls = self._log_calls
        is_late = calls.is_failing or calls.busy_for > _LOG_TIME
        return calls.failure is not None or (is_killed and is_late)

    @property
    def _is_savable(self) -> bool:
        """Whether a job is at risk, and a store could take it."""
        return bool(self._at_risk) and (self._log.place.is_durable or self._ledger is not None)

    @property
    def _last_parts(self) -> list[int]:
        unsaved = self._jobs.unsaved
        return sorted({*unsaved.due, *self._taken_back.intersection(unsaved.parts)})

    @property
    def _all_calls(self) -> tuple[StoreCalls, ...]:
        return self._log_calls, self._ledger_calls, self._spare_calls


class _Write:
    """One write to the log. If it has intents, a look for later attempts follows."""

    def __init__(self, log: RunLog, writes: Writes, *, has_intents: bool) -> None:
        self._log, self._writes, self._has_intents = log, writes, has_intents
        #: Whether it is durable, whatever the look for later attempts says.
        self.is_put = False

    def __call__(self) -> None:
        if self._writes.files:
            self._log.place.put(self._writes.files)
        self.is_put = True
        if self._has_intents:
            self._log.fence()


def _is_done(calls: StoreCalls, rest: object) -> bool:
    return calls.failure is not None or not (rest or calls.is_busy)


def _forget(saved: Mapping[int, str], *stores: dict[int, str]) -> None:
    for number in saved:
        for unsaved in stores:
            unsaved.pop(number, None)
