"""Creates and deletes apps, and waits for them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from airflow_provider_rungen.client.answers import was_not_accepted
from airflow_provider_rungen.client.app_polling import AppTarget, outlast, wait_for_app
from airflow_provider_rungen.client.endpoints import delete_app, get_app
from airflow_provider_rungen.client.models import App, normalize_status
from airflow_provider_rungen.client.scaling import stop_app
from airflow_provider_rungen.client.texts import clean_text, format_count, format_ids
from airflow_provider_rungen.client.workers import workers_of
from airflow_provider_rungen.exceptions import (
    RunGenAppError,
    RunGenAppTimeoutError,
    RunGenConflictError,
    RunGenError,
    RunGenInputError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.execution.task.outcomes import raise_for_event
from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)

# The key, in Airflow's task state store, of the name and id of the app that an attempt creates. Until it is
# answered, there is no id.
KEY = "rungen_app"
# Seconds within which an app has to be in the list, if it was created by a request whose answer was lost.
LISTED_WITHIN = 10.0


class CreateAppRun(TaskRun[Any]):
    """An attempt that creates an app."""

    def execute(self) -> str:
        """
        Create the app, or find it.

        :return: the app's id.
        """
        with self.attempt(), self.opened():
            body = _app_body(self.task)
            if (app_id := self._find()) is None:
                self._announce()
                with self.guard.defer_signals():
                    app = self._create(body)
                    app_id = app.id
                    log.info("Created app %s (%s)", app_id, app.name or self.task.name)
                    with suppress(Exception):  # a retry finds it by its name, too
                        self._announce(app_id)
            self.link_to(app_id)
            return app_id

    def _find(self) -> str | None:
        """Return the app of an earlier attempt, or else one that has the name and may be used, if any."""
        announced = self._announced()
        if own := str(announced.get("id") or ""):
            with suppress(RunGenNotFoundError):  # then it was deleted
                self.hook.perform(outlast(own, partial(get_app, own)))
                log.info("Using app %s, which an earlier attempt created", own)
                return own
        is_retry = bool(announced) or self.ti.try_number > 1
        apps = self._wait_until_listed(LISTED_WITHIN if is_retry else 0)
        if apps and announced and not own:
            own = self._newest(apps).id
            log.info("Using app %s, which an earlier attempt created", own)
            return own
        return self._use(apps) if apps else None

    def _announced(self) -> Mapping[str, Any]:
        """Return what an earlier attempt noted of the app that it created, or was about to create."""
        found = None if self._store is None else self._store.get(KEY)
        return found if isinstance(found, Mapping) and found.get("name") == self.task.name else {}

    def _announce(self, app_id: str | None = None) -> None:
        if self._store is not None:
            self._store.set(KEY, {"name": self.task.name, "id": app_id})

    def _use(self, apps: list[App]) -> str:
        """Return the id of an app that exists already, with a warning where it differs."""
        app, task = apps[0], self.task
        also = f", and {len(apps) - 1} more of this name" if len(apps) > 1 else ""
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
            is_refused = was_not_accepted(error)
            if is_refused and self._store is not None:
                with suppress(Exception):
                    self._store.delete(KEY)
            if is_refused or not error.retryable:
                raise
            failure = error
        log.warning("%s; looking whether the app was created", failure.message)
        if apps := self._wait_until_listed(LISTED_WITHIN):
            return self._newest(apps)
        raise failure

    def _newest(self, apps: list[App]) -> App:
        """Return the app whose creation was not answered: there was none when the attempt looked before."""
        if rest := [app.id for app in apps[:-1] if workers_of(app) != 0]:
            line = "STILL BILLED: %s named %r may have workers, and may be of another run: %s"
            log.warning(line, format_count(len(rest), "more app"), self.task.name, ", ".join(rest))
        return apps[-1]

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

    _is_stopped = False

    def execute(self) -> None:
        """
        Scale the app to zero, wait until it has stopped, and delete it.

        :raises RunGenAppError: it may still have workers, and be billed. A retry may always help.
        :raises RunGenError: it could not be deleted.
        """
        app_id = self.known_app_id
        with self.attempt():
            try:
                with self.guard.working(), self.opened():
                    self.link_to(app_id)
                    self._remove(app_id)
            except RunGenNotFoundError:
                log.info("App %s is gone already", app_id)
            except RunGenInputError:  # nothing was sent
                raise
            except Exception as error:
                if self._is_stopped or self.guard.is_killed:
                    raise
                raise still_billed(app_id, error) from None
            else:
                log.info("Deleted app %s", app_id)

    def cleanup(self) -> str:
        return "" if self._is_stopped else f"STILL BILLED: app {self.known_app_id} may still have workers."

    def _remove(self, app_id: str) -> None:
        poll_interval, deadline = self.task.poll_interval, self.deadline(time.time() + self.task.timeout)
        while True:
            self.hook.perform(stop_app(app_id, poll_interval=poll_interval, deadline=deadline))
            self._is_stopped = True
            try:
                return self.hook.perform(outlast(app_id, partial(delete_app, app_id)))
            except RunGenConflictError:  # its workers are still on their way out, or somebody scaled it up
                self._is_stopped = False
                if time.time() >= deadline:
                    raise
                self.hook.sleep(poll_interval)


def still_billed(app_id: str, error: Exception, otherwise: str = "") -> RunGenAppError:
    """
    Log that an app may still have workers, and return the error that says so. A retry may always help.

    :param otherwise: what to call an app whose id is not known.
    """
    reason = getattr(error, "message", error)
    message = f"STILL BILLED: app {app_id or otherwise} may still have workers: {reason}"
    log.error("%s", message)  # what reports the error may hang
    hint, retry_after = getattr(error, "hint", ""), getattr(error, "retry_after", None)
    failure = RunGenAppError(message, app_id=app_id, hint=hint, retry_after=retry_after)
    return failure.with_traceback(error.__traceback__)


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


def is_wanted(value: Any) -> bool:
    """
    Return whether there is something to run: a number or a boolean, which a template may have made text.

    :raises RunGenInputError: it is neither.
    """
    if isinstance(value, str):
        words = {"": False, "none": False, "false": False, "true": True}
        value = words.get(value.strip().lower(), value)
    return value is not None and (value if isinstance(value, bool) else whole_number(value, "only_if") > 0)


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
