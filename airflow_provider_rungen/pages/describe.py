"""Find in inputs and results what people want to see first: the prompt, size and seed, the text. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_rungen.pages.models import Facts

#: Characters of a prompt or a text at most.
MAX_TEXT = 4000
_PROMPTS = ("prompt", "text", "question", "instruction", "query", "message", "input")
_TEXTS = ("text", "output", "answer", "response", "content", "generated_text", "completion", "result")
_MAX_DEPTH = 6
_SIZE = ("width", "height")
_FACTS = (
    ("seed", "seed"),
    ("num_inference_steps", "steps"),
    ("steps", "steps"),
    ("guidance_scale", "guidance"),
    ("strength", "strength"),
    ("temperature", "temperature"),
    ("max_tokens", "max tokens"),
)


def find_prompt(input: Any, limit: int = MAX_TEXT) -> str:
    """Return what the model was asked, or nothing if the input does not have it. It is cut to a limit."""
    if not isinstance(input, Mapping):
        return ""
    for name in _PROMPTS:
        if isinstance(value := input.get(name), str) and value.strip():
            return cut(value.strip(), limit)
    messages = input.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], Mapping):
        content = messages[-1].get("content")
        return cut(content.strip(), limit) if isinstance(content, str) else ""
    return ""


def find_facts(input: Any) -> Facts:
    """Return the size, the seed and other usual settings of an input."""
    if not isinstance(input, Mapping):
        return []
    facts: dict[str, str] = {}
    width, height = (input.get(name) for name in _SIZE)
    if _is_number(width) and _is_number(height):
        facts["size"] = f"{width} x {height}"
    for name, label in _FACTS:
        if _is_number(value := input.get(name)):
            facts.setdefault(label, f"{value}")
    return list(facts.items())


def find_text(result: Any, limit: int = MAX_TEXT) -> str | None:
    """Return the text of a result, or ``None`` if it is not text. It is cut to a limit."""
    for _ in range(_MAX_DEPTH):
        if isinstance(result, str):
            return cut(result, limit)
        if isinstance(result, list):
            # a model that could give several answers gave one
            result = result[0] if len(result) == 1 else None
        elif isinstance(result, Mapping):
            named = (result.get(name) for name in _TEXTS)
            text = next((value for value in named if isinstance(value, str)), None)
            result = text if text is not None else result.get("choices") or result.get("message")
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def cut(text: str, limit: int = MAX_TEXT) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
