"""The ``scaled_app`` blocks of a DAG: what they did to an app, and which of them need it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import TaskInstanceState, XCom
from airflow_provider_rungen.client.daemon_threads import batches, begin
from airflow_provider_rungen.client.texts import format_count
from airflow_provider_rungen.client.workers import ScaleRecord, WorkerHistory
from airflow_provider_rungen.exceptions import RunGenAppError
from airflow_provider_rungen.execution.task.attempts import (
    Place,
    asked_of,
    find_states,
    is_timing_out,
    states_in_run,
    teardowns,
)
from airflow_provider_rungen.execution.task.store_writer import reason_of
from airflow_provider_rungen.execution.task.xcom_keys import SCALED_KEY
from airflow_provider_rungen.runs import records

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
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
# Seconds that Airflow may fail or hang when it is asked again: meanwhile an app may be billed.
_ASK_AGAIN_TIME = 10.0
# The states of a setup that has not run, at least since it was cleared.
_NOT_STARTED = (
    None,
    TaskInstanceState.SKIPPED,
    TaskInstanceState.UPSTREAM_FAILED,
    TaskInstanceState.REMOVED,
)


@dataclass(frozen=True, slots=True)
class Block:
    """
    A block of the DAG, as a trigger can take it along.

    :param up: the task id of its setup.
    :param down: that of its teardown.
    :param jobs: those of the tasks whose jobs are on its bill.
    :param is_mapped: whether it is in a mapped task group.
    """

    up: str
    down: str
    jobs: tuple[str, ...]
    is_mapped: bool


def blocks_of(context: Context) -> list[Block]:
    """Return the blocks of the DAG."""
    return [
        Block(
            down.scale_up_task_id,
            down.task_id,
            tuple(down.jobs_of),
            down.get_closest_mapped_task_group() is not None,
        )
        for down in teardowns(context)
    ]


# --- what was done to the app ---


def read_scale_record(value: Any) -> ScaleRecord | None:
    """Return the record of a stored value; ``None``, with a warning, when it is not one."""
    return records.parse(SCALED_KEY, value, _read_record, "it is unknown how many workers the app had")


def _read_record(fields: Mapping[str, Any]) -> ScaleRecord:
    numbers = {name: fields[name] for name in ("active_workers", "before")}
    sent_at, clear_number = fields["sent_at"], fields["clear_number"]
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
        clear_number=None if clear_number is None else records.count(clear_number, "clear_number"),
    )


# --- who scales an app down ---


def check_teardown(run: TaskRun[Any], down: str, app_id: str) -> None:
    """
    Check that what is scaled up will be scaled down. A clear of what failed only leaves the teardown out.

    :param run: the attempt of the setup.
    :param down: the teardown.
    :raises RunGenAppError: it runs, or has ended.
    :raises Exception: Airflow failed or hung for too long.
    """
    ask = partial(states_in_run, run.ti, down)
    states = run.guard.call_patiently(f"ask whether {down} is to come", ask)
    if states and not any(map(is_to_come, states)):
        raise RunGenAppError(
            f"Nothing would scale the app down: {down} runs or has ended",
            app_id=app_id,
            hint=f"Clear {run.task.task_id} with its downstream tasks, and not only failed ones",
            retryable=False,
        )


def is_to_come(state: str | None) -> bool:
    """Return whether a teardown in this state will still run."""
    return state in _TO_COME


def has_started(state: str | None) -> bool:
    """Return whether a setup in this state has run, or may have. Its XComs may be of before a clear."""
    return state not in _NOT_STARTED


def decide(ti: Any, blocks: Collection[Block], app_id: str) -> tuple[str, Needs]:
    """
    Find out who undoes what a setup did that is killed: its teardown, if that is still to come.

    Otherwise the setup does, down to the workers that others need.

    :param ti: the ``ti`` of a context, or the ``task_instance`` of a trigger. It blocks.
    :return: the teardown that is to come, if any; and otherwise what others need.
    """
    down = find_teardown(ti, blocks)
    return down, Needs() if down else find_needs(ti, blocks, app_id)


def decide_in_time(run: TaskRun[Any], blocks: Collection[Block], app_id: str) -> tuple[str, Needs]:
    """
    Find out for a setup that ends who undoes what it did, and what others need: see `decide`.

    Without an answer, it does itself. One that fails does not leave the app to its teardown, before which
    retries and their delays may come.
    """
    try:
        if not run.guard.is_killed and not is_timing_out():
            return "", ask_needs(run, app_id)
        # the other half of the time is for the service
        return begin(decide, run.ti, blocks, app_id).result(run.guard.time_left() / 2)
    except Exception as error:
        log.warning("Could not ask who else needs app %s: %s", app_id, type(error).__name__)
        return "", Needs()


def find_teardown(ti: Any, blocks: Iterable[Block]) -> str:
    """Return the teardown of the block that a setup begins if that is to come; otherwise nothing."""
    downs = (block.down for block in blocks if block.up == ti.task_id)
    return next((down for down in downs if any(map(is_to_come, states_in_run(ti, down)))), "")


class Needs(dict[str, int]):
    """How many workers of an app other blocks have up, by the teardown that will scale them down."""

    @property
    def workers(self) -> int:
        """The number that the app has to keep."""
        return max(self.values(), default=0)

    def warn(self, app_id: str, has: int | None = None) -> None:
        """
        Log who scales the app down.

        :param has: how many workers it keeps, if these are not only the needed ones.
        """
        if self:
            others, workers = " or ".join(self), format_count(self.workers if has is None else has, "worker")
            line = "STILL BILLED: app %s keeps %s until %s scales it down"
            log.warning(
                line if has != 0 else "App %s has %s, which is too few for %s", app_id, workers, others
            )


def ask_needs(run: TaskRun[Any], app_id: str, within: float = math.inf) -> Needs:
    """
    Find out for a setup or teardown which other blocks need the app: see `find_needs`.

    :param within: see `KillGuard.call_patiently`.
    :raises Exception: Airflow failed or hung for too long.
    """
    ask = partial(find_needs, run.ti, blocks_of(run.context), app_id)
    return run.guard.call_patiently("ask who else needs the app", ask, within)


def asking(
    run: TaskRun[Any], app_id: str, needs: Needs, own: int = 0, number: int | None = None
) -> Callable[[], int]:
    """
    Return a function that asks once more, and returns how many workers the app is to have by then.

    What others need may change while a request is on its way. Without an answer, nothing has.

    :param needs: what they needed before; it is kept up to date.
    :param own: how many the task itself needs.
    :param number: how many the app was to have before, if it is not what others needed.
    """
    last = needs.workers if number is None else number

    def ask() -> int:
        nonlocal last
        try:
            found = ask_needs(run, app_id, _ASK_AGAIN_TIME)
        except Exception as error:
            if run.guard.is_killed:
                raise
            log.warning("%s; a run that has begun meanwhile may lack workers", reason_of(error))
            return last
        wanted = max(own, found.workers)
        if found.workers > own and (found != needs or wanted != last):
            found.warn(app_id)
        needs.clear()
        needs.update(found)
        last = wanted
        return wanted

    return ask


def find_needs(ti: Any, blocks: Collection[Block], app_id: str) -> Needs:
    """
    Find the other blocks of the DAG, in any of its runs, that have the app up, and will scale it down.

    Blocks of mapped task groups see each other at the same map index only.

    :param ti: that of a block's setup or teardown: see `decide`.
    """
    needs = Needs()
    if not blocks:
        return needs
    airflow = asked_of(ti)
    count = partial(airflow.get_dr_count, dag_id=ti.dag_id, states=["running"])
    run_ids = [ti.run_id] if count() == count(run_ids=[ti.run_id]) else None
    for block in blocks:
        ends = _find_states(ti, block, (block.up, block.down), run_ids)
        is_own = ti.task_id in (block.up, block.down)
        # a block that scales down right now decides like this one does: both do
        to_come = [
            place
            for place, states in ends.items()
            if block.down in states
            and is_to_come(states[block.down])
            and not (is_own and place.run_id == ti.run_id)
        ]
        # most runs of a backlog have not begun, and each record is a call
        idle = {place for place in to_come if not has_started(ends[place].get(block.up, ""))}
        for place in sorted({*to_come} - idle | _at_work(ti, block, idle)):
            record = pull_record(ti, block.up, place.map_index, run_id=place.run_id)
            workers = record.active_workers if record and record.app_id == app_id else None
            if workers and airflow.get_dagrun_state(ti.dag_id, place.run_id) == "running":
                name = f"{block.down} of run {place.run_id}"
                needs[name] = max(workers, needs.get(name, 0))
    return needs


def _at_work(ti: Any, block: Block, places: Collection[Place]) -> set[Place]:
    """
    Return where a job of the block runs, of these places: a clear may leave out tasks that need the app.

    The jobs of a block that is not mapped itself may be.
    """
    found = set[Place]()
    run_ids = dict.fromkeys(place.run_id for place in places)
    for some in batches(run_ids if block.jobs else (), _RUNS_AT_ONCE, len, _MOST_TEXT):
        for place, states in _find_states(ti, block, block.jobs, some).items():
            if not _AT_WORK.isdisjoint(states.values()):
                found.add(place if block.is_mapped else Place(place.run_id, -1))
    return found.intersection(places)


def _find_states(
    ti: Any, block: Block, task_ids: Collection[str], run_ids: Collection[str] | None
) -> Mapping[Place, Mapping[str, str | None]]:
    """Return the states of tasks of a block; if that is mapped, as the task that asks is, at its index."""
    # None is a task in a loop of Airflow 3.4 that is not mapped
    map_index = ti.map_index if block.is_mapped or ti.map_index is None else -1
    return find_states(ti, task_ids, run_ids, map_index)


def pull_record(ti: Any, up: str, map_index: int | None, **of_run: str) -> ScaleRecord | None:
    """Return what the setup of a run has done; of this one if no ``run_id`` is given."""
    if hasattr(ti, "xcom_pull"):
        value = ti.xcom_pull(task_ids=up, key=SCALED_KEY, map_indexes=map_index, **of_run)
    else:  # in a trigger
        which = {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": up, "map_index": map_index}
        value = XCom.get_one(key=SCALED_KEY, **(which | of_run))
    return read_scale_record(value)
