"""The methods a DAG author calls, performed with the settings of an Airflow connection."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_rungen import api, get_provider_info, metrics
from airflow_provider_rungen._airflow import BaseHook
from airflow_provider_rungen.connection import read_connection, seconds
from airflow_provider_rungen.exceptions import RunGenConfigError, RunGenError
from airflow_provider_rungen.masking import amask, mask, proxy_passwords
from airflow_provider_rungen.models import App, Job
from airflow_provider_rungen.transport import AsyncSender, Sender, Settings, adrive, drive, side_by_side
from airflow_provider_rungen.watch import wait_for_jobs

if TYPE_CHECKING:
    import requests  # noqa: TID251 - for the type of get_conn() only

    from airflow_provider_rungen._airflow import Connection

# Seconds that canceling one job of many may take.
PART = 15.0


class RunGenHook(BaseHook):
    """
    Talks to RunGen.AI with the settings of an Airflow connection.

    The connection is looked up once, at the first call. The methods block; ``aperform`` performs any flow of
    `airflow_provider_rungen.api` in an event loop. Both ways end with ``close`` / ``aclose``, or with the
    end of a ``with`` / ``async with`` block.

    :param rungen_conn_id: the Airflow connection of type ``rungen``.
    """

    conn_name_attr = "rungen_conn_id"
    default_conn_name = "rungen_default"
    conn_type = "rungen"
    hook_name = "RunGen.AI"

    def __init__(self, rungen_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.rungen_conn_id = rungen_conn_id
        self._settings: Settings | None = None
        self._default_app_id: str | None = None
        self._sender: Sender | None = None
        self._async_sender: AsyncSender | None = None
        #: Called before every request and every wait; what it raises ends the call.
        self.before_step: Callable[[], None] = lambda: None

    # --- jobs ---

    def run_job(self, *, input: dict[str, Any], app_id: str | None = None) -> Job:
        """
        Submit a job and return it at once.

        :param input: a JSON object, as the app's model wants it.
        :param app_id: the app to run; the connection's ``app_id`` when left out.
        :raises RunGenInputError: the input cannot be sent; nothing was.
        :raises RunGenSubmissionUnknownError: the answer does not tell whether the job was created.
        :raises RunGenError: the service refused, or could not be reached.
        """
        return self.perform(api.run_job(self.app_id_or_default(app_id), input))

    def get_job(self, *, job_id: str, app_id: str | None = None) -> Job:
        """
        Ask for one job.

        :param job_id: the job.
        :param app_id: its app; the connection's ``app_id`` when left out.
        :raises RunGenNotFoundError: the app has no such job.
        :raises RunGenError: the service refused, or could not be reached.
        """
        return self.perform(api.get_job(self.app_id_or_default(app_id), job_id))

    def cancel_job(self, *, job_id: str, app_id: str | None = None) -> Job:
        """
        Cancel a queued or running job.

        :param job_id: the job.
        :param app_id: its app; the connection's ``app_id`` when left out.
        :raises RunGenConflictError: the job is already over.
        :raises RunGenError: the service refused, or could not be reached.
        """
        return self.perform(api.cancel_job(self.app_id_or_default(app_id), job_id))

    def wait_for_job(
        self,
        *,
        job_id: str,
        app_id: str | None = None,
        poll_interval: float | timedelta = 5,
        timeout: float | timedelta | None = 86400,
    ) -> Job:
        """
        Wait until a job is over, however it ends; ``Job.raise_for_status`` tells a failed one.

        :param job_id: the job.
        :param app_id: its app; the connection's ``app_id`` when left out.
        :param poll_interval: seconds between two looks at the job.
        :param timeout: seconds to wait at most; ``None`` waits for ever.
        :raises RunGenJobTimeoutError: it was not over in time; it is left running.
        :raises RunGenError: the service refused.
        """
        deadline = None if timeout is None else time.time() + seconds(timeout, "timeout")
        flow = wait_for_jobs(
            self.app_id_or_default(app_id),
            [job_id],
            poll_interval=seconds(poll_interval, "poll_interval"),
            deadline=deadline,
        )
        return self.perform(flow)[0]

    # --- apps ---

    def list_apps(self) -> list[App]:
        """Ask for all apps that the key (and the connection's ``team_id``) may see."""
        return self.perform(api.list_apps())

    def get_app(self, *, app_id: str | None = None) -> App:
        """Ask for one app; the connection's ``app_id`` when left out."""
        return self.perform(api.get_app(self.app_id_or_default(app_id)))

    def create_app(
        self,
        *,
        name: str,
        configuration: Mapping[str, Any],
        workflow: Mapping[str, Any],
        description: str | None = None,
    ) -> App:
        """
        Create an app.

        :param name: its name.
        :param configuration: ``gpu_tier`` (``BASIC``, ``STANDARD``, ``PERFORMANCE``), optionally
            ``active_workers`` and ``location``.
        :param workflow: ``model_url``, optionally ``tools``.
        :param description: what it is for.
        """
        body = {"name": name, "configuration": dict(configuration), "workflow": dict(workflow)}
        return self.perform(api.create_app(body | ({"description": description} if description else {})))

    def update_app(self, *, app_id: str | None = None, **fields: Any) -> App:
        """
        Change an app.

        :param app_id: the app; the connection's ``app_id`` when left out.
        :param fields: the fields to change, named as in the API: ``name``, ``description``,
            ``configuration``, ``workflow``.
        """
        return self.perform(api.update_app(self.app_id_or_default(app_id), fields))

    def scale_app(self, *, active_workers: int, app_id: str | None = None) -> App:
        """
        Set the number of an app's workers; 0 stops it and its bill.

        :param active_workers: the number to have.
        :param app_id: the app; the connection's ``app_id`` when left out.
        """
        return self.perform(api.scale_app(self.app_id_or_default(app_id), active_workers))

    def delete_app(self, *, app_id: str) -> None:
        """
        Delete an app for good; it must have no workers.

        :param app_id: the app, always to be named.
        """
        self.perform(api.delete_app(app_id))

    # --- the connection ---

    @property
    def settings(self) -> Settings:
        """
        The settings of the Airflow connection, looked up once.

        :raises RunGenConfigError: the connection cannot be used; the message names the field.
        """
        if self._settings is None:
            settings = self._read(self.get_connection(self.rungen_conn_id))
            mask(proxy_passwords(settings.proxy))
        assert self._settings is not None  # noqa: S101 - for the type checker; _read sets it or raises
        return self._settings

    def _read(self, conn: Connection) -> Settings:
        settings, self._default_app_id = read_connection(conn, self.rungen_conn_id)
        self._settings = settings
        return settings

    def app_id_or_default(self, app_id: str | None = None) -> str:
        """
        Give the app to use: the one named, or else the connection's.

        :raises RunGenConfigError: neither names one.
        """
        if app_id:
            return app_id
        _ = self.settings
        if not self._default_app_id:
            raise RunGenConfigError(
                f"No app_id: give one to the task, or put app_id into the extra of the Airflow connection "
                f"{self.rungen_conn_id!r}"
            )
        return self._default_app_id

    def get_conn(self) -> requests.Session:
        """Give the session of the blocking calls; it carries the API key, so keep it to RunGen's own host."""
        if self._sender is None:
            self._sender = Sender(self.settings)
        return self._sender.session

    def perform(self, flow: api.Flow[api.T]) -> api.T:
        """Perform a flow, blocking."""
        self.get_conn()
        sender = self._sender
        assert sender is not None  # noqa: S101 - for the type checker; get_conn made it

        def send(request: api.Request) -> api.Response:
            self.before_step()
            response = None
            try:
                response = sender(request)
            finally:
                metrics.count_request(request, response)
            return response

        def sleep(seconds: float) -> None:
            self.before_step()
            time.sleep(seconds)

        return drive(flow, send, sleep)

    def perform_wide(self, flow: api.Flow[api.T]) -> api.T:
        """Perform a flow, blocking, with as many requests at a time as it allows."""

        async def run() -> api.T:
            try:
                return await self.aperform(flow)
            finally:
                await self.aclose()

        return asyncio.run(run())

    async def asettings(self) -> Settings:
        """
        Give the settings of the Airflow connection, in the running event loop.

        :raises RunGenConfigError: the connection cannot be used; the message names the field.
        """
        await self._aread()
        return self.settings

    async def aapp_id_or_default(self, app_id: str | None = None) -> str:
        """
        Give the app to use, in the running event loop.

        :raises RunGenConfigError: neither the caller nor the connection names one.
        """
        if not app_id:
            await self._aread()
        return self.app_id_or_default(app_id)

    async def _aread(self) -> None:
        if self._settings is None:
            from airflow_provider_rungen._airflow import get_async_connection

            settings = self._read(await get_async_connection(self.rungen_conn_id, type(self)))
            await amask(proxy_passwords(settings.proxy))

    async def aperform(self, flow: api.Flow[api.T]) -> api.T:
        """Perform a flow in the running event loop."""
        await self._aread()
        if self._async_sender is None:
            # in a thread: importing it holds up the event loop for a third of a second
            await asyncio.to_thread(import_module, "aiohttp")
            self._async_sender = self._async_sender or AsyncSender(self.settings)
        sender = self._async_sender

        async def send(request: api.Request) -> api.Response:
            self.before_step()
            response = None
            try:
                response = await sender(request)
            finally:
                metrics.count_request(request, response)
            return response

        return await adrive(flow, send)

    def perform_in_time(self, flow: api.Flow[api.T], *, within: float) -> api.T:
        """
        Perform a flow of a few requests on a connection of its own, asking nothing of Airflow.

        For the moment a task is killed: the usual session may be in the middle of a request then.

        :param within: how many seconds it may take; a request gets a quarter of them.
        """
        sender = Sender(replace(self.settings, connect_timeout=within / 4, read_timeout=within / 4))
        try:
            return drive(flow, sender)
        finally:
            sender.close()

    def cancel_jobs(
        self, app_id: str, job_ids: Sequence[str], *, within: float
    ) -> dict[str, RunGenError | None]:
        """
        Cancel jobs in a bounded time, on connections of their own, asking nothing of Airflow.

        For the moment a task is killed: the usual session may be in the middle of a request then.

        :param within: how many seconds it may take.
        :return: the jobs, each with the error that kept it from being canceled.
        """
        part = min(within / 4, PART)
        settings = replace(self.settings, connect_timeout=part, read_timeout=part)
        outcomes: dict[str, RunGenError | None] = {}

        def note(job_id: str, outcome: Job | RunGenError) -> None:
            outcomes[job_id] = outcome if isinstance(outcome, RunGenError) else None

        if len(job_ids) == 1:
            sender = Sender(settings)
            try:
                note(job_ids[0], drive(api.cancel_job(app_id, job_ids[0], patience=part), sender))
            except RunGenError as error:
                note(job_ids[0], error)
            finally:
                sender.close()
        elif job_ids:
            # in a thread: an event loop may be running in this one
            worker = threading.Thread(
                target=lambda: asyncio.run(_cancel_jobs(settings, app_id, job_ids, within, note)), daemon=True
            )
            worker.start()
            worker.join(within + 0.5)
        late = RunGenError("there was no time left")
        return {job_id: outcomes.get(job_id, late) for job_id in job_ids}

    def close(self) -> None:
        """Close the blocking session."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    async def aclose(self) -> None:
        """Close the asynchronous session."""
        if self._async_sender is not None:
            await self._async_sender.close()
            self._async_sender = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- the UI ---

    def test_connection(self) -> tuple[bool, str]:
        """Ask for the apps, once since somebody looks at a button, and say in words how it went."""
        try:
            base_url = self.settings.base_url
        except RunGenConfigError as error:
            # the UI tests a copy under an id of its own making, which nobody has seen before
            return False, str(error).removeprefix(f"Airflow connection {self.rungen_conn_id!r}: ")
        try:
            with self:
                apps = self.perform(api.list_apps(attempts=1))
        except RunGenError as error:
            return False, f"{str(error).rstrip('.')}. The base URL is {base_url}"
        names = ", ".join(app.name or app.id for app in apps[:5]) + (", …" if len(apps) > 5 else "")
        count = f"{len(apps)} app{'s' * (len(apps) != 1)}"
        return True, f"Connected to {base_url}: {count}" + (f" ({names})" if names else "")

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Give the fields of the form before Airflow 3.2, from the same data that later ones read."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import BooleanField, PasswordField, StringField

        widgets: dict[str, Any] = {}
        for name, spec in get_provider_info()["connection-types"][0]["conn-fields"].items():
            label, text = spec["label"], spec["description"]
            if "boolean" in spec["schema"]["type"]:
                widgets[name] = BooleanField(label, description=text, default=spec["schema"].get("default"))
            elif spec["schema"].get("format") == "password":
                widgets[name] = PasswordField(label, description=text, widget=_kept_password)
            else:
                widgets[name] = StringField(label, description=text, widget=BS3TextFieldWidget())
        return widgets

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Give labels and hidden fields of that form, from the same data that later ones read."""
        behaviour = get_provider_info()["connection-types"][0]["ui-field-behaviour"]
        return {name.replace("-", "_"): value for name, value in behaviour.items()}


def _kept_password(field: Any, **attributes: Any) -> Any:
    """
    Draw a password field of Airflow 2's form that an edit of other fields leaves as it is.

    An empty one, which is what the library draws, would delete the value.
    """
    from airflow.www.views import SENSITIVE_FIELD_PLACEHOLDER
    from flask_appbuilder.fieldwidgets import BS3PasswordFieldWidget

    value = SENSITIVE_FIELD_PLACEHOLDER if field.data else ""
    return BS3PasswordFieldWidget(hide_value=False)(field, **attributes, value=value)


async def _cancel_jobs(
    settings: Settings,
    app_id: str,
    job_ids: Sequence[str],
    within: float,
    note: Callable[[str, Job | RunGenError], None],
) -> None:
    sender = AsyncSender(settings)

    async def cancel(job_id: str) -> None:
        try:
            note(job_id, await adrive(api.cancel_job(app_id, job_id, patience=min(within / 4, PART)), sender))
        except RunGenError as error:
            note(job_id, error)

    try:
        async with asyncio.timeout(within):
            await side_by_side(cancel, job_ids)
    except TimeoutError:
        pass  # what was not noted was too late
    finally:
        await sender.close()
