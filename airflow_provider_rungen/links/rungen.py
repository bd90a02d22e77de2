"""Links from a task in Airflow's UI to its job and its app."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_rungen._airflow import BaseOperatorLink
from airflow_provider_rungen.client.codec import path_segment

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator
    from airflow_provider_rungen.client.settings import Settings

log = logging.getLogger(__name__)


class _Link(BaseOperatorLink):
    """A link that the task pushes while it runs, so that it is there before the task is over."""

    name: ClassVar[str]
    key: ClassVar[str]

    @property
    def xcom_key(self) -> str:
        return self.key

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """
        Give what was pushed; Airflow 3 asks on the worker at the end, Airflow 2 in the webserver.

        :return: an empty text where nothing was.
        """
        from airflow_provider_rungen._airflow import XCom

        known: dict[str, str] = getattr(operator, "links", {})
        try:
            return known.get(self.key) or XCom.get_value(ti_key=ti_key, key=self.key) or ""
        except Exception as error:
            log.debug("The link %s was not found: %s", self.name, type(error).__name__)
            return ""


class RunGenJobLink(_Link):
    """Leads to the task's job; of many, to the first, or to the first that failed."""

    name = "RunGen job"
    key = "rungen_job_link"


class RunGenAppLink(_Link):
    """Leads to the task's app."""

    name = "RunGen app"
    key = "rungen_app_link"


JOB_AND_APP = (RunGenJobLink(), RunGenAppLink())


def app_url(settings: Settings, app_id: str) -> str:
    """Give the address to look at an app: the connection's ``app_url``, or that of the API."""
    pattern = settings.app_url or f"{settings.base_url}/app/{{app_id}}"
    return pattern.replace("{app_id}", path_segment(app_id))


def job_url(settings: Settings, app_id: str, job_id: str) -> str:
    """Give the address to look at a job: the connection's ``job_url``, or that of the API."""
    pattern = settings.job_url or f"{settings.base_url}/app/{{app_id}}/job/{{job_id}}"
    return pattern.replace("{app_id}", path_segment(app_id)).replace(
        "{job_id}", path_segment(job_id, "job_id")
    )
