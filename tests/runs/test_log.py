"""The log in a place that fails, loses and hides files, and what it costs."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import MemoryPlace, OutageError, Trouble, announce

from airflow_provider_rungen.runs.attempt_record import AttemptRecord, End, attempt_name, next_turn
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog, read_attempts, read_parts
from airflow_provider_rungen.runs.part_files import PART_ROWS, PartFile
from airflow_provider_rungen.runs.place import DamagedLogError, SupersededError
from airflow_provider_rungen.runs.records import InvalidRecordError
from airflow_provider_rungen.runs.rows import InputState, JobState, Writer

PLAN = "cd" * 16
FOLDER = f"jobs/{PLAN}"


def clock() -> float:
    return 1000.5


def begin(place: MemoryPlace, turn: int = 1) -> tuple[RunLog, Jobs]:
    log = RunLog(place, AttemptRecord(turn, f"{turn:08x}", 1, turn, app_id="flux", plan=PLAN), clock)
    log.note()
    return log, Jobs(PLAN, log.attempt.writer, stores=True)


def begun(count: int) -> tuple[MemoryPlace, RunLog, Jobs]:
    """Return a log with so many jobs, in one part."""
    place = MemoryPlace()
    log, jobs = begin(place)
    submit(log, jobs, range(count))
    return place, log, jobs


def part_of(place: MemoryPlace) -> str:
    """Return the name of the only file of jobs."""
    [name] = [name for name in place.files if name.startswith(FOLDER)]
    return name


def submit(log: RunLog, jobs: Jobs, numbers: range) -> None:
    jobs.load(numbers)
    announce(log, jobs, numbers)
    for number in numbers:
        assert jobs.accept(number, f"7a6e5d52-2f4a-4c1e-9d2b-{number:012d}")


def finish(jobs: Jobs, numbers: range) -> None:
    for number in numbers:
        [job] = jobs.table.rows[number].jobs
        jobs.end(job.id, JobState.COMPLETED, seconds=1.234)
        jobs.store(job.id)


def read(place: MemoryPlace) -> Jobs:
    jobs = Jobs(PLAN, Writer(99, 99, "9" * 8))
    least = {record.writer: record.begun for record in read_attempts(place)}
    for _, files in read_parts(place, PLAN, least, least=least):
        jobs.load((), *files)
    return jobs


# --- the intent, and the fence ---


def test_an_attempt_that_was_cut_off_before_it_began_does_not_begin() -> None:
    earlier = [AttemptRecord(1, "0" * 8, 1, try_number=2, began=5.5)]
    with pytest.raises(SupersededError):
        next_turn(earlier, 1, 5.0)
    assert next_turn(earlier, 3, 5.0) == 2
    # a DAG run that was deleted and made again counts from 1
    assert next_turn(earlier, 1, 6.0) == 2


def test_of_two_attempts_that_begin_together_the_later_one_goes_on() -> None:
    place = MemoryPlace()
    first = RunLog(place, AttemptRecord(1, "f" * 8, 1, try_number=1), clock)
    second = RunLog(place, AttemptRecord(1, "0" * 8, 1, try_number=2), clock)
    second.note()
    first.note()
    second.fence()
    with pytest.raises(SupersededError):
        first.fence()


def test_an_attempt_that_is_not_listed_may_be_fenced_off() -> None:
    place = MemoryPlace()
    log, _ = begin(place)
    place.hidden.add(f"attempts/{attempt_name(log.attempt.writer)}")
    with pytest.raises(DamagedLogError, match="it is missing"):
        log.fence()


# --- a save in steps ---


def test_what_changes_during_a_put_is_due_after_it() -> None:
    place, log, jobs = begun(2)
    rows = dict(jobs.table.rows)
    with log.saving(jobs) as files:
        jobs.load(range(2, 3))
        jobs.announce([2])
        place.put(files)
    assert read(place).table.rows == rows
    assert jobs.due_parts == [0]


@pytest.mark.parametrize("what", ["forbidden", "lost", "unanswered", "late"])
def test_all_names_of_a_put_are_given_up_if_one_of_them_is_in_doubt(what: str) -> None:
    place = MemoryPlace((Trouble("put", 3, what),))
    log, jobs = begin(place)
    numbers = range(3 * PART_ROWS)
    jobs.load(numbers)
    jobs.announce(numbers)
    with pytest.raises(OutageError), log.saving(jobs) as before:
        place.put(before)
    log.save(jobs)
    place.settle()
    assert {name for name in place.files if ".1.jsonl" in name} == {
        name.replace(".0.jsonl", ".1.jsonl") for name in before
    }
    assert read(place).inputs(InputState.UNKNOWN) == list(numbers)


def test_a_reader_learns_when_the_last_job_had_been_submitted() -> None:
    times = iter([100.9, 200.9, 150.9])
    place = MemoryPlace()
    log, jobs = begin(place)
    log.clock = lambda: next(times)
    for part in range(3):
        submit(log, jobs, range(part * PART_ROWS, part * PART_ROWS + 1))
    # not before it was, although files have whole seconds


# --- what is missing or broken ---


@given(parts=st.integers(2, 6), data=st.data())
def test_a_file_that_is_missing_is_noticed(parts: int, data: st.DataObject) -> None:
    place = MemoryPlace()
    log, jobs = begin(place)
    for part in range(parts):
        submit(log, jobs, range(part * PART_ROWS, part * PART_ROWS + 3))
    files = sorted(name for name in place.files if name.startswith(FOLDER))
    if has_end := data.draw(st.booleans()):
        log.note(end=End.FAILED)
    # without an end on record, nobody else knows of the last one
    place.hidden.add(data.draw(st.sampled_from(files if has_end else files[:-1])))
    with pytest.raises(DamagedLogError, match=FOLDER):
        read(place)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\x00\xff", b"half"])
def test_a_broken_file_is_named(content: bytes) -> None:
    place, *_ = begun(3)
    name = part_of(place)
    place.files[name] = content if content != b"half" else place.files[name][:-20]
    with pytest.raises(DamagedLogError, match=name):
        read(place)
    del place.files[name]
    place.files |= dict.fromkeys(("attempts/notes.txt", f"{FOLDER}/.DS_Store", f"{name}.part"), b"?")
    assert not read(place).table.rows


def test_files_of_nobody_are_not_read() -> None:
    place, log, _ = begun(3)
    del place.files[f"attempts/{attempt_name(log.attempt.writer)}"]
    with pytest.raises(DamagedLogError, match="no record of its attempt"):
        read(place)


def test_a_file_in_the_place_of_another_is_not_read() -> None:
    place, *_ = begun(3)
    name = part_of(place)
    place.files[name.replace("000000", "000001")] = place.files[name]
    with pytest.raises(DamagedLogError, match="another part"):
        read(place)


@pytest.mark.parametrize("on", ["list", "get"])
@pytest.mark.parametrize("nth", [1, 2])
def test_an_outage_is_not_an_absence(on: str, nth: int) -> None:
    place, *_ = begun(3)
    place.counts = Counter()
    place.troubles = (Trouble(on, nth, "forbidden"),)
    with pytest.raises(OutageError):
        read(place)


# --- the record of an attempt ---


def test_a_record_of_an_attempt_can_be_read_back() -> None:
    place = MemoryPlace()
    log, _ = begin(place)
    log.note(end=End.FAILED, clear_number=0)
    assert read_attempts(place) == [log.attempt]


@given(st.data())
def test_a_changed_record_is_none(data: st.DataObject) -> None:
    content = AttemptRecord(2, "0" * 8, 1, retries=2, plan=PLAN, began=1.5, app_id="flux").encode()
    at = data.draw(st.integers(0, len(content) - 1))
    changed = content[:at] + data.draw(st.binary(max_size=3)) + content[at + 1 :]
    try:
        record = AttemptRecord.decode(changed)
    except InvalidRecordError:
        return
    assert record.encode() == changed


# --- a deferral ---


def test_a_wave_trusts_only_what_it_left() -> None:
    place, log, jobs = begun(6)
    log.save(jobs)
    handed = log.handover([0])
    name = part_of(place)
    wave, after = RunLog(place, log.attempt, clock), Jobs(PLAN, log.attempt.writer)
    wave.take(after, place.get(wave.resume(after, handed)))
    assert after.running == jobs.running
    assert all(map(after.may_cancel, after.running))
    edited = place.files[name].replace(b"000000000003", b"000000000009")
    assert PartFile.decode(edited)
    place.files[name] = edited
    wave, after = RunLog(place, log.attempt, clock), Jobs(PLAN, log.attempt.writer)
    with pytest.raises(DamagedLogError, match="changed since the deferral"):
        wave.take(after, place.get(wave.resume(after, handed)))


@pytest.mark.parametrize("what", ["forbidden", "lost", "unanswered", "late"])
def test_what_could_not_be_saved_goes_with_the_wave(what: str) -> None:
    # the record, the intents of two parts, the ids of the first part, and then nothing
    place = MemoryPlace((Trouble("put", 5, what),))
    log, jobs = begin(place)
    submit(log, jobs, range(PART_ROWS + 6))
    log.save(jobs, [0])
    with pytest.raises(OutageError):
        log.save(jobs)
    lost = {job_id for job_id in jobs.running if jobs.table.input_of[job_id] >= PART_ROWS}
    assert jobs.unsaved_ids == lost
    handed = json.loads(json.dumps(log.handover([0, 1], log.snapshots(jobs, [1]).values())))
    wave, after = RunLog(place, log.attempt, clock), Jobs(PLAN, log.attempt.writer, stores=True)
    wave.take(after, place.get(wave.resume(after, handed, jobs.unsaved_parts)))
    assert (after.running, after.unsaved_ids) == (jobs.running, lost)
    assert all(map(after.may_cancel, after.running))
    wave.save(after)
    place.settle()
    assert (after.unsaved_ids, read(place).running) == (set(), jobs.running)


def test_a_part_that_was_let_go_before_a_deferral_is_opened_again() -> None:
    place = MemoryPlace()
    log, jobs = begin(place)
    for part in (0, 1):  # one file each, of which none may be missing
        submit(log, jobs, range(part * PART_ROWS, part * PART_ROWS + 2))
    finish(jobs, range(2))
    log.save(jobs, [0, 1])
    assert jobs.close_parts() == [0]
    totals = jobs.totals()

    handed = log.handover([1])
    log, jobs = RunLog(place, log.attempt, clock), Jobs(PLAN, jobs.writer, stores=True, closed=jobs.closed)
    log.take(jobs, place.get(log.resume(jobs, handed)))
    [(_, files)] = read_parts(place, PLAN, {jobs.writer}, only=[0])
    jobs.reopen(0, *files)
    log.reopen(files)
    assert jobs.totals() == totals
    [job] = jobs.table.rows[1].jobs
    jobs.end(job.id, JobState.INVALID, why="its outputs are gone")
    log.save(jobs, jobs.unsaved_parts)
    log.note()
    after = read(place)
    assert after.table.job(job.id).state is JobState.INVALID
    assert len(after.table.rows) == 4


# --- what it costs ---

BLOCK = 16


def lead(place: MemoryPlace, count: int, *, in_flight: int, ended_at_once: int) -> list[Counter[str]]:
    """Run so many inputs in waves, and return the requests of each wave."""
    log, jobs = begin(place)
    waves: list[Counter[str]] = []
    sent = ended = 0
    while ended < count:
        before, written = Counter(place.counts), place.written
        while sent < count and sent - ended < in_flight:
            block = range(sent, min(sent + BLOCK, count))
            submit(log, jobs, block)
            sent = block.stop
        # a queue, with a slow job here and there
        running = [jobs.table.input_of[each] for each in jobs.running]
        slow = set(running[: ended_at_once + 20 : ended_at_once // 20])
        some = [each for each in running[:ended_at_once] if each not in slow] if sent < count else running
        for number in some:
            finish(jobs, range(number, number + 1))
        ended += len(some)
        log.save(jobs, jobs.unsaved_parts)
        jobs.close_parts()
        parts = sorted({number // PART_ROWS for number in jobs.table.rows})
        handed, inputs = log.handover(parts), list(jobs.table.rows)
        log, jobs = (
            RunLog(place, log.attempt, clock),
            Jobs(PLAN, jobs.writer, stores=True, closed=jobs.closed),
        )
        log.take(jobs, place.get(log.resume(jobs, handed)))
        jobs.load(inputs)
        waves.append(Counter(place.counts) - before + Counter(written=place.written - written))
    assert jobs.totals().completed == count
    return waves


def test_a_wave_costs_what_is_open_and_its_new_part() -> None:
    small, large = (lead(MemoryPlace(), count, in_flight=200, ended_at_once=100) for count in (2_000, 6_000))
    middle, late = small[len(small) // 2], large[-len(large) // 4]
    assert large[-1]["written"] < 2 * small[-1]["written"]
    for kind in ("put", "get", "list", "written"):
        assert late[kind] <= 1.2 * middle[kind], kind


@pytest.mark.parametrize("ended_at_once", [100, 500])
def test_all_waves_write_no_more_than_twice_the_plan(ended_at_once: int) -> None:
    count, row = 6_000, 200
    place = MemoryPlace()
    lead(place, count, in_flight=1_000, ended_at_once=ended_at_once)
    # with the plan itself, three times
    assert place.written <= 2 * count * row


def test_a_retry_reads_many_parts_at_a_time() -> None:
    place = MemoryPlace()
    log, jobs = begin(place)
    numbers = range(0, 100 * PART_ROWS, PART_ROWS)
    jobs.load(numbers)
    announce(log, jobs, numbers)
    place.asked.clear()
    assert read(place).inputs(InputState.UNKNOWN) == list(numbers)
    # the record of the attempt, and the parts
    assert place.asked == [1, 64, 36]
