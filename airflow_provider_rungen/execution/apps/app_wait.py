"""Waits for an app: on the worker at first, then in the triggerer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_rungen.client.scaling import AppTarget, wait_for_app
from airflow_provider_rungen.client.texts import format_ids
from airflow_provider_rungen.exceptions import RunGenAppTimeoutError

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.task.run import TaskRun

#: Defers the task with arguments of `RunGenAppTrigger`, and the seconds until its deadline.
Defer = Callable[[dict[str, Any], float], NoReturn]

log = logging.getLogger(__name__)


def wait_or_defer(
    run: TaskRun[Any],
    target: AppTarget,
    defer: Defer,
    *,
    poll_interval: float,
    defer_at: float,
    deadline: float,
    **arguments: Any,
) -> None:
    """
    Wait until an app is as it must be.

    :param run: the attempt, whose hook is open.
    :param poll_interval: seconds between two polls.
    :param defer_at: the time (seconds since 1970) to go on in the triggerer; after one poll if it has passed.
    :param deadline: the time (seconds since 1970) to stop at.
    :param arguments: further arguments of the trigger.
    :raises RunGenAppTimeoutError: the deadline passed.
    """
    until = min(defer_at, deadline)
    try:
        run.hook.perform(wait_for_app(target, poll_interval=poll_interval, deadline=until))
    except RunGenAppTimeoutError:
        now = time.time()
        if now >= deadline:
            raise
    else:
        return
    log.info("Waiting in the triggerer for %s %s", target.status, format_ids(target.app_id))
    given = {
        "rungen_conn_id": run.options.rungen_conn_id,
        "app_id": target.app_id,
        "status": target.status,
        "active_workers": target.active_workers,
        "poll_interval": poll_interval,
        "deadline": deadline,
        "deferred_at": now,
    }
    defer(given | arguments, deadline - now)
