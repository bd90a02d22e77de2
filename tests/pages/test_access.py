"""Who may see what, and that nothing hostile runs, nothing secret is shown, and nothing else is served."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import APP
from rungen_emulator import Emulator

from airflow_provider_rungen.pages.files import requested_range
from airflow_provider_rungen.pages.routes import make_app
from pages.world import SERVER_WARNINGS, Pages, World, given, make_server

pytestmark = SERVER_WARNINGS

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 50


def output(world: World, name: str, content: bytes) -> str:
    """Store a file as an output, and return its path below the destination."""
    path = f"files/ab/{'ab' * 32}.1.j.0-{name}"
    target = world.folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return path


def save_store(world: World, **page: Any) -> str:
    record = {"connection": "rungen_default", "app": APP, "destination": world.folder.as_uri(), **page}
    return world.save(xcoms={"rungen_page": record})


@pytest.mark.contract
def test_who_may_not_read_the_logs_sees_nothing(world: World) -> None:
    page = world.table(given("one"))
    path = urlsplit(world.data(page)["rows"][0]["outputs"][0]["url"]).query
    for role, status in (("viewer", 200), ("", 403), (None, 401)):
        for kind in ("task", "file", "results", "job"):
            more = {"path": parse_qs(path)["path"][0]} if kind == "file" else {}
            answer = world.pages.as_user(role).api(page, kind, **more)
            is_missing = kind == "job" and status == 200
            assert answer.status_code == (404 if is_missing else status), (role, kind)
            assert status == 200 or "one" not in answer.text


def test_who_is_not_logged_in_is_sent_to_the_login_once(world: World) -> None:
    page = world.table(given("one"))
    answer = world.pages.as_user(None).get(page)
    assert answer.status_code == 302
    target = urlsplit(answer.headers["location"])
    back = parse_qs(target.query)["next"][0]
    assert urlsplit(back).path == page
    assert world.pages.as_user(None).get(back).status_code == 401


def test_a_viewer_sees_no_connections(world: World) -> None:
    assert world.pages.get("/api/apps").json()["apps"]
    assert world.pages.as_user("viewer").get("/api/apps").json() == {
        "apps": [],
        "silent": {},
        "connections": [],
    }


def test_nothing_can_be_written() -> None:
    methods = {method for route in make_app().routes for method in getattr(route, "methods", None) or ()}
    assert methods <= {"GET", "HEAD"}


def test_each_answer_has_a_policy(world: World) -> None:
    page = world.table(given("one"))
    picture = world.data(page)["rows"][0]["outputs"][0]["url"]
    for path in (page, "/", page.replace("/task/", "/api/task/"), picture, "/static/page.js", "/static/x"):
        headers = world.pages.get(path).headers
        policy = headers.get("content-security-policy", "")
        assert "unsafe" not in policy
        assert "/static/page.js" in path or "default-src 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
    page_policy = world.pages.get(page).headers["content-security-policy"]
    assert "script-src 'self'" in page_policy
    assert re.findall(r"<script[^>]*>[^<]|\son\w+=|style=", world.pages.get(page).text) == []


@pytest.mark.contract
def test_no_key_and_no_signed_url_is_in_any_answer(world: World) -> None:
    key = world.emulator.service.api_key
    signed = "https://files.example/a.png?X-Amz-Signature=5ecret"
    page = world.table(given(f"see {signed}", result={"text": signed}), given("two", fail=f"no {signed}"))
    job = world.data(page)["rows"][0]["job_id"]
    answers = [
        world.pages.get(page),
        world.pages.api(page),
        world.pages.get("/"),
        world.pages.get("/api/apps"),
    ]
    answers += [world.pages.api(page, "job", job_id=job), world.pages.api(page, "results")]
    for answer in answers:
        assert "5ecret" not in answer.text
        assert key not in answer.text


@pytest.mark.contract
def test_only_outputs_of_the_task_are_served(world: World, tmp_path: Path) -> None:
    page = world.table(given("one"))
    served = output(world, "0.png", PNG)
    (outside := tmp_path.parent / f"{tmp_path.name}.png").write_bytes(PNG)
    link = world.folder / served.replace("0.png", "link.png")
    link.symlink_to(outside)
    folder = world.folder / "files/cd"
    folder.mkdir(exist_ok=True)
    (folder / ".hidden").write_bytes(PNG)
    assert world.pages.api(page, "file", path=served).content == PNG
    store = [str(each.relative_to(world.folder)) for each in world.folder.rglob("*") if each.is_file()]
    refused = [each for each in store if not each.startswith("files/") or "/." in each]
    assert len(refused) > 3
    refused += [
        f"../{outside.name}",
        str(outside),
        f"files/ab/../../../{outside.name}",
        f"/{served}",
        "files/ab",
    ]
    refused += [
        f"{served}/",
        "",
        "%2e%2e/x",
        f"files/ab/{link.name}",
        served.replace("/", "\\"),
        f"{served}\0",
    ]
    for path in refused:
        answer = world.pages.api(page, "file", path=path)
        assert answer.status_code in (404, 502), path
        assert PNG not in answer.content


def test_results_are_served_only_as_a_results_file(world: World) -> None:
    (world.folder / "secret.txt").write_text("secret")
    (world.folder / "r.jsonl").write_text('{"status": "completed"}\n')
    for name, status in (("secret.txt", 404), ("r.jsonl", 200)):
        page = save_store(world, results=f"{world.folder}/{name}")
        answer = world.pages.api(page, "results")
        assert (answer.status_code, "secret" in answer.text) == (status, False)
        world.again()
    assert answer.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.png", PNG, "image/png"),
        ("a.jpg", b"\xff\xd8\xff\xe0" + b"\0" * 20, "image/jpeg"),
        ("a.webp", b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        ("a.mp4", b"\0\0\0\x20ftypisom" + b"\0" * 20, "video/mp4"),
        ("a.txt", b"<script>alert(1)</script>", "text/plain; charset=utf-8"),
        ("a.png", b"<html><script>alert(1)</script>", "application/octet-stream"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "application/octet-stream"),
        ("a.html", b"<!doctype html>", "application/octet-stream"),
        ("a.pdf", b"%PDF-1.7", "application/octet-stream"),
        ("a.png", b"", "application/octet-stream"),
    ],
)
def test_files_are_what_they_begin_with(world: World, name: str, content: bytes, kind: str) -> None:
    answer = world.pages.api(save_store(world), "file", path=output(world, name, content))
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, content, kind)
    assert "sandbox" in answer.headers["content-security-policy"]
    is_download = answer.headers["content-disposition"].startswith("attachment")
    assert is_download == (kind == "application/octet-stream")


def test_players_may_ask_for_a_part(world: World) -> None:
    page, path = save_store(world), output(world, "a.mp4", b"\0\0\0\x20ftypisom" + bytes(range(100)))
    answer = world.pages.api(page, "file", path=path, headers={"range": "bytes=12-15"})
    assert (answer.status_code, answer.content) == (206, b"\0\1\2\3")
    assert answer.headers["content-range"] == "bytes 12-15/112"
    ranges = (
        "bytes=0-",
        "bytes=-5",
        "bytes=100-9999",
        "bytes=9-1",
        "bytes=0-1,3-4",
        "x",
        "bytes=-",
        "bytes=200-",
    )
    found = [requested_range(each, 112) for each in ranges]
    assert found == [(0, 112), (107, 112), (100, 112), None, None, None, None, None]


@pytest.mark.contract
def test_nothing_hostile_is_markup(world: World) -> None:
    page = world.table(
        {"sku": HOSTILE, "note": HOSTILE, **given(HOSTILE)},
        {"sku": "b", "note": "\u202e", **given("two", fail=HOSTILE)},
        key="sku", columns=["note"], to_input=lambda row: given(row["prompt"], **row["emulator"]),
    )  # fmt: skip
    assert HOSTILE not in world.pages.get(page).text
    answer = world.pages.api(page)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["rows"][0]["prompt"] == HOSTILE
    sheet = Path(answer.json()["about"]["sheet"].removeprefix("file://")).read_text()
    assert "<img src=x" not in sheet
    assert sheet.count("</script>") == 2


# --- what an XCom names is a claim, not a right ---

SALARIES = b'{"status": "completed", "name": "Ada", "salary": "90,000"}\n'


def outsider(world: World, name: str = "salaries.jsonl", content: bytes = SALARIES) -> Path:
    """Write a file beside the destination of a task."""
    path = world.folder.parent / f"{world.folder.name}-{name}"
    path.write_bytes(content)
    return path


def answers_of(world: World, page: str, path: str = "") -> list[Any]:
    kinds: list[tuple[str, dict[str, Any]]] = [("task", {}), ("results", {}), ("file", {"path": path})]
    return [world.pages.as_user("user").api(page, kind, **query) for kind, query in kinds]


@pytest.mark.contract
@pytest.mark.parametrize("how", ["uri", "path", "dots", "encoded", "link", "beside", "scheme", "host"])
def test_an_xcom_alone_opens_no_results(world: World, how: str) -> None:
    page, outside, inside = world.table(given("one")), outsider(world), world.folder.as_uri()
    (world.folder / "link").symlink_to(outside.parent)
    named = {
        "uri": outside.as_uri(),
        "path": str(outside),
        "dots": f"{inside}/results/../../{outside.name}",
        "encoded": f"{inside}/results/%2e%2e/%2E%2E/{outside.name}",
        "link": f"{inside}/link/{outside.name}",
        "beside": f"{inside}{outside.name.removeprefix(world.folder.name)}",
        "scheme": f"local://{outside}",
        "host": f"file://localhost{outside}",
    }[how]
    world.database.push(world.ti, "results", named)
    data, results, _ = answers_of(world, page)
    assert results.status_code in (403, 404, 502)
    assert "Ada" not in data.text + results.text
    assert data.json()["notices"], "it says why rows are missing"


@pytest.fixture
def fab_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield an application with FAB as the auth manager."""
    manager = pytest.importorskip("airflow.providers.fab.auth_manager.fab_auth_manager").FabAuthManager
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", f"{manager.__module__}.{manager.__name__}")
    yield make_server()
    monkeypatch.delenv("AIRFLOW__CORE__AUTH_MANAGER")
    make_server()


@pytest.mark.contract
def test_an_op_of_fab_opens_no_file_by_an_xcom(world: World, fab_server: Any) -> None:
    page, op = world.table(given("one")), Pages(fab_server, "Op")
    assert op.api(page, "results").status_code == 200
    world.database.push(world.ti, "results", outsider(world).as_uri())
    data, results = op.api(page), op.api(page, "results")
    assert (data.status_code, results.status_code) == (200, 403)
    assert "Ada" not in data.text + results.text
    assert any("does not name in its DAG" in notice for notice in data.json()["notices"])


@pytest.mark.contract
def test_an_xcom_alone_opens_no_store(world: World) -> None:
    other = world.folder / "other"
    world.folder = world.folder / "mine"
    mine = world.table(given("one"))
    path = output(world, "0.png", PNG)
    world.again()
    world.folder, folder = other, world.folder
    view = {"ended": [{"index": 0, "status": "completed", "input": '{"prompt": "Ada"}'}]}
    world.folder.mkdir()
    theirs = world.table(given("two"))
    world.folder = folder
    record = world.write_view(view)
    world.database.push(world.ti, "rungen_page", record)
    data, _, file = answers_of(world, theirs, path)
    assert (file.status_code, PNG in file.content, "Ada" in data.text) == (403, False, False)
    assert any("does not name in its DAG" in notice for notice in data.json()["notices"])
    assert answers_of(world, mine, path)[2].content == PNG


@pytest.mark.contract
@pytest.mark.parametrize("kept", ["none", "the same", "another"])
def test_what_airflow_has_forgotten_is_opened_if_its_other_runs_name_it(world: World, kept: str) -> None:
    page = world.table(given("one"))
    world.database.forget(world.ti)
    world.again()
    destination = {"the same": world.folder.as_uri(), "another": f"{world.folder.as_uri()}-2"}
    world.save(xcoms={}, rendered={"destination": destination[kept]} if kept in destination else {})
    data, results, _ = answers_of(world, page)
    if kept == "the same":
        assert (len(data.json()["rows"]), data.json()["notices"], results.status_code) == (1, [], 200)
        return
    assert (data.json()["rows"], results.status_code) == ([], 403)
    assert [notice for notice in data.json()["notices"] if "Airflow has forgotten" in notice]
    # what Airflow's database has is shown
    assert data.json()["progress"]["completed"] == 1


@pytest.mark.contract
def test_results_that_the_dag_names_are_opened_wherever_they_are(world: World) -> None:
    results = outsider(world, "r.csv", b"")
    page = world.table(given("one"), results=str(results))
    data, sent, _ = answers_of(world, page)
    assert (len(data.json()["rows"]), sent.status_code) == (1, 200)
    assert data.json()["about"]["sheet"].endswith(f"{results.stem}.html")
    world.database.push(world.ti, "results", str(outsider(world)))
    assert answers_of(world, page)[1].status_code == 403


def test_a_destination_may_be_an_object_storage_path(world: World) -> None:
    from airflow.sdk import ObjectStoragePath

    page = world.table(given("one"), destination=ObjectStoragePath(world.folder.as_uri()))
    data, results, _ = answers_of(world, page)
    assert (len(data.json()["rows"]), data.json()["notices"], results.status_code) == (1, [], 200)


# --- connections ---


def test_a_connection_that_only_an_xcom_names_is_not_used_for_who_may_not_read_it(world: World) -> None:
    page = world.table(given("one"))
    job = world.data(page)["rows"][0]["job_id"]
    world.database.push(world.ti, "job_id", job)
    viewer = world.pages.as_user("viewer")
    requests = world.emulator.service.stats()["requests"]
    answer = viewer.api(page, "job", job_id=job)
    assert (answer.status_code, "does not name connection rungen_default" in answer.text) == (403, True)
    assert world.emulator.service.stats()["requests"] == requests
    world.database.render(world.ti, rungen_conn_id="rungen_default")
    assert viewer.api(page, "job", job_id=job).json()["prompt"] == "one"


def test_the_password_of_another_kind_of_connection_is_never_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_MY_AWS", os.environ["AIRFLOW_CONN_RUNGEN_DEFAULT"].replace('"rungen"', '"aws"')
    )
    page = world.save(xcoms={"rungen_page": {"connection": "my_aws", "app": APP}, "job_id": "j"})
    requests = world.emulator.service.stats()["requests"]
    answer = world.pages.api(page, "job", job_id="j")
    assert answer.status_code == 502
    assert "my_aws" in answer.text
    assert world.emulator.service.stats()["requests"] == requests
    assert "my_aws" not in world.pages.get("/api/apps").text


# --- the overview of apps ---


def test_apps_are_listed_once_with_what_is_billed_first(world: World) -> None:
    service = world.emulator.service
    service.scale(APP, 3)
    service.scale("llama-text", 0)
    with (
        Emulator() as other,
        other.connection("unpriced"),
        world.emulator.connection("priced", price="1.5 USD/h"),
    ):
        data = world.pages.get("/api/apps").json()
    of_app = [app for app in data["apps"] if app["id"] == APP and "priced" in app["connections"]]
    assert len(of_app) == 1
    assert of_app[0]["connections"] == ["priced", "rungen_default"]
    assert of_app[0]["per_hour"] == {"amount": 4.5, "currency": "USD"}
    assert [app["is_billed"] for app in data["apps"]] == sorted(
        (app["is_billed"] for app in data["apps"]), reverse=True
    )
    assert [app for app in data["apps"] if app["connections"] == ["unpriced"] and app["per_hour"]] == []
