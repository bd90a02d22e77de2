"""Where the pages are, as a request sees them. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_rungen.links.pages import PREFIX, path, task_path
from airflow_provider_rungen.pages.models import Link, Site
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
    def site(self) -> Site:
        from airflow_provider_rungen import __version__

        version = f"?v={__version__}"
        return Site(
            style_href=f"{self.root}/style.css{version}",
            script_href=f"{self.root}/page.js{version}",
            apps_href=f"{self.root}/",
        )

    def task(self, task: TaskRecord, *below: str) -> str:
        """Return the page of a task, or a page below it."""
        return self.root + task_path(task.dag_id, task.run_id, task.task_id, task.map_index) + path(*below)

    def progress(self, task: TaskRecord) -> str:
        return self.task(task, "progress")

    def job(self, task: TaskRecord, job_id: str, *below: str, row: int = 0) -> str:
        """
        Return the page of a job, or a page below it.

        :param row: the row of the job. The page of the task that has it is named, as it knows the job.
        """
        page = row // PAGE_SIZE + 1
        return self.task(task, "jobs", job_id, *below) + (f"?task_page={page}" if page > 1 else "")

    def app(self, task: TaskRecord, app_id: str) -> str:
        return self.task(task, "apps", app_id)

    def app_of_connection(self, conn_id: str, app_id: str) -> str:
        return self.root + path("connections", conn_id, "apps", app_id)

    def in_airflow(self, task: TaskRecord) -> str:
        """Return the page of Airflow itself for a task."""
        mapped = ("mapped", str(task.map_index)) if task.map_index >= 0 else ()
        root = self.root.removesuffix(PREFIX)
        return root + path("dags", task.dag_id, "runs", task.run_id, "tasks", task.task_id, *mapped)

    def link(self, task: TaskRecord) -> Link:
        """Return a link to the page of a task."""
        index = f"[{task.map_index}]" if task.map_index >= 0 else ""
        return Link(label=f"{task.dag_id} · {task.task_id}{index}", href=self.task(task))
