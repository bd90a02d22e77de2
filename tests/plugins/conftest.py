"""The plugin's application with Airflow's own security and a database of Airflow's."""

from __future__ import annotations

import html
import itertools
import json
import re
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from conftest import APP, FakeTaskInstance, run_task, table_of
from fsspec.implementations.memory import MemoryFileSystem
from rungen_emulator import Emulator

from airflow_provider_rungen._airflow import conf
from airflow_provider_rungen.execution.jobs.log_home import token_of
from airflow_provider_rungen.execution.jobs.places import StoragePlace
from airflow_provider_rungen.execution.jobs.plans import Plan
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.links import task_path
from airflow_provider_rungen.runs.attempt_record import AttemptRecord
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog
from airflow_provider_rungen.runs.plan import PlannedRow, input_digest
from airflow_provider_rungen.runs.rows import JobState

_numbers = itertools.count(1)
#: In each version, Airflow's server, FastAPI and SQLAlchemy warn about each other in another way.
SERVER_WARNINGS = pytest.mark.filterwarnings("ignore")
POLL: dict[str, Any] = {"task_id": "task", "poll_interval": 0.02, "deferrable": False}


def write_log(
    ti: FakeTaskInstance,
    folder: Any,
    states: Sequence[JobState | None],
    *,
    key: str = "s{number}",
    job_id: str = "job-{number}",
    ids: Sequence[str] = (),
    why: str = "out of memory {number}",
    **end: Any,
) -> None:
    """
    Write the log of a task run with one attempt.

    :param states: how the job of each row ended; ``None`` for a row that was not submitted.
    :param ids: the first jobs, if they have other ids.
    :param end: what the attempt recorded at its end; nothing if left out.
    """
    place = StoragePlace(folder, token_of(ti))
    keys = (key.format(number=number) for number in range(len(states)))
    rows: Iterator[tuple[PlannedRow, Any]] = (
        (PlannedRow([each], input_digest(number)), {}) for number, each in enumerate(keys)
    )
    plan = Plan.of_rows(APP, rows, lambda: {"columns": ["sku"], "types": ["text"]})
    attempt = AttemptRecord(turn=1, nonce="0" * 8, since=1, app_id=APP, plan=plan.digest)
    run_log = RunLog(place, attempt, clock=lambda: 0)
    run_log.note()
    plan.save(place, with_inputs=False)
    jobs = Jobs(plan.digest, attempt.writer)
    jobs.load(range(len(states)))
    known = {number: state for number, state in enumerate(states) if state is not None}
    jobs.announce(known)
    names = {number: job_id.format(number=number) for number in range(len(states))} | dict(enumerate(ids))
    for number, state in known.items():
        jobs.accept(number, names[number])
        if state is not JobState.OPEN:
            reason = "" if state is JobState.COMPLETED else why.format(number=number)
            jobs.end(names[number], state, seconds=1.5, why=reason)
    run_log.save(jobs, jobs.unsaved_parts)
    if end:
        run_log.note(**{"totals": jobs.totals()} | end)


@pytest.fixture(scope="session")
def server() -> Any:
    """An application like Airflow's API server, with the plugin mounted. It makes Airflow's tables once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from airflow.api_fastapi.app import init_auth_manager
        from airflow.utils.db import initdb
        from fastapi import FastAPI

        from airflow_provider_rungen.plugins import RunGenPlugin

        initdb()
        app = FastAPI()
        init_auth_manager(app)
        for part in RunGenPlugin.fastapi_apps:
            app.mount(part["url_prefix"], part["app"])
    return app


@dataclass
class Pages:
    """The pages of the plugin, as one user sees them."""

    server: Any
    role: str | None = "admin"

    def get(self, path: str, **kwargs: Any) -> Any:
        """Request a page below the plugin. Redirects are not followed."""
        headers = {"accept": "text/html", **kwargs.pop("headers", {})}
        return self._client.get(f"/rungen{path}", headers=headers, follow_redirects=False, **kwargs)

    @cached_property
    def _client(self) -> Any:
        from fastapi.testclient import TestClient

        cookies = {} if self.role is None else {"_token": session_token(self.role)}
        return TestClient(self.server, cookies=cookies)

    def as_user(self, role: str | None) -> Pages:
        return Pages(self.server, role)


def session_token(role: str) -> str:
    """Return the token of a session of a user with a role; an empty one has no rights."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    user = SimpleAuthManagerUser(username=f"the-{role}", role=role or None)
    return str(get_auth_manager().generate_jwt(user))


def _place(ti: FakeTaskInstance) -> dict[str, Any]:
    return {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, "map_index": ti.map_index}


class Database:
    """Writes tasks into Airflow's database, as the scheduler and the workers do."""

    def save(
        self,
        ti: FakeTaskInstance,
        state: str = "success",
        *,
        xcoms: Mapping[str, Any] | None = None,
        operator: str = "RunGenRunTableOperator",
        try_number: int = 1,
        name: str = "",
    ) -> str:
        """
        Write a task with what it pushed, and return the path of its page.

        :param xcoms: what it pushed. The ``jobs`` are those of its page.
        """
        from airflow.models.dagrun import DagRun
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import insert, select

        now = datetime.now(UTC)
        run: dict[str, Any] = {"run_type": "manual", "state": "running"}
        run |= {"run_after": now, "logical_date": now}
        task = {"id": uuid.uuid4(), **_place(ti), "state": state, "max_tries": 0}
        task |= {"try_number": try_number, **({"task_display_name": name} if name else {})}
        task |= {"pool": "default_pool", "pool_slots": 1, "operator": operator, "start_date": now}
        columns = TaskInstance.__table__.columns
        if type(columns["id"].type).__name__ != "Uuid":  # before Airflow 3.2
            task["id"] = str(task["id"])
        if "map_index" not in columns:  # since Airflow 3.4
            task["region_index"] = task.pop("map_index")
        with create_session() as session:
            self._add_dag(session, ti.dag_id)
            if session.scalar(select(DagRun).filter_by(dag_id=ti.dag_id, run_id=ti.run_id)) is None:
                session.add(DagRun(dag_id=ti.dag_id, run_id=ti.run_id, **run))
                session.flush()
            values: Any = {columns[name]: each for name, each in task.items()}
            session.execute(insert(TaskInstance.__table__).values(values))
        xcoms = dict(ti.xcoms if xcoms is None else xcoms)
        if (jobs := xcoms.pop("jobs", None)) is not None:
            xcoms["rungen_page"] = {**xcoms.get("rungen_page", {}), "jobs": jobs}
        for key, value in xcoms.items():
            self.push(ti, key, value)
        return task_path(ti.dag_id, ti.run_id, ti.task_id, ti.map_index)

    def push(self, ti: FakeTaskInstance, key: str, value: Any) -> None:
        """Write an XCom of a task, as a worker does."""
        backend = conf.getimport("core", "xcom_backend")
        self.write(ti, key, backend.serialize_value(value, key=key, **_place(ti)))

    def write(self, ti: FakeTaskInstance, key: str, value: Any) -> None:
        """Write what the database has of an XCom, as the API server does."""
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import update

        place = _place(ti)
        has_option = "serialize" in signature(XComModel.set).parameters
        options: Any = {"serialize": False} if has_option else {}
        with create_session() as session:
            XComModel.set(key=key, value=value, session=session, **place, **options)
            if not has_option:  # before Airflow 3.2, it serializes once more than the API server
                session.execute(update(XComModel).filter_by(key=key, **place).values(value=value))

    def render(self, ti: FakeTaskInstance, **fields: Any) -> None:
        """Write the rendered fields of a task, as the API server does for a worker that begins it."""
        from airflow.models.renderedtifields import RenderedTaskInstanceFields
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import insert, select

        place = _place(ti)
        with create_session() as session:
            if "task_instance_id" in RenderedTaskInstanceFields.__table__.columns:  # since Airflow 3.4
                place = {"task_instance_id": session.scalar(select(TaskInstance.id).filter_by(**place))}
            session.execute(insert(RenderedTaskInstanceFields).values(rendered_fields=fields, **place))

    def write_dag(self, ti: FakeTaskInstance, dag: Any) -> None:
        """Write the DAG of a task, as the DAG processor does."""
        from airflow.models.dag_version import DagVersion
        from airflow.models.serialized_dag import SerializedDagModel
        from airflow.models.taskinstance import TaskInstance
        from airflow.serialization.serialized_objects import LazyDeserializedDAG
        from airflow.utils.session import create_session
        from sqlalchemy import update

        written: Any = LazyDeserializedDAG.from_dag(dag) if hasattr(LazyDeserializedDAG, "from_dag") else dag
        with create_session() as session:
            SerializedDagModel.write_dag(written, bundle_name="bundle", session=session)
            session.flush()
            newest = DagVersion.get_latest_version(ti.dag_id, session=session)
            assert newest is not None
            task = TaskInstance.dag_id == ti.dag_id, TaskInstance.run_id == ti.run_id
            session.execute(update(TaskInstance).where(*task).values(dag_version_id=newest.id))

    def _add_dag(self, session: Any, dag_id: str) -> None:
        from airflow.models.dag import DagModel
        from airflow.models.dagbundle import DagBundleModel

        for model, key, fields in (
            (DagBundleModel, "bundle", {"name": "bundle"}),
            (DagModel, dag_id, {"dag_id": dag_id, "bundle_name": "bundle", "fileloc": "dag.py"}),
        ):
            if session.get(model, key) is None:
                made: Any = model
                session.add(made(**fields))
                session.flush()


@pytest.fixture
def ti() -> FakeTaskInstance:
    """A task of a run of its own."""
    ti = FakeTaskInstance()
    ti.run_id = f"manual__{next(_numbers)}+00:00"
    return ti


@dataclass
class World:
    """A task, what it needs, and its pages."""

    emulator: Emulator
    context: Any
    ti: FakeTaskInstance
    folder: Path
    pages: Pages
    database: Database

    def perform(self, op: Any) -> Any:
        """Run a task, and return its outcome."""
        return run_task(op, self.context)

    def run(self, op: Any) -> str:
        """Run a task that succeeds, and return the path of its page."""
        assert self.perform(op).error is None
        return self.save()

    def save(self, state: str = "success", **kwargs: Any) -> str:
        return self.database.save(self.ti, state, **kwargs)

    @property
    def ids(self) -> list[str]:
        """The jobs at the service."""
        return [job["id"] for job in self.emulator.service.jobs()]

    def get(self, path: str) -> Any:
        return self.pages.get(path)

    def again(self) -> World:
        """Return the same world with another run of the task."""
        self.ti.run_id = f"manual__{next(_numbers)}+00:00"
        self.folder /= "again"
        self.folder.mkdir()
        return self


@pytest.fixture
def world(rungen_emulator: Emulator, context: Any, tmp_path: Path, server: Any) -> World:
    return World(rungen_emulator, context, context["ti"], tmp_path, Pages(server), Database())


def run_table(world: World, *inputs: dict[str, Any], **options: Any) -> str:
    """Run a table that stores its files, and return the path of its page."""
    options = {"destination": world.folder.as_uri(), "max_failed": 100, **POLL, **options}
    return world.run(table_of(inputs=list(inputs or [given("one"), given("two")]), **options))


def given(prompt: str = "a red fox", **emulator: Any) -> dict[str, Any]:
    return {"prompt": prompt, "width": 64, "height": 64, "seed": 7, "emulator": {"seconds": 0.02, **emulator}}


def links(page: str, part: str = "") -> list[str]:
    """Return the addresses on a page that contain a text, below the plugin."""
    found = [html.unescape(each) for each in re.findall(r'(?:href|src)="([^"]*)"', page)]
    return list(dict.fromkeys(each.removeprefix("/rungen") for each in found if part in each))


def words_of(page: str) -> str:
    """Return the text of a page, without tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def submit(*inputs: dict[str, Any]) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input=each).id for each in inputs]


@pytest.fixture(autouse=True)
def _no_cached_answers() -> Iterator[None]:
    """Forget what an earlier test asked the service for, and read."""
    from airflow_provider_rungen.plugins.limits import CACHE

    CACHE.clear()
    yield
    CACHE.clear()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all texts that the process parses as JSON, whoever does it."""
    sizes: list[int] = []
    loads: Callable[..., Any] = json.loads

    def count(text: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(text))
        return loads(text, *args, **kwargs)

    monkeypatch.setattr(json, "loads", count)
    return sizes


class CountingStore(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store that notes which files are read, and refuses to be written to if it is asked to."""

    cachable = False
    store: dict[str, Any] = {}
    pseudo_dirs = [""]

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.is_read_only = False

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.reads.append(path)
        return super().cat_file(path, *args, **kwargs)

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        assert not self.is_read_only, path
        super().pipe_file(path, value, **kwargs)


@pytest.fixture
def counting() -> CountingStore:
    """A store at ``memory://counts@bucket``."""
    from airflow.sdk.io import attach

    fs = CountingStore()
    attach("memory", conn_id="counts", fs=fs).fs = fs
    return fs
