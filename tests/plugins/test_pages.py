"""The pages, with real tasks, the emulated service and Airflow's own security."""

from __future__ import annotations

import html
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from bad_answers import Fault
from conftest import APP, KEY, SOON

from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenRunBatchOperator,
    RunGenScaleAppOperator,
)
from plugins.conftest import World, given, links, submit

pytestmark = [
    pytest.mark.usefixtures("unsettled"),
    # Airflow and FastAPI warn about each other
    pytest.mark.filterwarnings("ignore"),
]

HOSTILE = """<script>alert(1)</script>"><img src=x onerror=alert(1)>{{ 7*7 }}javascript:alert(1)"""
# as a template that Airflow renders to it
WRITTEN = f"{{% raw %}}{HOSTILE}{{% endraw %}}"
POLL: dict[str, Any] = {"task_id": "task", "poll_interval": 0.02, "deferrable": False}


def batch(destination: Path | None = None, *inputs: dict[str, Any]) -> RunGenRunBatchOperator:
    return RunGenRunBatchOperator(
        inputs=list(inputs or [given("one"), given("two")]),
        destination=None if destination is None else destination.as_uri(),
        max_failed=100,
        **POLL,
    )


# --- what a page shows --------------------------------------------------------------------------------------


def test_stored_pictures_are_shown_and_served(world: World) -> None:
    world.perform(batch(world.folder))
    page = world.get(world.save())
    assert page.status_code == 200
    assert "one" in page.text
    assert "64 x 64" in page.text
    files = links(page.text, "/files/")
    assert len(files) == 2
    stored = sorted(path.read_bytes() for path in world.folder.glob("*/*.png"))
    answers = [world.get(file) for file in files]
    assert sorted(answer.content for answer in answers) == stored
    for answer in answers:
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-disposition"].startswith("inline;")
        assert answer.headers["content-length"] == str(len(answer.content))


def test_without_a_destination_the_page_says_how_to_see_pictures(world: World) -> None:
    world.perform(batch())
    page = world.get(world.save())
    assert "Set destination" in page.text
    assert not links(page.text, "/files/")


def test_text_results_stand_beside_their_prompts(world: World) -> None:
    op = RunGenRunBatchOperator(app_id="llama-text", inputs=[{"prompt": "Hello"}, {"prompt": "Bye"}], **POLL)
    world.perform(op)
    page = world.get(world.save()).text
    assert "You said: Hello" in page
    assert "You said: Bye" in page


def test_jobs_that_failed_are_grouped_and_each_job_has_a_page(world: World) -> None:
    inputs = [given("fine"), *(given(f"bad {number}", fail="out of memory") for number in range(3))]
    world.perform(batch(world.folder, *inputs))
    page = world.get(world.save()).text
    assert re.search(r"<b>3</b> <span[^>]*>out of memory", page)
    texts = [world.get(each).text for each in links(page, "/jobs/") if "/files/" not in each]
    assert len(texts) == 4
    assert sum("out of memory" in text and "clear the task" in text for text in texts) == 3
    assert all("created" in text for text in texts)


def test_apps_have_pages(world: World) -> None:
    assert world.perform(RunGenScaleAppOperator(task_id="task", active_workers=3)).error is None
    path = world.save(operator="RunGenScaleAppOperator")
    [app] = links(world.get(path).text, "/apps/")
    of_connection = f"/connections/rungen_default/apps/{APP}"
    for each in (app, of_connection):
        page = world.get(each).text
        for words in ("FLUX Schnell", "Billed now", "3 workers"):
            assert words in page
    assert world.get(app.replace(APP, "another")).status_code == 404
    overview = world.get("/").text
    assert "FLUX Schnell" in overview
    assert of_connection in links(overview)


def test_a_failure_is_shown_at_its_job_where_others_have_none(world: World) -> None:
    fine, bad = submit(given("fine"), given("bad", fail="out of memory"))
    op = RunGenCollectResultsOperator(job_id=[None, fine, bad], max_failed=2, **POLL)
    assert world.perform(op).error is None
    page = world.get(world.save()).text
    cards = {
        match[1]: match[0] for match in re.finditer(r'<article.*?id="job-(\d)".*?</article>', page, re.DOTALL)
    }
    assert fine in cards["1"]
    assert "out of memory" not in cards["1"]
    assert "out of memory" in cards["2"]


# --- a task that is not over --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [6, 30])
def test_progress_moves_while_the_task_is_deferred(world: World, count: int) -> None:
    world.emulator.service.job_seconds = 3600
    ids = submit(*({"prompt": f"{number}"} for number in range(count)))
    path = world.save(
        "deferred",
        xcoms={"rungen_page": {"connection": "rungen_default", "app": APP, "jobs": ids}},
    )
    assert "deferred" in world.get(path).text
    [address] = re.findall(r'"([^"]*/progress)"', world.get(path).text)
    before = world.get(html.unescape(address).removeprefix("/rungen")).json()
    assert (before["done"], before["total"], before["is_moving"]) == (0, count, True)
    with RunGenHook() as hook:
        for job_id in ids[:3]:
            hook.cancel_job(job_id=job_id)
    from airflow_provider_rungen.plugins.limits import CACHE

    CACHE.clear()
    after = world.get(html.unescape(address).removeprefix("/rungen")).json()
    assert (after["done"], after["total"]) == (3, count)


def test_a_task_that_has_pushed_nothing_has_a_page(world: World) -> None:
    path = world.save("running", xcoms={})
    # a tab of Airflow leaves the index as it is
    for each in (path, f"{path.removesuffix('-1')}%7BMAP_INDEX%7D"):
        page = world.get(each)
        assert page.status_code == 200
        assert "running" in page.text


@pytest.mark.parametrize("details", [{"new_ledger": "/mnt/nas/<ledger>"}, {}])
def test_a_new_ledger_is_on_the_page_of_its_task(world: World, details: dict[str, str]) -> None:
    page = world.get(
        world.save(xcoms={"rungen_page": {"connection": "rungen_default", "app": APP, **details}})
    )
    assert ("The ledger /mnt/nas/&lt;ledger&gt; was new" in page.text) == bool(details)


# --- who may see it -----------------------------------------------------------------------------------------


def test_who_is_not_logged_in_is_sent_to_the_login_once(world: World) -> None:
    path = world.save(xcoms={"job_id": "1"})
    stranger = world.pages.as_user(None)
    for each in (f"{path}?page=2", "/", f"{path}/jobs/1", f"{path}/apps/{APP}", f"/connections/c/apps/{APP}"):
        answer = stranger.get(each)
        assert answer.status_code == 302, each
        assert "login" in answer.headers["location"]
    back = parse_qs(urlsplit(stranger.get(f"{path}?page=2").headers["location"]).query)["next"][0]
    assert back.startswith(f"/rungen{path}?page=2")
    assert stranger.get(back.removeprefix("/rungen")).status_code == 401
    for each in (f"{path}/progress", f"{path}/jobs/1/files/0"):
        assert stranger.get(each, headers={"accept": "*/*"}).status_code == 401
    assert stranger.get(path, headers={"authorization": "Bearer nonsense"}).status_code in (302, 401, 403)


def test_who_may_not_see_the_dag_sees_nothing_of_it(world: World) -> None:
    world.perform(batch(world.folder))
    path = world.save()
    job = world.ti.xcoms["job_ids"][0]
    guest = world.pages.as_user("")
    below = ("", "/progress", f"/jobs/{job}", f"/jobs/{job}/files/0", f"/apps/{APP}")
    assert [guest.get(path + each).status_code for each in below] == [403] * len(below)
    assert [world.get(path + each).status_code for each in below] == [200] * len(below)


def test_a_viewer_sees_tasks_and_no_connections(world: World) -> None:
    world.perform(batch())
    viewer = world.pages.as_user("viewer")
    assert viewer.get(world.save()).status_code == 200
    assert "rungen_default" not in viewer.get("/").text
    assert viewer.get(f"/connections/rungen_default/apps/{APP}").status_code == 403


def test_nothing_can_be_written() -> None:
    from fastapi.routing import APIRoute

    from airflow_provider_rungen.plugins.routes import make_app

    methods = {tuple(route.methods) for route in make_app().routes if isinstance(route, APIRoute)}
    assert methods == {("GET",)}


# --- strangers' texts and files -----------------------------------------------------------------------------


def test_nothing_of_a_hostile_job_is_markup(world: World) -> None:
    inputs = [
        given(WRITTEN),
        given(WRITTEN + "2", fail=WRITTEN),
        given(WRITTEN + "3", result={HOSTILE: [WRITTEN, "output:0.png"]}),
    ]
    world.perform(batch(world.folder, *inputs))
    path = world.save()
    texts = [world.get(path).text]
    texts += [world.get(each).text for each in links(texts[0], "/jobs/") if "/files/" not in each]
    assert len(texts) == 4
    for text in texts:
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "49javascript" not in text
        assert not [each for each in links(text) if each.startswith("javascript")]


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


@pytest.mark.parametrize(
    ("content", "claimed"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "image/svg+xml"),
        (b"<html><script>alert(1)</script></html>", "text/html"),
        (b"<html><script>alert(1)</script></html>", "image/png"),
        (b"%PDF-1.7 whatever", "application/pdf"),
        (b"\0\1\2\3", "text/plain"),
    ],
)
def test_what_could_run_a_script_is_a_download(world: World, content: bytes, claimed: str) -> None:
    world.perform(batch(world.folder, given()))
    [file] = world.folder.glob("*/*.png")
    replace_file(file, content, claimed)
    [address] = links(world.get(world.save()).text, "/files/")
    answer = world.get(address)
    assert answer.content == content
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"


def replace_file(file: Path, content: bytes, claimed: str) -> None:
    """Replace a stored file, and what the manifest says of it."""
    file.write_bytes(content)
    manifest = file.with_name("manifest.json")
    fields = json.loads(manifest.read_text())
    fields["outputs"][0] |= {"size": len(content), "content_type": claimed}
    manifest.write_text(json.dumps(fields))


def test_only_files_that_a_manifest_of_the_task_names_are_served(world: World) -> None:
    world.perform(batch(world.folder, given("one")))
    path, [job] = world.save(), world.ti.xcoms["job_ids"]
    (world.folder / job / "secret.txt").write_text("secret")
    (world.folder / "other").mkdir()
    (world.folder / "other" / "manifest.json").write_bytes(
        (world.folder / job / "manifest.json").read_bytes()
    )
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


def test_a_link_in_the_store_is_not_followed(world: World) -> None:
    world.perform(batch(world.folder, given("one")))
    [file] = world.folder.glob("*/*.png")
    secret = world.folder / "secret.txt"
    secret.write_bytes(b"x" * file.stat().st_size)
    file.unlink()
    file.symlink_to(secret)
    path, [job] = world.save(), world.ti.xcoms["job_ids"]
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


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-99", 206, slice(0, 100)),
        ("bytes=300-", 206, slice(300, None)),
        ("bytes=200-999999999", 206, slice(200, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=-999999999", 206, slice(None)),
        ("bytes=999999999-", 200, slice(None)),
        ("bytes=9-3", 200, slice(None)),
        ("bytes=-", 200, slice(None)),
        ("bytes=0-1,5-6", 200, slice(None)),
        ("lines=0-1", 200, slice(None)),
    ],
)
def test_a_player_gets_the_range_that_it_asks_for(world: World, asked: str, status: int, part: slice) -> None:
    world.perform(batch(world.folder, given("one")))
    path, [job] = world.save(), world.ti.xcoms["job_ids"]
    [file] = links(world.get(path).text, "/files/")[:1]
    whole = next((world.folder / job).glob("0-*")).read_bytes()
    answer = world.pages.get(file, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, whole[part])
    assert answer.headers["Content-Length"] == str(len(whole[part]))
    assert answer.headers["Accept-Ranges"] == "bytes"
    if status == 206:
        start = range(len(whole))[part].start
        last = start + len(whole[part]) - 1
        assert answer.headers["Content-Range"] == f"bytes {start}-{last}/{len(whole)}"
    assert "sandbox" in answer.headers["Content-Security-Policy"]


def test_files_that_were_removed_are_called_missing(world: World) -> None:
    world.perform(batch(world.folder, given("one"), given("two")))
    path, [job, other] = world.save(), world.ti.xcoms["job_ids"]
    assert "Some files are not in" not in world.get(path).text
    shutil.rmtree(world.folder / job)
    for each in (path, f"{path}/jobs/{job}"):
        page = world.get(each)
        assert f"Some files are not in {world.folder.as_uri()}" in page.text
    assert "Some files are not in" not in world.get(f"{path}/jobs/{other}").text


# --- when something is out of order -------------------------------------------------------------------------


@pytest.mark.usefixtures("on_the_wire")
@pytest.mark.parametrize("fault", [{"kind": "hang"}, {"kind": "status", "status": 503}, {"kind": "html"}])
def test_a_service_out_of_order_gives_pages_that_say_so(world: World, fault: dict[str, Any]) -> None:
    world.perform(batch(world.folder, given("one"), given("two", fail="out of memory")))
    path = world.save()
    world.emulator.service.inject(Fault(on="any", times=None, **fault))
    for each in (path, f"{path}/jobs/{world.ti.xcoms['job_ids'][0]}", "/"):
        started = time.monotonic()
        page = world.get(each)
        assert time.monotonic() - started < SOON
        assert page.status_code == 200
        assert "RunGen" in page.text
        assert "Traceback" not in page.text
    # what is stored is shown all the same
    assert len(links(world.get(path).text, "/files/")) == 1


@pytest.mark.parametrize(("connection", "words"), [("rungen_default", "403"), ("no_such", "no_such")])
def test_a_connection_that_does_not_work_is_explained(world: World, connection: str, words: str) -> None:
    world.emulator.service.api_key = "another"
    xcoms = {"rungen_page": {"connection": connection, "app": APP}, "job_ids": ["a", "b"]}
    page = world.get(world.save(xcoms=xcoms))
    assert page.status_code == 200
    assert words in page.text


def test_a_store_that_is_gone_is_explained(world: World) -> None:
    world.perform(batch())
    page = {
        **world.ti.xcoms["rungen_page"],
        "destination": "nowhere://bucket/prefix",
        "results": "nowhere://b/r.csv",
    }
    path = world.save(xcoms={**world.ti.xcoms, "rungen_page": page})
    answer = world.get(path)
    assert answer.status_code == 200
    assert "missing" in answer.text
    assert world.get(f"{path}/jobs/{world.ti.xcoms['job_ids'][0]}/files/0").status_code == 502


@pytest.mark.parametrize("value", [None, 5, "text", [1, {}], {"key": 7}])
def test_whatever_is_in_xcom_the_page_is_made(world: World, value: Any) -> None:
    keys = ("rungen_page", "job_ids", "job_id", "failed", "usage", "bill", "return_value")
    path = world.save(xcoms=dict.fromkeys(keys, value))
    page = world.get(path)
    assert page.status_code == 200
    assert "The XCom job_ids is missing: it could not be read (ValidationError)." in page.text
    assert world.get(f"{path}/progress").status_code == 200


def test_a_task_that_does_not_exist_has_no_page(world: World) -> None:
    answer = world.get("/dags/no/runs/no/tasks/no/-1")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/plain")
