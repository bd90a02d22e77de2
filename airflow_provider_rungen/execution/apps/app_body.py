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


def _wrong(path: str, wanted: str, value: Any) -> RunGenInputError:
    return RunGenInputError(f"{path} must be {wanted}, not {clean_text(repr(value), 80)}; nothing was sent")
