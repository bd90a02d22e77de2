"""The table of jobs: what one attempt may do, and what it has to save."""

from __future__ import annotations

import pytest

from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.part_files import PART_ROWS
from airflow_provider_rungen.runs.rows import InputState, JobState, Totals, Writer

PLAN = "ef" * 16
FIRST, SECOND = Writer(1, 1, "1" * 8), Writer(2, 2, "2" * 8)


@pytest.fixture
def jobs() -> Jobs:
    jobs = Jobs(PLAN, FIRST)
    jobs.load(range(PART_ROWS))
    return jobs


def accept(jobs: Jobs, *numbers: int) -> None:
    jobs.announce(numbers)
    for number in numbers:
        assert jobs.accept(number, f"job-{number}")


def save(jobs: Jobs) -> None:
    for part in jobs.unsaved_parts:
        jobs.note_saved(jobs.snapshot(part, save=1, nth=0, at=0))


def successor(jobs: Jobs, *, since: int = 1) -> Jobs:
    later = Jobs(PLAN, SECOND, since=since)
    later.load(range(PART_ROWS), jobs.snapshot(0, save=1, nth=0, at=0))
    return later


def test_an_input_goes_from_unsent_to_completed(jobs: Jobs) -> None:
    states = [jobs.state(0)]
    for step in (
        lambda: jobs.announce([0]),
        lambda: jobs.accept(0, "job-0"),
        lambda: jobs.end("job-0", JobState.COMPLETED, seconds=1.23456),
    ):
        step()
        states.append(jobs.state(0))
    unsent, running = InputState.UNSENT, InputState.RUNNING
    assert states == [unsent, InputState.ANNOUNCED, running, InputState.COMPLETED]
    assert jobs.totals() == Totals(
        inputs=PART_ROWS, completed=1, own=1, submitted=1, jobs_completed=1, timed=1, seconds=1.235
    )


def test_nothing_is_accepted_that_was_not_announced(jobs: Jobs) -> None:
    for step in (
        lambda: jobs.accept(0, "job-0"),
        lambda: jobs.refuse(0, "why"),
        lambda: jobs.withdraw([0]),
    ):
        with pytest.raises(ValueError, match="input 0 is UNSENT"):
            step()


def test_nothing_is_announced_twice(jobs: Jobs) -> None:
    jobs.announce([0])
    with pytest.raises(ValueError, match="input 0 is ANNOUNCED"):
        jobs.announce([1, 0])
    # all or nothing
    assert jobs.state(1) is InputState.UNSENT


@pytest.mark.parametrize("ended", [JobState.FAILED, JobState.CANCELED, JobState.INVALID])
def test_a_job_does_not_end_twice(jobs: Jobs, ended: JobState) -> None:
    accept(jobs, 0)
    jobs.end("job-0", ended)
    jobs.end("job-0", JobState.COMPLETED)
    assert jobs.table.job("job-0").state is ended
    with pytest.raises(ValueError, match="cannot be stored"):
        jobs.store("job-0")


def test_a_job_has_one_input(jobs: Jobs) -> None:
    accept(jobs, 0)
    jobs.announce([1])
    assert not jobs.accept(1, "job-0")
    assert jobs.state(1) is InputState.ANNOUNCED
    assert successor(jobs).state(1) is InputState.UNKNOWN


def test_what_failed_runs_again_in_the_next_attempt_only(jobs: Jobs) -> None:
    accept(jobs, 0, 1, 2)
    jobs.end("job-0", JobState.FAILED)
    jobs.end("job-1", JobState.INVALID, why="width is missing")
    jobs.announce([3])
    jobs.refuse(3, "no prompt")
    assert not set(jobs.inputs(InputState.UNSENT, InputState.TO_REPEAT)) & {0, 1, 2, 3}
    later = successor(jobs)
    assert later.inputs(InputState.TO_REPEAT) == [0, 1]
    assert later.state(2) is InputState.RUNNING
    assert later.state(3) is InputState.UNSENT


def test_a_retried_input_has_two_jobs_and_both_are_billed(jobs: Jobs) -> None:
    accept(jobs, 0)
    jobs.end("job-0", JobState.FAILED, seconds=2)
    later = successor(jobs)
    later.announce([0])
    later.accept(0, "job-new")
    later.end("job-new", JobState.COMPLETED, seconds=3)
    assert (later.totals().submitted, later.totals().seconds, later.totals().completed) == (2, 5.0, 1)


def test_after_a_clear_all_runs_again_and_old_jobs_are_canceled(jobs: Jobs) -> None:
    accept(jobs, 0, 1)
    jobs.end("job-0", JobState.COMPLETED, seconds=1)
    later = successor(jobs, since=2)
    assert later.state(0) is later.state(1) is InputState.UNSENT
    assert later.outdated == ["job-1"]
    # not before it is certain whose it is
    assert not later.may_cancel("job-1")
    later.check("job-1", is_ours=True)
    assert later.may_cancel("job-1")
    assert later.totals().submitted == 2


def test_a_foreign_job_is_forgotten_whoever_names_it_again(jobs: Jobs) -> None:
    accept(jobs, 0)
    later = successor(jobs)
    later.check("job-0", is_ours=False)
    assert later.state(0) is InputState.UNSENT
    later.load((), jobs.snapshot(0, save=2, nth=0, at=0))
    assert later.state(0) is InputState.UNSENT
    assert not later.snapshot(0, save=1, nth=0, at=0).rows


def test_a_job_of_another_task_run_is_neither_billed_nor_canceled(jobs: Jobs) -> None:
    assert jobs.share(0, "job-shared")
    assert jobs.share(1, "job-stored", stored="s3://bucket/job-stored/manifest.json")
    assert jobs.running == ["job-shared"]
    assert not jobs.may_cancel("job-shared")
    assert jobs.state(1) is InputState.COMPLETED
    assert (jobs.totals().submitted, jobs.totals().shared) == (0, 2)


def test_each_job_of_this_task_run_counts_as_it_ended_at_the_service(jobs: Jobs) -> None:
    states = [JobState.COMPLETED, JobState.INVALID, JobState.FAILED, JobState.CANCELED, JobState.LOST]
    accept(jobs, *range(len(states) + 1))
    for number, state in enumerate(states):
        jobs.end(f"job-{number}", state)
    jobs.share(10, "job-shared", stored="s3://bucket/job-shared/manifest.json")
    totals = jobs.totals()
    assert (totals.submitted, totals.jobs_completed, totals.jobs_failed) == (6, 2, 3)


# --- saving ---


def test_ids_and_intents_are_due_at_once_and_outcomes_when_half_has_changed(jobs: Jobs) -> None:
    jobs.announce([0])
    assert jobs.due_parts == [0]
    save(jobs)
    jobs.accept(0, "job-0")
    assert (jobs.due_parts, jobs.unsaved_ids) == ([0], {"job-0"})
    save(jobs)
    assert (jobs.unsaved_parts, jobs.unsaved_ids) == ([], set())
    accept(jobs, *range(1, PART_ROWS))
    save(jobs)
    for number in range(PART_ROWS // 2):
        assert not jobs.due_parts
        jobs.end(f"job-{number}", JobState.COMPLETED)
    assert jobs.due_parts == [0]


def test_what_changes_during_a_save_is_saved_by_the_next(jobs: Jobs) -> None:
    jobs.announce([0, 1])
    file = jobs.snapshot(0, save=1, nth=0, at=0)
    jobs.accept(0, "job-0")
    jobs.note_saved(file)
    assert (jobs.due_parts, jobs.unsaved_ids) == ([0], {"job-0"})


def test_a_part_is_let_go_when_it_is_over_and_saved() -> None:
    jobs = Jobs(PLAN, FIRST, stores=True)
    jobs.load(range(2))
    accept(jobs, 0, 1)
    jobs.end("job-0", JobState.COMPLETED, seconds=1)
    jobs.end("job-1", JobState.FAILED, seconds=2)
    save(jobs)
    assert not jobs.close_parts()
    jobs.store("job-0")
    assert not jobs.close_parts()
    save(jobs)
    totals = Totals(
        2, completed=1, failed=1, own=2, submitted=2, jobs_completed=1, jobs_failed=1, timed=2, seconds=3.0
    )
    assert jobs.totals() == totals
    assert jobs.close_parts() == [0]
    assert not jobs.table.rows
    assert jobs.totals() == totals
