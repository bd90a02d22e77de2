"""Checks the bodies of requests by schemas. The service refuses a wrong one with 400 and the reason."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from airflow_provider_rungen.emulator.messages import Refusal, Request

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
_APP = _object(
    name=_FILLED,
    description=_TEXT,
    configuration=_object(
        gpu_tier={"enum": ["BASIC", "STANDARD", "PERFORMANCE"]}, active_workers={**_COUNT, "maximum": 1000}
    ),
    workflow=_object(model_url=_FILLED, tools={**_object(loras=_LORAS), "type": ["object", "null"]}),
)
_COMPLETE_APP = _object(
    *("name", "configuration", "workflow"),
    configuration=_object("gpu_tier"),
    workflow=_object("model_url"),
)
_BODIES = {
    "flux": _object("input", input=_FLUX_INPUT),
    "text": _object("input", input=_object(emulator=_INSTRUCTIONS)),
    "new app": {"type": "object", "allOf": [_APP, _COMPLETE_APP]},
    "update": _APP,
}
_VALIDATORS = {kind: Draft202012Validator(schema) for kind, schema in _BODIES.items()}
_SIDE_VALIDATOR = Draft202012Validator(_SIDE)


def check_body(kind: str, request: Request) -> dict[str, Any]:
    """
    Return the body of a request.

    :param kind: ``flux`` or ``text`` for a run of such an app, ``new app`` or ``update``.
    :raises Refusal: it is wrong.
    """
    body: dict[str, Any] = request.json()
    error = best_match(_VALIDATORS[kind].iter_errors(body))
    if error is not None:
        place = ".".join(map(str, error.absolute_path)) or "the body"
        raise Refusal(400, f"{place}: {error.message}"[:_LONGEST_REASON])
    return body


def check_workflow(old: dict[str, Any], new: dict[str, Any]) -> None:
    """
    Compare the workflow of an app with that of an update.

    :raises Refusal: something changes that may not.
    """
    if _without_weights(new) != _without_weights(old):
        raise Refusal(400, "only the weights of LoRAs may change in a workflow")


def _without_weights(workflow: dict[str, Any]) -> dict[str, Any]:
    tools = workflow.get("tools") or {}
    loras = [{key: lora[key] for key in lora if key != "weight"} for lora in tools.get("loras", [])]
    return {**workflow, "tools": {**tools, "loras": loras}}


def picture_size(given: dict[str, Any]) -> tuple[int, int]:
    """Return width and height of the picture for an input, which may be one of an app that draws none."""
    sides: list[Any] = [given.get(side) for side in ("width", "height")]
    width, height = (int(side) if _SIDE_VALIDATOR.is_valid(side) else _USUAL_SIDE for side in sides)
    return width, height
