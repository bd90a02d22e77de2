"""The addresses of the pages."""

from __future__ import annotations

from dataclasses import dataclass, replace

from airflow_provider_rungen import __version__
from airflow_provider_rungen.links import PREFIX, path, task_path
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

    def of_run(self, task: TaskRecord, task_id: str) -> str:
        """Return the page of another task of the run."""
        return self.task(replace(task, task_id=task_id))

    def run(self, task: TaskRecord, task_id: str = "") -> str:
        """Return the gallery of a run, or of all indexes of a task."""
        below = ("tasks", task_id) if task_id else ()
        return self.root + path("dags", task.dag_id, "runs", task.run_id, *below)

    def job(self, task: TaskRecord, job_id: str, *below: str, row: int = 0) -> str:
        """
        Return the page of a job, or a page below it.

        :param row: the row of the job, which decides the page of the task that lists it.
        """
        page = row // PAGE_SIZE + 1
        return self.task(task, "jobs", job_id, *below) + (f"?task_page={page}" if page > 1 else "")

    def app(self, conn_id: str, app_id: str) -> str:
        """Return the page of an app of a connection."""
        return self.root + path("connections", conn_id, "apps", app_id)

    def in_airflow(self, task: TaskRecord) -> str:
        """Return the page of Airflow itself for a task."""
        mapped = ("mapped", str(task.map_index)) if task.map_index >= 0 else ()
        return self.airflow("dags", task.dag_id, "runs", task.run_id, "tasks", task.task_id, *mapped)

    def airflow(self, *segments: str) -> str:
        """Return a page of Airflow itself."""
        return self.root.removesuffix(PREFIX) + path(*segments)
