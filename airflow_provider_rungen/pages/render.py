"""Render pages as HTML. Jinja2 is imported with the first page."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.client.texts import format_bytes
from airflow_provider_rungen.pages.describe import failure_reason
from airflow_provider_rungen.pages.models import AppPage, AppsPage, ContactSheet, JobPage, TaskPage

if TYPE_CHECKING:
    from jinja2 import Environment

    from airflow_provider_rungen.pages.models import Progress, Site

Page: TypeAlias = "TaskPage | JobPage | AppPage | AppsPage | ContactSheet"
#: The files that `Site` has the addresses of.
ASSETS = ("style.css", "page.js")
# What a browser takes for a scheme; it ignores control characters and spaces in it.
_SCHEME = re.compile(r"[^/?#]*:")
_TIMES = {"minute": "%Y-%m-%d %H:%M UTC", "second": "%Y-%m-%d %H:%M:%S UTC"}
_TONES = {
    "good": ("completed", "success", "ready", "done"),
    "bad": ("failed", "refused", "upstream_failed", "unhealthy", "error"),
    "busy": ("deferred", "initializing", "up_for_retry", "restarting", "throttled"),
}
_TONE_OF = {word: tone for tone, words in _TONES.items() for word in words}
_TEMPLATES = {
    TaskPage: "task.html",
    JobPage: "job.html",
    AppPage: "app.html",
    AppsPage: "apps.html",
    ContactSheet: "contact_sheet.html",
}


def render(page: Page, site: Site | None = None) -> str:
    """
    Return the HTML of a page.

    :param page: what it shows.
    :param site: where the other pages are. A contact sheet needs none: its style is inside.
    """
    text = _environment().get_template(_TEMPLATES[type(page)]).render(page=page, site=site)
    # JSON may hold half a character, which no file can
    return text.encode("utf-8", "replace").decode()


def progress_json(progress: Progress, state: str = "") -> dict[str, Any]:
    """
    Return the answer of `TaskPage.refresh_href`, which ``page.js`` asks for.

    :param state: Airflow's word for the state of the task.
    """
    return {
        "state": state,
        "is_moving": progress.is_moving,
        "done": progress.done,
        "total": progress.total,
        **progress_parts(progress),
    }


@lru_cache(maxsize=len(ASSETS))
def read_asset(name: str) -> str:
    """
    Return an asset.

    :param name: one of `ASSETS`.
    :raises KeyError: there is no such asset.
    """
    if name not in ASSETS:
        raise KeyError(name)
    return files(__package__).joinpath("templates", name).read_text("utf-8")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=format_duration,
        iso=iso,
        json=partial(json.dumps, indent=2, ensure_ascii=False, default=str),
        number="{:,}".format,
        progress_parts=progress_parts,
        reason=failure_reason,
        safe_href=safe_href,
        size=format_bytes,
        tone=tone,
        utc=utc,
    )
    # the package's own text, which holds no markup
    environment.globals["style"] = Markup(read_asset("style.css"))  # noqa: S704 - our own file
    return environment


# --- how values read ---


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


def utc(at: datetime, form: str = "minute") -> str:
    """
    Format a time.

    :param form: ``minute`` or ``second``.
    """
    return _in_utc(at).strftime(_TIMES[form])


def iso(at: datetime) -> str:
    return _in_utc(at).isoformat(timespec="seconds")


def _in_utc(at: datetime) -> datetime:
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


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
