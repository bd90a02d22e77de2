"""Buys the rows of a table in rounds: as many as may be in flight, and as a run may pay for."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_rungen.client.texts import format_count
from airflow_provider_rungen.exceptions import RunGenError, RunGenLimitError
from airflow_provider_rungen.outputs.outage import OUTAGE_FAILURES
from airflow_provider_rungen.work.client_service import ClientService
from airflow_provider_rungen.work.submit import Bought, Buyer

if TYPE_CHECKING:
    from airflow_provider_rungen.hooks.rungen import RunGenHook
    from airflow_provider_rungen.store.records import Policy
    from airflow_provider_rungen.store.store import Store
    from airflow_provider_rungen.task.kill import KillGuard
    from airflow_provider_rungen.task.options import JobOptions
    from airflow_provider_rungen.work.limits import Limits
    from airflow_provider_rungen.work.rows import Rows

log = logging.getLogger(__name__)

# So many refused inputs of a round are named in the log.
_MOST_NAMED = 10


class Attempt(Protocol):
    """Who buys."""

    store: Store
    policy: Policy
    hook: RunGenHook
    guard: KillGuard
    end_at: float

    @property
    def options(self) -> JobOptions: ...
    @property
    def known_app_id(self) -> str: ...
    @property
    def rows(self) -> Rows: ...
    def in_loop(self, work: Any, *, ends_itself: bool) -> Any:
        """Perform I/O, and return its result."""


class Buying:
    """
    What one attempt buys.

    :param run: the attempt.
    :param limits: what its run may buy.
    :param on_bought: called with the jobs that are open after a round, and whether it is the first that
        brought any.
    """

    def __init__(self, run: Attempt, limits: Limits, on_bought: Callable[[list[str], bool], object]) -> None:
        self._run, self._limits, self._on_bought = run, limits, on_bought
        service = ClientService(run.hook, run.policy.app)
        self._buyer = Buyer(
            store=run.store, service=service, policy=run.policy, is_stopping=self._has_to_stop
        )
        self._limit: RunGenLimitError | None = None
        self._allowance: int | None = None

    def begin(self) -> None:
        """
        Count what the run has bought before, and check its limits.

        :raises RunGenLimitError: more is new than it may buy, and nothing else is to be done.
        """
        rows, store = self._run.rows, self._run.store
        bought, counts = rows.go_on(store.of_own_run()), rows.counts
        try:
            self._allowance = self._limits.check(counts.rows, counts.new, bought, store.seconds_per_job())
        except RunGenLimitError as error:
            if not (rows.open or counts.known):
                raise
            self._allowance, self._limit = 0, error

    @property
    def may_go_on(self) -> bool:
        """Whether there is something to buy, and nothing speaks against it."""
        rows = self._run.rows
        return (
            bool(rows.new)
            and not rows.is_refused
            and self._limit is None
            and self._buyer.error is None
            and len(rows.unstored) < OUTAGE_FAILURES
            and self._allowance != 0
            and time.time() < self._run.end_at
        )

    @property
    def error(self) -> RunGenError | None:
        """What keeps rows from being bought, if anything does."""
        return (self._limit or self._stopping_error()) if self._run.rows.new else None

    def buy_some(self) -> None:
        """
        Buy as many as may be in flight.

        :raises RunGenError: the service takes nothing more, and no job runs.
        """
        run, rows = self._run, self._run.rows
        before, lost, pauses = rows.bought, rows.lost, [0.0]
        left = (
            math.inf if run.options.max_in_flight is None else run.options.max_in_flight - len(rows.waiting)
        )
        if self._allowance is not None:
            left = min(left, self._allowance)

        def take(most: int) -> Mapping[str, Mapping[str, Any]]:
            nonlocal left
            taken = rows.take(int(min(most, left)))
            left -= len(taken)
            return taken

        def note(bought: Bought) -> None:
            rows.note_bought(bought)
            pauses.append(bought.pause)
            _say_what_failed(bought)

        if left > 0:
            with run.guard.defer_signals():
                try:
                    run.in_loop(self._buyer.buy_all(take, note), ends_itself=True)
                finally:
                    rows.put_back()
        if self._allowance is not None:
            self._allowance = max(self._allowance - (rows.bought - before) - (rows.lost - lost), 0)
        if rows.bought > before:
            done = rows.bought_before + rows.bought
            total = max(rows.bought_before + rows.counts.new, done + len(rows.new))
            log.info("Submitted %d of %d inputs to app %s", done, total, run.known_app_id)
            self._on_bought(list(rows.open), rows.bought_before + before == 0)
        if not rows.open and (error := self._stopping_error()) is not None:
            raise error
        if not rows.waiting and (pause := max(pauses)) > 0:
            run.hook.sleep(min(pause, max(run.end_at - time.time(), 0)))

    def _has_to_stop(self) -> bool:
        rows = self._run.rows
        is_over = self._run.guard.is_stopping() or time.time() >= self._run.end_at
        return is_over or rows.is_refused or rows.is_failing

    def _stopping_error(self) -> RunGenError | None:
        """Return what stopped the buying. What was refused after others were accepted may pass."""
        error = self._buyer.error
        if error is not None and self._run.rows.bought:
            error.retryable = True
        return error


def _say_what_failed(bought: Bought) -> None:
    for refused in bought.refused[:_MOST_NAMED]:
        log.warning("%s", refused.why)
    for why, count in Counter(lost.why for lost in bought.lost).items():
        log.warning("Lost %s, which may have cost: %s", format_count(count, "answer"), why)
