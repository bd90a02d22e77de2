"""Render pages as HTML. Jinja2 is imported with the first page."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.durations import format_duration
from airflow_provider_rungen.pages import filters
from airflow_provider_rungen.pages.failures import failure_reason
from airflow_provider_rungen.pages.filters import progress_parts

if TYPE_CHECKING:
    from jinja2 import Environment

    from airflow_provider_rungen.pages.models import (
        AppPage,
        AppsPage,
        ContactSheet,
        JobPage,
        Progress,
        Site,
        TaskPage,
    )

#: The files that `Site` has the addresses of.
ASSETS = ("style.css", "page.js")


def render_task(page: TaskPage, site: Site) -> str:
    return _render("task.html", page, site)


def render_job(page: JobPage, site: Site) -> str:
    return _render("job.html", page, site)


def render_app(page: AppPage, site: Site) -> str:
    return _render("app.html", page, site)


def render_apps(page: AppsPage, site: Site) -> str:
    return _render("apps.html", page, site)


def render_contact_sheet(page: ContactSheet) -> str:
    """Return a page that works alone: its style is inside, and its files are beside it."""
    return _render("contact_sheet.html", page, None)


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


def _render(template: str, page: Any, site: Site | None) -> str:
    text = _environment().get_template(template).render(page=page, site=site)
    # JSON may hold half a character, which no file can
    return text.encode("utf-8", "replace").decode()


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
        iso=filters.iso,
        json=filters.indented_json,
        number=filters.number,
        progress_parts=progress_parts,
        reason=failure_reason,
        safe_href=filters.safe_href,
        size=filters.size,
        tone=filters.tone,
        utc=filters.utc,
        words=filters.words,
    )
    # the package's own text, which holds no markup
    environment.globals["style"] = Markup(read_asset("style.css"))  # noqa: S704 - our own file
    return environment
