"""The ``scaled_app`` blocks of a DAG: what they did to an app, which of them need it, and what that cost."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import TaskInstanceState, metrics
from airflow_provider_rungen.client.daemon_threads import batches
from airflow_provider_rungen.client.money import Price
from airflow_provider_rungen.client.texts import format_count, format_duration
from airflow_provider_rungen.client.workers import ScaleRecord, WorkerHistory
from airflow_provider_rungen.execution.task.attempts import teardowns
from airflow_provider_rungen.execution.task.xcom_keys import SCALED_KEY, USAGE_KEY
from airflow_provider_rungen.runs import records

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.execution.table.result_rows import ResultRow
    from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)

# The states of a teardown that is still to run.
_TO_COME = (
    None,
    TaskInstanceState.SCHEDULED,
    TaskInstanceState.QUEUED,
    TaskInstanceState.UP_FOR_RETRY,
    TaskInstanceState.RESTARTING,  # it was cleared while it ran
)
_AT_WORK = frozenset((TaskInstanceState.RUNNING, TaskInstanceState.DEFERRED))
# Of how many runs Airflow is asked for the states of all tasks at once: they may be mapped.
_RUNS_AT_ONCE = 100
# The characters of their ids, which are in a URL.
_MOST_TEXT = 3000
# The states of a setup that has not run, at least since it was cleared.
_NOT_STARTED = (
    None,
    TaskInstanceState.SKIPPED,
    TaskInstanceState.UPSTREAM_FAILED,
    TaskInstanceState.REMOVED,
)
_SOURCE = "declared price"
_MILLISECOND = Decimal("0.001")
# The digits of a share and of a cost in a bill, and of the column ``cost``.
_PLACES = Decimal("0.0001")
_COST = Decimal("0.00000001")


# --- what was done to the app ---


def read_scale_record(value: Any) -> ScaleRecord | None:
    """Return the record of a stored value; ``None``, with a warning, when it is not one."""
    return records.parse(SCALED_KEY, value, _read_record, "it is unknown how many workers the app had")


def _read_record(fields: Mapping[str, Any]) -> ScaleRecord:
    numbers = {name: fields[name] for name in ("active_workers", "before")}
    sent_at = fields["sent_at"]
    changes = [
        (records.seconds(change["at"], "at"), records.count(change["workers"], "workers"))
        for change in fields["changes"]
    ]
    return ScaleRecord(
        app_id=records.identifier(fields["app_id"], "app_id"),
        **{name: None if each is None else records.count(each, name) for name, each in numbers.items()},
        sent_at=None if sent_at is None else records.seconds(sent_at, "sent_at"),
        # two changes at one time stay in their order
        history=WorkerHistory(tuple(sorted(changes, key=itemgetter(0)))),
        was_cleared=fields.get("was_cleared") is True,
    )


def is_needed(run: TaskRun[Any], app_id: str) -> bool:
    """
    Return whether another block of the DAG, in any of its runs, has the app up, and will scale it down.

    :param run: the attempt of the setup or teardown that asks.
    :raises Exception: Airflow failed or hung for too long.
    """
    ask = partial(_is_needed, run.context, app_id)
    return run.guard.call_patiently("ask whether another run needs the app", ask)


def _is_needed(context: Context, app_id: str) -> bool:
    ti: Any = context["ti"]
    if not hasattr(ti, "get_task_states"):
        return False
    is_alone = ti.get_dr_count(dag_id=ti.dag_id, states=["running"]) < 2
    runs: dict[str, Any] = {"run_ids": [ti.run_id]} if is_alone else {}
    others = []
    for down in teardowns(context):
        down_id, setup, at = down.task_id, down.scale_up_task_id, ti.map_index
        if at is not None and down.get_closest_mapped_task_group() is None:
            at = -1  # it may be around the mapped task group of the one that asks
        states_of = task_states(ti, [down_id, setup], at, **runs)
        # a block that scales down right now decides like this one does: both do
        to_come = {
            run_id: states.get(setup, "")
            for run_id, states in states_of.items()
            if down_id in states and states[down_id] in _TO_COME
        }
        if ti.task_id in (down_id, setup):
            to_come.pop(ti.run_id, None)
        # most runs of a backlog have not begun, and each record is a call
        unstarted = [run_id for run_id, state in to_come.items() if not has_started(state)]
        needing = (to_come.keys() - unstarted) | _at_work(ti, down.jobs_of, unstarted, at)
        for run_id in sorted(needing):
            record = pull_record(ti, setup, at, run_id=run_id)
            is_up = record and record.app_id == app_id and record.active_workers
            if is_up and ti.get_dagrun_state(ti.dag_id, run_id) == "running":
                others.append(f"{down_id} of run {run_id}")
    if others:
        line = "STILL BILLED: app %s stays up until %s scales it down"
        log.warning(line, app_id, " or ".join(others))
    return bool(others)


def _at_work(ti: Any, task_ids: Collection[str], run_ids: Iterable[str], map_index: int | None) -> set[str]:
    """
    Return the runs in which any of these tasks runs: a clear may leave out tasks that still need the app.

    A block that is not mapped itself is asked for the tasks at any map index.
    """
    found: dict[str, dict[str, str | None]] = {}
    for some in batches(run_ids if task_ids else (), _RUNS_AT_ONCE, len, _MOST_TEXT):
        of_runs = {"dag_id": ti.dag_id, "run_ids": some, "map_index": map_index}
        found |= ti.get_task_states(task_ids=list(task_ids), **of_runs)
    return {run_id for run_id, states in found.items() if not _AT_WORK.isdisjoint(states.values())}


def has_started(state: str | None) -> bool:
    """Return whether a setup in this state has run, or may have. Its XComs may be of before a clear."""
    return state not in _NOT_STARTED


def pull_record(ti: Any, scale_up_task_id: str, map_index: int | None, **of_run: str) -> ScaleRecord | None:
    """Return what the setup of a run has done."""
    pulled = ti.xcom_pull(task_ids=scale_up_task_id, key=SCALED_KEY, map_indexes=map_index, **of_run)
    return read_scale_record(pulled)


def task_states(
    ti: Any, task_ids: list[str], map_index: int | None, **of_runs: Any
) -> dict[str, dict[str, str | None]]:
    """Return the states of tasks at a map index, by run."""
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=task_ids, map_index=map_index, **of_runs)
    # None is a task in a loop of Airflow 3.4 that is not mapped
    suffix = "" if map_index is None or map_index < 0 else f"_{map_index}"
    return {
        run_id: {task_id: known[task_id + suffix] for task_id in task_ids if task_id + suffix in known}
        for run_id, known in states.items()
    }


# --- the bill ---


@dataclass(frozen=True, slots=True)
class Bill:
    """
    What the workers of an app cost while a block had them.

    :param app_id: the app.
    :param history: the workers that it had.
    :param until: the time (seconds since 1970) of the bill.
    :param is_final: whether the app was scaled down.
    :param jobs: how many jobs the tasks of the block report, if they do.
    :param busy_seconds: how long these ran, where the service reports it.
    :param price: the declared price of a worker.
    """

    app_id: str
    history: WorkerHistory
    until: float
    is_final: bool
    jobs: int | None
    busy_seconds: Decimal | None
    price: Price | None

    @property
    def worker_seconds(self) -> Decimal:
        """The number of workers times the seconds that the app had it."""
        return Decimal(self.history.worker_seconds(self.until)).quantize(_MILLISECOND)

    @property
    def utilization(self) -> Decimal | None:
        """The share of the paid time in which jobs of the block ran."""
        busy, paid = self.busy_seconds, self.worker_seconds
        return None if busy is None or not paid else (busy / paid).quantize(_PLACES)

    @property
    def cost(self) -> Decimal | None:
        """What it costs at the declared price."""
        return None if self.price is None else self.price.cost(self.worker_seconds, _PLACES)

    def to_json(self) -> dict[str, Any]:
        """Return the bill as plain data: decimals and times are text."""
        price = self.price
        return {
            "app_id": self.app_id,
            "worker_seconds": str(self.worker_seconds),
            "busy_seconds": _text(self.busy_seconds),
            "utilization": _text(self.utilization),
            "jobs": self.jobs,
            "up_at": _time(self.history.up_at),
            "down_at": _time(self.history.down_at) if self.is_final else None,
            "price": _text(price),
            "cost": _text(self.cost),
            "currency": price and price.currency,
            "source": price and _SOURCE,
        }

    def __str__(self) -> str:
        """Return the bill as one line for people."""
        numbers = {workers for _, workers in self.history.changes if workers}
        parts = ["no workers"]
        if numbers:
            workers = f"{'' if len(numbers) == 1 else 'up to '}{format_count(max(numbers), 'worker')}"
            up_for = format_duration(self.history.seconds_up(self.until))
            parts = [f"{workers} for {up_for} ({self.worker_seconds:,.0f} worker seconds)"]
        if self.utilization is not None:
            parts.append(f"{self.utilization:.0%} busy with {self.jobs} jobs".replace("%", " %"))
        if (cost := self.cost) is not None and self.price is not None:
            amount = f"about {cost:.2f}" if cost >= Decimal("0.005") or not cost else "less than 0.01"
            parts.append(f"{amount} {self.price.currency} ({_SOURCE})")
        return f"Bill of app {self.app_id}{'' if self.is_final else ' so far'}: {', '.join(parts)}"

    def send_metrics(self) -> None:
        """Count what was paid for, through Airflow's metrics."""
        metrics.incr("bill.worker_seconds", round(self.worker_seconds))
        metrics.incr("bill.busy_seconds", round(self.busy_seconds or 0))
        if self.price is not None:
            metrics.incr(f"bill.cost.{self.price.currency.lower()}", round(1000 * (self.cost or 0)))


def read_usage(ti: Any, jobs_of: Mapping[str, Sequence[str]]) -> tuple[int | None, Decimal | None]:
    """
    Return how many jobs the tasks of a block report, and how long these ran, as far as they do.

    :param jobs_of: for each task that runs, collects or waits for jobs, the tasks that run them.
    """
    jobs, seconds, reused = (defaultdict[str, Decimal](Decimal) for _ in range(3))
    for task_id in jobs_of:
        for report in _pull_reports(ti, task_id):
            jobs[task_id] += Decimal(report["jobs"])
            reused[task_id] += Decimal(report.get("reused", 0))
            if (ran := report["execution_seconds"]) is not None:
                seconds[task_id] += Decimal(str(ran))
    if not jobs:
        return None, None
    own = {task_id: (jobs[task_id], seconds[task_id]) for task_id in [*jobs] if task_id in seconds}
    for task_id, count in jobs.items():  # who waits for jobs does not know which were reused
        for each in jobs_of[task_id]:
            if each == task_id or not (theirs := min(reused[each], jobs[task_id])):
                continue
            if task_id in seconds:  # they are taken to have run like those that were bought
                bought, ran = own.get(each, (Decimal(), Decimal()))
                mean = ran / bought if bought else own[task_id][1] / count
                seconds[task_id] = max(seconds[task_id] - theirs * mean, Decimal())
            jobs[task_id] -= theirs
    known = [task_id for task_id, count in reused.items() if count]
    count, busy = _count_once(jobs, jobs_of, known), _count_once(seconds, jobs_of, known)
    # a task without jobs knows nothing about those of others
    is_known = busy or (seconds and not count)
    return int(count), busy.quantize(_MILLISECOND) if is_known else None


def _count_once(
    reported: Mapping[str, Decimal], jobs_of: Mapping[str, Sequence[str]], known: Collection[str]
) -> Decimal:
    """
    Return the sum of what tasks report. Of what several report about the same jobs, the most counts.

    :param known: the tasks whose own report counts, whatever others say.
    """
    counts: dict[str, Decimal] = defaultdict(Decimal)
    # first those that are about the jobs of one task
    for task_id in sorted(reported, key=lambda each: len(jobs_of[each])):
        settled = {each for each in known if each in reported and each != task_id}
        first = next((each for each in jobs_of[task_id] if each not in settled), None)
        if first is not None:
            of_others = sum(counts[each] for each in jobs_of[task_id] if each != first)
            counts[first] = max(counts[first], reported[task_id] - of_others)
    return sum(counts.values(), Decimal())


def _pull_reports(ti: Any, task_id: str) -> list[Mapping[str, Any]]:
    # in a mapped task group, of the same index only; elsewhere, all indexes of a mapped task
    index = {"map_indexes": ti.map_index} if ti.map_index is not None and ti.map_index >= 0 else {}
    pulled = ti.xcom_pull(task_ids=[task_id], key=USAGE_KEY, **index)
    # the first releases of Airflow 3.0 unpack the only one
    reports = [pulled] if isinstance(pulled, Mapping | str) else pulled or []
    # that of a task which ended in the triggerer may be text
    reports = [json.loads(report) if isinstance(report, str) else report for report in reports]
    return [report for report in reports if isinstance(report, Mapping)]


# --- rows ---


def add_costs(rows: Iterable[ResultRow], price: Price | None) -> Iterator[ResultRow]:
    """Yield rows with their costs, as far as it is known how long their jobs ran."""
    for row in rows:
        seconds = row.execution_seconds
        if price is None or seconds is None:
            yield row
        else:
            yield replace(row, cost=price.cost(Decimal(str(seconds)), _COST))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
