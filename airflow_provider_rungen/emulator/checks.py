"""Checks the bodies of requests by schemas. The service refuses a wrong one with 400 and the reason."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from airflow_provider_rungen.emulator.apps import App
from airflow_provider_rungen.emulator.messages import Refusal

# less than a model paints, since most tests do not look at their pictures
_USUAL_SIDE = 256
_LONGEST_REASON = 200

_TEXT = {"type": "string"}
_FILLED = {"type": "string", "pattern": r"\S"}
_COUNT = {"type": "integer", "minimum": 0}
# in pixels
_SIDE = {"type": "integer", "minimum": 1, "maximum": 4096}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


_INSTRUCTIONS = _object(
    fail=_TEXT,
    seconds={"type": "number", "minimum": 0, "maximum": 1e9},
    result_bytes=_COUNT,
    output_bytes=_COUNT,
    images=_COUNT,
)
_ANY_INPUT = _object(emulator=_INSTRUCTIONS)
# as the schema `flux-schnell` of the package, but with a longest side
_FLUX_INPUT = _object(
    "prompt",
    prompt=_FILLED,
    width=_SIDE,
    height=_SIDE,
    seed={"type": "integer"},
    guidance_scale={"type": "number"},
    num_inference_steps={"type": "integer", "minimum": 1},
    emulator=_INSTRUCTIONS,
)
_LORAS = {"type": "array", "items": _object(weight={"type": "number"})}
_CONFIGURATION = _object(
    gpu_tier={"enum": ["BASIC", "STANDARD", "PERFORMANCE"]}, active_workers={**_COUNT, "maximum": 1000}
)
_WORKFLOW = _object(model_url=_FILLED, tools={**_object(loras=_LORAS), "type": ["object", "null"]})
_APP = _object(name=_FILLED, description=_TEXT, configuration=_CONFIGURATION, workflow=_WORKFLOW)

_RUN_FLUX = Draft202012Validator(_object("input", input=_FLUX_INPUT))
_RUN_ANY = Draft202012Validator(_object("input", input=_ANY_INPUT))
_COMPLETE_APP = _object(
    *("name", "configuration", "workflow"),
    configuration=_object("gpu_tier"),
    workflow=_object("model_url"),
)
_NEW_APP = Draft202012Validator({"allOf": [_APP, _COMPLETE_APP]})
_UPDATE = Draft202012Validator(_APP)
_PICTURE_SIDE = Draft202012Validator(_SIDE)


def check_input(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """
    Return the ``input`` of a run.

    :raises Refusal: it does not fit the app's model.
    """
    _check(body, _RUN_FLUX if kind == "flux" else _RUN_ANY)
    given: dict[str, Any] = body["input"]
    return given


def picture_size(given: dict[str, Any]) -> tuple[int, int]:
    """Return width and height of the picture for an input, which may be one of an app that draws none."""
    sides: list[Any] = [given.get(side) for side in ("width", "height")]
    width, height = (int(side) if _PICTURE_SIDE.is_valid(side) else _USUAL_SIDE for side in sides)
    return width, height


def check_new_app(body: dict[str, Any]) -> None:
    """Refuse a new app if a field is missing or wrong."""
    _check(body, _NEW_APP)


def check_update(app: App, body: dict[str, Any]) -> None:
    """Refuse an update if a field is wrong, or may not change."""
    _check(body, _UPDATE)
    now = {"model_url": app.model_url, "tools": app.tools}
    if _without_weights({**now, **body.get("workflow", {})}) != _without_weights(now):
        raise Refusal(400, "only the weights of LoRAs may change in a workflow")


def _check(body: dict[str, Any], validator: Draft202012Validator) -> None:
    error = best_match(validator.iter_errors(body))
    if error is not None:
        place = ".".join(map(str, error.absolute_path)) or "the body"
        raise Refusal(400, f"{place}: {error.message}"[:_LONGEST_REASON])


def _without_weights(workflow: dict[str, Any]) -> dict[str, Any]:
    tools = workflow.get("tools") or {}
    loras = [{key: lora[key] for key in lora if key != "weight"} for lora in tools.get("loras", [])]
    return {**workflow, "tools": {**tools, "loras": loras}}
