"""The routes of the pages. Each asks Airflow whether the caller may see it, and only reads."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable
from html import escape
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as AnyHTTPException

from airflow_provider_rungen.exceptions import RunGenError, RunGenNotFoundError
from airflow_provider_rungen.links import mount_path, path
from airflow_provider_rungen.pages import airflow_db, service
from airflow_provider_rungen.pages.airflow_db import NotNamedError, Place, TaskRecord
from airflow_provider_rungen.pages.files import NOTHING, SAFE, is_output, send_output, send_results
from airflow_provider_rungen.pages.results_file import Filter
from airflow_provider_rungen.pages.task_view import task_page
from airflow_provider_rungen.pages.threads import TooSlowError

log = logging.getLogger(__name__)

# The files that the page loads.
_ASSETS = {"page.js": "text/javascript", "style.css": "text/css"}
_LOGGED_IN = "rungen_login"
_MAX_CURSOR = 10**15
# Characters of a search.
_MAX_WORDS = 200
# A page runs nothing but its own script. Airflow shows pages in frames of its own.
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; media-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
_PAGE = {**SAFE, "Content-Security-Policy": _POLICY, "Cache-Control": "no-store"}
_DATA = {**SAFE, "Content-Security-Policy": NOTHING, "Cache-Control": "no-store"}
_ASSET = {**SAFE, "Cache-Control": "no-cache"}
# the id of a run may have slashes
_OF_TASK = "{dag_id}/{run_id:path}/{task_id}"


async def explain_errors() -> AsyncIterator[None]:
    """Convert any error to a notice, in place of a traceback."""
    try:
        yield
    except HTTPException:
        raise
    except TooSlowError:
        raise HTTPException(504, "The storage did not answer in time.") from None
    except Exception as error:
        log.error("Could not make a page of RunGen", exc_info=error)
        raise HTTPException(503, f"This page could not be made ({type(error).__name__}).") from None


async def find_task(dag_id: str, run_id: str, task_id: str, map_index: str = "-1") -> TaskRecord:
    """Return the task of a request, or refuse it."""
    # a tab of Airflow does not replace this for a task without an index
    index = "-1" if map_index == "{MAP_INDEX}" else map_index
    is_index = re.fullmatch(r"-1|[0-9]{1,9}", index) is not None
    task = await airflow_db.find_task(dag_id, run_id, task_id, int(index)) if is_index else None
    if task is None:
        raise HTTPException(404, "This task has not run, or Airflow has deleted the run.")
    if not task.is_of_rungen:
        raise HTTPException(404, "This task runs nothing at RunGen.")
    return task


def find_filter(status: str = "", q: str = "") -> Filter:
    """Return which rows a request is about."""
    return Filter(status, q[:_MAX_WORDS])


User = Annotated[Any, Depends(airflow_db.get_user)]
Task = Annotated[TaskRecord, Depends(find_task)]
Which = Annotated[Filter, Depends(find_filter)]
# asked before anything is read
_MAY_READ = [Depends(airflow_db.can_read_logs)]


def make_app() -> FastAPI:
    """Return the application that the plugin mounts."""
    options: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(title="RunGen", dependencies=[Depends(explain_errors)], **options)
    app.dependency_overrides.update(airflow_db.overrides())
    app.add_exception_handler(AnyHTTPException, _refuse)  # type: ignore[arg-type]  # its type is that of any error
    app.get("/")(show_page)
    app.get("/static/{name}")(send_asset)
    app.get(f"/task/{_OF_TASK}")(show_page)
    app.get("/api/apps")(send_apps)
    app.get(f"/api/task/{_OF_TASK}", dependencies=_MAY_READ)(send_task)
    app.get(f"/api/job/{_OF_TASK}", dependencies=_MAY_READ)(send_job)
    app.get(f"/api/file/{_OF_TASK}", dependencies=_MAY_READ)(send_file)
    app.get(f"/api/results/{_OF_TASK}", dependencies=_MAY_READ)(send_results_file)
    return app


async def _refuse(request: Request, error: HTTPException) -> Response:
    """Redirect users who are not logged in to the login, once. Otherwise, explain why there is nothing."""
    wants_page = "text/html" in request.headers.get("accept", "")
    if error.status_code == 401 and wants_page and _LOGGED_IN not in request.query_params:
        query = urlencode([*request.query_params.multi_items(), (_LOGGED_IN, "1")])
        # not the path of the URL, in which some characters are already encoded
        back = f"{quote(request.scope['path'])}?{query}"
        login = airflow_db.login_url()
        separator = "&" if "?" in login else "?"
        return RedirectResponse(f"{login}{separator}{urlencode({'next': back})}", 302, headers=_DATA)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, headers=_DATA)


# --- static files: they are the same for everybody, and have no data ----------------------------------------


def _static(name: str) -> str:
    return files(__package__).joinpath("static", name).read_text("utf-8")


async def show_page(user: User) -> Response:
    page = _static("page.html").replace("{root}", escape(mount_path()))
    return Response(page, media_type="text/html", headers=_PAGE)


async def send_asset(name: str) -> Response:
    if name not in _ASSETS:
        raise HTTPException(404, "There is no such file.")
    return Response(_static(name), media_type=_ASSETS[name], headers=_ASSET)


# --- data ---------------------------------------------------------------------------------------------------


def _json(data: Any) -> Response:
    # in ASCII, since JSON may have half of a surrogate pair, which UTF-8 cannot
    return Response(json.dumps(data, default=str), media_type="application/json", headers=_DATA)


async def send_task(task: Task, which: Which, cursor: str = "0") -> Response:
    """Send what the page of a task shows."""
    start = min(int(cursor), _MAX_CURSOR) if re.fullmatch(r"[0-9]{1,18}", cursor) else 0
    place = path(task.dag_id, task.run_id, task.task_id)
    root = f"{mount_path()}/api/file{place}?map_index={task.map_index}&path="
    return _json(await task_page(task, lambda file: root + quote(file, safe=""), start, which))


async def send_job(task: Task, user: User, job_id: str = "") -> Response:
    """Send what the service says of a job that the task has pushed."""
    if not job_id or not task.has_pushed(job_id):
        raise HTTPException(404, "This task has pushed no such job. Its row may have more.")
    conn_id = task.page.connection
    if not await run_in_threadpool(airflow_db.may_use_connection, user, task):
        raise HTTPException(
            403,
            f"RunGen is not asked: the task does not name connection {conn_id} in its DAG, "
            "and you may not read it.",
        )
    try:
        return _json(await service.ask_job(conn_id, task.page.app, job_id))
    except RunGenNotFoundError as error:
        raise HTTPException(404, service.explain(error)) from None
    except Exception as error:
        raise HTTPException(502, service.explain(error)) from None


async def send_file(request: Request, task: Task, path: str = "") -> Response:
    """Send an output of the task's store."""
    if not task.page.destination or not is_output(path):
        raise HTTPException(404, "This task has no such file.")
    root, folder = _place(task, task.page.destination)
    sending = send_output(f"{root}/{folder}" if folder else root, path, request.headers.get("range", ""))
    missing = "This file was removed or moved since it was stored."
    return await _sent(sending, missing, "The file could not be read.")


async def send_results_file(task: Task, which: Which) -> Response:
    """Send the results as a download: the file as it is, or the rows of a filter."""
    sending = send_results(_place(task, task.results or task.page.results), which)
    return await _sent(sending, "This task has no results yet.", "The results could not be read.")


def _place(task: TaskRecord, uri: str) -> Place:
    if not uri:
        raise HTTPException(404, "This task has no results yet.")
    try:
        return task.find_place(uri)
    except NotNamedError as error:
        raise HTTPException(403, str(error)) from None


async def _sent(sending: Awaitable[Response], missing: str, unread: str) -> Response:
    """Return the answer with a file, or explain why there is none."""
    try:
        return await sending
    except FileNotFoundError:
        raise HTTPException(404, missing) from None
    except (RunGenError, OSError) as error:
        log.warning("%s (%s)", unread.removesuffix("."), type(error).__name__)
        why = f"{unread} {service.explain(error)}" if isinstance(error, RunGenError) else unread
        raise HTTPException(502, why) from None


async def send_apps(user: User) -> Response:
    """Send the apps of all connections that the user may read."""
    return _json(await service.overview(await run_in_threadpool(airflow_db.readable_connections, user)))
