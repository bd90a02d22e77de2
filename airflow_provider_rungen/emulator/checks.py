"""Checks the bodies of requests. The service refuses a wrong one with 400 and the reason."""

from __future__ import annotations

import math
from typing import Any

from airflow_provider_rungen.emulator.apps import App
from airflow_provider_rungen.emulator.messages import Refusal

GPU_TIERS = ("BASIC", "STANDARD", "PERFORMANCE")


def check_input(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """
    Return the ``input`` of a run.

    :raises Refusal: it does not fit the app's model.
    """
    given = body.get("input")
    if "input" not in body:
        raise Refusal(400, "input is missing")
    if not isinstance(given, dict):
        raise Refusal(400, "input must be an object")
    _check_instructions(given.get("emulator", {}))
    if kind == "flux":
        _check_flux(given)
    return given


def _check_flux(given: dict[str, Any]) -> None:
    """Refuse what the schema ``flux-schnell`` of the package refuses, and nothing else."""
    prompt = given.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise Refusal(400, "input.prompt must be a text and not empty")
    for field in ("width", "height", "num_inference_steps"):
        if not _is_whole(given.get(field, 1)) or given.get(field, 1) < 1:
            raise Refusal(400, f"input.{field} must be a whole number from 1")
    if not _is_whole(given.get("seed", 1)):
        raise Refusal(400, "input.seed must be a whole number")
    if not _is_number(given.get("guidance_scale", 1)):
        raise Refusal(400, "input.guidance_scale must be a number")


def check_new_app(body: dict[str, Any]) -> None:
    if not body.get("name") or not isinstance(body["name"], str):
        raise Refusal(400, "name is required and must be a text")
    for part, field in (("configuration", "gpu_tier"), ("workflow", "model_url")):
        if not isinstance(body.get(part), dict) or field not in body[part]:
            raise Refusal(400, f"{part}.{field} is required")
    model_url = body["workflow"]["model_url"]
    if not isinstance(model_url, str) or not model_url:
        raise Refusal(400, "workflow.model_url must be a text and not empty")
    if not isinstance(body["workflow"].get("tools") or {}, dict):
        raise Refusal(400, "workflow.tools must be an object")
    _check_configuration(body["configuration"])
    _check_texts(body)


def check_update(app: App, body: dict[str, Any]) -> None:
    configuration, workflow = body.get("configuration", {}), body.get("workflow", {})
    if not isinstance(configuration, dict) or not isinstance(workflow, dict):
        raise Refusal(400, "configuration and workflow must be objects")
    _check_texts(body)
    _check_configuration(configuration)
    now = {"model_url": app.model_url, "tools": app.tools}
    if _without_weights({**now, **workflow}) != _without_weights(now):
        raise Refusal(400, "only the weights of LoRAs may change in a workflow")


def _check_texts(body: dict[str, Any]) -> None:
    for field in ("name", "description"):
        if not isinstance(body.get(field, ""), str):
            raise Refusal(400, f"{field} must be a text")


def _check_configuration(configuration: dict[str, Any]) -> None:
    if configuration.get("gpu_tier", GPU_TIERS[0]) not in GPU_TIERS:
        raise Refusal(400, f"configuration.gpu_tier must be one of {', '.join(GPU_TIERS)}")
    workers = configuration.get("active_workers", 0)
    if not _is_int(workers) or not 0 <= workers <= 1000:
        raise Refusal(400, "configuration.active_workers must be a whole number from 0 to 1000")


def _check_instructions(instructions: Any) -> None:
    if not isinstance(instructions, dict):
        raise Refusal(400, "input.emulator must be an object")
    if not isinstance(instructions.get("fail", ""), str):
        raise Refusal(400, "input.emulator.fail must be a text")
    for field in ("result_bytes", "output_bytes", "images"):
        if not _is_int(instructions.get(field, 0)) or instructions.get(field, 0) < 0:
            raise Refusal(400, f"input.emulator.{field} must be a whole number from 0")
    seconds = instructions.get("seconds", 0)
    if not _is_number(seconds) or not seconds >= 0:
        raise Refusal(400, "input.emulator.seconds must be a number from 0")


def _without_weights(workflow: dict[str, Any]) -> dict[str, Any]:
    tools = workflow.get("tools")
    if not isinstance(tools, dict) or not isinstance(loras := tools.get("loras", []), list):
        return workflow
    bare = [
        {key: value for key, value in lora.items() if key != "weight"} if isinstance(lora, dict) else lora
        for lora in loras
    ]
    return {**workflow, "tools": {**tools, "loras": bare}}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
