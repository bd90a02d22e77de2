"""How values read on a page. No I/O."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.pages.models import Progress

# What a browser takes for a scheme; it ignores control characters and spaces in it.
_SCHEME = re.compile(r"[^/?#]*:")
_UNITS = ("B", "kB", "MB", "GB", "TB")
_TIMES = {"minute": "%Y-%m-%d %H:%M UTC", "second": "%Y-%m-%d %H:%M:%S UTC", "clock": "%H:%M:%S UTC"}
_TONES = {
    "good": ("completed", "success", "ready", "done"),
    "bad": ("failed", "refused", "upstream_failed", "unhealthy", "error"),
    "busy": ("deferred", "initializing", "up_for_retry", "restarting", "throttled"),
}
_TONE_OF = {word: tone for tone, words in _TONES.items() for word in words}


def safe_href(href: str) -> str:
    """Return a link that is relative or leads to the web, and nothing for one that may run a script."""
    if _SCHEME.match(href) and not href.lower().startswith(("http://", "https://")):
        return ""
    return href


def tone(word: str, running: str = "busy") -> str:
    """
    Return the class for the color of a state.

    :param running: the class of ``running``, which is an end for an app, but none for a job.
    """
    return running if word.lower() == "running" else _TONE_OF.get(word.lower(), "calm")


def words(name: str) -> str:
    """Return an API name as words: ``in_queue`` as ``in queue``."""
    return name.replace("_", " ")


def number(value: float) -> str:
    return f"{value:,}"


def size(count: float) -> str:
    """Format a number of bytes: ``24 kB``, ``1.5 MB``."""
    for unit in _UNITS:
        if count < 999.5 or unit == _UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit in ("B", "kB") or count >= 10 else f"{count:.1f} {unit}"


def utc(at: datetime, form: str = "minute") -> str:
    """
    Format a time.

    :param form: ``minute``, ``second``, or ``clock`` for a time without its day.
    """
    return _in_utc(at).strftime(_TIMES[form])


def iso(at: datetime) -> str:
    return _in_utc(at).isoformat(timespec="seconds")


def _in_utc(at: datetime) -> datetime:
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def indented_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def progress_parts(progress: Progress) -> dict[str, Any]:
    """Return the texts of a progress bar, and its parts in percent, as the page and its script show them."""
    counts = {
        name: getattr(progress, name)
        for name in ("completed", "failed", "canceled", "skipped", "running", "queued")
    }
    whole = max(progress.total, sum(counts.values()), 1)
    parts, before = [], 0
    for name, count in counts.items():
        left, right = round(100 * before / whole, 3), round(100 * (before + count) / whole, 3)
        parts.append({"name": name, "count": count, "x": left, "width": round(right - left, 3)})
        before += count
    return {"headline": _headline(progress), "pace": _pace(progress), "parts": parts}


def _headline(progress: Progress) -> str:
    if progress.is_moving or progress.done < progress.total:
        return f"{progress.done:,} of {progress.total:,} done"
    return f"{progress.total:,} {'job' if progress.total == 1 else 'jobs'}"


def _pace(progress: Progress) -> str:
    parts = []
    if progress.is_moving and progress.rate:
        parts.append(f"{progress.rate:.2g}/s" if progress.rate < 10 else f"{progress.rate:,.0f}/s")
    if progress.is_moving and progress.seconds_left is not None:
        parts.append(f"about {format_duration(progress.seconds_left)} left")
    return ", ".join(parts)
