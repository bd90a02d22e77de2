"""What the page of a task and a contact sheet show of a row: prompt, text, columns and files. No I/O."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from types import MappingProxyType
from typing import Any

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text, format_count, format_duration
from airflow_provider_rungen.schemas.output_type import FIXED_COLUMNS
from airflow_provider_rungen.task.report import format_unrun

#: How a browser shows a file, by its suffix. All others are downloads.
KINDS = {
    **dict.fromkeys(("png", "jpg", "jpeg", "webp", "gif", "avif"), "image"),
    **dict.fromkeys(("mp3", "wav", "ogg", "flac", "m4a"), "audio"),
    **dict.fromkeys(("mp4", "webm"), "video"),
    "txt": "text",
}
# Characters of a prompt or an answer, and of any other value.
_MAX_TEXT = 4000
_MAX_VALUE = 300
_MAX_VALUES = 40
_MAX_FILES = 20
# A longer JSON text is cut, and not parsed: it would hold the interpreter.
_MAX_PARSED = 1 << 20
_MAX_DEPTH = 6
# The columns that are no values of the source.
_OWN = {*FIXED_COLUMNS}
# What a store puts before the name of a file: the key, its purchase, and the job.
_STORED_AS = re.compile(r"^[0-9a-f]{64}\.\d+\.[0-9A-Za-z_-]+\.")
# A cost of less is shown with four digits; of even less, not at all.
_LITTLE_COST, _LEAST_COST = 0.1, 0.0001
_PROMPTS = ("prompt", "text", "question", "instruction", "query", "message", "input")
_TEXTS = ("text", "output", "answer", "response", "content", "generated_text", "completion", "result")


def shown_row(
    row: Mapping[str, Any], key: Sequence[str], url_of: Callable[[str], str | None]
) -> dict[str, Any]:
    """
    Return what is shown of a row, as JSON has it: without secrets, and cut.

    :param row: a row of a results table, as JSON, CSV or Parquet have it.
    :param key: the columns that identify it.
    :param url_of: returns where the file of a URI is served; nothing if it is not.
    """
    columns = {
        name: shown(value)
        for name, value in islice(row.items(), 4 * _MAX_VALUES)
        if name not in _OWN and value not in (None, "")
    }
    given = _parsed(row.get("input"))
    outputs = _list(row.get("outputs"))
    name, prompt = find_prompt(given)
    return {
        "index": row.get("index"),
        "key": ", ".join(columns[column] for column in key if column in columns),
        "status": shown(row.get("status") or ""),
        "error": clean_text(str(row.get("error") or ""), 1000),
        "job_id": shown(row.get("job_id") or ""),
        "columns": {column: value for column, value in columns.items() if column not in key},
        "prompt": prompt,
        "input": dict(_settings(given, name)),
        "outputs": [_file(uri, url_of) for uri in outputs[:_MAX_FILES]],
        "text": None if outputs else find_text(_parsed(row.get("result"))),
        "reused": row.get("reused") in (True, "true"),
        "seconds": to_number(row.get("seconds")),
        "cost": to_number(row.get("cost")),
    }


def shown_usage(
    jobs: int | None,
    seconds: float | None,
    cost: float | None,
    currency: str,
    used: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """
    Return what was bought, also in words: nothing that was refused.

    :param jobs: how many; ``None`` if that is not known. The others may not be known, too.
    :param used: the counts of the XCom ``usage``.
    """
    parts = [format_count(jobs, "job")] if jobs else []
    if jobs and (bought := used.get("bought", jobs)) != jobs:
        parts.append(f"{bought or 'none'} by this attempt")
    parts += filter(None, [format_unrun(used)])
    if seconds and seconds >= 1:
        parts.append(f"{format_duration(seconds)} of work")
    if cost is not None and jobs != 0:
        parts.append(_format_cost(cost, currency))
    if lost := used.get("lost"):
        parts.append(f"{format_count(lost, 'job')} whose answer was lost may have cost, too")
    text = ", ".join(parts) or ("nothing" if jobs == 0 else "")
    return {"jobs": jobs, "seconds": seconds, "cost": cost, "currency": currency, "text": text}


def _format_cost(cost: float, currency: str) -> str:
    if 0 < cost < _LEAST_COST:
        return f"below {_LEAST_COST} {currency}"
    return f"{cost:.{2 if cost == 0 or cost >= _LITTLE_COST else 4}f} {currency}"


def shown(value: Any, limit: int = _MAX_VALUE) -> str:
    """Return an untrusted value as text: without secrets of URLs, and cut."""
    if not isinstance(value, str):
        with suppress(ValueError, TypeError, RecursionError):
            value = json.dumps(value, ensure_ascii=False, default=str)
    # redacted before it is cut, since a part of a URL is not recognized; but not all of it, which takes time
    text = redact(str(value), most=2 * limit)
    return text if len(text) <= limit else text[:limit] + "…"


def to_number(value: Any) -> float | None:
    """Return a finite number, which CSV has as text; ``None`` for anything else."""
    with suppress(ValueError, TypeError, OverflowError):
        number = float(value)
        return number if math.isfinite(number) else None
    return None


def find_prompt(given: Any) -> tuple[str, str]:
    """Return the name of the field that asks the model, and its text; empty if the input has none."""
    if isinstance(given, Mapping):
        for name in _PROMPTS:
            if isinstance(value := given.get(name), str) and value.strip():
                return name, shown(value.strip(), _MAX_TEXT)
        messages = given.get("messages")
        if isinstance(messages, list) and messages and isinstance(messages[-1], Mapping):
            content = messages[-1].get("content")
            if isinstance(content, str):
                return "messages", shown(content.strip(), _MAX_TEXT)
    return "", ""


def find_text(result: Any) -> str | None:
    """Return the text of a result, or else its JSON; ``None`` if there is no result."""
    found = result
    for _ in range(_MAX_DEPTH):
        if isinstance(found, list):
            # a model that could give several answers gave one
            found = found[0] if len(found) == 1 else None
        elif isinstance(found, Mapping):
            named = (found.get(name) for name in _TEXTS)
            text = next((value for value in named if isinstance(value, str)), None)
            found = text if text is not None else found.get("choices") or found.get("message")
    return None if result is None else shown(found if isinstance(found, str) else result, _MAX_TEXT)


def _settings(given: Any, prompt: str) -> Iterator[tuple[str, str]]:
    if isinstance(given, Mapping):
        for name, value in islice(given.items(), _MAX_VALUES):
            if name != prompt and value not in (None, ""):
                yield shown(name), shown(value)


def _file(uri: str, url_of: Callable[[str], str | None]) -> dict[str, Any]:
    name = _STORED_AS.sub("", uri.rpartition("/")[2])
    kind = KINDS.get(name.rpartition(".")[2].lower(), "download")
    return {"name": shown(name), "url": url_of(uri), "kind": kind}


def _list(value: Any) -> list[str]:
    found = _parsed(value)
    return [each for each in found if isinstance(each, str)] if isinstance(found, list | tuple) else []


def _parsed(value: Any) -> Any:
    """Return a value that may be JSON text; a text that is none, or that is too long, as it is."""
    if isinstance(value, str) and len(value) <= _MAX_PARSED:
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value if value != "" else None
