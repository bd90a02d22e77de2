"""The pages, with real tasks, the emulated service and Airflow's own security."""

from __future__ import annotations

import html
import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from airflow.sdk.io import attach
from bad_answers import Fault
from conftest import APP, KEY, SOON
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenRunBatchOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
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
Change = Callable[[dict[str, Any], Path], dict[str, Any]]


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


def test_failures_are_grouped_by_reason(world: World) -> None:
    inputs = [given("fine"), *(given(f"bad {number}", fail="out of memory") for number in range(3))]
    world.perform(batch(world.folder, *inputs))
    page = world.get(world.save()).text
    assert "out of memory" in page
    assert "bad 1" in page


def test_each_job_has_a_page(world: World) -> None:
    world.perform(batch(world.folder, given("fine"), given("bad", fail="out of memory")))
    page = world.get(world.save())
    jobs = [each for each in links(page.text, "/jobs/") if "/files/" not in each]
    texts = [world.get(job).text for job in jobs]
    assert len(texts) == 2
    assert any("out of memory" in text and "clear the task" in text for text in texts)
    assert all("queued" in text for text in texts)


def test_the_app_of_a_task_has_a_page(world: World) -> None:
    op = RunGenScaleAppOperator(task_id="task", active_workers=3)
    assert world.perform(op).error is None
    path = world.save(operator="RunGenScaleAppOperator")
    page = world.get(path)
    assert page.status_code == 200
    [app] = links(page.text, "/apps/")
    text = world.get(app).text
    assert "FLUX Schnell" in text
    assert "Scaled up by" in text
    assert "since" in text
    assert path in links(text)  # used by
    assert world.get(app.replace(APP, "another")).status_code == 404


def test_a_table_is_paged_with_its_keys(world: World) -> None:
    op = RunGenRunTableOperator(
        table=[{"sku": f"sku-{number}", "prompt": f"thing {number}"} for number in range(120)],
        key="sku",
        to_input=lambda row: given(row["prompt"]),
        destination=world.folder.as_uri(),
        results=f"{world.folder}/results.csv",
        **POLL,
    )
    path = world.run(op)
    first, second = world.get(path).text, world.get(f"{path}?page=2").text
    assert "sku-99" in first
    assert "sku-100" not in first
    assert "sku-119" in second
    assert len(links(second, "/files/")) == 20
    assert world.get(f"{path}?page=99999").status_code == 200
    assert world.get(f"{path}?page=-1%27").status_code == 200
    # a job that is on another page, and in no XCom
    assert world.get(links(second, "/files/")[-1]).headers["content-type"] == "image/png"


def test_collected_results_are_shown(world: World) -> None:
    with RunGenHook() as hook:
        ids = [hook.run_job(input=given(f"picture {number}")).id for number in range(3)]
    op = RunGenCollectResultsOperator(job_id=ids, destination=world.folder.as_uri(), **POLL)
    assert world.perform(op).error is None
    assert len(links(world.get(world.save()).text, "/files/")) == 3


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
    from airflow_provider_rungen.plugins.bounded import CACHE

    CACHE.clear()
    after = world.get(html.unescape(address).removeprefix("/rungen")).json()
    assert (after["done"], after["total"]) == (3, count)


def test_a_task_that_has_pushed_nothing_has_a_page(world: World) -> None:
    page = world.get(world.save("running", xcoms={}))
    assert page.status_code == 200
    assert "running" in page.text


def test_a_tab_leaves_the_index_of_a_task_as_it_is(world: World) -> None:
    path = world.save("running", xcoms={})
    assert world.get(f"{path.removesuffix('-1')}%7BMAP_INDEX%7D").status_code == 200


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


def test_apps_of_connections_are_listed_with_the_tasks_that_use_them(world: World) -> None:
    op = RunGenScaleAppOperator(task_id="task", active_workers=3)
    world.perform(op)
    path = world.save()
    page = world.get("/").text
    assert "rungen_default" in page
    assert "FLUX Schnell" in page
    assert path in links(page)
    app = world.get(f"/connections/rungen_default/apps/{APP}")
    assert app.status_code == 200
    assert path in links(app.text)


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


@pytest.mark.parametrize(
    "change",
    [
        lambda entry, _: entry | {"uri": entry["uri"].rpartition("/")[0] + "/../secret.txt"},
        lambda entry, _: entry | {"uri": "file:///etc/passwd"},
        lambda entry, folder: entry | {"uri": f"{folder.as_uri()}/secret.txt"},
    ],
)
def test_a_manifest_cannot_name_a_file_outside_of_its_folder(world: World, change: Change) -> None:
    world.perform(batch(world.folder, given("one")))
    path, [job] = world.save(), world.ti.xcoms["job_ids"]
    (world.folder / "secret.txt").write_text("secret")
    manifest = world.folder / job / "manifest.json"
    fields = json.loads(manifest.read_text())
    fields["outputs"][0] = change(fields["outputs"][0], world.folder)
    manifest.write_text(json.dumps(fields))
    assert world.get(f"{path}/jobs/{job}/files/0").status_code == 404
    assert not links(world.get(path).text, "/files/")


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
        ("bytes=2000-999999999", 206, slice(2000, None)),
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
@pytest.mark.parametrize("kind", ["hang", "status", "reset_before", "garbage", "html"])
def test_a_service_out_of_order_gives_pages_that_say_so(world: World, kind: str) -> None:
    world.perform(batch(world.folder, given("one"), given("two", fail="out of memory")))
    path = world.save()
    status: dict[str, Any] = {"status": 503} if kind == "status" else {}
    world.emulator.service.inject(Fault(on="any", kind=kind, times=None, **status))
    for each in (path, f"{path}/jobs/{world.ti.xcoms['job_ids'][0]}", f"{path}/apps/{APP}", "/"):
        started = time.monotonic()
        page = world.get(each)
        assert time.monotonic() - started < SOON
        assert page.status_code == 200
        assert "RunGen" in page.text
        assert "Traceback" not in page.text
    # what is stored is shown all the same
    assert len(links(world.get(path).text, "/files/")) == 1


def test_a_wrong_key_is_explained(world: World) -> None:
    world.emulator.service.api_key = "another"
    xcoms = {"rungen_page": {"connection": "rungen_default", "app": APP}, "job_ids": ["a", "b"]}
    page = world.get(world.save(xcoms=xcoms))
    assert page.status_code == 200
    assert "403" in page.text


def test_a_connection_that_is_gone_is_explained(world: World) -> None:
    xcoms = {"rungen_page": {"connection": "no_such", "app": APP}, "job_ids": ["a", "b"]}
    page = world.get(world.save(xcoms=xcoms))
    assert page.status_code == 200
    assert "no_such" in page.text


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


def test_a_store_that_hangs_is_explained(world: World) -> None:
    answering = threading.Event()

    class HangingStore(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
        def cat_file(self, *args: Any, **kwargs: Any) -> Any:
            answering.wait()
            return super().cat_file(*args, **kwargs)

    fs = HangingStore()
    attach("memory", conn_id="hanging", fs=fs).fs = fs
    world.perform(batch())
    page = {**world.ti.xcoms["rungen_page"], "destination": "memory://hanging@bucket/x"}
    path, job = world.save(xcoms={**world.ti.xcoms, "rungen_page": page}), world.ti.xcoms["job_ids"][0]
    try:
        for each, status in ((path, 200), (f"{path}/jobs/{job}", 200), (f"{path}/jobs/{job}/files/0", 504)):
            started = time.monotonic()
            answer = world.get(each)
            assert time.monotonic() - started < SOON
            assert answer.status_code == status
            assert "did not answer in time" in answer.text
    finally:
        answering.set()


@pytest.mark.parametrize("value", [None, 5, "text", [1, {}], {"key": 7}])
def test_whatever_is_in_xcom_the_page_is_made(world: World, value: Any) -> None:
    keys = (
        "rungen_page",
        "job_ids",
        "job_id",
        "failed",
        "refused",
        "usage",
        "bill",
        "return_value",
        "scaled",
    )
    path = world.save(xcoms=dict.fromkeys(keys, value))
    assert world.get(path).status_code == 200
    assert world.get(f"{path}/progress").status_code == 200
    assert world.get("/").status_code == 200


def test_a_task_that_does_not_exist_has_no_page(world: World) -> None:
    answer = world.get("/dags/no/runs/no/tasks/no/-1")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/plain")


def test_a_single_job(world: World) -> None:
    op = RunGenRunJobOperator(input=given("a single fox"), wait_for_completion=True, **POLL)
    assert world.perform(op).error is None
    page = world.get(world.save(operator="RunGenRunJobOperator")).text
    assert "a single fox" in page
    assert "completed" in page
