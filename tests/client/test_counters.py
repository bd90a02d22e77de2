"""The ledger that compares an app's counters with what polls find, and the checks of the counters."""

from __future__ import annotations

import random

import pytest

from airflow_provider_rungen.client.counter_checks import (
    CHECK_INTERVAL,
    FIRST_PROBE_PAUSE,
    MAX_UNPOLLED_TIME,
    CounterChecks,
)
from airflow_provider_rungen.client.counters import (
    COUNTER_GRACE,
    COUNTER_THRESHOLD,
    FIRST_CHECK_SHARE,
    CounterLedger,
    CounterTrust,
)


class Round:
    """Reports counters to a ledger, and lets polls locate jobs, in rounds of 5 s."""

    def __init__(self, waiting: int, foreign: int = 0) -> None:
        self.ledger = CounterLedger()
        self.waiting = waiting
        self.now = 1000.0
        assert self(ended=100, active=waiting + foreign) == 0

    def __call__(
        self,
        *,
        ended: int,
        active: int,
        located: int = 0,
        canceled: int = 0,
        new: int = 0,
        is_complete: bool = False,
    ) -> int:
        """Return how many jobs the ledger asks for, before some are located and new ones come."""
        self.now += 5
        missing = self.ledger.report(ended, active, waiting=self.waiting, now=self.now, grace=COUNTER_GRACE)
        for _ in range(located):
            self.ledger.locate_end(self.now)
        self.waiting -= located + canceled
        for _ in range(new):
            self.ledger.add_job()
        self.ledger.close(
            waiting=self.waiting, new=new, settled=self.waiting, is_complete=is_complete, now=self.now
        )
        self.waiting += new
        return missing


def test_reported_ends_are_asked_for_until_they_are_located() -> None:
    round_ = Round(10)
    assert round_(ended=103, active=7, located=1) == 3
    assert round_.ledger.unlocated_ends == 2
    assert round_(ended=103, active=7, located=2) == 2
    assert round_(ended=103, active=7) == 0
    assert (
        str(round_.ledger) == "0 ends unlocated, 0 uncounted, 0 vanished, 0 foreign jobs active, 0 mismatches"
    )


def test_an_end_that_is_located_before_it_is_reported_is_not_asked_for() -> None:
    round_ = Round(10)
    assert round_(ended=100, active=10, located=2) == 0
    assert len(round_.ledger.uncounted_ends) == 2
    assert round_(ended=103, active=7, located=1) == 1
    assert round_.ledger.mismatches == 0


def test_jobs_that_vanish_are_asked_for_when_that_is_reported_twice() -> None:
    round_ = Round(10)
    assert round_(ended=100, active=8) == 0
    assert round_.ledger.vanished == 2
    assert round_(ended=100, active=8, canceled=2) == 2
    assert round_.ledger.vanished == 0


def test_jobs_that_ended_before_the_first_report_are_asked_for_at_once() -> None:
    ledger = CounterLedger()
    assert ledger.report(100, 6, waiting=10, now=0.0, grace=COUNTER_GRACE) == 4
    for _ in range(4):
        ledger.locate_end(1.0)
    assert (ledger.vanished, len(ledger.uncounted_ends)) == (0, 0), "no report of them will follow"


def test_foreign_jobs_that_end_are_asked_for_until_all_were_polled() -> None:
    round_ = Round(10, foreign=5)
    assert round_.ledger.foreign_active == 5
    assert round_(ended=101, active=14) == 1
    assert round_(ended=101, active=14, is_complete=True) == 1
    assert round_(ended=101, active=14) == 0
    assert (round_.ledger.foreign_active, round_.ledger.mismatches) == (4, 0)
    round_.ledger.add_job()
    assert round_.ledger.foreign_active == 3


@pytest.mark.parametrize("is_complete", [False, True])
@pytest.mark.parametrize("is_counted", [False, True])
def test_jobs_that_come_during_a_round_are_neither_foreign_nor_vanished(
    is_counted: bool, is_complete: bool
) -> None:
    round_ = Round(10, foreign=5)
    assert round_(ended=100, active=18 if is_counted else 15, new=3, is_complete=is_complete) == 0
    for _ in range(2):
        assert round_(ended=100, active=18) == 0
        assert (round_.ledger.foreign_active, round_.ledger.vanished) == (5, 0)
    assert round_.ledger.mismatches == 0


@pytest.mark.parametrize("proof", [False, True])
def test_counters_that_stand_still_are_mismatches_until_they_prove_themselves(proof: bool) -> None:
    round_ = Round(10)
    round_(ended=100, active=10, located=1)
    for _ in range(2 * round(COUNTER_GRACE / 5)):
        assert round_.ledger.mismatches == 0
        round_(ended=100, active=10)
    assert round_.ledger.has_mismatch
    assert round_.ledger.mismatches == 1
    assert not round_.ledger.uncounted_ends
    for _ in range(round(COUNTER_GRACE / 5)):
        round_(ended=100, active=9)
    if proof:
        round_(ended=101, active=8, located=1)
    assert round_.ledger.mismatches == (not proof)


def test_counters_that_fall_are_a_mismatch_and_what_was_found_then_is_written_off() -> None:
    round_ = Round(10)
    round_(ended=0, active=9, located=1, is_complete=True)
    assert round_.ledger.mismatches == 1
    assert not round_.ledger.uncounted_ends


def test_more_waiting_than_active_jobs_are_a_mismatch_once_all_were_polled() -> None:
    round_ = Round(10)
    round_(ended=100, active=0)
    assert round_.ledger.mismatches == 0
    round_(ended=100, active=0, is_complete=True)
    assert round_.ledger.mismatches == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_invariants_hold_whatever_is_reported(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    ledger, waiting, now = CounterLedger(), 20, 0.0
    for _ in range(200):
        now += 5
        ended, active = chance.randrange(100), chance.randrange(40)
        missing = ledger.report(ended, active, waiting=waiting, now=now, grace=COUNTER_GRACE)
        assert missing >= 0
        for _ in range(chance.randrange(3)):
            if waiting:
                ledger.locate_end(now)
                waiting -= 1
        if chance.random() < 0.9:
            is_complete, new = chance.random() < 0.2, chance.choice([0, 0, chance.randrange(5)])
            for _ in range(new):
                ledger.add_job()
            ledger.close(waiting=waiting, new=new, settled=waiting, is_complete=is_complete, now=now)
            expected = waiting + ledger.foreign_active + len(ledger.uncounted_ends)
            assert active + ledger.unlocated_ends + ledger.vanished >= expected
            waiting += new
        assert not (ledger.unlocated_ends and ledger.uncounted_ends)
        assert min(ledger.unlocated_ends, ledger.foreign_active, ledger.vanished) >= 0
        if not waiting:
            waiting = 20
            for _ in range(waiting):
                ledger.add_job()


# --- checks -------------------------------------------------------------------------------------------------


def choose(checks: CounterChecks, now: float, jobs: int = 1000, polled_at: float = 0.0) -> list[str]:
    return checks.choose(
        {f"job-{number}": polled_at for number in range(jobs)},
        interval=CHECK_INTERVAL,
        grace=COUNTER_GRACE,
        now=now,
        has_foreign=False,
    )


def test_a_check_polls_fewer_jobs_the_more_checks_have_passed() -> None:
    checks, sizes = CounterChecks(), []
    assert choose(checks, 0.0) == []
    for number in range(1, 8):
        assert choose(checks, number * CHECK_INTERVAL - 1) == []
        sizes.append(len(choose(checks, number * CHECK_INTERVAL)))
        assert checks.note(polled=sizes[-1], uncounted=0)
    assert sizes == [1000 >> FIRST_CHECK_SHARE + number for number in range(4)] + [COUNTER_THRESHOLD] * 3


def test_the_first_check_polls_all_of_a_few_jobs() -> None:
    checks = CounterChecks()
    choose(checks, 0.0, jobs=40)
    assert len(choose(checks, CHECK_INTERVAL, jobs=40)) == 40


def test_a_mismatch_is_followed_by_checks_of_all_jobs_until_one_passes() -> None:
    checks = CounterChecks()
    choose(checks, 0.0)
    checks.restart(20.0)
    assert len(choose(checks, 20.0)) == 1000
    assert not checks.note(polled=1000, uncounted=200)
    assert len(choose(checks, 20.0 + COUNTER_GRACE)) == 1000
    assert checks.note(polled=1000, uncounted=2), "these ended after the report"
    assert choose(checks, 20.0 + 2 * COUNTER_GRACE, polled_at=20.0) == []


def test_every_job_is_polled_now_and_then_whatever_has_passed() -> None:
    checks = CounterChecks(CounterTrust(passed=30))
    choose(checks, 0.0, jobs=100_000)
    assert len(choose(checks, CHECK_INTERVAL, jobs=100_000)) >= 100_000 * CHECK_INTERVAL / MAX_UNPOLLED_TIME


def test_jobs_that_were_just_polled_are_checked_as_soon_as_that_is_long_ago() -> None:
    checks = CounterChecks()
    choose(checks, 0.0)
    assert choose(checks, CHECK_INTERVAL, polled_at=10.0) == []
    assert choose(checks, CHECK_INTERVAL + 9, polled_at=10.0) == []
    assert choose(checks, CHECK_INTERVAL + 10, polled_at=10.0)


# --- probes -------------------------------------------------------------------------------------------------


def probes(checks: CounterChecks, begin: float = 0.0, *, poll_interval: float = 1.0) -> list[float]:
    """Return the seconds after which the oldest job is polled, in 10 minutes."""
    times = []
    for second in range(601):
        jobs = checks.choose_probe(
            ["a", "b"], interval=CHECK_INTERVAL, poll_interval=poll_interval, now=begin + second
        )
        assert jobs in ([], ["a"])
        if jobs:
            times.append(float(second))
            assert checks.note(polled=1, uncounted=0, is_probe=True)
    return times


def test_probes_come_early_and_then_seldom() -> None:
    checks = CounterChecks()
    assert probes(checks) == [FIRST_PROBE_PAUSE, 6, 14, 30, 62]
    assert checks.trust.passed == FIRST_CHECK_SHARE, "they check one job"
    assert probes(CounterChecks(checks.trust), 1000.0) == [], "the next wait goes on from there"
    assert probes(CounterChecks(), poll_interval=5.0) == [10, 30, 70]
    assert probes(CounterChecks(), poll_interval=CHECK_INTERVAL) == []


def test_doubted_counters_are_probed_in_each_round_until_they_move() -> None:
    round_ = Round(1000)
    trust, job_ids = round_.ledger.trust, [f"job-{number}" for number in range(1000)]
    checks = CounterChecks(trust)
    assert not checks.note(polled=1, uncounted=1, is_probe=True)

    def probe() -> list[str]:
        return checks.choose_probe(job_ids, interval=CHECK_INTERVAL, poll_interval=5.0, now=round_.now)

    for _ in range(2):
        assert probe() == job_ids[: 1000 >> FIRST_CHECK_SHARE]
        round_(ended=100, active=1000)
    assert trust.is_doubted
    round_(ended=101, active=999, located=1)
    assert not trust.is_doubted
    assert probe() == []
