"""Why a task failed, and what it costs, for its page."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

from airflow_provider_rungen.client.money import Cost, parse_price
from airflow_provider_rungen.client.texts import format_count, format_duration
from airflow_provider_rungen.client.workers import workers_of
from airflow_provider_rungen.execution.apps.block import read_scale_record
from airflow_provider_rungen.pages.models import Facts
from airflow_provider_rungen.plugins.gather import Gathering
from airflow_provider_rungen.plugins.rows import PageRows
from airflow_provider_rungen.plugins.task_record import FailureXCom, TaskRecord
from airflow_provider_rungen.runs.attempt_record import End

_LOST = (
    "The last attempt did not record its end: a user marked it while it was deferred, it was killed, or its"
    " worker was lost."
)
_LOST_ADVICE = "A retry uses the jobs that it submitted, and so does a clear of a table"
_NO_REASON = (
    "The task did not report why: a user marked it, its worker was lost, or it failed before it began"
    " (see its log)."
)
# The states of a task that is still to begin, or to begin again.
_NOT_BEGUN = ("", "scheduled", "queued")
#: The states in which an attempt has failed, and none runs.
FAILED_STATES = ("failed", "up_for_retry")
CENTS = Decimal("0.01")
#: The digits of the cost of a job, as in results tables.
JOB_DIGITS = Decimal("0.00000001")


class Trouble(NamedTuple):
    """
    Why a task failed.

    :param failure: what the attempt reported, or what is known without it.
    :param is_reported: whether the attempt reported it.
    :param may_run: the jobs that may still run.
    """

    failure: FailureXCom
    is_reported: bool
    may_run: Sequence[str]


def trouble_of(task: TaskRecord, jobs: PageRows) -> Trouble | None:
    """Return why the last attempt that ended failed, if the task has not succeeded since."""
    pushed, attempt = task.failure, jobs.attempt
    if task.is_successful:
        return None
    if task.state not in FAILED_STATES or (pushed and pushed.try_number >= task.try_number):
        return Trouble(pushed, is_reported=True, may_run=pushed.still_billing) if pushed else None
    is_lost = attempt is not None and attempt.end is End.UNKNOWN and not jobs.has_end
    error = _LOST if is_lost else _NO_REASON
    if pushed and not is_lost:
        error = f"{error} Attempt {pushed.try_number} failed: {pushed.error}"
    failure = FailureXCom(try_number=task.try_number, error=error, hint=_LOST_ADVICE if is_lost else "")
    return Trouble(failure, is_reported=False, may_run=jobs.open_jobs)


def outlook(task: TaskRecord, jobs: PageRows, trouble: Trouble) -> Facts:
    """Return what an attempt that failed spent, and what the next one submits, in words."""
    failure = trouble.failure
    if task.state not in FAILED_STATES:
        return ()
    if (trouble.is_reported and failure.inputs is None) or task.submits_nothing:
        return [("A retry or a clear submits", "no jobs")] if task.runs_jobs else ()
    labels = [("The retry submits", failure.retry_submits)] if task.state == "up_for_retry" else []
    labels += [("A clear submits", failure.clear_submits)]
    inputs = failure.inputs if trouble.is_reported else None
    most = jobs.total or task.page.rows
    is_first = trouble.is_reported and not inputs and failure.try_number == 1 and not most
    return [
        ("Spent", _spent(task, jobs, trouble)),
        *((label, "all inputs" if is_first else share(count, inputs, most)) for label, count in labels),
    ]


def what_a_clear_submits(task: TaskRecord, jobs: PageRows) -> str:
    """Return what a clear of a task submits, in words; empty if it submits nothing, whatever happens."""
    failure, most = task.failure, jobs.total or task.page.rows
    if task.submits_nothing:
        return ""
    if failure and task.state in FAILED_STATES and failure.try_number >= task.try_number:
        return share(failure.clear_submits, failure.inputs, most)
    return share(0, None, most)


def share(count: int, inputs: int | None, most: int) -> str:
    """
    Return how many inputs are submitted again, in words.

    :param inputs: how many there are; nothing if the attempt did not say what follows.
    :param most: how many rows there are, as far as that is known.
    """
    if not inputs:
        return f"unknown, up to all {most:,} inputs" if most > 1 else "unknown, up to all inputs"
    if not count:
        return "nothing"
    if inputs == 1:
        return "the job again"
    return f"all {inputs:,} inputs" if count >= inputs else f"{count:,} of {inputs:,} inputs"


def _spent(task: TaskRecord, jobs: PageRows, trouble: Trouble) -> str:
    """Return what all attempts submitted, and what that costs."""
    totals, used = jobs.totals, task.usage.get("jobs")
    # with a destination, an earlier run may have paid for what was pushed
    pushed = {each for each in task.known_job_ids if each} if not task.log else ()
    count = max(used if isinstance(used, int) else 0, totals.submitted, len(pushed))
    doubt = max(totals.unknown, trouble.failure.unknown)
    attempt = jobs.attempt
    is_known = isinstance(used, int) or bool(
        jobs.has_end and attempt and attempt.try_number >= task.try_number
    )
    if trouble.is_reported and not trouble.failure.inputs and trouble.failure.try_number == 1 and not count:
        is_known = True  # it did not get that far
    if not count and is_known and not doubt:
        return "nothing: no job was submitted"
    more = f"up to {format_count(doubt, 'more job')} whose ids are not known" if doubt else ""
    if not count:
        most = jobs.total or task.page.rows
        some = f"unknown, up to {format_count(most, 'job')}" if most else "unknown"
        return more.replace(" more", "") or some
    begin = "" if is_known and not doubt else "at least "
    return ", ".join(filter(None, [begin + format_count(count, "job"), more, *_work(task, jobs, count)]))


def _work(task: TaskRecord, jobs: PageRows, count: int) -> Iterator[str]:
    """Yield how long the jobs ran, and what that costs, as far as it is known."""
    seconds, timed, _ = worked(task, jobs)
    if not seconds:
        return
    least = "" if timed >= count else "at least "
    rest = _untimed(count - timed)
    text = f"{least}{format_duration(seconds)} of execution"
    paid = cost_text(task.page.price, seconds)
    if least and paid:
        paid = "" if paid.startswith("below") else paid.replace("about ", least)
    yield f"{text}: {paid}{rest}" if paid else f"{text}{rest}"


def _untimed(count: int) -> str:
    """Return what a sum lacks, in words: canceled jobs have no time in the run log."""
    return f" without {format_count(count, 'job')} whose time is not known" if count > 0 else ""


def worked(
    task: TaskRecord, jobs: PageRows, times: Mapping[str, float] = MappingProxyType({})
) -> tuple[float, int, int]:
    """
    Return how long the jobs of all attempts ran, of how many that is known, and how many there are.

    :param times: how long jobs ran, as far as other tasks know it.
    """
    ran = (times.get(job_id, seconds) for job_id, seconds in jobs.seconds.items())
    known = [seconds for seconds in ran if seconds is not None]
    seconds, timed, count = max(_logged(jobs), _reported(task), key=itemgetter(2))
    if not (unnamed := max(count - len(jobs.seconds), 0)):
        timed = len(known) if task.times else max(timed, len(known))
        return max(seconds, sum(known)), timed, len(jobs.seconds)
    # of jobs with other inputs, only the sum is known
    named = task.times.values() if jobs.attempt is None else known
    more = min(max(timed - len(named), 0), unnamed)
    return sum(known) + max(seconds - sum(named), 0.0), len(known) + more, len(jobs.seconds) + unnamed


def _logged(jobs: PageRows) -> tuple[float, int, int]:
    """Return what the run log has of what `worked` returns."""
    totals = jobs.totals
    return totals.seconds, totals.timed, totals.submitted + totals.unknown


def _reported(task: TaskRecord) -> tuple[float, int, int]:
    """Return what the XCom ``usage`` has of what `worked` returns."""
    seconds, *counts = (task.usage.get(name) for name in ("execution_seconds", "completed", "jobs"))
    timed, count = (each if isinstance(each, int) else 0 for each in counts)
    # a service need not tell times
    return (seconds, timed, count) if isinstance(seconds, (int, float)) else (0.0, 0, count)


def _estimated(task: TaskRecord, jobs: PageRows, times: Mapping[str, float]) -> dict[str, float]:
    """Return how long jobs ran of which only the sum is known, as if each had run equally long."""
    seconds, timed, _ = _reported(task)
    others = [job_id for job_id in jobs.seconds if job_id not in times]
    known = [times[job_id] for job_id in jobs.seconds if job_id in times]
    count = min(timed - len(known), len(others))
    if count <= 0:
        return {}
    return dict.fromkeys(others[:count], max(seconds - sum(known), 0.0) / count)


def costs_of(tasks: Sequence[tuple[TaskRecord, PageRows]]) -> list[str]:
    """Return what the jobs of tasks cost together, in words, for each currency. No job is paid for twice."""
    amounts, untimed = defaultdict[str, Decimal](Decimal), Counter[str]()
    unpriced, counted = list[Collection[str]](), set[str]()
    submit = [each for each in tasks if each[0].page.jobs is None]
    collect = [each for each in tasks if each[0].page.jobs is not None]
    times = {job_id: ran for _, jobs in tasks for job_id, ran in jobs.seconds.items() if ran is not None}
    # that another run paid for
    shared = {job_id for _, jobs in submit for job_id in jobs.shared}
    shared.difference_update(*(jobs.seconds for _, jobs in submit))
    for task, jobs in collect:
        if not task.times:
            times |= _estimated(task, jobs, times)
    for task, jobs in (*submit, *collect):
        new = jobs.seconds.keys() - counted - shared
        known = [times[job_id] for job_id in new if job_id in times]
        seconds, timed, count = sum(known), len(known), len(new)
        if task.page.jobs is None and count == len(jobs.seconds):
            seconds, timed, count = worked(task, jobs, times)
        if (paid := cost(task.page.price, seconds, JOB_DIGITS)) is None:
            unpriced += [jobs.seconds.keys()] if count else []
            continue
        if count or task.usage or jobs.has_end:
            amounts[paid.currency] += paid.amount
            untimed[paid.currency] += max(count - timed, 0)
        counted |= jobs.seconds.keys()
    without = sum(not ids or not counted.issuperset(ids) for ids in unpriced)
    missing = f", without {format_count(without, 'task')} of unknown price" if without else ""
    return [
        f"at least {amount.quantize(CENTS)} {name}{_untimed(untimed[name])}{missing}"
        if untimed[name]
        else f"{in_cents(Cost(amount, name))}{missing}"
        for name, amount in amounts.items()
    ]


async def billing_of(gathering: Gathering) -> dict[str, Any] | None:
    """Return what the app of a task costs that was scaled up for it, unless it is known to be down."""
    gathering = await gathering.of_block()
    page, now = gathering.task.page, time.time()
    up, down = await gathering.task_of_run(page.up), await gathering.task_of_run(page.down)
    record = read_scale_record(up.scaled) if up else None
    if up is None or record is None or not (record.active_workers or record.was_cleared):
        return None
    down_at = str((down and down.bill.get("down_at")) or "")
    # after a clear, the bill of before stays until the teardown starts again
    if down_at >= datetime.fromtimestamp(record.changed_at, UTC).isoformat(timespec="seconds"):
        return None
    app, changes = await gathering.app(), record.history.changes
    last = changes[-1][1] if changes else record.active_workers or 0
    workers = None if app is None else workers_of(app)
    if not (workers or record.active_workers):
        return None
    begun = None if down is None or down.state in _NOT_BEGUN else down
    is_left = bool(begun and begun.is_successful and begun.bill and not down_at)
    # whom it was left to pays for the rest, and what was before a clear is on no bill
    is_on_bill = bool(changes) and not is_left and up.state not in _NOT_BEGUN
    return {
        "task": gathering.task,
        "workers": workers,
        "last": last,
        "down": down.label if down else page.down,
        "is_left": is_left,  # to another run, or to the jobs on it
        "is_late": bool(begun and not is_left and (begun.failure or begun.bill or not begun.is_moving)),
        "is_retried": bool(begun and begun.is_moving),
        "an_hour": cost(page.price, 3600 * (last if workers is None else workers)),
        "so_far": cost_text(page.price, record.history.worker_seconds(now)) if is_on_bill else "",
    }


def cost(price: str, seconds: Any, digits: Decimal = CENTS) -> Cost | None:
    """Return what these seconds of a worker cost, if both are known."""
    with suppress(ValueError, ArithmeticError):
        known = parse_price(price)
        return Cost(known.cost(Decimal(str(seconds)), digits), known.currency)
    return None


def cost_text(price: str, seconds: Any) -> str:
    """Return the cost of some work in cents, in words; empty if it is not known."""
    paid = cost(price, seconds, JOB_DIGITS)
    return "" if paid is None else in_cents(paid)


def in_cents(paid: Cost) -> str:
    """Return an amount in words. What is less than a cent is not nothing."""
    if 0 < paid.amount < CENTS:
        return f"below {CENTS} {paid.currency}"
    return f"about {paid.amount.quantize(CENTS)} {paid.currency}"
