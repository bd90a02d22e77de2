"""Pages where the database has only what an XCom backend made of XComs."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from airflow.sdk.bases.xcom import BaseXCom
from conftest import APP, SOON

from plugins.conftest import SERVER_WARNINGS, World, given, links, run_table

pytestmark = [pytest.mark.usefixtures("unsettled"), SERVER_WARNINGS]


class Elsewhere(BaseXCom):
    """A backend of a user: the database has only numbers."""

    values: ClassVar[list[Any]] = []
    is_answering = threading.Event()

    @staticmethod
    def serialize_value(value: Any, **_: Any) -> Any:
        Elsewhere.values.append(value)
        return f"number {len(Elsewhere.values) - 1}"

    @staticmethod
    def deserialize_value(result: Any) -> Any:
        Elsewhere.is_answering.wait()
        return Elsewhere.values[int(result.value.removeprefix("number "))]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AIRFLOW__CORE__XCOM_BACKEND", f"{__name__}.{Elsewhere.__name__}")
    Elsewhere.is_answering.set()
    yield
    Elsewhere.is_answering.set()


@pytest.fixture(scope="session")
def folder_of_xcoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the backend, which reads its configuration once."""
    return tmp_path_factory.mktemp("xcoms")


@pytest.fixture
def object_storage(folder_of_xcoms: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All XComs are files."""
    backend = pytest.importorskip("airflow.providers.common.io.xcom.backend").XComObjectStorageBackend
    monkeypatch.setenv("AIRFLOW__CORE__XCOM_BACKEND", f"{backend.__module__}.{backend.__name__}")
    monkeypatch.setenv("AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH", folder_of_xcoms.as_uri())
    monkeypatch.setenv("AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_THRESHOLD", "0")
    return folder_of_xcoms


def files_of(folder: Path, world: World) -> list[Path]:
    return sorted((folder / world.ti.dag_id / world.ti.run_id / world.ti.task_id).iterdir())


@pytest.mark.parametrize("backend", ["object_storage", "elsewhere"])
def test_pages_read_xcoms_through_their_backend(
    world: World, backend: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(backend)
    path = run_table(world, given("one"), given("two", fail="out of memory"))
    page = world.get(path)
    assert page.status_code == 200
    assert "is missing" not in page.text
    assert "out of memory" in page.text
    [picture] = links(page.text, "/files/")
    assert world.get(picture).headers["content-type"] == "image/png"
    assert [world.get(each).status_code for each in links(page.text, "/jobs/")] == [200] * 3
    assert world.get(f"{path}/progress").json()["done"] == 2


def test_a_file_that_is_too_large_or_gone_is_explained(world: World, object_storage: Path) -> None:
    path = world.save(xcoms={"jobs": ["x" * 1000] * 10_000, "rungen_page": {"app": APP}})
    page = world.get(path).text
    assert "The XCom rungen_page is missing" in page
    path = world.again().save(xcoms={"jobs": ["a"]})
    for file in files_of(object_storage, world):
        file.unlink()
    page = world.get(path).text
    assert "The XCom rungen_page is missing" in page
    assert "No jobs yet" not in page


def test_only_files_of_the_backend_are_read(world: World, object_storage: Path) -> None:
    secret = world.folder / "secret.json"
    secret.write_text(json.dumps(["SECRET"]))
    path = world.save(xcoms={"jobs": ["a"]})
    [file] = files_of(object_storage, world)
    for named in (secret.as_uri(), f"file://{object_storage}/{os.path.relpath(secret, object_storage)}"):
        world.database.write(world.ti, "rungen_page", named)
        assert "SECRET" not in world.get(path).text
    world.database.write(world.ti, "rungen_page", f"file://{file}")
    assert f"{path}/jobs/a" in links(world.get(path).text)


def test_a_backend_that_hangs_is_explained(world: World, elsewhere: None) -> None:
    path = world.save(xcoms={"jobs": ["a"]})
    Elsewhere.is_answering.clear()
    for each in (path, f"{path}/jobs/a/files/0"):
        started = time.monotonic()
        assert world.get(each).status_code == 504
        assert time.monotonic() - started < SOON
