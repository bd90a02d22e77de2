"""Create and delete apps."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from airflow_provider_rungen.apps.sharing import still_billed
from airflow_provider_rungen.client.answers import was_not_accepted
from airflow_provider_rungen.client.apps import take_down
from airflow_provider_rungen.client.endpoints import delete_app
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.numbers import whole_number
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import (
    RunGenConflictError,
    RunGenError,
    RunGenInputError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.task.run import TaskRun

log = logging.getLogger(__name__)

# Seconds that a new app may take to be in the list, and between polls.
LISTED_WITHIN = 10.0
LOOK_EVERY = 2.0


class CreateAppRun(TaskRun[Any]):
    """An attempt that creates an app, unless there is one of its name."""

    def execute(self) -> str:
        """Return the id of the app."""
        with self.attempt(), self.opened():
            body = _app_body(self.task)
            # that of the attempt before may not be listed yet
            app = self._find(LISTED_WITHIN if self.ti.try_number > 1 else 0.0)
            if app is None:
                with self.guard.defer_signals():
                    app = self._create(body)
                log.info("Created app %s (%s)", app.id, app.name or self.task.name)
            else:
                log.info("Using app %s: an app named %r exists already", app.id, app.name)
                self._warn_of_differences(app)
            self.link_to(app.id)
            return app.id

    def _find(self, within: float) -> App | None:
        """Return the oldest app of this name, which may take some seconds to be in the list."""
        name, give_up_at = clean_text(self.task.name).strip(), time.time() + within
        while True:
            apps = [app for app in self.hook.list_apps() if app.name.strip() == name]
            if apps or time.time() >= give_up_at:
                return min(apps, key=_created_at, default=None)
            self.hook.sleep(LOOK_EVERY)

    def _create(self, body: dict[str, Any]) -> App:
        try:
            return self.hook.create_app(**body)
        except RunGenError as error:
            if was_not_accepted(error) or not error.retryable:
                raise
            failure = error
        log.warning("%s; looking whether the app was created", failure.message)
        if (app := self._find(LISTED_WITHIN)) is None:
            raise failure
        return app

    def _warn_of_differences(self, app: App) -> None:
        wanted = {**self.task.configuration, **self.task.workflow}
        for name, value in {**app.configuration, **app.workflow}.items():
            if name in ("gpu_tier", "model_url") and value != wanted.get(name):
                log.warning("Its %s is %s, not %s: it is used as it is", name, value, wanted.get(name))


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


def _created_at(app: App) -> float:
    return app.created_at.timestamp() if app.created_at else math.inf


class DeleteAppRun(TaskRun[Any]):
    """An attempt that deletes an app."""

    _is_down = False

    def execute(self) -> None:
        """
        Take the app down, and delete it once its workers are gone.

        :raises RunGenError: it could not be deleted. While it may be billed, a retry may always help.
        """
        with self.attempt(), self.opened() as hook:
            app_id = hook.resolve_app_id(self.known_app_id)  # never that of the connection
            self.link_to(app_id)
            deadline, pause = self.deadline(time.time() + self.task.timeout), self.task.poll_interval
            while self._take_down(app_id):
                try:
                    hook.perform(delete_app(app_id))
                    log.info("Deleted app %s", app_id)
                    return
                except (RunGenConflictError, RunGenNotFoundError) as error:
                    # its workers are still on their way out, or it is gone: the next look says which
                    if time.time() >= deadline:
                        raise still_billed(app_id, error) from None
                hook.sleep(pause)

    def _take_down(self, app_id: str) -> bool:
        """Take the app down; return whether it exists."""
        self._is_down = False
        try:
            exists = self.hook.perform(take_down(app_id, pause=self.task.poll_interval))
        except RunGenInputError:  # nothing was sent
            raise
        except RunGenError as error:
            raise still_billed(app_id, error) from None
        self._is_down = True
        return exists

    def cleanup(self) -> str:
        return "" if self._is_down else f"STILL BILLED: app {self.known_app_id} may still have workers."
