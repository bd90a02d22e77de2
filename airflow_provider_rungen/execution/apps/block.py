"""The ``scaled_app`` blocks of a DAG: what they did to an app, and which of them need it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_rungen._airflow import TaskInstanceState
from airflow_provider_rungen.client.daemon_threads import batches
from airflow_provider_rungen.client.workers import ScaleRecord, WorkerHistory
from airflow_provider_rungen.exceptions import RunGenAppError
from airflow_provider_rungen.execution.task.attempts import states_in_run, teardowns
from airflow_provider_rungen.execution.task.xcom_keys import BILL_KEY, SCALED_KEY
from airflow_provider_rungen.runs import records

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)

# The states of tasks, by run.
_States: TypeAlias = Mapping[str, Mapping[str, str | None]]

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


def teardown_of(context: Context, task_id: str) -> Any:
    """Return the teardown of the block that a setup begins, if any."""
    return next((down for down in teardowns(context) if down.scale_up_task_id == task_id), None)


def check_teardown(run: TaskRun[Any], app_id: str, wanted: int) -> None:
    """
    Check that what is scaled up will be scaled down. A clear of what failed only leaves the teardown out.

    :param run: the attempt that scales up; in a block, its setup.
    :param wanted: the number of workers.
    :raises RunGenAppError: it runs, or has ended.
    :raises Exception: Airflow failed or hung for too long.
    """
    down = teardown_of(run.context, run.task.task_id)
    if down is None or not wanted:
        return
    ask = partial(state_of, run.context, down.task_id)
    state = run.guard.call_patiently(f"ask whether {down.task_id} is to come", ask)
    if state != "" and not is_to_come(state):
        raise RunGenAppError(
            f"Nothing would scale the app down: {down.task_id} runs or has ended",
            app_id=app_id,
            hint=f"Clear {run.task.task_id} with its downstream tasks, and not only failed ones",
            retryable=False,
        )


def state_of(context: Context, task_id: str) -> str | None:
    """Return the state of a task of this run (at this task's map index); empty if the run has none."""
    ti: Any = context["ti"]
    if hasattr(ti, "get_task_states"):  # Airflow 3
        return next(iter(states_in_run(ti, task_id)), "")
    dag_run: Any = context["dag_run"]
    found = dag_run.get_task_instance(task_id, map_index=ti.map_index)
    return "" if found is None else found.state


def is_to_come(state: str | None) -> bool:
    """Return whether a teardown in this state will still run."""
    return state in _TO_COME


def decides(state: str | None, has_bill: Callable[[], bool]) -> bool:
    """
    Return whether a teardown decides about the app, or has: nobody else has to undo what its setup did.

    :param state: its state; empty if the run has none.
    :param has_bill: returns whether it pushed a bill, as one does that ran, and was not only marked.
    """
    return is_to_come(state) or state == TaskInstanceState.RUNNING or (state != "" and has_bill())


def is_left_to(run: TaskRun[Any], down_id: str) -> bool:
    """Return whether the teardown of a block decides about the app, or has. It asks Airflow once."""
    pull = partial(run.ti.xcom_pull, task_ids=down_id, key=BILL_KEY, map_indexes=run.ti.map_index)
    return decides(state_of(run.context, down_id), lambda: pull() is not None)


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
        setup = down.scale_up_task_id
        for at, states_of in _states_by_index(ti, down, **runs):
            # a block that scales down right now decides like this one does: both do
            to_come = {
                run_id: states.get(setup, "")
                for run_id, states in states_of.items()
                if is_to_come(states.get(down.task_id, ""))
            }
            if ti.task_id in (down.task_id, setup):
                to_come.pop(ti.run_id, None)
            # most runs of a backlog have not begun, and each record is a call
            unstarted = [run_id for run_id, state in to_come.items() if not has_started(state)]
            is_one_of_many = at is not None and at >= 0 and at != ti.map_index
            at_work = set() if is_one_of_many else _at_work(ti, down.jobs_of, unstarted, at)
            needing = (to_come.keys() - unstarted) | at_work
            for run_id in sorted(needing):
                record = pull_record(ti, setup, at, run_id=run_id)
                is_up = record and record.app_id == app_id and record.active_workers
                if is_up and ti.get_dagrun_state(ti.dag_id, run_id) == "running":
                    others.append(f"{down.task_id} of run {run_id}")
    if others:
        line = "STILL BILLED: app %s stays up until %s scales it down"
        log.warning(line, app_id, " or ".join(others))
    return bool(others)


def _states_by_index(ti: Any, down: Any, **runs: Any) -> Iterator[tuple[int | None, _States]]:
    """
    Yield the states of the two ends of a block, by run, for each map index that counts.

    That is the index of the task that asks, none for a block around its mapped task group, and all indexes of
    a mapped block if the task is not mapped.
    """
    ends, is_mapped = [down.task_id, down.scale_up_task_id], down.get_closest_mapped_task_group() is not None
    at = ti.map_index if is_mapped or ti.map_index is None else -1
    found = ti.get_task_states(dag_id=ti.dag_id, task_ids=ends, map_index=at, **runs)
    indexes = {at}
    if is_mapped and at == -1:
        names = {name.removeprefix(f"{down.task_id}_") for states in found.values() for name in states}
        indexes = {int(name) for name in names if name.isdecimal()}
    for index in sorted(indexes, key=lambda each: each or 0):
        yield index, _of_index(found, ends, index)


def _at_work(ti: Any, task_ids: Collection[str], run_ids: Iterable[str], map_index: int | None) -> set[str]:
    """
    Return the runs in which any of these tasks runs: a clear may leave out tasks that still need the app.

    A block that is not mapped itself is asked for the tasks at any map index.
    """
    found: dict[str, Mapping[str, str | None]] = {}
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


def _of_index(states: _States, task_ids: list[str], map_index: int | None) -> _States:
    # None is a task in a loop of Airflow 3.4 that is not mapped
    suffix = "" if map_index is None or map_index < 0 else f"_{map_index}"
    return {
        run_id: {task_id: known[task_id + suffix] for task_id in task_ids if task_id + suffix in known}
        for run_id, known in states.items()
    }
