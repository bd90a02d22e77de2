"""The routes of the pages. Each asks Airflow whether the caller may see it, and only reads."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.responses import StreamingResponse

from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.pages import render
from airflow_provider_rungen.plugins import app_views, database, job_views, views
from airflow_provider_rungen.plugins.gallery import Query, as_csv, as_zip, with_inputs
from airflow_provider_rungen.plugins.gather import STORE_TIME, Gathering, find_tasks
from airflow_provider_rungen.plugins.limits import TooSlowError, charge, run_within
from airflow_provider_rungen.plugins.stored import NOTHING, SAFE, OpenFile, attachment, find_files, store_of
from airflow_provider_rungen.plugins.task_record import TaskRecord
from airflow_provider_rungen.plugins.urls import Urls

log = logging.getLogger(__name__)

# Seconds to open a file, and to read a part of it.
_OPEN_TIME = 4.5
_READ_TIME = 30.0
_MAX_PAGE = 10_000_000
# A tab of Airflow does not replace this for a task without an index.
_NO_INDEX = "{MAP_INDEX}"
_MAX_PARAMETER = 300
_MAX_COMPARED = 100
_LOGGED_IN = "rungen_login"
_NO_FILE = "This task has no such file."
# A page runs nothing but its own script. Airflow shows pages in frames of its own.
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)
_PAGE = {**SAFE, "Content-Security-Policy": _POLICY, "Cache-Control": "no-store"}
_DATA = {**SAFE, "Content-Security-Policy": NOTHING, "Cache-Control": "no-store"}
_ASSET = {**SAFE, "Cache-Control": "public, max-age=86400"}


# --- what requests have in common ---------------------------------------------------------------------------


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


async def get_user(user: Annotated[Any, Depends(database.get_user)]) -> Any:
    """Return the user of a request, for whom its threads are counted."""
    charge("user", str(user.get_id()))
    return user


User = Annotated[Any, Depends(get_user)]


async def get_query(request: Request) -> Query:
    """Return which jobs a page shows."""
    given = request.query_params
    texts = {name: given.get(name, "")[:_MAX_PARAMETER] for name in ("status", "text", "sort")}
    return Query(
        **texts, jobs=given.getlist("jobs")[:_MAX_COMPARED], page=_page_number(given.get("page", ""))
    )


Asked = Annotated[Query, Depends(get_query)]


async def gather(request: Request, user: User) -> Sequence[Gathering]:
    """Find the tasks of a page, and begin to gather what it shows."""
    return await _gather(user, **request.path_params)


async def gather_runs(request: Request, user: User) -> Sequence[Gathering]:
    """Do the same with the latest runs of a task."""
    return await _gather(user, **request.path_params | {"run_id": ""})


async def _gather(
    user: Any, dag_id: str, run_id: str, task_id: str = "", map_index: str = "", **_: str
) -> Sequence[Gathering]:
    began, tasks = time.monotonic(), list[TaskRecord]()
    charge("dag", dag_id)
    index = "-1" if map_index == _NO_INDEX else map_index
    if re.fullmatch(r"|-1|[0-9]{1,9}", index):
        tasks += await find_tasks(dag_id, run_id, task_id, int(index) if index else None)
    if not tasks:
        raise HTTPException(404, "This task has not run, or Airflow has deleted the run.")
    gatherings = [Gathering(task, user, began) for task in tasks if task.is_of_rungen]
    if not gatherings:
        raise HTTPException(404, "This task runs nothing at RunGen.")
    if len(tasks) == database.MAX_TASKS:
        gatherings[0].notices.append(f"Only the latest {len(tasks):,} tasks of the run are shown.")
    for task in tasks:
        charge("connection", task.page.connection)
        for uri in (task.log, task.page.destination):
            charge("store", store_of(uri))
    return gatherings


Gathered = Annotated[Sequence[Gathering], Depends(gather)]


async def gather_one(gatherings: Gathered) -> Gathering:
    return gatherings[0]


async def get_urls(request: Request) -> Urls:
    return Urls(str(request.scope.get("root_path", "")).rstrip("/"))


One = Annotated[Gathering, Depends(gather_one)]
PageUrls = Annotated[Urls, Depends(get_urls)]
router = APIRouter(default_response_class=HTMLResponse)
of_dag = APIRouter(
    prefix="/dags/{dag_id}/runs/{run_id:path}",
    dependencies=[Depends(database.can_read_task), Depends(database.can_read_xcom)],
    default_response_class=HTMLResponse,
)
OF_TASK = "/tasks/{task_id}/{map_index}"


def make_app() -> FastAPI:
    """Return the application that the plugin mounts."""
    app = FastAPI(
        title="RunGen",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(explain_errors)],
    )
    app.dependency_overrides.update(database.overrides())
    app.add_exception_handler(AnyHTTPException, _refuse)  # type: ignore[arg-type]  # its type is that of any error
    app.include_router(of_dag)
    app.include_router(router)
    return app


def _page_number(page: str) -> int:
    return min(max(1, int(page)), _MAX_PAGE) if page.isdecimal() and len(page) < 9 else 1


async def _html(template: str, urls: Urls, values: dict[str, Any]) -> Response:
    page = await run_in_threadpool(render.render_template, template, urls=urls, **values)
    return HTMLResponse(page, headers=_PAGE)


async def _refuse(request: Request, error: HTTPException) -> Response:
    """Redirect users who are not logged in to the login, once. Otherwise, explain why there is no page."""
    wants_page = "text/html" in request.headers.get("accept", "")
    if error.status_code == 401 and wants_page and _LOGGED_IN not in request.query_params:
        query = urlencode([*request.query_params.multi_items(), (_LOGGED_IN, "1")])
        # not the path of the URL, in which some characters are already encoded
        back = f"{quote(request.scope['path'])}?{query}"
        login = database.login_url()
        separator = "&" if "?" in login else "?"
        return RedirectResponse(f"{login}{separator}{urlencode({'next': back})}", 302, headers=_DATA)
    if not wants_page:
        return PlainTextResponse(f"{error.detail}\n", error.status_code, headers=_DATA)
    about = {"error": error, "place": request.path_params, "urls": await get_urls(request)}
    return HTMLResponse(render.render_template("refusal.html", **about), error.status_code, headers=_PAGE)


# --- files --------------------------------------------------------------------------------------------------


@of_dag.get(OF_TASK + "/jobs/{job_id}/files/{number}")
async def send_file(
    request: Request, gathering: One, job_id: str, number: str, task_page: str = "1"
) -> Response:
    """Send a file that a manifest names, or a range of it, from the destination that the task has pushed."""
    task = gathering.task
    is_number = number.isdecimal() and len(number) < 9
    # the run log is only read for jobs that the task has not pushed
    if (
        not task.page.destination
        or not is_number
        or not (task.has_pushed(job_id) or await gathering.row_of(job_id, _page_number(task_page)))
    ):
        raise HTTPException(404, _NO_FILE)
    asked = request.headers.get("range", "")
    try:
        file = await run_within(_OPEN_TIME, "files", _open, task, job_id, int(number), asked)
    except FileNotFoundError:
        raise HTTPException(404, "This file was removed or moved since it was stored.") from None
    except (RunGenError, OSError) as error:
        log.warning("Could not open a file of job %s (%s)", job_id, type(error).__name__)
        raise HTTPException(502, "The file could not be read.") from None
    return StreamingResponse(_parts(file.read, file.close), file.status, headers=file.headers)


def _open(task: TaskRecord, job_id: str, number: int, asked: str) -> OpenFile:
    files = find_files(task.page.destination, task.page.app, job_id, STORE_TIME)
    if number >= len(files):
        raise HTTPException(404, _NO_FILE)
    return OpenFile(task.page.destination, job_id, files[number], asked)


async def _parts(read: Callable[[], bytes], close: Callable[[], object]) -> AsyncIterator[bytes]:
    try:
        while part := await run_within(_READ_TIME, "files", read):
            yield part
    finally:
        close()


async def send_asset(request: Request) -> Response:
    name = request.url.path.rpartition("/")[2]
    return Response(render.read_asset(name), media_type=render.ASSETS[name], headers=_ASSET)


for name in render.ASSETS:
    router.get(f"/{name}")(send_asset)


# --- pages of a task ----------------------------------------------------------------------------------------


@of_dag.get(OF_TASK + "/progress")
async def show_progress(gathering: One) -> Response:
    progress = await views.task_progress(gathering)
    return JSONResponse(render.progress_parts(progress), headers=_DATA)


@of_dag.get(OF_TASK + "/jobs/{job_id}")
async def show_job(
    gathering: One, urls: PageUrls, job_id: str, page: str = "1", task_page: str = "1"
) -> Response:
    pages = _page_number(task_page), _page_number(page)
    found = await job_views.job_page(gathering, urls, job_id, *pages)
    if found is None:
        raise HTTPException(404, "This task has no such job.")
    return await _html("job.html", urls, found)


@of_dag.get(OF_TASK + "/apps/{app_id}")
async def show_app(gathering: One, urls: PageUrls, app_id: str) -> Response:
    if app_id != gathering.task.page.app:
        raise HTTPException(404, "This task does not use this app.")
    return await _html("app.html", urls, await app_views.app_page_of_task(gathering))


@of_dag.get(OF_TASK + "/runs")
async def show_runs(
    gatherings: Annotated[Sequence[Gathering], Depends(gather_runs)],
    urls: PageUrls,
    query: Asked,
    download: str = "",
) -> Response:
    return await _show(gatherings, urls, query, download)


@of_dag.get("")  # the last, since the id of a run may have slashes; what is lower comes first
@of_dag.get("/tasks/{task_id}")
@of_dag.get(OF_TASK)
async def show_jobs(
    request: Request, gatherings: Gathered, urls: PageUrls, query: Asked, download: str = ""
) -> Response:
    if "map_index" in request.path_params and not download:
        return await _html("task.html", urls, await views.task_page(gatherings[0], urls, query))
    return await _show(gatherings, urls, query, download)


async def _show(gatherings: Sequence[Gathering], urls: Urls, query: Query, download: str) -> Response:
    if download:
        return await _download(gatherings, query, is_table=download == "csv")
    return await _html("run.html", urls, await views.run_page(gatherings, urls, query))


async def _download(gatherings: Sequence[Gathering], query: Query, *, is_table: bool) -> Response:
    """Send the rows that a page shows as a table, or their files as an archive."""
    entries, task = await query.select(gatherings), gatherings[0].task
    name = attachment(f"{task.dag_id}-{task.task_id}.{'csv' if is_table else 'zip'}")
    headers = _DATA | {"Content-Disposition": name}
    if is_table:
        table = await run_in_threadpool(as_csv, await with_inputs(entries, entries))
        return Response(table, media_type="text/csv; charset=utf-8", headers=headers)
    parts = as_zip(entries)
    stream = _parts(partial(next, parts, b""), partial(begin, parts.close))
    return StreamingResponse(stream, media_type="application/zip", headers=headers)


# --- apps ---------------------------------------------------------------------------------------------------


@router.get("/")
async def show_apps(user: User, urls: PageUrls) -> Response:
    conn_ids = await run_in_threadpool(database.readable_connections, user)
    return await _html("apps.html", urls, await app_views.apps_page(conn_ids))


@router.get(
    "/connections/{connection_id}/apps/{app_id}", dependencies=[Depends(database.can_read_connection)]
)
async def show_connection_app(user: User, urls: PageUrls, connection_id: str, app_id: str) -> Response:
    found = await app_views.app_page(connection_id, app_id)
    if found is None:
        raise HTTPException(404, "The connection has no such app.")
    return await _html("app.html", urls, found)
