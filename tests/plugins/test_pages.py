"""The pages, with real tasks, the emulated service and Airflow's own security."""

from __future__ import annotations

import html
import json
import re
import shutil
import time
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from bad_answers import Fault
from conftest import APP, KEY, SOON, table_of
from sqlalchemy.exc import OperationalError

from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenScaleAppOperator,
)
from airflow_provider_rungen.plugins import database
from airflow_provider_rungen.plugins.limits import CACHE
from plugins.conftest import POLL, SERVER_WARNINGS, World, given, links, run_table, submit, words_of

pytestmark = [pytest.mark.usefixtures("unsettled"), SERVER_WARNINGS]


def job_links(page: str) -> list[str]:
    return [each for each in links(page, "/jobs/") if "/files/" not in each]


# --- what a page shows --------------------------------------------------------------------------------------


def test_stored_pictures_are_shown_and_served(world: World) -> None:
    page = world.get(run_table(world))
    assert page.status_code == 200
    assert "one" in page.text
    assert "64 x 64" in page.text
    files = links(page.text, "/files/")
    stored = sorted(path.read_bytes() for path in world.folder.glob("*/*.png"))
    answers = [world.get(file) for file in files]
    assert sorted(answer.content for answer in answers) == stored
    assert len(stored) == 2
    for answer in answers:
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-disposition"] == "inline"
    names = re.findall(r'download="(.*?)"', page.text)
    assert len(set(names)) == len(names) == 2, "the files of all jobs have one name"
    part = world.pages.get(files[0], headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, answers[0].content[100:200])


@pytest.mark.parametrize("state", ["running", "up_for_retry", "failed", "success"])
def test_what_is_stored_is_shown_in_each_state_and_what_is_not_is_named(world: World, state: str) -> None:
    op = table_of(inputs=[given("one"), given("two")], destination=world.folder.as_uri(), **POLL)
    assert world.perform(op).error is None
    shutil.rmtree(world.folder / world.ids[0])
    page = world.get(world.save(state)).text
    assert len(links(page, "/files/")) == 1
    is_moving = state in ("running", "up_for_retry")
    assert ("Not stored yet." in page, "Its files are not in the destination" in page) == (
        is_moving,
        not is_moving,
    )
    assert "only at RunGen" not in page


def test_without_a_destination_the_page_says_how_to_see_pictures(world: World) -> None:
    page = world.get(run_table(world, destination=None, results=f"{world.folder}/results.jsonl"))
    assert "Set destination" in page.text
    assert "Its files are only at RunGen" in page.text
    assert "images" not in page.text, "the JSON of the result"
    assert not links(page.text, "/files/")


@pytest.mark.parametrize("result", [[0.25, 0.5], 7.5, True, [[1], [2]], {"score": 4}, [1] * 300])
def test_a_result_of_any_kind_is_on_its_card(world: World, result: Any) -> None:
    page = world.get(run_table(world, given(result=result))).text
    for each in (page.partition("<article")[2], world.get(job_links(page)[0]).text):
        assert json.dumps(result)[:200] in words_of(each)


def test_jobs_that_failed_are_grouped_and_each_job_has_a_page(world: World) -> None:
    inputs = [given("fine"), *(given(f"bad {number}", fail="out of memory") for number in range(3))]
    page = world.get(run_table(world, *inputs)).text
    assert re.search(r"<b>3</b> <span[^>]*>out of memory", page)
    texts = [world.get(each).text for each in job_links(page)]
    assert len(texts) == 4
    assert (
        sum(
            "out of memory" in text and "A clear of the task submits unknown, up to all 4 inputs" in text
            for text in texts
        )
        == 3
    )
    assert all("created" in text for text in texts)


def test_apps_have_pages(world: World) -> None:
    path = world.run(RunGenScaleAppOperator(task_id="task", active_workers=3))
    [app] = links(world.get(path).text, "/apps/")
    of_connection = f"/connections/rungen_default/apps/{APP}"
    for each in (app, of_connection):
        page = world.get(each).text
        for words in ("FLUX Schnell", "Billed now", "3 workers"):
            assert words in page
    for each in (app, of_connection):
        assert world.get(each.replace(APP, "another")).status_code == 404
    overview = world.get("/").text
    assert "FLUX Schnell" in overview
    assert of_connection in links(overview)


def test_progress_moves_while_the_task_is_deferred(world: World) -> None:
    world.emulator.service.job_seconds = 3600
    ids = submit(*({"prompt": f"{number}"} for number in range(30)))
    page = {"connection": "rungen_default", "app": APP, "jobs": ids}
    path = world.save("deferred", xcoms={"rungen_page": page})
    [address] = re.findall(r'"([^"]*/progress)"', world.get(path).text)
    address = html.unescape(address).removeprefix("/rungen")
    before = world.get(address).json()
    assert (before["done"], before["total"], before["is_moving"]) == (0, 30, True)
    with RunGenHook() as hook:
        for job_id in ids[:3]:
            hook.cancel_job(job_id=job_id)
    CACHE.clear()
    after = world.get(address).json()
    assert (after["done"], after["total"]) == (3, 30)


@pytest.mark.parametrize("workers", [0, 1])
def test_jobs_that_wait_for_a_worker_of_an_app_without_any_say_so(world: World, workers: int) -> None:
    world.emulator.service.scale(APP, workers)
    ids = submit(*({"prompt": f"{number}", "emulator": {"seconds": 60}} for number in range(3)))
    page = {"connection": "rungen_default", "app": APP}
    text = words_of(world.get(world.save("deferred", xcoms={"rungen_page": page, "jobs": ids})).text)
    assert "3 queued" in text if not workers else "1 running" in text
    assert ("has no active workers: its jobs stay queued until it is scaled up" in text) == (not workers)


def test_a_task_that_has_pushed_only_that_its_ledger_is_new_has_a_page(world: World) -> None:
    path = world.save("running", xcoms={"rungen_page": {"new_ledger": "/mnt/nas/<ledger>"}})
    # a tab of Airflow leaves the index as it is
    for each in (path, f"{path.removesuffix('-1')}%7BMAP_INDEX%7D"):
        page = world.get(each)
        assert page.status_code == 200
        assert "running" in page.text
        assert "The ledger /mnt/nas/&lt;ledger&gt; was new" in page.text


def test_a_task_that_does_not_exist_has_no_page(world: World) -> None:
    path = world.save(xcoms={}).removesuffix("-1")
    for index in ("9" * 30, "9" * 5000, str(2**31), "-2", "none"):
        for below in ("", "/progress", "/jobs/j", "/jobs/j/files/0"):
            answer = world.get(f"{path}{index}{below}")
            assert answer.status_code == 404
            assert "deleted the run" in answer.text


# --- ways out -----------------------------------------------------------------------------------------------


def assert_has_ways_out(answer: Any, *to: str) -> None:
    """Check that a refusal looks like a page, runs nothing, and leads to pages of Airflow."""
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    found = re.findall(r'href="([^"]*)"', answer.text)
    for each in ("/rungen/", *to):
        assert each in found
    assert "/rungen/style.css" in answer.text


def test_a_refusal_is_a_page_with_ways_out(world: World) -> None:
    path = world.save(xcoms={"job_id": "1"})
    run = f"/dags/dag/runs/{quote(world.ti.run_id, safe='')}"
    ways = ("/dags/dag", run, f"{run}/tasks/task")
    for wrong in ("/jobs/other", f"/apps/{APP}", "/jobs/1/files/7"):
        answer = world.get(path + wrong)
        assert answer.status_code == 404
        assert_has_ways_out(answer, *ways)
    refused = world.pages.as_user("").get(path)
    assert refused.status_code == 403
    assert_has_ways_out(refused, *ways)
    for nowhere in ("/nowhere", f"{run}/tasks"):
        assert_has_ways_out(world.get(nowhere))
    plain = world.pages.get(f"{path}/jobs/1/files/7", headers={"accept": "image/*"})
    assert plain.headers["content-type"].startswith("text/plain")


def test_a_task_of_somebody_else_has_no_page(world: World) -> None:
    answer = world.get(world.save(xcoms={}, operator="PythonOperator"))
    assert answer.status_code == 404
    assert "runs nothing at RunGen" in answer.text
    # a class of the user's own has what it pushed
    world = world.again()
    page = {"connection": "rungen_default", "app": APP}
    assert world.get(world.save(xcoms={"rungen_page": page}, operator="MyOperator")).status_code == 200


def test_a_file_that_was_removed_is_named_as_gone(world: World) -> None:
    path = run_table(world, given("one"))
    [file] = links(world.get(path).text, "/files/")
    assert world.get(file).status_code == 200
    for each in world.folder.glob("*/*.png"):
        each.unlink()
    answer = world.get(file)
    assert answer.status_code == 404
    assert_has_ways_out(answer)
    assert "removed or moved" in answer.text


@pytest.mark.parametrize(
    ("name", "kind"),
    [("style.css", "text/css"), ("theme.js", "text/javascript"), ("icon.svg", "image/svg+xml")],
)
def test_what_pages_load_is_served_with_its_type(world: World, name: str, kind: str) -> None:
    assert f"/rungen/{name}?v=" in world.get("/").text
    answer = world.get(f"/{name}")
    assert answer.headers["content-type"].partition(";")[0] == kind
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_crumbs_lead_to_airflow_and_titles_are_its_own(world: World) -> None:
    page = world.get(world.save(name="app billing ends", xcoms={"job_id": "1"})).text
    assert "<title>app billing ends" in page
    run = f"/dags/dag/runs/{quote(world.ti.run_id, safe='')}"
    for each in ("/dags/dag", run):
        assert f'href="{each}" target="_top"' in page


# --- who may see it -----------------------------------------------------------------------------------------


def test_who_is_not_logged_in_is_sent_to_the_login_once(world: World) -> None:
    path = world.save(xcoms={"job_id": "1"})
    stranger = world.pages.as_user(None)
    for each in (path, "/", f"{path}/jobs/1", f"{path}/apps/{APP}", f"/connections/c/apps/{APP}"):
        answer = stranger.get(each)
        assert answer.status_code == 302, each
        assert "login" in answer.headers["location"]
    back = parse_qs(urlsplit(stranger.get(f"{path}?page=2").headers["location"]).query)["next"][0]
    assert back.startswith(f"/rungen{path}?page=2")
    assert stranger.get(back.removeprefix("/rungen")).status_code == 401
    for each in (f"{path}/progress", f"{path}/jobs/1/files/0"):
        assert stranger.get(each, headers={"accept": "*/*"}).status_code == 401
    assert stranger.get(path, headers={"authorization": "Bearer nonsense"}).status_code in (302, 401, 403)


def test_the_login_leads_back_to_the_same_page(world: World) -> None:
    stranger = world.pages.as_user(None)
    for run_id in ("a%3Fb%23c", "01T00:00:00%2B00:00", "%C3%A4%20b", "a%2Fb", "100%25"):
        path = f"/dags/d/runs/{run_id}/tasks/t/-1"
        back = parse_qs(urlsplit(stranger.get(path).headers["location"]).query)["next"][0]
        assert unquote(urlsplit(back).path) == unquote(f"/rungen{path}")


def test_who_may_not_see_the_dag_sees_nothing_of_it(world: World) -> None:
    path = run_table(world)
    job = world.ids[0]
    guest = world.pages.as_user("")
    below = ("", "/progress", f"/jobs/{job}", f"/jobs/{job}/files/0", f"/apps/{APP}")
    assert [guest.get(path + each).status_code for each in below] == [403] * len(below)
    assert [world.get(path + each).status_code for each in below] == [200] * len(below)


def test_a_viewer_sees_tasks_and_no_connections(world: World) -> None:
    viewer = world.pages.as_user("viewer")
    assert viewer.get(world.save(xcoms={})).status_code == 200
    assert "rungen_default" not in viewer.get("/").text
    assert viewer.get(f"/connections/rungen_default/apps/{APP}").status_code == 403


def test_nothing_can_be_written() -> None:
    from fastapi.routing import APIRoute

    from airflow_provider_rungen.plugins.routes import make_app

    methods = {tuple(route.methods) for route in make_app().routes if isinstance(route, APIRoute)}
    assert methods == {("GET",)}


# --- untrusted texts and files ------------------------------------------------------------------------------


def test_a_page_runs_only_its_own_script(world: World) -> None:
    page = world.get(world.save(xcoms={}))
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-store"
    # what the policy would block
    assert not re.search(r"<style|style=|<script(?![^>]*src=)| on\w+=", page.text)
    for asset in links(page.text, "?v="):
        assert world.get(asset).status_code == 200


def test_what_could_run_a_script_is_a_download(world: World) -> None:
    path = run_table(world, given())
    [file] = world.folder.glob("*/*.png")
    content = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    file.write_bytes(content)
    manifest = file.with_name("manifest.json")
    fields = json.loads(manifest.read_text())
    fields["outputs"][0] |= {"size": len(content), "content_type": "image/png"}
    manifest.write_text(json.dumps(fields))
    [address] = links(world.get(path).text, "/files/")
    answer = world.get(address)
    assert answer.content == content
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_only_files_that_a_manifest_of_the_task_names_are_served_and_no_links(world: World) -> None:
    path, [job] = run_table(world, given()), world.ids
    (world.folder / job / "secret.txt").write_text("secret")
    shutil.copytree(world.folder / job, world.folder / "other")
    assert world.get(f"{path}/jobs/{job}/files/0").status_code == 200
    for wrong in (
        f"/jobs/{job}/files/1",
        f"/jobs/{job}/files/-1",
        f"/jobs/{job}/files/0x0",
        f"/jobs/{job}/files/99999999999999999999",
        f"/jobs/{job}/files/secret.txt",
        f"/jobs/{job}/files/..%2f..%2fsecret.txt",
        "/jobs/other/files/0",
        "/jobs/..%2fother/files/0",
        "/jobs/../files/0",
        "/jobs/%2e%2e/files/0",
    ):
        assert world.get(path + wrong).status_code == 404, wrong
    [file] = (world.folder / job).glob("*.png")
    secret = world.folder / "secret.txt"
    secret.write_bytes(b"x" * file.stat().st_size)
    file.unlink()
    file.symlink_to(secret)
    answer = world.get(f"{path}/jobs/{job}/files/0")
    assert answer.status_code in (404, 502)
    assert b"xxx" not in answer.content


def test_no_key_and_no_signed_url_is_on_any_page(world: World) -> None:
    op = RunGenCollectResultsOperator(job_id=submit(given("one"), given("two")), **POLL)
    results = world.perform(op).value
    assert "X-Amz-Signature" in json.dumps(results)
    path = world.save(xcoms={**world.ti.xcoms, "return_value": results})
    texts = [world.get(each).text for each in (path, "/", f"{path}/apps/{APP}", f"{path}/progress")]
    texts += [world.get(each).text for each in links(texts[0], "/jobs/")]
    assert len(texts) == 6
    for text in texts:
        assert "X-Amz" not in text
        assert KEY not in text


def test_files_that_were_removed_are_called_missing(world: World) -> None:
    path, [job, other] = run_table(world), world.ids
    assert "Some files are not in" not in world.get(path).text
    shutil.rmtree(world.folder / job)
    for each in (path, f"{path}/jobs/{job}"):
        assert f"Some files are not in {world.folder.as_uri()}" in world.get(each).text
    assert "Some files are not in" not in world.get(f"{path}/jobs/{other}").text


# --- when something is out of order -------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [{"kind": "hang"}, {"kind": "status", "status": 503}, {"kind": "html"}])
def test_a_service_out_of_order_gives_pages_that_say_so(world: World, fault: dict[str, Any]) -> None:
    path = run_table(world, given("one"), given("two", fail="out of memory"))
    world.emulator.service.inject(Fault(on="any", times=None, **fault))
    for each in (path, f"{path}/jobs/{world.ids[1]}", "/"):
        started = time.monotonic()
        page = world.get(each)
        assert time.monotonic() - started < SOON
        assert page.status_code == 200
        assert "are missing" in page.text
    # what is stored is shown anyway
    assert len(links(world.get(path).text, "/files/")) == 1


@pytest.mark.parametrize(("connection", "words"), [("rungen_default", "403"), ("no_such", "no_such")])
def test_a_connection_that_does_not_work_is_explained(world: World, connection: str, words: str) -> None:
    world.emulator.service.api_key = "another"
    xcoms = {"rungen_page": {"connection": connection, "app": APP}, "jobs": ["a", "b"]}
    page = world.get(world.save(xcoms=xcoms))
    assert page.status_code == 200
    assert words in page.text


def test_a_store_that_is_gone_is_explained(world: World) -> None:
    page = {"app": APP, "destination": "nowhere://bucket/prefix"}
    path = world.save(xcoms={"job_id": "j", "rungen_page": page})
    answer = world.get(path)
    assert answer.status_code == 200
    assert "missing" in answer.text
    assert world.get(f"{path}/jobs/j/files/0").status_code == 502


def test_a_database_out_of_order_gives_a_notice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = world.save(xcoms={})

    def fail() -> Any:
        raise OperationalError("SELECT secret", {}, Exception("gone"))

    monkeypatch.setattr(database, "create_session", fail)
    answer = world.get(path)
    assert answer.status_code == 503
    assert "SELECT" not in answer.text


@pytest.mark.parametrize("value", [None, 5, "text", [1, {}], {"key": 7}])
def test_whatever_is_in_xcom_the_page_is_made(world: World, value: Any) -> None:
    keys = ("rungen_page", "job_id", "failed", "usage", "bill", "return_value")
    path = world.save(xcoms=dict.fromkeys(keys, value))
    page = world.get(path)
    assert page.status_code == 200
    assert "The XCom rungen_page is missing: it could not be read (ValidationError)." in page.text
    assert world.get(f"{path}/progress").status_code == 200
