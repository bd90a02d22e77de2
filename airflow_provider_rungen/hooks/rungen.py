"""The hook: jobs and apps of RunGen.AI, for DAG authors and operators."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import App, Job, JsonValue
from airflow_provider_rungen.client.polling import FIRST_INTERVAL, wait_for_jobs
from airflow_provider_rungen.client.retry import ATTEMPTS, RETRY_BUDGET
from airflow_provider_rungen.client.texts import (
    MAX_TEXT,
    format_count,
    format_ids,
    join_within,
    to_optional_seconds,
    to_seconds,
)
from airflow_provider_rungen.exceptions import RunGenConfigError, RunGenConnectionError, RunGenError
from airflow_provider_rungen.hooks.base import FlowHook
from airflow_provider_rungen.hooks.connection import form_widgets, ui_field_behaviour


class RunGenHook(FlowHook):
    """
    Runs jobs and manages apps with the settings of an Airflow connection.

    The methods block. Those that begin with ``a`` do the same in an event loop. Close the hook in the end, or
    use it in a ``with`` or ``async with`` block.

    The connection is looked up at the first call, and again when RunGen refuses the API key (401, 403), since
    the key may have been replaced.

    :param rungen_conn_id: the Airflow connection of type ``rungen``.
    """

    conn_name_attr = "rungen_conn_id"
    default_conn_name = "rungen_default"
    conn_type = "rungen"
    hook_name = "RunGen.AI"

    # --- jobs ---

    def run_job(self, *, input: Mapping[str, JsonValue], app_id: str | None = None) -> Job:
        """
        Submit a job, and return it without waiting for its end.

        :param input: a JSON object, as the app's model expects it.
        :param app_id: the app to run; the connection's ``app_id`` if omitted.
        :raises RunGenInputError: the input is invalid; nothing was sent.
        :raises RunGenSubmissionUnknownError: the job may or may not have been created.
        :raises RunGenError: RunGen refused, or could not be reached.
        """
        return self.perform(endpoints.run_job(self.resolve_app_id(app_id), input))

    async def arun_job(self, *, input: Mapping[str, JsonValue], app_id: str | None = None) -> Job:
        """Submit a job in an event loop; see `run_job`."""
        return await self.aperform(endpoints.run_job(await self.aresolve_app_id(app_id), input))

    def get_job(self, *, job_id: str, app_id: str | None = None) -> Job:
        """
        Return a job as it is now.

        :param job_id: the job.
        :param app_id: its app; the connection's ``app_id`` if omitted.
        :raises RunGenNotFoundError: the app has no such job.
        :raises RunGenError: RunGen refused, or could not be reached.
        """
        return self.perform(endpoints.get_job(self.resolve_app_id(app_id), job_id))

    async def aget_job(self, *, job_id: str, app_id: str | None = None) -> Job:
        """Return a job as it is now, in an event loop; see `get_job`."""
        return await self.aperform(endpoints.get_job(await self.aresolve_app_id(app_id), job_id))

    def wait_for_job(
        self,
        *,
        job_id: str,
        app_id: str | None = None,
        poll_interval: float | timedelta = 5,
        timeout: float | timedelta | None = 86400,
        queued_timeout: float | timedelta | None = 900,
    ) -> Job:
        """
        Wait until a job has ended, and return it, whether it completed or not: see ``Job.raise_for_status``.

        :param job_id: the job.
        :param app_id: its app; the connection's ``app_id`` if omitted.
        :param poll_interval: seconds between two polls.
        :param timeout: the most seconds to wait; ``None`` for no limit.
        :param queued_timeout: seconds that it may wait while the app has no worker; ``None`` for no limit.
        :raises RunGenJobTimeoutError: the job has not ended in time; it continues to run.
        :raises RunGenJobQueuedTimeoutError: the app has no worker; the job continues to wait.
        :raises RunGenError: RunGen refused.
        """
        app_id = self.resolve_app_id(app_id)
        return self.perform(_wait(app_id, job_id, poll_interval, timeout, queued_timeout))[0]

    async def await_for_job(
        self,
        *,
        job_id: str,
        app_id: str | None = None,
        poll_interval: float | timedelta = 5,
        timeout: float | timedelta | None = 86400,  # noqa: ASYNC109 - that of wait_for_job
        queued_timeout: float | timedelta | None = 900,
    ) -> Job:
        """Wait in an event loop until a job has ended, and return it; see `wait_for_job`."""
        app_id = await self.aresolve_app_id(app_id)
        return (await self.aperform(_wait(app_id, job_id, poll_interval, timeout, queued_timeout)))[0]

    def cancel_job(
        self, *, job_id: str, app_id: str | None = None, retry_budget: float = RETRY_BUDGET
    ) -> Job:
        """
        Cancel a queued or running job.

        :param job_id: the job.
        :param app_id: its app; the connection's ``app_id`` if omitted.
        :param retry_budget: seconds after which the request is not sent again.
        :raises RunGenConflictError: the job has already ended.
        :raises RunGenError: RunGen refused, or could not be reached.
        """
        app_id = self.resolve_app_id(app_id)
        return self.perform(endpoints.cancel_job(app_id, job_id, retry_budget=retry_budget))

    async def acancel_job(
        self, *, job_id: str, app_id: str | None = None, retry_budget: float = RETRY_BUDGET
    ) -> Job:
        """Cancel a queued or running job in an event loop; see `cancel_job`."""
        app_id = await self.aresolve_app_id(app_id)
        return await self.aperform(endpoints.cancel_job(app_id, job_id, retry_budget=retry_budget))

    def cancel_jobs(
        self,
        *,
        job_ids: Sequence[str],
        app_id: str | None = None,
        within: float = 30.0,
    ) -> dict[str, RunGenError | None]:
        """
        Cancel jobs that were submitted, or read, before: in a bounded time, on connections of their own.

        For a killed task, whose usual session may be in the middle of a request.

        :param job_ids: the jobs.
        :param app_id: their app; the connection's ``app_id`` if omitted.
        :param within: the most seconds for all of them.
        :return: by job, ``None`` if it was canceled, or the error.
        """
        app_id = self.resolve_app_id(app_id)
        outcomes: dict[str, RunGenError | None] = {}
        # the last request needs time for its answer
        flow = endpoints.cancel_jobs(app_id, job_ids, outcomes, retry_budget=within * 0.75, are_known=True)
        late = "Could not cancel the job: there was no time left"
        with suppress(RunGenConnectionError):
            self.perform_with_deadline(flow, within=within, is_paced=len(job_ids) > 1)
        return {
            job_id: outcomes.get(job_id, RunGenError(f"{late} {format_ids(app_id, job_id)}"))
            for job_id in job_ids
        }

    # --- apps ---

    def list_apps(self) -> list[App]:
        """Return the apps that the key (and the connection's ``team_id``) may see."""
        return self.perform(endpoints.list_apps())

    def get_app(self, *, app_id: str | None = None, attempts: int = ATTEMPTS) -> App:
        """
        Return an app as it is now.

        :param app_id: the app; the connection's ``app_id`` if omitted.
        :param attempts: how many times to send the request at most.
        """
        return self.perform(endpoints.get_app(self.resolve_app_id(app_id), attempts=attempts))

    def create_app(
        self,
        *,
        name: str,
        configuration: Mapping[str, JsonValue],
        workflow: Mapping[str, JsonValue],
        description: str | None = None,
    ) -> App:
        """
        Create an app.

        :param name: its name.
        :param configuration: ``gpu_tier`` (``BASIC``, ``STANDARD``, ``PERFORMANCE``), optionally
            ``active_workers`` and ``location``.
        :param workflow: ``model_url``, optionally ``tools``.
        :param description: its description.
        """
        body: dict[str, Any] = {"name": name, "configuration": configuration, "workflow": workflow}
        body |= {} if description is None else {"description": description}
        return self.perform(endpoints.create_app(body))

    def update_app(
        self,
        *,
        app_id: str | None = None,
        name: str | None = None,
        description: str | None = None,
        configuration: Mapping[str, JsonValue] | None = None,
        workflow: Mapping[str, JsonValue] | None = None,
    ) -> App:
        """
        Change an app. What is omitted stays as it is.

        :param app_id: the app; the connection's ``app_id`` if omitted.
        :param name: its new name.
        :param description: its new description.
        :param configuration: the fields of its configuration to change; see `create_app`.
        :param workflow: the fields of its workflow to change; see `create_app`.
        """
        fields = {
            "name": name,
            "description": description,
            "configuration": configuration,
            "workflow": workflow,
        }
        body = {field: value for field, value in fields.items() if value is not None}
        return self.perform(endpoints.update_app(self.resolve_app_id(app_id), body))

    def scale_app(self, *, active_workers: int, app_id: str | None = None) -> App:
        """
        Set the number of an app's workers; 0 stops it and its bill.

        :param active_workers: the number to set.
        :param app_id: the app; the connection's ``app_id`` if omitted.
        """
        return self.perform(endpoints.scale_app(self.resolve_app_id(app_id), active_workers))

    def delete_app(self, *, app_id: str) -> None:
        """
        Delete an app, which cannot be undone. It must have no workers.

        :param app_id: the app. The connection's is never deleted by default.
        """
        self.perform(endpoints.delete_app(app_id))

    # --- the UI ---

    def test_connection(self) -> tuple[bool, str]:
        """Request the apps once, and return whether all is well, with a message for the UI."""
        # the UI tests a copy of the connection, whose random id means nothing to the user
        try:
            settings = self.settings
        except RunGenConfigError as error:
            return False, str(error).removeprefix(f"Airflow connection {self.rungen_conn_id!r}: ")
        try:
            with self:
                apps = self.perform(endpoints.list_apps(attempts=1))
        except RunGenError as error:
            problem = str(error).replace(f"connection {self.rungen_conn_id!r}", "this connection")
            return False, f"{problem.rstrip('.')}. The Base URL is {settings.base_url}"
        found = format_count(len(apps), "app")
        if apps:
            found += f": {join_within([app.label for app in apps], 10 * MAX_TEXT)}"
        default = settings.app_id
        if default is None or any(app.id == default for app in apps):
            return True, f"Connected to {settings.base_url}: {found}"
        hint = f"Correct Default app ID, or check API key and Team ID. The Base URL is {settings.base_url}"
        return False, f"Default app ID {default!r} is not among the {found}. {hint}"

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the fields of Airflow 3.1's connection form."""
        return form_widgets()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the labels and hidden fields of Airflow 3.1's connection form."""
        return ui_field_behaviour()


def _wait(
    app_id: str,
    job_id: str,
    poll_interval: float | timedelta,
    timeout: float | timedelta | None,
    queued_timeout: float | timedelta | None,
) -> Flow[list[Job]]:
    return wait_for_jobs(
        app_id,
        [job_id],
        poll_interval=to_seconds(poll_interval, "poll_interval"),
        deadline=None if timeout is None else time.time() + to_seconds(timeout, "timeout"),
        first_interval=FIRST_INTERVAL,
        queued_timeout=to_optional_seconds(queued_timeout, "queued_timeout"),
    )
