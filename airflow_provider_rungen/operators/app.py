"""The operators that create and delete apps."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from airflow_provider_rungen.client import endpoints, retry
from airflow_provider_rungen.client.models import App, clean_text
from airflow_provider_rungen.client.scaling import remove_app
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenAppError,
    RunGenConnectionError,
    RunGenError,
    RunGenInputError,
    RunGenNotFoundError,
    RunGenResponseError,
)
from airflow_provider_rungen.execution import records
from airflow_provider_rungen.execution.task import RunGenTask, deadline_of, fail_without_retry
from airflow_provider_rungen.hooks.connection import seconds
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.operators.scale import whole_number

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context

log = logging.getLogger(__name__)

GPU_TIERS = ("BASIC", "STANDARD", "PERFORMANCE")
KEY = "rungen_app"
# Seconds within which an app has to be in the list, if it was created by a request whose answer was lost.
LISTED_WITHIN = 10.0
_LONGEST_NAME = 10_000
_MOST_OTHERS = 10_000


@dataclass(frozen=True)
class CreationRecord:
    """
    What the store holds of an app that an attempt is about to create.

    :param name: its name.
    :param others: the apps of this name that were there before.
    """

    name: str
    others: tuple[str, ...]

    @classmethod
    def from_store(cls, value: Any) -> Self | None:
        """Return the record of a stored value; ``None``, with a warning, when it is not one."""
        return records.parse(KEY, value, cls._read, "an app of this name counts as somebody else's")

    @classmethod
    def _read(cls, fields: Mapping[str, Any]) -> Self:
        others = fields.get("others")
        if not isinstance(others, list) or len(others) > _MOST_OTHERS:
            raise records.InvalidRecordError(f"others is not a list of at most {_MOST_OTHERS}")
        if not all(records.is_identifier(other) for other in others):
            raise records.InvalidRecordError("others holds something that is not an id")
        return cls(records.text(fields, "name", most=_LONGEST_NAME), tuple(others))

    def to_store(self) -> dict[str, Any]:
        """Return the value to store."""
        return {"version": records.VERSION, "name": self.name, "others": list(self.others)}


class RunGenCreateAppOperator(RunGenTask):
    """
    Create an app, and return its id.

    What is sent is checked first. A retry creates no second app: it finds the one of the attempt before by
    its name, and on Airflow 3.3 and later it knows that it is its own.

    :param name: the app's name (templated).
    :param configuration: ``gpu_tier`` (``BASIC``, ``STANDARD`` or ``PERFORMANCE``), optionally
        ``active_workers``, which are billed from now on, and ``location`` (templated).
    :param workflow: ``model_url``, optionally ``tools``, such as ``{"loras": [{"id", "versionId",
        "downloadUrl", "name", "weight"}, …]}`` (templated).
    :param description: what the app is for (templated).
    :param if_exists: when there is an app of this name already, ``use`` it as it is, or ``fail``.
    :param rungen_conn_id: the Airflow connection (templated).
    """

    template_fields: Sequence[str] = ("name", "configuration", "workflow", "description", "rungen_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"configuration": "json", "workflow": "json"}

    def __init__(
        self,
        *,
        name: str,
        configuration: Any,
        workflow: Any,
        description: str | None = None,
        if_exists: Literal["use", "fail"] = "use",
        rungen_conn_id: str = RunGenHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if if_exists not in ("use", "fail"):
            raise ValueError(f"if_exists must be 'use' or 'fail', not {if_exists!r}")
        self.name = name
        self.configuration = configuration
        self.workflow = workflow
        self.description = description
        self.if_exists = if_exists
        self.rungen_conn_id = rungen_conn_id

    def execute(self, context: Context) -> str:
        """
        Create the app, or find it.

        :return: the app's id.
        """
        with fail_without_retry(), self._working(context) as hook:
            app_id = self._find_or_create(context, hook)
            self._link_to(context, hook, app_id)
            return app_id

    def _find_or_create(self, context: Context, hook: RunGenHook) -> str:
        body = app_body(self.name, self.configuration, self.workflow, self.description)
        store = context.get("task_state_store")
        kept = CreationRecord.from_store(store.get(KEY)) if store is not None else None
        is_retry = kept is not None or context["ti"].try_number > 1
        apps = self._listed(hook, within=LISTED_WITHIN if is_retry else 0)
        if kept is not None and kept.name == body["name"]:
            own = [app for app in apps if app.id not in kept.others]
            if own:
                log.info("RunGen app %s was created by an earlier attempt: using it", own[0].id)
                return own[0].id
        if apps:
            return self._existing(apps)
        if store is not None:
            store.set(KEY, CreationRecord(body["name"], tuple(app.id for app in apps)).to_store())
        with self.defer_signals():
            app = self._create(hook, body)
        log.info("Created RunGen app %s (%s)", app.id, app.name or self.name)
        return app.id

    def _of_this_name(self, hook: RunGenHook) -> list[App]:
        """Give the apps of this name, the oldest first where their ages are known."""
        name = clean_text(self.name).strip()
        apps = [app for app in hook.list_apps() if app.name.strip() == name]
        return sorted(apps, key=lambda app: app.created_at.timestamp() if app.created_at else float("inf"))

    def _existing(self, apps: list[App]) -> str:
        app = apps[0]
        also = f", and {len(apps) - 1} more of this name" if len(apps) > 1 else ""
        if self.if_exists == "fail":
            raise RunGenAppError(
                f"There is a RunGen app named {self.name!r} already: {app.id}{also}",
                app_id=app.id,
                hint="Delete it, take another name, or set if_exists='use'",
                retryable=False,
            )
        log.info("There is a RunGen app named %r already: using %s%s", self.name, app.id, also)
        given = (("configuration", "gpu_tier", app.configuration), ("workflow", "model_url", app.workflow))
        for part, field, told in given:
            wanted = getattr(self, part)[field]
            if field in told and told[field] != wanted:
                log.warning("Its %s is %s, not %s: it is used as it is", field, told[field], wanted)
        return app.id

    def _create(self, hook: RunGenHook, body: Mapping[str, Any]) -> App:
        try:
            return hook.perform(endpoints.create_app(body))
        except (RunGenConnectionError, RunGenResponseError, RunGenAPIError) as error:
            if not error.retryable or retry.was_not_accepted(error):
                raise
            failure = error
        log.warning("%s; looking whether the app was created", failure.message)
        if apps := self._listed(hook, within=LISTED_WITHIN):
            return apps[0]
        raise failure

    def _listed(self, hook: RunGenHook, *, within: float) -> list[App]:
        """Give the apps of this name; one that was just created may take a while to be in the list."""
        give_up_at = time.time() + within
        while not (apps := self._of_this_name(hook)) and time.time() < give_up_at:
            hook.sleep(LISTED_WITHIN / 5)
        return apps


class RunGenDeleteAppOperator(RunGenTask):
    """
    Delete an app for good: scale it to zero, wait until its workers are gone, delete it.

    An app that is already gone is fine.

    :param app_id: the app, always to be named (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param poll_interval: seconds between two looks at the app.
    :param timeout: seconds that the app may take to stop.
    """

    template_fields: Sequence[str] = ("app_id", "rungen_conn_id")

    def __init__(
        self,
        *,
        app_id: Any,
        rungen_conn_id: str = RunGenHook.default_conn_name,
        poll_interval: float | timedelta = 5,
        timeout: float | timedelta = 600,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.app_id = app_id
        self.rungen_conn_id = rungen_conn_id
        self.poll_interval = seconds(poll_interval, "poll_interval")
        self.timeout = seconds(timeout, "timeout")

    def execute(self, context: Context) -> None:
        """Delete the app."""
        with fail_without_retry(), self._working(context) as hook:
            deadline = deadline_of(self, time.time() + self.timeout)
            self._link_to(context, hook, self.app_id)
            try:
                hook.perform(remove_app(self.app_id, poll_interval=self.poll_interval, deadline=deadline))
            except RunGenNotFoundError:
                log.info("RunGen app %s is gone already", self.app_id)
            else:
                log.info("Deleted RunGen app %s", self.app_id)


# --- what is sent ------------------------------------------------------------------------------------------


def app_body(name: Any, configuration: Any, workflow: Any, description: Any = None) -> dict[str, Any]:
    """
    Give the body that creates an app, its documented fields checked; fields not documented are sent as given.

    Numbers may be text, as templates make them.

    :raises RunGenInputError: a field is missing or mistyped; the message names it.
    """
    _text(name, "name")
    _object(configuration, "configuration")
    _object(workflow, "workflow")
    _text(workflow.get("model_url"), "workflow.model_url")
    if configuration.get("gpu_tier") not in GPU_TIERS:
        raise _wrong(
            "configuration.gpu_tier", f"one of {', '.join(GPU_TIERS)}", configuration.get("gpu_tier")
        )
    body: dict[str, Any] = {"name": name, "configuration": dict(configuration), "workflow": dict(workflow)}
    if "active_workers" in configuration:
        count = whole_number(configuration["active_workers"], "configuration.active_workers")
        body["configuration"]["active_workers"] = count
    if configuration.get("location") is not None:
        _text(configuration["location"], "configuration.location")
    if workflow.get("tools") is not None:
        body["workflow"]["tools"] = _tools(workflow["tools"])
    if description is not None:
        _text(description, "description", or_empty=True)
        body["description"] = description
    return body


def _tools(tools: Any) -> dict[str, Any]:
    _object(tools, "workflow.tools")
    if tools.get("loras") is None:
        return dict(tools)
    if not isinstance(tools["loras"], list | tuple):
        raise _wrong("workflow.tools.loras", "a list", tools["loras"])
    loras = [_lora(lora, f"workflow.tools.loras[{index}]") for index, lora in enumerate(tools["loras"])]
    return {**tools, "loras": loras}


def _lora(lora: Any, path: str) -> dict[str, Any]:
    _object(lora, path)
    for field in ("id", "versionId"):
        if field in lora and (isinstance(lora[field], bool) or not isinstance(lora[field], int)):
            _text(lora[field], f"{path}.{field}")
    if "name" in lora:
        _text(lora["name"], f"{path}.name")
    if "downloadUrl" in lora:
        _text(lora["downloadUrl"], f"{path}.downloadUrl")
        if not lora["downloadUrl"].startswith(("https://", "http://")):
            raise RunGenInputError(f"{path}.downloadUrl must be an http(s) URL; nothing was sent")
    if "weight" not in lora:
        return dict(lora)
    try:
        weight = float(lora["weight"]) if isinstance(lora["weight"], str) else lora["weight"]
    except ValueError:
        weight = None
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise _wrong(f"{path}.weight", "a number", lora["weight"])
    return {**lora, "weight": weight}


def _object(value: Any, path: str) -> None:
    if not isinstance(value, Mapping):
        raise _wrong(path, "an object (a dict)", value)


def _text(value: Any, path: str, *, or_empty: bool = False) -> None:
    if not isinstance(value, str) or not (value.strip() or or_empty):
        raise _wrong(path, "text" if or_empty else "text that is not empty", value)


def _wrong(path: str, wanted: str, value: Any) -> RunGenError:
    return RunGenInputError(f"{path} must be {wanted}, not {clean_text(repr(value), 80)}; nothing was sent")
