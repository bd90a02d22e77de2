"""Find what people want to see first: the prompt, the text of a result, why jobs failed, the bill. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.pages.models import FAILED, Facts, FailureGroup, JobView

#: Characters of a prompt or a text at most.
MAX_TEXT = 4000
MAX_GROUPS = 20
MAX_EXAMPLES = 5
_OTHER = "other reasons"
_BILLED_WORKERS = ("idle", "initializing", "ready", "running", "throttled", "unhealthy")
_SAME_FOR_ALL = re.compile(r"^Failed: | \((?:job [^()]*, )?app [^()]*\)")
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


def find_prompt(input: Any) -> str:
    """Return what the model was asked, redacted and cut, or nothing if the input does not have it."""
    if not isinstance(input, Mapping):
        return ""
    for name in _PROMPTS:
        if isinstance(value := input.get(name), str) and value.strip():
            return _excerpt(value.strip())
    messages = input.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], Mapping):
        content = messages[-1].get("content")
        return _excerpt(content.strip()) if isinstance(content, str) else ""
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


def find_text(result: Any) -> str | None:
    """Return the text of a result, redacted and cut, or ``None`` if it is not text."""
    for _ in range(_MAX_DEPTH):
        if isinstance(result, str):
            return _excerpt(result)
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


def _excerpt(text: str) -> str:
    # it takes time to redact a text, and a URL that is cut can no longer be redacted
    text = redact(text, most=2 * MAX_TEXT)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def shown_text(text: Any, limit: int = 1000) -> str:
    """Return an untrusted text as a page may show it: without secrets, and cut."""
    return clean_text(str(text), limit)


def failure_reason(job: JobView) -> str:
    """Return why a job failed, without what is different for each job: its id, and its app."""
    reason = _SAME_FOR_ALL.sub("", job.error)
    if job.job_id:
        reason = reason.replace(job.job_id, "…")
    return reason or job.status


def group_failures(jobs: Iterable[JobView]) -> Sequence[FailureGroup]:
    """
    Return the failed jobs by reason, the most frequent first, in bounded memory.

    :param jobs: all jobs. Those that did not fail are left out.
    """
    counts: dict[str, int] = {}
    examples: dict[str, list[JobView]] = {}
    for job in jobs:
        if job.status not in FAILED:
            continue
        reason = failure_reason(job)
        if reason not in counts and len(counts) >= MAX_GROUPS:
            reason = _OTHER
        counts[reason] = counts.get(reason, 0) + 1
        if len(shown := examples.setdefault(reason, [])) < MAX_EXAMPLES:
            # the reason need not be repeated
            shown.append(job if reason == _OTHER else replace(job, error=""))
    ranked = sorted(counts, key=lambda reason: (reason == _OTHER, -counts[reason]))
    return [FailureGroup(reason=each, count=counts[each], examples=examples[each]) for each in ranked]


def is_billed(app: App) -> bool:
    """Return whether an app is known to be billed now."""
    return bool(app.active_workers) or any(app.workers.get(name) for name in _BILLED_WORKERS)
