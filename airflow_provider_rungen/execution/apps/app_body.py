"""Checks what creates an app before it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_rungen.client.models import GPU_TIERS
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.execution.apps.scale import whole_number


def app_body(name: Any, configuration: Any, workflow: Any, description: Any = None) -> dict[str, Any]:
    """
    Return the body that creates an app. Its documented fields are checked, others are sent as given.

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
        _object(workflow["tools"], "workflow.tools")
    if description is not None:
        _text(description, "description", or_empty=True)
        body["description"] = description
    return body


def _object(value: Any, path: str) -> None:
    if not isinstance(value, Mapping):
        raise _wrong(path, "an object (a dict)", value)


def _text(value: Any, path: str, *, or_empty: bool = False) -> None:
    if not isinstance(value, str) or not (value.strip() or or_empty):
        raise _wrong(path, "text" if or_empty else "text that is not empty", value)


def _wrong(path: str, wanted: str, value: Any) -> RunGenInputError:
    return RunGenInputError(f"{path} must be {wanted}, not {clean_text(repr(value), 80)}; nothing was sent")
