"""The links of the provider: from a task in Airflow's UI to its results, its job and its app."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_rungen._airflow import BaseOperatorLink

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator

log = logging.getLogger(__name__)


class _Link(BaseOperatorLink):
    """A link that the task pushes while it runs, so that it works before the task has ended."""

    name: ClassVar[str]
    key: ClassVar[str]

    @property
    def xcom_key(self) -> str:
        return self.key

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """
        Return what was pushed. Airflow 3 asks on the worker at the end, Airflow 2 in the webserver.

        :return: an empty text where nothing was pushed.
        """
        from airflow_provider_rungen._airflow import XCom

        known: dict[str, str] = getattr(operator, "links", {})
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


__all__ = ["RunGenAppLink", "RunGenJobLink", "RunGenResultsLink"]
