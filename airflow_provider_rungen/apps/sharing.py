"""Take an app down, unless another run of the DAG uses it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_rungen._airflow import TaskInstanceState as State
from airflow_provider_rungen.client.apps import take_down
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import RunGenAppError
from airflow_provider_rungen.task import attempts

if TYPE_CHECKING:
    from airflow_provider_rungen.task.run import TaskRun

log = logging.getLogger(__name__)

# The states of a setup that has begun, and whose run needs the app.
_BEGUN = (State.RUNNING, State.DEFERRED, State.SUCCESS, State.UP_FOR_RETRY, State.RESTARTING)
#: Those of a teardown that has not begun.
TO_COME = (None, State.SCHEDULED, State.QUEUED)
# Seconds in which Airflow has to answer: meanwhile, the app is billed.
_ASK_TIME = 20.0


class Block(NamedTuple):
    """The task ids of a setup and its teardown."""

    up: str
    down: str


def other_run(ti: Any, block: Block) -> str:
    """
    Return another running run of the DAG whose setup has begun, and whose teardown has not. It blocks.

    :param ti: the ``ti`` of a context, or the ``task_instance`` of a trigger. In a mapped task group, only
        the same map index counts.
    """
    airflow = attempts.asked_of(ti)
    if airflow.get_dr_count(dag_id=ti.dag_id, states=["running"]) < 2:  # the rest may be thousands of runs
        return ""
    index = -1 if ti.map_index is None else ti.map_index  # None in a loop of Airflow 3.4
    for place, states in attempts.find_states(ti, block, None, index).items():
        is_up = states.get(block.up) in _BEGUN and states.get(block.down, "missing") in TO_COME
        is_other = is_up and place.run_id != ti.run_id
        if is_other and airflow.get_dagrun_state(ti.dag_id, place.run_id) == "running":
            return place.run_id
    return ""


def is_left_to(app_id: str, ask: Callable[[], Any]) -> bool:
    """
    Return whether another run uses the app, and log which. Without an answer, none does.

    :param ask: calls `other_run`.
    """
    try:
        run_id = ask()
    except Exception as error:
        log.warning("Airflow did not say who else uses app %s: %s", app_id, type(error).__name__)
        return False
    if run_id:
        log.warning("STILL BILLED: app %s stays up for run %s, whose teardown ends it", app_id, run_id)
    return bool(run_id)


def end_bill(run: TaskRun[Any], block: Block | None, app_id: str) -> bool:
    """
    Take the app down, unless another run uses it. Return whether it is down.

    :param run: the attempt, whose hook is open.
    :param block: the setup and teardown, if the task is one of them.
    :raises RunGenError: it may still have workers.
    """
    if block is not None:
        question = partial(other_run, run.ti, block)
        ask = partial(run.guard.call_patiently, "ask who else uses the app", question, _ASK_TIME)
        if is_left_to(app_id, ask):
            return False
        run.guard.check()
    run.hook.perform(take_down(app_id, pause=run.task.poll_interval))
    log.info("Scaled to 0 workers %s", format_ids(app_id))
    return True


def still_billed(app_id: str, error: Exception) -> RunGenAppError:
    """Log that an app may still have workers, and return the error that says so. A retry may always help."""
    reason = getattr(error, "message", error)
    message = f"STILL BILLED: app {app_id} may still have workers: {reason}"
    log.error("%s", message)  # what reports the error may hang
    hint, retry_after = getattr(error, "hint", ""), getattr(error, "retry_after", None)
    return RunGenAppError(message, app_id=app_id, hint=hint, retry_after=retry_after)
