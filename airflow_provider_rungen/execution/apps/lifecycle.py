"""Creates and deletes apps, and waits for them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from airflow_provider_rungen.client.answers import was_not_accepted
from airflow_provider_rungen.client.models import App, normalize_status
from airflow_provider_rungen.client.scaling import AppTarget, remove_app, wait_for_app
from airflow_provider_rungen.client.texts import clean_text, format_ids
from airflow_provider_rungen.exceptions import (
    RunGenAppError,
    RunGenAppTimeoutError,
    RunGenError,
    RunGenInputError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.execution.task.outcomes import raise_for_event
from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)

# The key, in Airflow's task state store, of the name of the app that an attempt is about to create.
KEY = "rungen_app"
# Seconds within which an app has to be in the list, if it was created by a request whose answer was lost.
LISTED_WITHIN = 10.0


class CreateAppRun(TaskRun[Any]):
    """An attempt that creates an app."""

    def execute(self) -> str:
        """
        Create the app, or find it.

        :return: the app's id.
        :raises RunGenAppError: there is an app of this name, and ``if_exists`` is ``fail``.
        """
        task, store = self.task, self.context.get("task_state_store")
        with self.attempt(), self.opened():
            body = _app_body(task)
            # the name of an app that did not exist when an earlier attempt was about to create it
            announced = None if store is None else store.get(KEY)
            is_retry = announced is not None or self.ti.try_number > 1
            apps = self._wait_until_listed(LISTED_WITHIN if is_retry else 0)
            if apps and announced == task.name:
                app_id = apps[0].id
                log.info("Using app %s, which an earlier attempt created", app_id)
            elif apps:
                app_id = self._use(apps)
            else:
                if store is not None:
                    store.set(KEY, task.name)
                with self.guard.defer_signals():
                    app = self._create(body)
                app_id = app.id
                log.info("Created app %s (%s)", app_id, app.name or task.name)
            self.link_to(app_id)
            return app_id

    def _use(self, apps: list[App]) -> str:
        """Return the id of an app that exists already, with a warning where it differs."""
        app, task = apps[0], self.task
        also = f", and {len(apps) - 1} more of this name" if len(apps) > 1 else ""
        if task.if_exists == "fail":
            raise RunGenAppError(
                f"An app named {task.name!r} exists already: {app.id}{also}",
                app_id=app.id,
                hint="Delete it, take another name, or set if_exists='use'",
                retryable=False,
            )
        log.info("Using app %s: an app named %r exists already%s", app.id, task.name, also)
        wanted, actual = {**task.configuration, **task.workflow}, {**app.configuration, **app.workflow}
        for field in actual.keys() & {"gpu_tier", "model_url"}:
            if actual[field] != wanted.get(field):
                line = "Its %s is %s, not %s: it is used as it is"
                log.warning(line, field, actual[field], wanted.get(field))
        return app.id

    def _create(self, body: dict[str, Any]) -> App:
        try:
            return self.hook.create_app(**body)
        except RunGenError as error:
            if not error.retryable or was_not_accepted(error):
                raise
            failure = error
        log.warning("%s; looking whether the app was created", failure.message)
        if apps := self._wait_until_listed(LISTED_WITHIN):
            return apps[0]
        raise failure

    def _wait_until_listed(self, within: float) -> list[App]:
        """
        Return the apps of this name, the oldest first where their ages are known.

        :param within: seconds that a new one may take to be in the list.
        """
        name, give_up_at = clean_text(self.task.name).strip(), time.time() + within
        while True:
            apps = [app for app in self.hook.list_apps() if app.name.strip() == name]
            if apps or time.time() >= give_up_at:
                return sorted(apps, key=lambda a: a.created_at.timestamp() if a.created_at else math.inf)
            self.hook.sleep(LISTED_WITHIN / 5)


def _app_body(task: Any) -> dict[str, Any]:
    """
    Return the body that creates an app. The service checks its fields.

    :raises RunGenInputError: a template left no text, or no object.
    """
    body = {name: getattr(task, name) for name in ("name", "description", "configuration", "workflow")}
    for name, kind in (("name", str), ("configuration", Mapping), ("workflow", Mapping)):
        if not isinstance(body[name], kind) or not body[name]:
            wanted, found = "text" if kind is str else "an object (a dict)", clean_text(repr(body[name]), 80)
            raise RunGenInputError(f"{name} must be {wanted}, not {found}; nothing was sent")
    if "active_workers" in body["configuration"]:  # a template makes text of a number
        count = whole_number(body["configuration"]["active_workers"], "configuration.active_workers")
        body["configuration"] = {**body["configuration"], "active_workers": count}
    return body


class DeleteAppRun(TaskRun[Any]):
    """An attempt that deletes an app."""

    def execute(self) -> None:
        """
        Scale the app to zero, wait until it has stopped, and delete it.

        :raises RunGenAppTimeoutError: it did not stop in time.
        """
        with self.attempt(), self.opened() as hook:
            app_id, deadline = self.known_app_id, self.deadline(time.time() + self.task.timeout)
            self.link_to(app_id)
            try:
                hook.perform(remove_app(app_id, poll_interval=self.task.poll_interval, deadline=deadline))
            except RunGenNotFoundError:
                log.info("App %s is gone already", app_id)
            else:
                log.info("Deleted app %s", app_id)


def whole_number(value: Any, name: str) -> int:
    """
    Return a number of workers, which a template may have made text.

    :raises RunGenInputError: it is not a whole number from 0.
    """
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RunGenInputError(f"{name} must be a whole number from 0, not {value!r}; nothing was sent")
    return value


# --- a wait ---


def wait_or_defer(
    run: TaskRun[Any], target: AppTarget, *, defer_at: float, deadline: float, **arguments: Any
) -> None:
    """
    Wait until an app is as it must be.

    :param run: the attempt, whose hook is open.
    :param defer_at: the time (seconds since 1970) to go on in the triggerer; after one poll if it has passed.
    :param deadline: the time (seconds since 1970) to stop at.
    :param arguments: further arguments of `RunGenAppTrigger`.
    :raises RunGenAppTimeoutError: the deadline passed.
    """
    task, until = run.task, min(defer_at, deadline)
    try:
        run.hook.perform(wait_for_app(target, poll_interval=task.poll_interval, deadline=until))
        return
    except RunGenAppTimeoutError:
        now = time.time()
        if now >= deadline:
            raise
    log.info("Waiting in the triggerer for %s %s", target.status, format_ids(target.app_id))
    arguments |= {
        "rungen_conn_id": task.rungen_conn_id,
        "app_id": target.app_id,
        "status": target.status,
        "active_workers": target.active_workers,
        "poll_interval": task.poll_interval,
        "deadline": deadline,
        "deferred_at": now,
    }
    task.defer_for_app(arguments, deadline - now)


class AppSensorRun(TaskRun[Any]):
    """An attempt of a sensor that waits for an app."""

    _target: AppTarget | None = None
    #: The error of a time-out that may come before the next poke.
    late: RunGenAppTimeoutError | None = None

    def poke(self) -> bool:
        """Poll the app once, and return whether it has the status."""
        with self.attempt(), self.opened() as hook:
            target = self._known_target()
            is_ready = hook.perform(target.poll_once()) is not None
            self.late = None if is_ready else target.timeout_error()
            return is_ready

    def execute(self, timeout: float) -> None:
        """
        Wait in the triggerer, unless the first poll finds the app ready.

        :param timeout: seconds to wait at most.
        :raises RunGenAppTimeoutError: the time has passed.
        """
        now = time.time()
        with self.attempt(), self.opened():
            deadline = self.deadline(now + timeout)
            wait_or_defer(self, self._known_target(), defer_at=now, deadline=deadline)

    def complete(self, event: Mapping[str, Any], timeout: float) -> None:
        """Go on after the wait in the triggerer, which has taken all of the time."""
        self.note_app(event.get("app_id") or self.known_app_id)
        with self.attempt():
            raise_for_event(event)

    def _known_target(self) -> AppTarget:
        """Return what to wait for, with what earlier polls have seen."""
        status = normalize_status(self.task.status or "RUNNING")
        self._target = self._target or AppTarget(self.app_id, status)
        if not self.links:
            self.link_to(self._target.app_id)
        return self._target
