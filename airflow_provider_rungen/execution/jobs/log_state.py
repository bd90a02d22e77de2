"""Read dropped parts of a task run again, and keep the others over a deferral."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.execution.jobs.places import MemoryPlace
from airflow_provider_rungen.execution.jobs.plans import Plan
from airflow_provider_rungen.execution.sending.log_writer import Saver
from airflow_provider_rungen.runs.attempt_record import AttemptRecord
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog, missing_part
from airflow_provider_rungen.runs.rows import Row, Totals

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.task_log import TaskLog

# So many parts are read back at a time.
_PARTS_AT_A_TIME = 64
# Seconds that the last saves may take.
_END_TIME = 30.0


def rows_of(task_log: TaskLog, parts: Iterable[int]) -> Iterator[tuple[int, Row]]:
    """
    Yield what is known of the inputs of parts, in order. What was dropped is read again.

    :raises DamagedLogError: nothing is there any more of a part that was dropped.
    """
    open_parts, parts = task_log.open_parts, iter(parts)
    while some := list(islice(parts, _PARTS_AT_A_TIME)):
        closed = [part for part in some if part not in open_parts]
        known = Jobs(
            task_log.jobs.plan, task_log.jobs.writer, since=task_log.jobs.since, stores=task_log.stores
        )
        if closed:
            also = [task_log.jobs.writer]
            for _, files in task_log.home.read_parts(known.plan, set(closed), also=also):
                known.load((), *files)
        for part in some:
            if part in open_parts:
                yield from task_log.jobs.table.part(part)
                continue
            rows = list(known.table.part(part))
            # what is done has a job, or was refused
            if not rows and part in task_log.loaded and task_log.plan.numbers(part):
                raise missing_part(known.plan, part)
            yield from rows


def keep_state(task_log: TaskLog, is_stopping: Callable[[], bool]) -> dict[str, Any]:
    """
    Return what `restore_state` needs: what could not be saved, too.

    :param is_stopping: returns whether to wait for the log no longer.
    """
    jobs, run_log = task_log.jobs, task_log.run_log
    # after the deferral, only the files of this attempt are read
    due = {*jobs.unsaved_parts, *run_log.missing(jobs, task_log.open_parts)}
    task_log.saver.save(sorted(due), within=_END_TIME, is_stopping=is_stopping)
    jobs.close_parts()
    parts = sorted(task_log.open_parts)
    unsaved = sorted({*jobs.unsaved_parts, *run_log.missing(jobs, parts)})
    # one part is short, and so no outage can hide it
    carried = run_log.snapshots(jobs, parts if task_log.part_count == 1 else unsaved)
    resumed = [record for record in task_log.home.earlier if record.turn >= jobs.since]
    return {
        "attempt": str(jobs.writer),
        "resumes": [str(record.writer) for record in resumed],
        "record": asdict(run_log.attempt),
        "earlier": [asdict(each) for each in task_log.home.earlier],
        "log": run_log.handover(parts, carried.values()),
        "unsaved": unsaved,
        "closed": asdict(jobs.closed),
        "parts": parts,
        "loaded": sorted(task_log.loaded.difference(range(task_log.next_part))),
        "next_part": task_log.next_part,
        "rows": task_log.plan.count,
        "count": task_log.count,
        "deadline": task_log.deadline,
        "has_inputs": task_log.has_inputs,
        "has_unsent": task_log.has_unsent,
        "has_stopped": task_log.has_stopped,
        "memory": task_log.home.place.to_json() if isinstance(task_log.home.place, MemoryPlace) else None,
    }


def restore_state(task_log: TaskLog, state: Mapping[str, Any]) -> None:
    """
    Restore the jobs after a deferral.

    :param state: what `keep_state` returned.
    :raises DamagedLogError: the log is not as this attempt left it.
    """
    record, *task_log.home.earlier = map(AttemptRecord.of_fields, [state["record"], *state["earlier"]])
    if state["memory"] is not None:
        task_log.home.place = MemoryPlace(state["memory"])
    closed = Totals(**state["closed"])
    task_log.jobs = Jobs(
        record.plan, record.writer, since=record.since, stores=task_log.stores, closed=closed
    )
    task_log.known_saver = Saver(task_log.jobs, RunLog(task_log.home.place, record, clock=time.time))
    task_log.plan = Plan.unread(record.plan, state["rows"])
    task_log.count, task_log.deadline = state["count"], state["deadline"]
    task_log.has_inputs, task_log.has_stopped = state["has_inputs"], state["has_stopped"]
    task_log.next_part = state["next_part"]
    task_log.loaded = {*range(task_log.next_part), *state["loaded"]}
    task_log.run_log.take_over(task_log.jobs, state["log"], state["unsaved"])
