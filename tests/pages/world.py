"""The plugin's application with Airflow's own security and a database of Airflow's, and tasks in it."""

from __future__ import annotations

import itertools
import json
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeTaskInstance, run_task, table_of
from rungen_emulator import Emulator

from airflow_provider_rungen._airflow import conf
from airflow_provider_rungen.links import page_url

_numbers = itertools.count(1)
#: In each version, Airflow's server, FastAPI and SQLAlchemy warn about each other in another way.
SERVER_WARNINGS = pytest.mark.filterwarnings("ignore")
POLL: dict[str, Any] = {"task_id": "task", "poll_interval": 0.02, "deferrable": False}


def make_server() -> Any:
    """Make Airflow's tables, and return an application like its API server, with the plugin mounted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from airflow.api_fastapi.app import init_auth_manager
        from airflow.utils.db import initdb
        from fastapi import FastAPI

        from airflow_provider_rungen.pages.plugin import RunGenPlugin

        initdb()
        app = FastAPI()
        init_auth_manager(app)
        for part in RunGenPlugin.fastapi_apps:
            app.mount(part["url_prefix"], part["app"])
    return app


def session_token(role: str) -> str:
    """Return the token of a session of a user with a role; an empty one has no rights."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    manager: Any = get_auth_manager()
    user: Any = SimpleAuthManagerUser(username=f"the-{role}", role=role or None)
    if flask_app := getattr(manager, "flask_app", None):  # that of FAB
        with flask_app.app_context():
            roles = manager.security_manager
            user = roles.add_user(f"the-{role}", "the", role, f"{role}@here", roles.find_role(role), "secret")
    return str(manager.generate_jwt(user))


@dataclass
class Pages:
    """The pages of the plugin, as one user sees them."""

    server: Any
    role: str | None = "admin"

    def get(self, path: str, **kwargs: Any) -> Any:
        """Request a path below the plugin. Redirects are not followed."""
        headers = {"accept": "text/html", **kwargs.pop("headers", {})}
        path = path if path.startswith("/rungen/") else f"/rungen{path}"
        return self._client.get(path, headers=headers, follow_redirects=False, **kwargs)

    def api(self, page: str, kind: str = "task", **query: Any) -> Any:
        """Request the data of a page."""
        path, _, index = page.partition("?")
        headers = query.pop("headers", {"accept": "application/json"})
        more = dict([index.split("=")]) if index else {}
        return self.get(
            path.replace("/rungen/task/", f"/rungen/api/{kind}/"), params=more | query, headers=headers
        )

    @cached_property
    def _client(self) -> Any:
        from fastapi.testclient import TestClient

        cookies = {} if self.role is None else {"_token": session_token(self.role)}
        return TestClient(self.server, cookies=cookies)

    def as_user(self, role: str | None) -> Pages:
        return Pages(self.server, role)


def place_of(ti: FakeTaskInstance) -> dict[str, Any]:
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
        rendered: Mapping[str, Any] | None = None,
    ) -> str:
        """
        Write a task with what it pushed, and return the path of its page.

        :param rendered: the fields that its DAG gave to it; empty where Airflow has forgotten them. When left
            out, the DAG names the files that the task has pushed.
        """
        from airflow.models.dagrun import DagRun
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import insert, select

        now = datetime.now(UTC)
        run: dict[str, Any] = {"run_type": "manual", "state": "running"}
        run |= {"run_after": now, "logical_date": now}
        task = {"id": uuid.uuid4(), **place_of(ti), "state": state, "max_tries": 0, "try_number": try_number}
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
        pushed = ti.xcoms if xcoms is None else xcoms
        for key, value in pushed.items():
            self.push(ti, key, value)
        if rendered is None:
            page = pushed.get("rungen_page")
            about = page if isinstance(page, Mapping) else {}
            results = pushed.get("results") or about.get("results")
            rendered = {"destination": about.get("destination"), "results": results}
        if rendered:
            self.render(ti, **rendered)
        return page_url(ti)

    def push(self, ti: FakeTaskInstance, key: str, value: Any) -> None:
        """Write an XCom of a task, as a worker does."""
        backend = conf.getimport("core", "xcom_backend")
        self.write(ti, key, backend.serialize_value(value, key=key, **place_of(ti)))

    def write(self, ti: FakeTaskInstance, key: str, value: Any) -> None:
        """Write what the database has of an XCom, as the API server does."""
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import update

        place = place_of(ti)
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
        from sqlalchemy import delete, insert, select

        place = place_of(ti)
        with create_session() as session:
            if "task_instance_id" in RenderedTaskInstanceFields.__table__.columns:  # since Airflow 3.4
                place = {"task_instance_id": session.scalar(select(TaskInstance.id).filter_by(**place))}
            session.execute(delete(RenderedTaskInstanceFields).filter_by(**place))
            session.execute(insert(RenderedTaskInstanceFields).values(rendered_fields=fields, **place))

    def forget(self, ti: FakeTaskInstance) -> None:
        """Remove the rendered fields of a task, as Airflow does with those of old runs."""
        from airflow.models.renderedtifields import RenderedTaskInstanceFields
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            ti_of = RenderedTaskInstanceFields.task_instance
            where = [getattr(TaskInstance, name) == value for name, value in place_of(ti).items()]
            session.delete(
                session.scalars(select(RenderedTaskInstanceFields).join(ti_of).where(*where)).one()
            )

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


def new_run(ti: FakeTaskInstance) -> FakeTaskInstance:
    """Make a task instance one of a run of its own."""
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

    def run(self, op: Any, state: str = "") -> str:
        """Run a task, and return the path of its page. Airflow keeps what its DAG gave to it."""
        from airflow.serialization.helpers import serialize_template_field

        outcome = run_task(op, self.context)
        if outcome.value is not None:
            self.ti.xcom_push("return_value", outcome.value)
        names = set(op.template_fields) - {"rungen_conn_id"}  # which only tests about connections name
        rendered = {name: serialize_template_field(getattr(op, name, None), name) for name in names}
        return self.save(state or ("success" if outcome.error is None else "failed"), rendered=rendered)

    def table(self, *inputs: dict[str, Any], state: str = "", **options: Any) -> str:
        """Run a table, and return the path of its page."""
        options = {"destination": self.folder.as_uri(), "max_failed": 100, **POLL, **options}
        return self.run(table_of(inputs=[*inputs] or [given("one"), given("two")], **options), state)

    def again(self) -> None:
        """Go on with another run of the task."""
        new_run(self.ti)
        self.ti.pushed.clear()

    def save(self, state: str = "success", **kwargs: Any) -> str:
        return self.database.save(self.ti, state, **kwargs)

    def data(self, page: str, **query: Any) -> Any:
        """Return the data of a page."""
        answer = self.pages.api(page, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def write_view(self, view: Mapping[str, Any], **page: Any) -> dict[str, Any]:
        """Write the view of a running table, and return the XCom ``rungen_page``."""
        path = ".rungen/runs/abc/def.json"
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(view))
        return {
            "connection": "rungen_default",
            "app": "flux-schnell",
            "destination": self.folder.as_uri(),
            "view": path,
            **page,
        }


def given(prompt: str = "a red fox", **emulator: Any) -> dict[str, Any]:
    return {"prompt": prompt, "width": 64, "height": 64, "seed": 7, "emulator": {"seconds": 0.02, **emulator}}
