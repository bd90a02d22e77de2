"""Compares an app's job counters with what polls find. No I/O.

RunGen cannot list jobs, but an app counts its jobs by state. The counters report how many jobs have ended,
and polls locate which. The counters are only a hint: they may lag, freeze, be reset, or count foreign jobs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

# Asking for the counters costs a request, so as few jobs are simply polled.
COUNTER_THRESHOLD = 4
# Seconds after which the counters must have counted a job that ended.
COUNTER_GRACE = 15.0
# Contradictions in a row after which the counters are given up.
MAX_MISMATCHES = 3
# A check polls 1/2**n of the jobs. It begins with this n, which grows with every check passed.
FIRST_CHECK_SHARE = 4


@dataclass(slots=True)
class CounterTrust:
    """
    How far the counters of an app are trusted. A wait learns it, and the next wait goes on from there.

    :param mismatches: contradictions in a row.
    :param is_doubted: whether a check found ends that the counters missed, and they have not moved since.
    :param passed: see `CounterChecks`.
    :param pause: seconds to the next probe, at least. They grow with every probe passed.
    """

    mismatches: int = 0
    is_doubted: bool = False
    passed: int = FIRST_CHECK_SHARE
    pause: float = 0.0

    @property
    def is_lost(self) -> bool:
        """Whether the counters are given up."""
        return self.mismatches >= MAX_MISMATCHES

    def doubt(self) -> None:
        """Record that the counters missed ends."""
        self.is_doubted, self.pause = True, 0.0


@dataclass(slots=True)
class CounterLedger:
    """
    Tracks the differences between the counters of an app and what polls have found.

    ====================  ===================================================================================
    quantity              meaning
    ====================  ===================================================================================
    ``unlocated_ends``    ends that the counters reported and no poll has located
    ``uncounted_ends``    when each end was located that the counters have not reported
    ``foreign_active``    queued or running jobs that nobody waits for here
    ``vanished``          waiting jobs that the counters list neither as active nor as newly ended: they were
                          canceled, which is not counted, or ended before the first report
    ``mismatches``        contradictions in a row; an end that is reported and then located clears them
    ====================  ===================================================================================

    ==========================================================  ============================================
    invariant                                                   what a deviation means
    ==========================================================  ============================================
    ``ended`` reported since the first report - ends located    foreign jobs ended: a poll of all jobs clears
    = ``unlocated_ends`` - number of ``uncounted_ends``         ``unlocated_ends``
    one of ``unlocated_ends`` and ``uncounted_ends`` is empty   none: each located end settles a reported one
    ``active`` + ``unlocated_ends`` + ``vanished``              more active: ``foreign_active`` grows;
    = waiting + ``foreign_active`` + ``uncounted_ends``         fewer active: ``vanished``, if reported twice
    ``ended`` never falls                                       mismatch
    a located end is reported within twice the grace            mismatch; the end is written off
    after a poll of all jobs, ``active`` covers the waiting     mismatch
    jobs that are older than the grace
    ==========================================================  ============================================

    The ledger never decides the status of a job: wrong counters cost polls and time, never a wrong outcome.

    :param trust: where mismatches are counted.
    """

    trust: CounterTrust = field(default_factory=CounterTrust)
    unlocated_ends: int = 0
    uncounted_ends: deque[float] = field(default_factory=deque)
    foreign_active: int = 0
    vanished: int = 0
    #: Whether the last report contradicted what was known.
    has_mismatch: bool = False
    _ended: int | None = None
    _active: int = 0
    _grace: float = 0.0
    _proof_counts_from: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.unlocated_ends} ends unlocated, {len(self.uncounted_ends)} uncounted, {self.vanished} "
            f"vanished, {self.foreign_active} foreign jobs active, {self.mismatches} mismatches"
        )

    @property
    def mismatches(self) -> int:
        return self.trust.mismatches

    def add_job(self) -> None:
        """Record that a job is waited for from now on; so far it may have counted as foreign."""
        self.foreign_active = max(0, self.foreign_active - 1)

    def locate_end(self, now: float) -> None:
        """Record that a poll found a job completed or failed."""
        if self.unlocated_ends:
            self.unlocated_ends -= 1
            if now >= self._proof_counts_from:
                self.trust.mismatches = 0
        elif self.vanished:
            self.vanished -= 1
        else:
            self.uncounted_ends.append(now)

    def report(self, ended: int, active: int, *, waiting: int, now: float, grace: float) -> int:
        """
        Record what the counters say; return how many of the waiting jobs seem to have ended.

        :param ended: completed and failed jobs.
        :param active: queued and running jobs.
        :param waiting: jobs that are waited for here, and that the counters may know.
        :param now: the time (seconds since 1970) of the question.
        :param grace: seconds within which an end must be counted.
        """
        before = self._ended
        self._ended, self._active, self._grace, self.has_mismatch = ended, active, grace, False
        if before is None:
            self.uncounted_ends.clear()
        else:
            self._count_ends(ended - before, now)
        # twice the grace: counters that lag cost a few polls, counters that are given up cost many
        while self.uncounted_ends and self.uncounted_ends[0] <= now - 2 * grace:
            self.uncounted_ends.popleft()
            self._note_mismatch(now)
        reported, self.vanished = self.vanished, self._missing(waiting)
        if before is None:
            return self.vanished
        # believed if reported twice, since a job may be between two states
        return self.unlocated_ends + min(reported, self.vanished)

    def close(self, *, waiting: int, new: int, settled: int, is_complete: bool, now: float) -> None:
        """
        Record that the polls that follow a report are done.

        :param waiting: jobs that are still waited for here, and that the counters may know.
        :param new: jobs that are waited for since the report was asked for; it may count them as active.
        :param settled: those of ``waiting`` that the counters must know by now.
        :param is_complete: whether all jobs were polled, so that every end among them is located.
        :param now: the time (seconds since 1970) of the report.
        """
        active = self._active - len(self.uncounted_ends)
        # the fewest there may be: too few hide a canceled job until a check, too many look like vanished jobs
        foreign_active = max(0, active - waiting - new)
        if is_complete:
            self.unlocated_ends = 0  # the others are ends of foreign jobs
            self.foreign_active = foreign_active
            if active < settled:
                self._note_mismatch(now)
            if self.has_mismatch:  # no report of these ends is to be expected
                self.uncounted_ends.clear()
        else:
            self.foreign_active = max(self.foreign_active, foreign_active)
        self.vanished = self._missing(waiting)

    def _count_ends(self, reported: int, now: float) -> None:
        if reported < 0:
            self._note_mismatch(now)
        elif reported > 0:
            self.trust.is_doubted = False
        while reported > 0 and self.uncounted_ends:
            self.uncounted_ends.popleft()
            reported -= 1
        self.unlocated_ends += max(reported, 0)

    def _missing(self, waiting: int) -> int:
        expected = waiting + self.foreign_active + len(self.uncounted_ends) - self.unlocated_ends
        return max(0, expected - self._active)

    def _note_mismatch(self, now: float) -> None:
        self.trust.mismatches += not self.has_mismatch
        self.has_mismatch = True
        self._proof_counts_from = now + self._grace
