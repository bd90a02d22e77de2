"""Decides which jobs to poll although an app's counters do not ask for them. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from airflow_provider_rungen.client.counters import COUNTER_THRESHOLD, FIRST_CHECK_SHARE, CounterTrust

# Seconds between two checks of the counters while they pass.
CHECK_INTERVAL = 60.0
# The first check polls all jobs if they are as few.
THOROUGH_CHECK_SIZE = 64
# Every job is polled once in this many seconds, however many checks have passed.
MAX_UNPOLLED_TIME = 6 * 3600.0
# Seconds, and rounds, to the first probe of the counters.
FIRST_PROBE_PAUSE = 2.0
FIRST_PROBE_ROUNDS = 2


@dataclass(slots=True)
class CounterChecks:
    """
    Decides when to check the counters by polling jobs that they do not ask for, and how many.

    A check polls 1/2**passed of the jobs. Before the first one, probes poll the oldest job alone, after
    pauses that double: they find out that the counters stand still about as long after an end as it took.

    :param trust: what is known of the counters.
    """

    trust: CounterTrust = field(default_factory=CounterTrust)
    _due_at: float | None = None
    _probe_at: float | None = None
    _is_first: bool = True

    def restart(self, now: float) -> None:
        """Check all jobs at once, because the counters contradicted what was known."""
        self.trust.passed, self._due_at = 0, now

    def choose(
        self, polled_at: Mapping[str, float], *, interval: float, grace: float, now: float, has_foreign: bool
    ) -> list[str]:
        """
        Return the jobs to poll now for a check, those first that were not polled for longest.

        :param polled_at: when each job was last polled (seconds since 1970).
        :param interval: seconds between two checks.
        :param grace: seconds to the next check after one that failed.
        :param now: the time (seconds since 1970).
        :param has_foreign: whether foreign jobs are active, which may hide ends from before the first report.
        """
        pause = interval if self.trust.passed else grace
        if self._due_at is None:
            self._due_at = now + pause
        if now < self._due_at:
            return []
        stale = [job_id for job_id, at in polled_at.items() if at <= now - pause]
        self._due_at = pause + (now if stale else min(polled_at.values(), default=now))
        is_thorough = self._is_first and (len(polled_at) <= THOROUGH_CHECK_SIZE or has_foreign)
        self._is_first = self._is_first and not stale
        stale.sort(key=polled_at.__getitem__)
        size = len(stale) >> (0 if is_thorough else self.trust.passed)
        return stale[: max(COUNTER_THRESHOLD, size, math.ceil(len(polled_at) * interval / MAX_UNPOLLED_TIME))]

    def choose_probe(
        self, job_ids: list[str], *, interval: float, poll_interval: float, now: float
    ) -> list[str]:
        """
        Return the jobs to poll now for a probe: some in each round while the counters are doubted.

        :param job_ids: the waiting jobs, oldest first.
        :param interval: seconds between two checks. As seldom, probes are of no use.
        :param poll_interval: seconds to the next round.
        :param now: the time (seconds since 1970).
        """
        if self.trust.is_doubted:
            return job_ids[: max(COUNTER_THRESHOLD, len(job_ids) >> FIRST_CHECK_SHARE)]
        pause = max(self.trust.pause, FIRST_PROBE_PAUSE, FIRST_PROBE_ROUNDS * poll_interval)
        if self._probe_at is None:
            self._probe_at = now + pause
        if now < self._probe_at or pause >= interval:
            return []
        self.trust.pause = 2 * pause
        self._probe_at = now + self.trust.pause
        return job_ids[:1]

    def note(self, *, polled: int, uncounted: int, is_probe: bool = False) -> bool:
        """
        Record the outcome of a check or a probe; return whether the counters passed.

        :param polled: jobs that were polled.
        :param uncounted: located ends that the counters did not report. A few ended after the report.
        """
        is_passed = uncounted <= polled // 8
        if not is_passed:
            self.trust.doubt()
        elif not is_probe:
            self.trust.passed += 1
        return is_passed
