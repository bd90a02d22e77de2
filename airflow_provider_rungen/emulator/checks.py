"""Checks the bodies of requests. The service refuses a wrong one with 400 and the reason."""

from __future__ import annotations

import math
from typing import Any

from airflow_provider_rungen.emulator.apps import App
from airflow_provider_rungen.emulator.messages import Refusal

GPU_TIERS = ("BASIC", "STANDARD", "PERFORMANCE")
# Pixels of the longest side of a picture.
LONGEST_SIDE = 4096
_USUAL_SIDE = 1024


def check_input(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """
    Return the ``input`` of a run.

    :raises Refusal: it does not fit the app's model.
    """
    given = body.get("input")
    if not isinstance(given, dict):
        raise Refusal(400, "input must be an object")
    _check_instructions(given.get("emulator", {}))
    if kind == "flux":
        _check_flux(given)
    return given


def picture_size(given: dict[str, Any]) -> tuple[int, int]:
    """Return width and height of the picture for an input, which may be one of an app that draws none."""
    sides: list[Any] = [given.get(side) for side in ("width", "height")]
    width, height = (int(side) if _is_side(side) else _USUAL_SIDE for side in sides)
    return width, height


def _is_side(value: Any) -> bool:
    return _is_whole(value) and 1 <= value <= LONGEST_SIDE


def _check_flux(given: dict[str, Any]) -> None:
    """Refuse what the schema ``flux-schnell`` of the package refuses, and pictures that are too large."""
    prompt = given.get("prompt")
    _require(isinstance(prompt, str) and bool(prompt.strip()), "input.prompt must be a text and not empty")
    for side in ("width", "height"):
        _require(
            _is_side(given.get(side, 1)), f"input.{side} must be a whole number from 1 to {LONGEST_SIDE}"
        )
    steps = given.get("num_inference_steps", 1)
    _require(_is_whole(steps) and steps >= 1, "input.num_inference_steps must be a whole number from 1")
    _require(_is_whole(given.get("seed", 1)), "input.seed must be a whole number")
    _require(_is_number(given.get("guidance_scale", 1)), "input.guidance_scale must be a number")


def check_new_app(body: dict[str, Any]) -> None:
    """Refuse a new app if a field is missing or wrong."""
    _require(bool(body.get("name")), "name is required")
    for part, field in (("configuration", "gpu_tier"), ("workflow", "model_url")):
        content = body.get(part)
        _require(isinstance(content, dict) and bool(content.get(field)), f"{part}.{field} is required")
    _check_app(body)


def check_update(app: App, body: dict[str, Any]) -> None:
    """Refuse an update if a field is wrong, or may not change."""
    _check_app(body)
    now = {"model_url": app.model_url, "tools": app.tools}
    is_same = _without_weights({**now, **body.get("workflow", {})}) == _without_weights(now)
    _require(is_same, "only the weights of LoRAs may change in a workflow")


def _check_app(body: dict[str, Any]) -> None:
    configuration, workflow = body.get("configuration", {}), body.get("workflow", {})
    is_object = isinstance(configuration, dict) and isinstance(workflow, dict)
    _require(is_object, "configuration and workflow must be objects")
    for field in ("name", "description"):
        _require(isinstance(body.get(field, ""), str), f"{field} must be a text")
    _require(isinstance(workflow.get("model_url", ""), str), "workflow.model_url must be a text")
    _require(_are_tools(workflow.get("tools")), "workflow.tools.loras must be a list of LoRAs")
    is_tier = configuration.get("gpu_tier", "BASIC") in GPU_TIERS
    _require(is_tier, f"configuration.gpu_tier must be one of {', '.join(GPU_TIERS)}")
    workers = configuration.get("active_workers", 0)
    is_count = _is_int(workers) and 0 <= workers <= 1000
    _require(is_count, "configuration.active_workers must be a whole number from 0 to 1000")


def _are_tools(tools: Any) -> bool:
    loras = tools.get("loras", []) if isinstance(tools, dict) else []
    is_list = tools is None or (isinstance(tools, dict) and isinstance(loras, list))
    return is_list and all(isinstance(lora, dict) and _is_number(lora.get("weight", 1)) for lora in loras)


def _check_instructions(instructions: Any) -> None:
    _require(isinstance(instructions, dict), "input.emulator must be an object")
    _require(isinstance(instructions.get("fail", ""), str), "input.emulator.fail must be a text")
    for field in ("result_bytes", "output_bytes", "images"):
        count = instructions.get(field, 0)
        _require(_is_int(count) and count >= 0, f"input.emulator.{field} must be a whole number from 0")
    seconds = instructions.get("seconds", 0)
    _require(_is_number(seconds) and seconds >= 0, "input.emulator.seconds must be a number from 0")


def _without_weights(workflow: dict[str, Any]) -> dict[str, Any]:
    tools = workflow.get("tools") or {}
    loras = [{key: lora[key] for key in lora if key != "weight"} for lora in tools.get("loras", [])]
    return {**workflow, "tools": {**tools, "loras": loras}}


def _require(is_right: bool, text: str) -> None:
    """Refuse the request with this text, unless it is right."""
    if not is_right:
        raise Refusal(400, text)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
