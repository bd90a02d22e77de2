"""Render pages as HTML. Jinja2 is imported with the first page."""

from __future__ import annotations

import json
import re
from functools import lru_cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.texts import format_bytes, format_duration
from airflow_provider_rungen.client.workers import worker_states
from airflow_provider_rungen.pages.models import failure_reason, is_billed, shown_text

if TYPE_CHECKING:
    from jinja2 import Environment

    from airflow_provider_rungen.pages.models import ContactSheet, Progress

#: The files that pages load.
ASSETS = {
    "style.css": "text/css",
    "page.js": "text/javascript",
    "theme.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
# What a browser takes for a scheme; it ignores control characters and spaces in it.
_SCHEME = re.compile(r"[^/?#]*:")


def render(page: ContactSheet) -> str:
    """Return the HTML of a page of a contact sheet. Its style is inside."""
    return render_template("contact_sheet.html", page=page)


def render_template(name: str, **values: Any) -> str:
    """
    Return the HTML of a page.

    :param name: its template.
    :param values: what the template shows.
    """
    text = _environment().get_template(name).render(values)
    # JSON may have half of a surrogate pair, which UTF-8 cannot
    return text.encode("utf-8", "replace").decode()


@lru_cache(maxsize=len(ASSETS))
def read_asset(name: str) -> str:
    """
    Return an asset.

    :param name: one of `ASSETS`.
    """
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
        json=partial(json.dumps, indent=2, ensure_ascii=False, default=str),
        number="{:,}".format,
        progress_parts=progress_parts,
        reason=failure_reason,
        safe_href=safe_href,
        shown=shown_text,
        size=format_bytes,
        worker_states=worker_states,
    )
    environment.tests["billed"] = is_billed
    # the package's own text, which holds no markup
    environment.globals["style"] = Markup(read_asset("style.css"))  # noqa: S704 - our own file
    return environment


# --- filters ---


def safe_href(href: str) -> str:
    """Return a link that is relative or leads to the web, and nothing for one that may run a script."""
    if _SCHEME.match(href) and not href.lower().startswith(("http://", "https://")):
        return ""
    return href


def progress_parts(progress: Progress) -> dict[str, Any]:
    """Return the progress of a task, and the parts of its bar in percent, for a page and for its script."""
    names = ["completed", "failed", "canceled", "skipped", "running", "queued"]
    names += [] if progress.is_moving else ["unknown", "in_doubt", "unsent"]
    counts = {name: getattr(progress, name) for name in names}
    whole = max(progress.total, sum(counts.values()), 1)
    parts, before = [], 0
    for name, count in counts.items():
        left, right = round(100 * before / whole, 3), round(100 * (before + count) / whole, 3)
        parts.append({"name": name, "count": count, "x": left, "width": round(right - left, 3)})
        before += count
    headline = f"{progress.total:,} {'job' if progress.total == 1 else 'jobs'}"
    if progress.is_moving:
        headline = f"{progress.done:,} of {progress.total:,} done"
    elif doubtful := progress.unsent + progress.in_doubt:
        least = "At least " if progress.in_doubt else ""
        headline = f"{least}{progress.total - doubtful:,} of {headline} submitted"
    return {
        "is_moving": progress.is_moving,
        "done": progress.done,
        "total": progress.total,
        "headline": headline,
        "parts": parts,
    }
