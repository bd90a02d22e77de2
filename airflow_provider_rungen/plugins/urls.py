"""Where the pages are, as a request sees them. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_rungen import __version__
from airflow_provider_rungen.links.urls import PREFIX, path, task_path
from airflow_provider_rungen.plugins.rows import PAGE_SIZE
from airflow_provider_rungen.plugins.task_record import TaskRecord


@dataclass(frozen=True, slots=True)
class Urls:
    """
    The URLs of pages.

    :param root: the path that the plugin is mounted at, with that of Airflow.
    """

    root: str

    @property
    def overview(self) -> str:
        """The page of all apps."""
        return f"{self.root}/"

    def asset(self, name: str) -> str:
        return f"{self.root}/{name}?v={__version__}"

    def task(self, task: TaskRecord, *below: str) -> str:
        """Return the page of a task, or a page below it."""
        return self.root + task_path(task.dag_id, task.run_id, task.task_id, task.map_index) + path(*below)

    def job(self, task: TaskRecord, job_id: str, *below: str, row: int = 0) -> str:
        """
        Return the page of a job, or a page below it.

        :param row: the row of the job. The page of the task that has it is named, as it knows the job.
        """
        page = row // PAGE_SIZE + 1
        return self.task(task, "jobs", job_id, *below) + (f"?task_page={page}" if page > 1 else "")

    def app(self, conn_id: str, app_id: str) -> str:
        """Return the page of an app of a connection."""
        return self.root + path("connections", conn_id, "apps", app_id)

    def in_airflow(self, task: TaskRecord) -> str:
        """Return the page of Airflow itself for a task."""
        mapped = ("mapped", str(task.map_index)) if task.map_index >= 0 else ()
        root = self.root.removesuffix(PREFIX)
        return root + path("dags", task.dag_id, "runs", task.run_id, "tasks", task.task_id, *mapped)
