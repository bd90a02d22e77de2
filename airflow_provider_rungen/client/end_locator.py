"""Locates the jobs that an app's counters report as ended, so that waiting costs close to one request a job.

The counters report how many jobs have ended, and polls of single jobs, oldest first, locate which. The
counters are only a hint: now and then some jobs are polled whatever they say, and more of them when that
finds ends that were not reported. Wrong counters are given up. No job is polled twice in a round, so the
worst counters cost one request a round more than polling each job. No I/O.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_provider_rungen.client.counter_checks import CHECK_INTERVAL, CounterChecks
from airflow_provider_rungen.client.counters import (
    COUNTER_GRACE,
    COUNTER_THRESHOLD,
    CounterLedger,
    CounterTrust,
)
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.exceptions import RunGenError

if TYPE_CHECKING:
    from airflow_provider_rungen.client.job_poller import JobPoller

# Answers without counters in a row after which that is logged.
MAX_MISSING_COUNTERS = 3


@dataclass
class EndLocator:
    """
    Locates ended jobs for a poller.

    :param poller: polls the jobs.
    :param trust: how far the counters are trusted.
    """

    poller: JobPoller
    trust: CounterTrust
    ledger: CounterLedger = field(init=False)
    _checks: CounterChecks = field(init=False)
    _missing_counters: int = 0
    _is_given_up: bool = False

    def __post_init__(self) -> None:
        self.ledger, self._checks = CounterLedger(self.trust), CounterChecks(self.trust)

    @property
    def is_trusted(self) -> bool:
        """Whether the counters decide what to poll."""
        return not self.trust.is_lost

    def read_counters(self, app: App | RunGenError | None) -> tuple[int, int] | None:
        """
        Read the counters in an answer.

        :param app: the answer, or ``None`` if there was none.
        :return: how many jobs have ended, and how many are queued or running; ``None`` if that is unknown.
        """
        if app is None:
            return None
        jobs = {} if isinstance(app, RunGenError) else app.jobs
        if all(name in jobs for name in ("completed", "failed", "in_progress", "in_queue")):
            self._missing_counters = 0
            return jobs["completed"] + jobs["failed"], jobs["in_progress"] + jobs["in_queue"]
        self._missing_counters += 1  # a new app has none at first
        if self._missing_counters == MAX_MISSING_COUNTERS:
            self._give_up("are missing")
        return None

    def locate(
        self, due: Sequence[str], counts: tuple[int, int], *, poll_interval: float, asked_at: float
    ) -> Flow[None]:
        """
        Poll as many jobs as the counters ask for, and check the counters.

        :param due: the jobs that may be polled, oldest first.
        :param counts: what the counters say, see `read_counters`.
        :param poll_interval: seconds to the next round.
        :param asked_at: when the counters were asked for (seconds since 1970). They know older jobs.
        """
        poller, ledger, grace = self.poller, self.ledger, max(COUNTER_GRACE, 2 * poll_interval)
        ended, active = counts
        found = poller.found
        missing = ledger.report(ended, active, waiting=self._added_by(asked_at), now=asked_at, grace=grace)
        rest = yield from self._check(poller.pollable(due), missing, poll_interval, grace, asked_at)
        rest = yield from self._search(rest, missing - (poller.found - found))
        if poller.outages.last_failure is None:
            waiting = self._added_by(asked_at)
            ledger.close(
                waiting=waiting,
                new=len(poller.waiting) - waiting,
                settled=self._added_by(asked_at - grace),
                is_complete=not rest and poller.is_complete,
                now=asked_at,
            )
        if not self.is_trusted:
            self._give_up(f"do not add up ({ledger})")

    def _check(
        self, due: list[str], missing: int, poll_interval: float, grace: float, now: float
    ) -> Flow[list[str]]:
        """Check the counters if it is time, and poll on if they fail; return the jobs not polled."""
        interval = max(CHECK_INTERVAL, poll_interval)
        sample = self._choose_sample(due, interval, grace, now)
        if is_probe := not sample and not missing:
            sample = self._checks.choose_probe(due, interval=interval, poll_interval=poll_interval, now=now)
        if not sample:
            return due
        before = len(self.ledger.uncounted_ends)
        yield from self.poller.poll(sample)
        uncounted = len(self.ledger.uncounted_ends) - before
        looked = set(sample)
        rest = self.poller.pollable(job_id for job_id in due if job_id not in looked)
        if self._checks.note(polled=len(sample), uncounted=uncounted, is_probe=is_probe):
            return rest
        return (yield from self._follow(rest, 2 * len(sample)))

    def _choose_sample(self, due: Sequence[str], interval: float, grace: float, now: float) -> list[str]:
        if self.ledger.has_mismatch:
            self._checks.restart(now)
        return self._checks.choose(
            {job_id: self.poller.waiting[job_id].polled_at for job_id in due},
            interval=interval,
            grace=grace,
            now=now,
            has_foreign=self.ledger.foreign_active > 0,
        )

    def _follow(self, job_ids: list[str], step: int) -> Flow[list[str]]:
        """Poll jobs, oldest first, twice as many each time, until hardly any had ended; return the others."""
        poller, step = self.poller, max(COUNTER_THRESHOLD, step)
        while job_ids and not poller.outages.failed_rounds:
            found = poller.found
            yield from poller.poll(job_ids[:step])
            job_ids = job_ids[step:]
            if poller.found - found <= step // 32:
                break
            step *= 2
        return job_ids

    def _search(self, job_ids: list[str], missing: int) -> Flow[list[str]]:
        """Poll jobs, oldest first, until so many were found to have finished; return those not polled."""
        poller = self.poller
        polled, found, answers = 0, poller.found, poller.answers
        while job_ids and not poller.outages.failed_rounds and (left := missing - (poller.found - found)) > 0:
            # half as many more as found nothing: few if the jobs end in order, soon all if they do not
            step = max(left, (polled - (poller.found - found)) // 2)
            if polled and poller.answers == answers:
                step = len(job_ids)  # a step takes long when none of its jobs answers
            yield from poller.poll(job_ids[:step])
            polled += len(job_ids[:step])
            job_ids = job_ids[step:]
        return job_ids

    def _added_by(self, at: float) -> int:
        return sum(state.added_at <= at for state in self.poller.waiting.values())

    def _give_up(self, reason: str) -> None:
        if not self._is_given_up:
            self._is_given_up = True
            line = f"Job counters of app {self.poller.app_id} {reason}: polling its jobs one by one"
            self.poller.log(logging.WARNING, line, None)
