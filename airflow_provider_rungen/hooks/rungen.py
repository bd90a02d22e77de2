"""The methods a DAG author calls, performed with the settings of an Airflow connection."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_rungen import _airflow, get_provider_info
from airflow_provider_rungen._airflow import AirflowNotFoundException, BaseHook, metrics
from airflow_provider_rungen._airflow.masking import amask, mask, proxy_passwords
from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.exchange import asleep_with_checks, sleep_with_checks
from airflow_provider_rungen.client.flow import Flow, Request, Response, T
from airflow_provider_rungen.client.models import App, Job
from airflow_provider_rungen.client.polling import wait_for_jobs
from airflow_provider_rungen.client.senders import AsyncSender, Sender
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.client.transport import adrive, drive, gather_limited
from airflow_provider_rungen.exceptions import RunGenConfigError, RunGenError
from airflow_provider_rungen.hooks.connection import read_connection, seconds

if TYPE_CHECKING:
    import requests  # noqa: TID251 - for the type of get_conn() only

# Seconds that canceling one job of many may take.
PART = 15.0
# Seconds between two looks at the Airflow connection while RunGen refuses its key.
LOOK_UP_EVERY = 5.0
_REFUSED = (401, 403)


class RunGenHook(BaseHook):
    """
    Talks to RunGen.AI with the settings of an Airflow connection.

    The connection is looked up at the first call, and again when RunGen refuses the API key (401, 403), since
    the key may have been replaced. The methods block; ``aperform`` performs any flow of `client.endpoints` in
    an event loop. Both ways end with ``close`` / ``aclose``, or with the end of a ``with`` / ``async with``
    block.

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
        self._closed_later: list[AsyncSender] = []
        self._stragglers: set[asyncio.Task[Any]] = set()
        self._looking_up = asyncio.Lock()
        self._look_up_from = 0.0
        #: Called before every request, and again and again while waiting; what it raises ends the call.
        self.checkpoint: Callable[[], None] | None = None
        #: Tells that the caller is to end soon: a request under way gets one second more then.
        self.is_interrupted: Callable[[], bool] | None = None
        # entered while Airflow is asked for the connection, by a blocking call
        self.around_lookup: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

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
        return self.perform(endpoints.run_job(self.resolve_app_id(app_id), input))

    def get_job(self, *, job_id: str, app_id: str | None = None) -> Job:
        """
        Ask for one job.

        :param job_id: the job.
        :param app_id: its app; the connection's ``app_id`` when left out.
        :raises RunGenNotFoundError: the app has no such job.
        :raises RunGenError: the service refused, or could not be reached.
        """
        return self.perform(endpoints.get_job(self.resolve_app_id(app_id), job_id))

    def cancel_job(self, *, job_id: str, app_id: str | None = None) -> Job:
        """
        Cancel a queued or running job.

        :param job_id: the job.
        :param app_id: its app; the connection's ``app_id`` when left out.
        :raises RunGenConflictError: the job is already over.
        :raises RunGenError: the service refused, or could not be reached.
        """
        return self.perform(endpoints.cancel_job(self.resolve_app_id(app_id), job_id))

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
            self.resolve_app_id(app_id),
            [job_id],
            poll_interval=seconds(poll_interval, "poll_interval"),
            deadline=deadline,
        )
        return self.perform(flow)[0]

    # --- apps ---

    def list_apps(self) -> list[App]:
        """Ask for all apps that the key (and the connection's ``team_id``) may see."""
        return self.perform(endpoints.list_apps())

    def get_app(self, *, app_id: str | None = None) -> App:
        """Ask for one app; the connection's ``app_id`` when left out."""
        return self.perform(endpoints.get_app(self.resolve_app_id(app_id)))

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
        return self.perform(
            endpoints.create_app(body | ({"description": description} if description else {}))
        )

    def update_app(self, *, app_id: str | None = None, **fields: Any) -> App:
        """
        Change an app.

        :param app_id: the app; the connection's ``app_id`` when left out.
        :param fields: the fields to change, named as in the API: ``name``, ``description``,
            ``configuration``, ``workflow``.
        """
        return self.perform(endpoints.update_app(self.resolve_app_id(app_id), fields))

    def scale_app(self, *, active_workers: int, app_id: str | None = None) -> App:
        """
        Set the number of an app's workers; 0 stops it and its bill.

        :param active_workers: the number to have.
        :param app_id: the app; the connection's ``app_id`` when left out.
        """
        return self.perform(endpoints.scale_app(self.resolve_app_id(app_id), active_workers))

    def delete_app(self, *, app_id: str) -> None:
        """
        Delete an app for good; it must have no workers.

        :param app_id: the app, always to be named.
        """
        self.perform(endpoints.delete_app(app_id))

    # --- the connection ---

    @property
    def settings(self) -> Settings:
        """
        The settings of the Airflow connection, looked up once.

        :raises RunGenConfigError: the connection cannot be used; the message names the field.
        """
        if self._settings is None:
            self._settings, self._default_app_id = self._look_up()
        return self._settings

    def _look_up(self) -> tuple[Settings, str | None]:
        with self.around_lookup(), self._readable():
            conn = self.get_connection(self.rungen_conn_id)
            settings, default_app_id = read_connection(conn, self.rungen_conn_id)
            mask(proxy_passwords(settings.proxy))
        return settings, default_app_id

    async def _alook_up(self) -> tuple[Settings, str | None]:
        with self._readable():
            conn = await _airflow.get_async_connection(self.rungen_conn_id, type(self))
            settings, default_app_id = read_connection(conn, self.rungen_conn_id)
            await amask(proxy_passwords(settings.proxy))
        return settings, default_app_id

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Name the connection when Airflow does not find it, or cannot be asked; both may pass."""
        try:
            yield
        except RunGenConfigError:
            raise
        except Exception as error:
            problem, hint = f"could not be read ({type(error).__name__})", ""
            if isinstance(error, AirflowNotFoundException):
                problem, hint = "does not exist", "Create it, or correct rungen_conn_id"
            failure = RunGenConfigError(
                f"Airflow connection {self.rungen_conn_id!r} {problem}", hint=hint, retryable=True
            )
        else:
            return
        raise failure

    def _must_look_up(self, used: Settings) -> bool:
        """
        Return whether to read the connection again, after RunGen refused the key that was just used.

        A rotated key is refused to everybody who shares this hook: Airflow is not asked for each of them.
        """
        return self._settings is used and time.monotonic() >= self._look_up_from

    def _renew(self, used: Settings) -> bool:
        """Read the connection again after a refusal; return whether it has changed."""
        if self._must_look_up(used):
            self._look_up_from = time.monotonic() + LOOK_UP_EVERY
            self._adopt(*self._look_up())
        return self._settings is not used

    async def _arenew(self, used: Settings) -> bool:
        """Do the same in the running event loop."""
        async with self._looking_up:
            if self._must_look_up(used):
                self._look_up_from = time.monotonic() + LOOK_UP_EVERY
                self._adopt(*await self._alook_up())
        return self._settings is not used

    def _adopt(self, settings: Settings, default_app_id: str | None) -> None:
        """Use new settings from now on, if they are any; the app of a call that is under way stays."""
        if settings == self._settings:
            return
        self.log.info("Airflow connection %r has changed: using it as it is now", self.rungen_conn_id)
        self._settings, self._default_app_id = settings, default_app_id
        self.close()
        if self._async_sender is not None:  # requests of others may be under way on it
            self._closed_later.append(self._async_sender)
            self._async_sender = None

    def resolve_app_id(self, app_id: str | None = None) -> str:
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
            self._sender = Sender(self.settings, sleep=self.sleep, is_interrupted=self._is_interrupted)
        return self._sender.session

    def perform(self, flow: Flow[T]) -> T:
        """Perform a flow, blocking."""

        def send(request: Request) -> Response:
            self._step()
            response = self._send(request)
            if response.status in _REFUSED and self._renew(self.settings):
                response = self._send(request)
            return response

        return drive(flow, send, self.sleep)

    def sleep(self, seconds: float) -> None:
        """Sleep on a worker, calling `checkpoint` again and again."""
        sleep_with_checks(seconds, self._step)

    def _step(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint()

    def _is_interrupted(self) -> bool:
        return self.is_interrupted is not None and self.is_interrupted()

    def _send(self, request: Request) -> Response:
        self.get_conn()
        sender = self._sender
        assert sender is not None  # noqa: S101 - for the type checker; get_conn made it
        response = None
        try:
            response = sender(request)
        finally:
            metrics.count_request(request, response)
        return response

    def perform_concurrently(self, flow: Flow[T]) -> T:
        """Perform a flow, blocking, with as many requests at a time as it allows."""

        async def run() -> T:
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

    async def aresolve_app_id(self, app_id: str | None = None) -> str:
        """
        Give the app to use, in the running event loop.

        :raises RunGenConfigError: neither the caller nor the connection names one.
        """
        if not app_id:
            await self._aread()
        return self.resolve_app_id(app_id)

    async def _aread(self) -> None:
        if self._settings is None:
            async with self._looking_up:
                if self._settings is None:
                    self._settings, self._default_app_id = await self._alook_up()

    async def aperform(self, flow: Flow[T]) -> T:
        """Perform a flow in the running event loop."""

        async def send(request: Request) -> Response:
            self._step()
            await self._aread()
            used = self.settings
            response = await self._asend(request)
            if response.status in _REFUSED and await self._arenew(used):
                response = await self._asend(request)
            return response

        async def sleep(seconds: float) -> None:
            if self.checkpoint is None:  # thousands may wait beside each other in a triggerer
                await asyncio.sleep(seconds)
            else:
                await asleep_with_checks(seconds, self._step)

        return await adrive(flow, send, sleep, stragglers=self._stragglers)

    async def _asend(self, request: Request) -> Response:
        if self._async_sender is None:
            # in a thread: importing it holds up the event loop for a third of a second
            await asyncio.to_thread(import_module, "aiohttp")
            self._async_sender = self._async_sender or AsyncSender(
                self.settings, is_interrupted=self.is_interrupted
            )
        response = None
        try:
            response = await self._async_sender(request)
        finally:
            metrics.count_request(request, response)
        return response

    def perform_with_deadline(self, flow: Flow[T], *, within: float) -> T:
        """
        Perform a flow of a few requests on a connection of its own, asking nothing of Airflow.

        For the moment a task is killed: the usual session may be in the middle of a request then.

        :param within: how many seconds it may take; a request gets a quarter of them.
        """
        part = within / 4
        # its few requests must not wait for their turn, which may come after the end
        sender = Sender(
            replace(self.settings, connect_timeout=part, read_timeout=part, max_requests_per_second=None)
        )
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
            # as in `perform_with_deadline`
            sender = Sender(replace(settings, max_requests_per_second=None))
            try:
                note(job_ids[0], drive(endpoints.cancel_job(app_id, job_ids[0], retry_budget=part), sender))
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
        """Close the asynchronous session, and end what nobody waits for any more."""
        stragglers = list(self._stragglers)
        for straggler in stragglers:
            straggler.cancel()
        self._looking_up = asyncio.Lock()  # the next event loop may be another
        senders, self._closed_later = self._closed_later, []
        if self._async_sender is not None:
            senders.append(self._async_sender)
            self._async_sender = None
        canceled: asyncio.CancelledError | None = None
        for sender in senders:
            try:
                await sender.close()
            except asyncio.CancelledError as error:  # an event loop that ends cancels this, too
                canceled = error
        if canceled is not None:
            raise canceled
        await asyncio.gather(*stragglers, return_exceptions=True)

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
                apps = self.perform(endpoints.list_apps(attempts=1))
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
            note(
                job_id,
                await adrive(
                    endpoints.cancel_job(app_id, job_id, retry_budget=min(within / 4, PART)), sender
                ),
            )
        except RunGenError as error:
            note(job_id, error)

    try:
        async with asyncio.timeout(within):
            await gather_limited(cancel, job_ids)
    except TimeoutError:
        pass  # what was not noted was too late
    finally:
        await sender.close()
