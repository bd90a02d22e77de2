"""The plan: parts that are named by their content, and the jobs of earlier plans."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rungen.runs.adoption import adopt_rows
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.plan import (
    PLAN_ROWS,
    Manifest,
    PlannedRow,
    input_digest,
    plan_parts,
    read_lines,
    read_rows,
)
from airflow_provider_rungen.runs.records import InvalidRecordError
from airflow_provider_rungen.runs.rows import InputState, Intent, Job, JobState, Row, Writer

inputs = st.dictionaries(
    st.text(max_size=5),
    st.none() | st.text(max_size=9) | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
)


def planned(job_input: Any) -> tuple[PlannedRow, Any]:
    if job_input is None:
        return PlannedRow(["a"], status="skipped"), None
    if "refused" in job_input:
        return PlannedRow(["b"], status="refused", why="it does not fit"), job_input
    return PlannedRow(["ä", 1, None], input_digest(job_input)), job_input


@given(st.lists(st.none() | inputs | st.just({"refused": 1}), max_size=20))
def test_a_plan_can_be_read_back(job_inputs: list[Any]) -> None:
    rows = [planned(each) for each in job_inputs]
    parts = list(plan_parts(rows))
    manifest = Manifest("flux", [entry for entry, _ in parts], ["id"], ["text"])
    assert Manifest.decode(manifest.encode(), manifest.digest).count == len(rows)
    kept = [each for each in job_inputs if each is not None]
    for (_, rows_name, inputs_name), files in parts:
        assert read_rows(files[rows_name], rows_name) == [row for row, _ in rows]
        assert read_lines(files[inputs_name], inputs_name) == kept


def test_a_large_plan_has_parts_of_their_own() -> None:
    rows = [planned({"prompt": str(number)}) for number in range(PLAN_ROWS + 1)]
    first, second = plan_parts(rows)
    again, other = plan_parts([*rows[:-1], planned({"prompt": "another"})])
    assert again == first
    assert other != second


@given(st.data())
def test_a_changed_plan_is_not_read(data: st.DataObject) -> None:
    [(entry, files)] = plan_parts([planned({"prompt": "a kettle"})])
    _, rows_name, inputs_name = entry
    manifest = Manifest("flux", [entry])
    for content, read in (
        (files[rows_name], lambda some: read_rows(some, rows_name)),
        (files[inputs_name], lambda some: read_lines(some, inputs_name)),
        (manifest.encode(), lambda some: Manifest.decode(some, manifest.digest)),
    ):
        at = data.draw(st.integers(0, len(content) - 1))
        with pytest.raises(InvalidRecordError):
            read(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def test_the_order_of_fields_does_not_change_an_input() -> None:
    assert input_digest({"a": 1, "b": {"c": 2, "d": 3}}) == input_digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert input_digest({"a": 1}) != input_digest({"a": "1"})
    assert input_digest({"a": [1, 2.5]}) == input_digest({"a": [1.0, 2.5]})


# --- adoption ---

EARLIER, WRITER = Writer(1, 1, "1" * 8), Writer(2, 2, "2" * 8)
states = st.sampled_from([None, *JobState])


@given(
    earlier=st.lists(st.tuples(st.sampled_from("abc"), states, st.booleans()), max_size=8),
    new=st.lists(st.sampled_from("abcd"), max_size=8),
)
def test_equal_inputs_get_the_jobs_of_earlier_plans_once_each(
    earlier: list[tuple[str, JobState | None, bool]], new: list[str]
) -> None:
    rows = []
    for number, (digest, state, is_announced) in enumerate(earlier):
        row = Row((Job(f"job-{number}", 1, state),) if state is not None else ())
        rows.append((digest, row.with_intent(EARLIER, Intent(EARLIER) if is_announced else None)))
    jobs = Jobs("ab" * 16, WRITER)
    jobs.load(range(len(new)))
    left = adopt_rows(jobs, dict(enumerate(new)), rows)
    adopted = [job.id for row in jobs.table.rows.values() for job in row.jobs]
    assert len(adopted) == len(set(adopted))
    # nothing is forgotten, and a job goes to an equal input only
    assert sorted([*adopted, *(job.id for _, row in left for job in row.jobs)]) == sorted(
        job.id for _, row in rows for job in row.jobs
    )
    for job_id in adopted:
        assert earlier[int(job_id.removeprefix("job-"))][0] == new[jobs.table.input_of[job_id]]
    of_use = Counter(digest for digest, state, _ in earlier if state in (JobState.OPEN, JobState.COMPLETED))
    to_buy = Counter(
        new[number] for number in jobs.inputs(InputState.UNSENT, InputState.TO_REPEAT, InputState.UNKNOWN)
    )
    assert to_buy == Counter(new) - of_use
    # whose they are is to be checked first
    assert not any(map(jobs.may_cancel, adopted))


def test_another_order_is_the_same_multiset() -> None:
    rows = [(digest, Row((Job(digest, 1),))) for digest in "abcab"[:3]]
    jobs = Jobs("ab" * 16, WRITER)
    jobs.load(range(3))
    assert not adopt_rows(jobs, dict(enumerate("cab")), rows)
    assert jobs.running == ["c", "a", "b"]
    # and what is known of the jobs by now counts, too
    assert not adopt_rows(jobs, dict(enumerate("cab")), [("a", Row((Job("a", 1, JobState.COMPLETED),)))])
    assert jobs.running == ["c", "b"]
