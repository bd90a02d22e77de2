"""The links of the provider: from a task in Airflow's UI to its results, its job and its app.

They lead to a page of the plugin, or to what the connection names.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, urljoin, urlsplit

from airflow_provider_rungen._airflow import BaseOperatorLink, XCom

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator
    from airflow_provider_rungen.client.settings import Settings

log = logging.getLogger(__name__)

#: Where the plugin is mounted, below Airflow's own address.
PREFIX = "/rungen"


class _Link(BaseOperatorLink):
    """A link that the task pushes while it runs, so that it works before the task has ended."""

    name: ClassVar[str]
    key: ClassVar[str]

    @property
    def xcom_key(self) -> str:
        return self.key

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """
        Return what was pushed. Airflow asks on the worker at the end.

        :return: an empty text where nothing was pushed.
        """
        known: dict[str, str] = getattr(operator, "links", {})
        if RunGenAppLink.key in known:
            # this process began the task, and knows them all. The SDK logs an XCom that it misses as an error
            return known.get(self.key, "")
        try:
            return known.get(self.key) or XCom.get_value(ti_key=ti_key, key=self.key) or ""
        except Exception as error:
            log.debug("Could not find the link %s: %s", self.name, type(error).__name__)
            return ""


class RunGenResultsLink(_Link):
    """The link to the page of the task: its progress, jobs and results."""

    name = "RunGen results"
    key = "rungen_results_link"


class RunGenJobLink(_Link):
    """The link to the task's job. Of several jobs, it leads to the first that failed, or to the first."""

    name = "RunGen job"
    key = "rungen_job_link"


class RunGenAppLink(_Link):
    """The link to the task's app."""

    name = "RunGen app"
    key = "rungen_app_link"


def are_pages_enabled() -> bool:
    """Return whether ``[rungen] pages`` does not turn the pages off."""
    # that of the core, which every component has read: the SDK's reads the providers first
    from airflow.configuration import conf

    return bool(conf.getboolean("rungen", "pages", fallback=True))


def page_url(ti: Any) -> str:
    """
    Return the URL of the page of a task, relative to Airflow's host; empty where there are no pages.

    :param ti: the task instance.
    """
    if not are_pages_enabled():
        return ""
    index = f"?map_index={ti.map_index}" if ti.map_index is not None and ti.map_index >= 0 else ""
    return f"{mount_path()}/task{path(ti.dag_id, ti.run_id, ti.task_id)}{index}"


def full_url(url: str) -> str:
    """Return the URL of a page with Airflow's host."""
    from airflow.configuration import conf

    return urljoin(conf.get("api", "base_url", fallback="") or "", url)


def app_url(settings: Settings, app_id: str) -> str:
    """Return the URL of an app by the connection's ``app_url``; without one, in the overview of apps."""
    overview = f"{mount_path()}/#{quote(app_id, safe='')}" if are_pages_enabled() else ""
    return _fill(settings.app_url, app_id=app_id) or overview


def job_url(ti: Any, settings: Settings, app_id: str, job_id: str) -> str:
    """Return the URL of a job by the connection's ``job_url``; without one, on the page of its task."""
    page = page_url(ti)
    panel = f"{page}#job={quote(job_id, safe='')}" if page else ""
    return _fill(settings.job_url, app_id=app_id, job_id=job_id) or panel


def _fill(pattern: str | None, **ids: str) -> str:
    from airflow_provider_rungen.client.codec import path_segment

    url = pattern or ""
    for name, value in ids.items():
        url = url.replace(f"{{{name}}}", path_segment(value, name))
    return url


def mount_path() -> str:
    """Return the path of the plugin on Airflow's host: ``[api] base_url`` may have a path of its own."""
    from airflow.configuration import conf

    return urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/") + PREFIX


def path(*segments: str) -> str:
    """Return segments as the path of a URL."""
    return "".join(f"/{quote(segment, safe='')}" for segment in segments)
