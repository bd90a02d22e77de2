"""What several writers know of a part, merged in any order and as often as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.part_files import PART_ROWS, PartFile, PartName, Table
from airflow_provider_rungen.runs.records import InvalidRecordError
from airflow_provider_rungen.runs.rows import InputState, Intent, Job, JobState, Row, Writer

PLAN = "ab" * 16
WRITERS = [Writer(turn, turn, f"{turn:08x}") for turn in (1, 2, 3)]

job_facts = st.builds(
    Job,
    # few ids, so that inputs and writers claim the same ones
    id=st.sampled_from([f"job-{number}" for number in range(6)]),
    turn=st.just(1),
    state=st.sampled_from(JobState),
    seconds=st.none() | st.sampled_from([0.0, 0.5, 7.25]),
    stored=st.sampled_from(["", ".", "s3://bucket/a/manifest.json"]),
    why=st.sampled_from(["", "out of memory", 'ü\n"\\']),
    is_shared=st.booleans(),
)


@st.composite
def rows(draw: st.DrawFn, writer: Writer) -> Row:
    row = Row()
    for job in draw(st.lists(job_facts, max_size=2, unique_by=lambda job: job.id)):
        row = row.with_job(job)
    refusal = draw(st.sampled_from([None, "invalid input"]))
    return row.with_intent(writer, Intent(writer, refusal)) if draw(st.booleans()) else row


@st.composite
def part_files(draw: st.DrawFn) -> list[PartFile]:
    found = []
    for writer in WRITERS:
        for save in range(draw(st.integers(0, 3))):
            numbers = draw(st.lists(st.integers(PART_ROWS, PART_ROWS + 3), unique=True, max_size=3))
            drawn = {each: draw(rows(writer)) for each in numbers}
            found.append(PartFile(PLAN, 1, writer, save + 1, 0, 1_700_000_000, drawn))
    return found


def merged(files: Iterable[PartFile]) -> Table:
    table = Table()
    for file in files:
        table.merge(file)
    # an empty row says nothing
    table.rows = {number: row for number, row in table.rows.items() if row != Row()}
    return table


@given(part_files(), st.randoms(use_true_random=False))
def test_files_merge_alike_in_any_order_and_repeated(files: list[PartFile], random: Any) -> None:
    shuffled = files + [file for file in files if random.random() < 0.5]
    random.shuffle(shuffled)
    assert merged(shuffled) == merged(files)


@given(part_files(), st.integers(0, 9))
def test_what_one_writer_merged_and_saved_is_all_that_another_needs(files: list[PartFile], cut: int) -> None:
    reader = Jobs(PLAN, Writer(9, 9, "9" * 8))
    reader.load((), *files[:cut])
    snapshot = reader.snapshot(1, save=1, nth=0, at=0)
    after = merged([snapshot, *files[cut:]])
    whole = merged(files)
    assert {job.id: job for row in after.rows.values() for job in row.jobs} == {
        job.id: job for row in whole.rows.values() for job in row.jobs
    }


@given(part_files())
def test_a_file_says_what_was_written_and_each_job_is_one_of_one_input(files: list[PartFile]) -> None:
    assert [PartFile.decode(file.encode()) for file in files] == files
    table = merged(files)
    ids = [job.id for row in table.rows.values() for job in row.jobs]
    assert sorted(ids) == sorted(table.input_of)
    assert len(ids) == len(set(ids))


@given(job_facts, job_facts, job_facts)
def test_accounts_of_a_job_merge_alike_in_any_order(first: Job, second: Job, third: Job) -> None:
    second, third = replace(second, id=first.id), replace(third, id=first.id)
    assert first.merged(second) == second.merged(first)
    assert first.merged(second).merged(third) == first.merged(second.merged(third))
    assert first.merged(first) == first
    assert first.merged(second).state is max(first.state, second.state)


def sample() -> PartFile:
    row = Row().with_job(Job("7a6e5d52-2f4a-4c1e-9d2b-0f4f6d1c2b3a", 1, JobState.COMPLETED, 1.25, "."))
    intent = Row().with_intent(WRITERS[0], Intent(WRITERS[0]))
    return PartFile(PLAN, 0, WRITERS[0], 3, 0, 1_700_000_000, {0: row, 5: intent})


@given(st.data())
def test_changed_bytes_are_no_file(data: st.DataObject) -> None:
    content = sample().encode()
    kind = data.draw(st.sampled_from(["cut", "insert", "replace", "join"]))
    at = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.binary(min_size=1, max_size=3))
    match kind:
        case "cut":
            changed = content[:at]
        case "insert":
            changed = content[:at] + byte + content[at:]
        case "replace":
            changed = content[:at] + byte + content[at + len(byte) :]
        case _:
            changed = content + content
    try:
        file = PartFile.decode(changed)
    except InvalidRecordError:
        return
    # an edit may make another valid file, but never one of which a part is not read
    assert file.encode() == changed


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b"[" * 100_000 + b"\n")
def test_foreign_bytes_are_no_file(content: bytes) -> None:
    with pytest.raises(InvalidRecordError):
        PartFile.decode(content)


LINES: list[Any] = [
    [0, 1, ["id", 2]],  # a job of an attempt that came after
    *([0, 0, job] for job in (["../id", 1], ["id", 1, 9], ["id", True], ["id", 1, 4, float("nan")])),
    [0, 0, ["id", 1, 4, -1.0]],
    [0, 0, ["id", 1, 0]],  # what could be left out
    *([64, 1], [-1, 1], [0, 2], [0, "x" * 2000], [0], "text", None, {}),
]


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_this_version_does_not_write_is_refused(line: Any) -> None:
    header = json.loads(sample().encode().split(b"\n")[0]) | {"rows": 1}
    content = "".join(f"{json.dumps(each, separators=(',', ':'))}\n" for each in (header, line)).encode()
    with pytest.raises(InvalidRecordError):
        PartFile.decode(content)


@given(st.text(max_size=40))
def test_only_the_name_of_a_file_is_one(text: str) -> None:
    assert PartName.parse(text) is None


def test_a_name_can_be_read_back() -> None:
    name = PartName(12, WRITERS[1], 3)
    assert PartName.parse(str(name)) == name
    assert PartName.parse(f"{name}.part") is None
    assert PartName.parse(str(name).replace("000012", "0000012")) is None


def test_a_writer_withdraws_an_intent_by_leaving_it_out() -> None:
    table = Table()
    table.merge(sample())
    table.merge(replace(sample(), save=4, rows={}))
    table.merge(sample())  # it came late
    assert not table.rows[5].intents
    assert table.rows[0].jobs


def test_an_older_job_of_use_counts_more_than_a_later_one_that_failed() -> None:
    row = Row().with_job(Job("late", 1, JobState.COMPLETED)).with_job(Job("new", 2, JobState.FAILED))
    assert row.state(WRITERS[2], 1) is InputState.COMPLETED
    # a clear asks for a new one
    assert row.state(WRITERS[2], 3) is InputState.UNSENT
