"""The routes of the pages. Each asks Airflow whether the caller may see it, and only reads."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.pages import render
from airflow_provider_rungen.plugins import airflow_data, app_pages, connections, headers, task_pages, xcoms
from airflow_provider_rungen.plugins.gather import STORE_TIME, Gathering
from airflow_provider_rungen.plugins.rows import MAX_PAGE
from airflow_provider_rungen.plugins.stored import OpenFile, StoredOutputs, store_of
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.plugins.threads import TooSlowError, charge, run_within
from airflow_provider_rungen.plugins.urls import Urls

log = logging.getLogger(__name__)

# Seconds to read the XComs of a task, where they are not in the database.
_XCOM_TIME = 2.5
# Seconds to open a file, and to read a part of it.
_OPEN_TIME = 4.5
_READ_TIME = 30.0
# The largest that the database can compare.
_MAX_INDEX = 2**31 - 1
_LOGGED_IN = "rungen_login"
_NO_FILE = "This task has no such file."


async def get_user(user: Annotated[Any, Depends(airflow_data.get_user)]) -> Any:
    """Return who asks. What hangs for them counts for their share of the threads."""
    charge("user", str(user.get_id()))
    return user


User = Annotated[Any, Depends(get_user)]


async def get_task(
    request: Request, user: User, *, dag_id: str, run_id: str, task_id: str, map_index: str
) -> TaskRecord:
    """Return the task of a request. A tab of Airflow does not replace the index of a task without one."""
    try:
        index = int(map_index) if len(map_index) < 100 else _MAX_INDEX + 1
    except ValueError:
        index = -1
    task = None
    request.state.began = time.monotonic()
    charge("dag", dag_id)
    if -1 <= index <= _MAX_INDEX:
        find = functools.partial(airflow_data.find_task, dag_id, run_id, task_id, index)
        # XComs that are elsewhere may hang
        is_elsewhere = xcoms.uses_files()
        task = await (run_within(_XCOM_TIME, "store", find) if is_elsewhere else run_in_threadpool(find))
    if task is None:
        raise HTTPException(404, "This task has not run, or Airflow has deleted the run.")
    charge("connection", task.page.connection)
    for place in (task.log, task.page.destination):
        charge("store", store_of(place))
    return task


def get_urls(request: Request) -> Urls:
    return Urls(str(request.scope.get("root_path", "")).rstrip("/"))


Task = Annotated[TaskRecord, Depends(get_task)]
PageUrls = Annotated[Urls, Depends(get_urls)]


async def get_gathering(request: Request, user: User, task: Task) -> Gathering:
    may_ask = await run_in_threadpool(connections.may_ask, user, task)
    return Gathering(task, may_ask, request.state.began)


Gathered = Annotated[Gathering, Depends(get_gathering)]


class DegradingRoute(APIRoute):
    """A route that shows a notice in place of a traceback, whatever fails."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def degrade(request: Request) -> Response:
            try:
                return await handle(request)
            except HTTPException:
                raise
            except TooSlowError:
                raise HTTPException(504, "The storage did not answer in time.") from None
            except Exception as error:
                log.error("Could not make a page of RunGen", exc_info=error)
                raise HTTPException(503, f"This page could not be made ({type(error).__name__}).") from None

        return degrade


router = APIRouter(route_class=DegradingRoute, default_response_class=HTMLResponse)
of_task = APIRouter(
    prefix="/dags/{dag_id}/runs/{run_id:path}/tasks/{task_id}/{map_index}",
    dependencies=[Depends(airflow_data.can_read_task), Depends(airflow_data.can_read_xcom)],
    route_class=DegradingRoute,
    default_response_class=HTMLResponse,
)


def make_app() -> FastAPI:
    """Return the application that the plugin mounts."""
    app = FastAPI(title="RunGen", docs_url=None, redoc_url=None, openapi_url=None)
    app.dependency_overrides.update(airflow_data.overrides())
    app.add_exception_handler(HTTPException, _refuse)  # type: ignore[arg-type]  # its type is that of any error
    app.include_router(of_task)
    app.include_router(router)
    return app


# --- tasks --------------------------------------------------------------------------------------------------


@of_task.get("/progress")
async def show_progress(gathering: Gathered) -> Response:
    progress = await task_pages.task_progress(gathering)
    return JSONResponse(render.progress_json(progress, gathering.task.state), headers=headers.DATA)


# --- files --------------------------------------------------------------------------------------------------


@of_task.get("/jobs/{job_id}/files/{number}")
async def send_file(request: Request, task: Task, job_id: str, number: str, task_page: str = "1") -> Response:
    """Send a file that a manifest names, or a range of it, from the destination that the task has pushed."""
    is_number = number.isdecimal() and len(number) < 9
    if not task.page.destination or not is_number or not await _has_job(task, job_id, task_page):
        raise HTTPException(404, _NO_FILE)
    asked = request.headers.get("range", "")
    try:
        file, sent = await run_within(_OPEN_TIME, "files", _open, task, job_id, int(number), asked)
    except (RunGenError, OSError) as error:
        log.warning("Could not open a file of job %s (%s)", job_id, type(error).__name__)
        raise HTTPException(502, "The file could not be read.") from None
    return StreamingResponse(_parts(file), 206 if "Content-Range" in sent else 200, headers=sent)


async def _has_job(task: TaskRecord, job_id: str, task_page: str) -> bool:
    """Return whether a job is one of the task's. The log is not read for what the task has pushed."""
    if task.has_pushed(job_id):
        return True
    return await Gathering(task, may_ask=False).row_of(job_id, _page_number(task_page)) is not None


def _open(task: TaskRecord, job_id: str, number: int, asked: str) -> tuple[OpenFile, dict[str, str]]:
    """Open a file, and return it with its headers."""
    outputs = StoredOutputs(task.page.destination, task.page.app, STORE_TIME)
    stored = outputs.file(job_id, number)
    if stored is None:
        raise HTTPException(404, _NO_FILE)
    part = headers.requested_range(asked, stored.size)
    file = OpenFile(outputs.storage, job_id, stored, part)
    is_inline = file.kind != "download"
    return file, headers.of_file(
        stored.name, file.media_type, is_inline=is_inline, size=stored.size, part=part
    )


async def _parts(file: OpenFile) -> AsyncIterator[bytes]:
    try:
        while part := await run_within(_READ_TIME, "files", file.read):
            yield part
    finally:
        file.close()


async def send_asset(name: str) -> Response:
    kind = "text/css" if name.endswith(".css") else "text/javascript"
    return Response(render.read_asset(name), media_type=kind, headers=headers.ASSET)


for asset in render.ASSETS:
    router.get(f"/{asset}")(functools.partial(send_asset, asset))


# --- pages of a task ----------------------------------------------------------------------------------------


@of_task.get("/jobs/{job_id}")
async def show_job(
    gathering: Gathered, urls: PageUrls, job_id: str, page: str = "1", task_page: str = "1"
) -> Response:
    pages = _page_number(task_page), _page_number(page)
    found = await task_pages.job_page(gathering, urls, job_id, *pages)
    if found is None:
        raise HTTPException(404, "This task has no such job.")
    return await _html(found, urls)


@of_task.get("/apps/{app_id}")
async def show_app(gathering: Gathered, urls: PageUrls, app_id: str) -> Response:
    task = gathering.task
    if app_id != task.page.app:
        raise HTTPException(404, "This task does not use this app.")
    found = await app_pages.app_page(task.page.connection, app_id, urls, may_ask=gathering.may_ask)
    return await _html(found, urls)


@of_task.get("")  # the last: a run may have slashes
async def show_task(gathering: Gathered, urls: PageUrls, page: str = "1") -> Response:
    found = await task_pages.task_page(gathering, urls, _page_number(page))
    return await _html(found, urls)


# --- apps ---------------------------------------------------------------------------------------------------


@router.get("/")
async def show_apps(user: User, urls: PageUrls) -> Response:
    conn_ids = await run_in_threadpool(_connections_visible_to, user)
    found = await app_pages.apps_page(conn_ids, urls)
    return await _html(found, urls)


@router.get(
    "/connections/{connection_id}/apps/{app_id}", dependencies=[Depends(airflow_data.can_read_connection)]
)
async def show_connection_app(user: User, urls: PageUrls, connection_id: str, app_id: str) -> Response:
    found = await app_pages.app_page(connection_id, app_id, urls)
    return await _html(found, urls)


def _connections_visible_to(user: Any) -> list[str]:
    conn_ids = connections.rungen_connection_ids()
    return [conn_id for conn_id in conn_ids if connections.may_read_connection(user, conn_id)]


# --- answers ------------------------------------------------------------------------------------------------


def _page_number(page: str) -> int:
    return min(max(1, int(page)), MAX_PAGE) if page.isdecimal() and len(page) < 9 else 1


async def _html(page: render.Page, urls: Urls) -> Response:
    return HTMLResponse(await run_in_threadpool(render.render, page, urls.site), headers=headers.PAGE)


async def _refuse(request: Request, error: HTTPException) -> Response:
    """Send who is not logged in to the login, once, and say to others why there is no page."""
    wants_page = "text/html" in request.headers.get("accept", "")
    if error.status_code == 401 and wants_page and _LOGGED_IN not in request.query_params:
        query = urlencode([*request.query_params.multi_items(), (_LOGGED_IN, "1")])
        # not that of the URL, in which some characters are encoded already
        back = f"{quote(request.scope['path'])}?{query}"
        login = airflow_data.login_url()
        separator = "&" if "?" in login else "?"
        return RedirectResponse(f"{login}{separator}{urlencode({'next': back})}", 302, headers=headers.DATA)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, headers=headers.NOTICE)
