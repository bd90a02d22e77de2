"""
What pages show of jobs, as frozen values, and in words. No Airflow, no I/O.

Texts are plain and untrusted: a page escapes them. Redact them and `JobView.input` before, since a page must
have no keys and no signed URLs. An ``href`` is relative, or begins with ``http``. In a
relative one, escape a colon before the first slash: it would be taken for a scheme, and dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, TypeAlias

from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.money import Cost
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.client.workers import counts_workers

#: Labels and their values, in the order in which they are shown.
Facts: TypeAlias = Sequence[tuple[str, str]]
#: How a file is shown; see `output_kinds`.
OutputKind: TypeAlias = Literal["image", "audio", "video", "text", "download"]
#: The statuses of jobs that failed; ``refused`` is that of an input without a job.
FAILED = frozenset(["failed", "canceled", "refused", "invalid", "rejected", "given up", "given_up"])


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """
    A stored file of a job.

    :param name: its name, without a folder.
    :param href: where it is served.
    :param kind: how to show it. What may not be shown in place is a ``download``.
    :param size: its bytes, if known.
    :param width: pixels, if known, so that the page does not jump when it is loaded.
    :param height: likewise.
    """

    name: str
    href: str
    kind: OutputKind = "download"
    size: int | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """
    One job, or one row or input without a job.

    :param index: its position among the inputs.
    :param status: ``queued``, ``running``, ``completed``, ``failed``, ``canceled``, ``refused``, ``skipped``
        or another word, in small letters.
    :param key: what identifies its row in a table.
    :param job_id: the job's id; empty without a job.
    :param seconds: seconds of work, if known.
    :param error: why it failed.
    :param prompt: what the model was asked, if the input has it; see `find_prompt`.
    :param input: the input, redacted.
    :param facts: other settings, such as size and seed; see `find_facts`.
    :param outputs: its files, or the first of many.
    :param more_outputs: how many more it has.
    :param text: the result of a model that answers with text; see `find_text`.
    :param reused: whether an earlier run paid for it.
    :param href: the page of the job; empty for none.
    :param cost: what the job cost, if that is known.
    :param created_at: when the job was created (ISO 8601), if known.
    :param values: the columns of its row.
    """

    index: int
    status: str
    key: str = ""
    job_id: str = ""
    seconds: float | None = None
    error: str = ""
    prompt: str = ""
    input: Mapping[str, Any] | None = None
    facts: Facts = ()
    outputs: Sequence[OutputFile] = ()
    more_outputs: int = 0
    text: str | None = None
    reused: bool = False
    href: str = ""
    cost: Cost | None = None
    created_at: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """
    Jobs that failed for the same reason.

    :param reason: the reason, without ids.
    :param count: how many jobs.
    :param examples: some of them.
    """

    reason: str
    count: int
    examples: Sequence[JobView] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """
    How many jobs of a task have each status.

    :param total: how many there are.
    :param reused: how many of ``completed`` an earlier run paid for.
    :param skipped: how many rows were skipped. They count as done.
    :param unknown: how many may still run, though the task has ended.
    :param in_doubt: how many inputs may have a job whose id is not known.
    :param is_moving: whether the task runs or is deferred, so that the page asks again.
    """

    total: int
    completed: int = 0
    failed: int = 0
    canceled: int = 0
    running: int = 0
    queued: int = 0
    skipped: int = 0
    unknown: int = 0
    in_doubt: int = 0
    reused: int = 0
    is_moving: bool = False

    @property
    def done(self) -> int:
        """How many have ended."""
        return self.completed + self.failed + self.canceled + self.skipped

    @property
    def unsent(self) -> int:
        """How many were never submitted, once the task has ended."""
        known = self.done + self.running + self.queued + self.unknown + self.in_doubt
        return 0 if self.is_moving else max(0, self.total - known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pager:
    """
    Which part of many jobs a page shows.

    :param page: the number of this page, from 1.
    :param pages: how many there are.
    :param previous_href: the page before; empty on the first.
    :param next_href: the page after; empty on the last.
    """

    page: int
    pages: int
    previous_href: str = ""
    next_href: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactSheet:
    """
    One page of a contact sheet: a file beside the stored outputs, which needs neither Airflow nor a server.

    :param title: its heading.
    :param facts: what made it: app, DAG, run, time.
    :param progress: how the jobs ended.
    :param jobs: those of this page.
    :param pager: which page it is, if there are several.
    :param failures: all failures, grouped.
    """

    title: str
    facts: Facts = ()
    progress: Progress | None = None
    jobs: Sequence[JobView] = ()
    pager: Pager | None = None
    failures: Sequence[FailureGroup] = ()


#: Characters of a prompt or a text at most.
MAX_TEXT = 4000
MAX_GROUPS = 20
MAX_EXAMPLES = 5
_OTHER = "other reasons"
_SAME_FOR_ALL = re.compile(r"^Failed: | \((?:job [^()]*, )?app [^()]*\)")
_PROMPTS = ("prompt", "text", "question", "instruction", "query", "message", "input")
_TEXTS = ("text", "output", "answer", "response", "content", "generated_text", "completion", "result")
# What turns the direction of a text, so that it reads as another one.
_OVERRIDES = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
_MAX_DEPTH = 6
_MAX_FIELDS = 8
_MAX_ITEMS = 200
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
#: The labels of `find_facts`.
FACT_LABELS = ("size", *dict.fromkeys(label for _, label in _FACTS))


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


def first_fields(result: Any) -> str | None:
    """Return the first fields or items of a result as JSON, redacted and cut; ``None`` if there is none."""
    more = ""
    if isinstance(result, Mapping):
        result = dict(islice(result.items(), _MAX_FIELDS))
    elif isinstance(result, list):
        result, more = result[:_MAX_ITEMS], " …" * (len(result) > _MAX_ITEMS)
    with suppress(RecursionError):
        return None if result is None else shown_text(json.dumps(result), MAX_TEXT) + more
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _excerpt(text: str) -> str:
    # redacted before it is cut, since a part of a URL is not recognized; but not all of it, which takes time
    text = redact(text, most=2 * MAX_TEXT).translate(_OVERRIDES)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def shown_text(text: Any, limit: int = 1000) -> str:
    """Return an untrusted text as a page may show it: without secrets, and cut."""
    return clean_text(str(text), limit)


def failure_reason(job: JobView) -> str:
    """Return why a job failed, without its id and its app, so that equal failures have one text."""
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
    return bool(app.active_workers) or counts_workers(app)
