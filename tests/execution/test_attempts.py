"""A clear and a retry are distinguished by Airflow's numbers, as Airflow changes them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rungen.execution.jobs.log_home import token_of
from airflow_provider_rungen.execution.ledger.entries import is_run
from airflow_provider_rungen.execution.task.attempts import Attempt
from airflow_provider_rungen.runs.attempt_record import End


@dataclass
class TaskInstance:
    """What Airflow 3.3 does to the numbers of a task instance, and a record that an attempt leaves."""

    retries: int
    try_number: int = 1
    clear_number: int = 0
    knows_clears: bool = True
    max_tries: int = field(init=False)
    record: tuple[Attempt, End] = field(init=False)

    def __post_init__(self) -> None:
        self.max_tries = self.retries  # set when the task instance is made
        self.record = self.attempt, End.UNKNOWN

    @property
    def attempt(self) -> Attempt:
        clears = self.clear_number if self.knows_clears else None
        return Attempt(self.try_number, self.max_tries, self.retries, clears)

    @property
    def was_cleared(self) -> bool:
        return self.attempt.was_cleared_since(*self.record)

    def note(self, end: End) -> None:
        self.record = self.attempt, end

    def retry(self) -> None:
        self.try_number += 1

    def clear(self) -> None:
        """Do what ``clear_task_instances`` does."""
        self.max_tries = self.try_number + self.retries
        self.clear_number += 1
        self.try_number += 1

    def clear_another_task(self) -> None:
        self.clear_number += 1


@pytest.mark.parametrize("knows_clears", [True, False])
@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_a_clear_after_retries_were_lowered_is_no_retry(attempts: int, knows_clears: bool) -> None:
    ti = TaskInstance(3, knows_clears=knows_clears)
    for _ in range(attempts - 1):
        ti.retry()
    before = ti.max_tries
    ti.retries = 3 - attempts
    ti.clear()
    assert ti.max_tries == before  # which is what hid it
    assert ti.was_cleared


@pytest.mark.parametrize("knows_clears", [True, False])
@pytest.mark.parametrize("end", [End.FAILED, End.CLEARED])
def test_what_follows_a_failure_for_good_is_a_clear(end: End, knows_clears: bool) -> None:
    """Though its numbers are those of a retry: ``retries`` was raised between the clear and the attempt."""
    ti = TaskInstance(2, knows_clears=knows_clears)
    ti.note(end)
    ti.retries = 1
    ti.clear()
    ti.retries = 7
    assert ti.max_tries == 2
    assert ti.was_cleared


def test_a_retry_follows_a_success_that_airflow_could_not_save() -> None:
    ti = TaskInstance(2)
    ti.note(End.SUCCEEDED)
    ti.retry()
    assert not ti.was_cleared
    ti.note(End.SUCCEEDED)
    ti.clear_another_task()
    ti.retry()
    assert ti.was_cleared  # for all that can be known


@pytest.mark.parametrize("knows_clears", [True, False])
@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_retry_follows_a_failure_for_good_that_airflow_could_not_save(
    retries: int, knows_clears: bool
) -> None:
    """Also after the last attempt, which Airflow then counts as none."""
    ti = TaskInstance(retries, knows_clears=knows_clears)
    ti.note(End.FAILED)
    ti.retry()
    assert ti.was_cleared is not knows_clears, "without the number of clears, it may be one"


def test_the_same_attempt_once_more_is_no_clear() -> None:
    ti = TaskInstance(0)
    ti.note(End.FAILED)
    assert not ti.was_cleared


STEPS = st.one_of(st.just("retry"), st.just("clear"), st.just("another"), st.integers(0, 4))


@given(st.integers(0, 4), st.lists(STEPS, max_size=12), st.booleans())
def test_any_sequence_is_read_as_it_was(retries: int, steps: list[str | int], notes: bool) -> None:
    ti = TaskInstance(retries)
    others = 0
    for step in steps:
        match step:
            case "retry" if ti.try_number <= ti.max_tries:
                ti.retry()
                # lowered by as much as attempts were made, while another task was cleared: see the docstring
                looks_cleared = others and ti.max_tries - (ti.try_number - 1) == ti.retries
                assert ti.was_cleared == bool(looks_cleared)
            case "clear":
                ti.note(End.UNKNOWN if ti.try_number <= ti.max_tries else End.FAILED)
                ti.clear()
                assert ti.was_cleared
            case "another":
                ti.clear_another_task()
                others += 1
                continue
            case int():
                ti.retries = step
                continue
        others = 0
        if notes:
            ti.note(End.UNKNOWN)
        else:
            ti.record = replace(ti.attempt), End.UNKNOWN


def test_the_iterations_of_a_loop_have_tokens_of_their_own() -> None:
    """Airflow 3.4 tells them apart by region. Outside of a loop, nothing changes."""
    place = {"dag_id": "dag", "run_id": "run", "task_id": "task", "map_index": 3}
    mapped = token_of(SimpleNamespace(**place))
    assert token_of(SimpleNamespace(**place, region_id=None, region_index=None)) == mapped
    assert token_of(SimpleNamespace(**place, region_id=UUID(int=0), region_index=3)) == mapped
    positions = [(UUID(int=1), 0), (UUID(int=1), 1), (UUID(int=2), 0)]
    tokens = {
        token_of(SimpleNamespace(**place | {"map_index": None}, region_id=region, region_index=index))
        for region, index in positions
    }
    assert len(tokens | {mapped}) == 4
    assert all(is_run(token) for token in tokens)


def test_each_task_run_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Staging and production may share a bucket."""

    def token(base_url: str = "https://airflow.example", **other: Any) -> str:
        for section in ("API", "WEBSERVER"):
            monkeypatch.setenv(f"AIRFLOW__{section}__BASE_URL", base_url)
        usual = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": None}
        return token_of(SimpleNamespace(**usual | other))

    others: list[dict[str, Any]] = [
        *({"base_url": "https://staging.example"}, {"dag_id": "d2"}, {"run_id": "r2"}, {"task_id": "t2"}),
        *({"dag_id": "dr", "run_id": ""}, {"map_index": 0}),
    ]
    tokens = [token(**other) for other in ({}, *others)]
    assert len(set(tokens)) == len(tokens)
    assert all(map(is_run, tokens))
    assert token("https://airflow.example/") == tokens[0]
