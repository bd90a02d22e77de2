"""Render pages as HTML. Jinja2 is imported with the first page."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

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


def render_task(page: TaskPage, site: Site) -> str:
    return _render("task.html", page, site)


def render_job(page: JobPage, site: Site) -> str:
    return _render("job.html", page, site)


def render_app(page: AppPage, site: Site) -> str:
    return _render("app.html", page, site)


def render_apps(page: AppsPage, site: Site) -> str:
    return _render("apps.html", page, site)


def render_contact_sheet(page: ContactSheet) -> str:
    """Return a page that works alone: its style is inside, its files are beside it."""
    return _render("contact_sheet.html", page, None)


def progress_json(progress: Progress, state: str = "") -> dict[str, Any]:
    """
    Return what ``page.js`` expects of `TaskPage.refresh_href`.

    :param state: Airflow's word for the state of the task.
    """
    return {"state": state, "is_moving": progress.is_moving, "done": progress.done, "total": progress.total}


def read_asset(name: str) -> str:
    """
    Return ``style.css`` or ``page.js``.

    :raises KeyError: there is no such asset.
    """
    if name not in ("style.css", "page.js"):
        raise KeyError(name)
    return files(__package__).joinpath("templates", name).read_text("utf-8")


def _render(template: str, page: Any, site: Site | None) -> str:
    return _environment().get_template(template).render(page=page, site=site)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
