"""A gallery to work in: which rows it shows, in which order, beside each other, and as files."""

from __future__ import annotations

import csv
import io
import json
import re
import time
import zipfile
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from conftest import APP, SOON, table_of
from rungen_emulator import Fault
from rungen_emulator.messages import Reply, json_reply

from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenRunTableOperator,
)
from airflow_provider_rungen.plugins.limits import CACHE
from airflow_provider_rungen.runs.attempt_record import End
from airflow_provider_rungen.runs.rows import JobState
from plugins.conftest import (
    POLL,
    SERVER_WARNINGS,
    CountingStore,
    World,
    given,
    links,
    submit,
    words_of,
    write_log,
)

pytestmark = [pytest.mark.usefixtures("unsettled"), SERVER_WARNINGS]

DONE, FAILED = JobState.COMPLETED, JobState.FAILED
COLORS = {"shoe": "red", "hat": "blue", "coat": "red", "bag": "green"}


def paint(world: World, *skus: str, price: str = "3.60 USD/h", **changes: Any) -> str:
    """Run a table of products, of which the bag fails, and return the path of its page."""
    seconds = {"hat": 0.5, "coat": 0.2}

    def to_input(row: Any) -> Any:
        fail = {"fail": "out of memory"} if row["sku"] == "bag" else {}
        asked = given(f"a {row['sku']} in {row['color']}", seconds=seconds.get(row["sku"], 0.02), **fail)
        return asked | {"seed": 70 if row["sku"] == "coat" else 7}

    op = RunGenRunTableOperator(
        table=[{"sku": sku, "color": COLORS[sku]} for sku in skus or COLORS],
        key="sku",
        columns=["color"],
        to_input=to_input,
        destination=world.folder.as_uri(),
        results=f"{world.folder}/results.csv",
        max_failed=4,
        **{**POLL, **changes},
    )
    assert world.perform(op).error is None
    world.ti.xcoms["rungen_page"]["price"] = price
    return world.save()


def shown(page: Any) -> list[str]:
    """Return the keys of the jobs on a page, in order."""
    assert page.status_code == 200
    return [card.partition("</h3>")[0].split(">")[2].partition("<")[0] for card in page.text.split("<h3")[1:]]


def table(world: World, path: str, query: str = "") -> list[dict[str, str]]:
    """Return the rows of a table that is downloaded."""
    return list(csv.DictReader(io.StringIO(world.get(f"{path}?{query}&download=csv").text)))


def card_costs(page: Any) -> list[float]:
    """Return the costs of the jobs on a page, in order."""
    return [
        float(each) for each in re.findall(r"([0-9.]+) USD", words_of(page.text.partition('id="list"')[2]))
    ]


def notice_of(page: Any) -> str:
    return words_of(page.text.partition('id="list"')[2].partition('class="notice"')[2].partition("</p>")[0])


def save_log(world: World, count: int, folder: Any = None, **log: Any) -> str:
    """Write a task with a log of many rows, and return the path of its page."""
    states = [FAILED if number % 100 == 7 else DONE for number in range(count)]
    write_log(world.ti, folder or world.folder, states, end=End.SUCCEEDED, **log)
    place = {"results": f"{folder or world.folder}/r.csv", "key": ["sku"], "price": "3.60 USD/h"}
    return world.save(xcoms={"rungen_page": {"connection": "none", "app": APP, **place}})


# --- which rows, in which order -----------------------------------------------------------------------------


def test_rows_are_filtered_and_sorted(world: World) -> None:
    path = paint(world)
    for query, expected in {
        "status=failed": ["bag"],
        "status=completed": ["shoe", "hat", "coat"],
        "status=reused": [],
        "text=color%3Dred": ["shoe", "coat"],
        "text=COLOR%3DRed&status=failed": [],
        "text=key%3Dhat": ["hat"],
        "text=coat+color%3Dred": ["coat"],
        "text=hat+color%3Dred": [],
        "text=IN+BLUE": ["hat"],  # of the prompt, which only the manifest has
        "text=blue+HAT": ["hat"],
        "text=blue+coat": [],
        "text=seed+7": ["shoe", "hat", "bag"],  # the service has that of what failed
        "text=70+64+x+64+coat": ["coat"],
        "text=seed+6": [],
        "text=a+6": [],  # a number is no part of a size
        "text=memory": ["bag"],
        "text=%232": ["coat"],
        "sort=seconds&status=completed": ["hat", "coat", "shoe"],
        "sort=cost&status=completed": ["hat", "coat", "shoe"],
        "sort=nonsense": ["shoe", "hat", "coat", "bag"],
        "text=nothing+is+like+this": [],
        "page=7&status=failed": ["bag"],
        "page=7": ["shoe", "hat", "coat", "bag"],
        f"sort=time&text={'x' * 5000}": [],
    }.items():
        page = world.get(f"{path}?{query}")
        assert shown(page) == expected, query
        assert ("No job is like this" in page.text) is (not expected)
    assert sorted(shown(world.get(f"{path}?sort=time"))) == sorted(COLORS)


def test_two_jobs_are_shown_beside_each_other(world: World) -> None:
    path = paint(world)
    page = world.get(path).text
    picks = [each.partition('"')[0] for each in page.split('name="jobs" value="')[1:]]
    assert len(picks) == 4
    assert shown(world.get(f"{path}?jobs={picks[0]}&jobs={picks[2]}")) == ["shoe", "coat"]


def test_a_card_has_what_a_picture_cost_and_a_download(world: World) -> None:
    path = paint(world, "hat")
    card = world.get(path).text.partition("<article")[2].partition("</article>")[0]
    text = words_of(card)
    for words in ("a hat in blue", "seed 7", "64 x 64", "USD", "download"):
        assert words in text
    [job] = [each for each in links(card, "/jobs/") if "/files/" not in each]
    assert "USD" in words_of(world.get(job).text)


def test_thousands_of_rows_are_filtered_and_sorted_quickly_and_nothing_is_written(
    world: World, counting: CountingStore
) -> None:
    path = save_log(world, 5000, "memory://counts@bucket/results")
    counting.is_read_only = True
    deadline = time.monotonic() + 5 * SOON
    while "did not answer in time" in world.get(f"{path}?status=failed").text:  # the machine is busy
        assert time.monotonic() < deadline
    for query in ("status=failed", "sort=cost&page=50", "text=sku%3Ds4999", "download=csv"):
        began = time.process_time()
        answer = world.get(f"{path}?{query}")
        assert answer.status_code == 200
        assert time.process_time() - began < SOON / 10 + 1
    assert len(shown(world.get(f"{path}?status=failed"))) == 50
    reads = len(counting.reads)
    assert shown(world.get(f"{path}?text=sku%3Ds4999")) == ["s4999"]
    assert "seeds were not searched: 5,000." in notice_of(world.get(f"{path}?text=x"))
    for query in ("text=%234999", "text=key%3Ds4999", "text=s4999"):
        page = world.get(f"{path}?{query}")
        assert shown(page) == ["s4999"]
        assert ("not searched" in page.text) == (query == "text=s4999"), "what the notice advises finds it"
    assert len(counting.reads) == reads, "nothing is read twice"


def test_prompts_of_the_first_thousand_rows_that_may_be_meant_are_searched(world: World) -> None:
    paint(world, "shoe", "hat")
    known = dict(zip((900, 1100), job_folders(world), strict=True))
    world.ti.run_id += "again"
    ids = [known.get(number, f"job-{number}") for number in range(1200)]
    write_log(world.ti, world.folder, [FAILED] * 500 + [DONE] * 700, ids=ids, end=End.SUCCEEDED)
    page = {"connection": "none", "app": APP, "destination": world.folder.as_uri(), "key": ["sku"]}
    path = world.save(xcoms={"rungen_page": page})
    assert shown(world.get(f"{path}?text=seed+7")) == ["s900"]
    assert shown(world.get(f"{path}?text=seed+7&status=completed")) == ["s900", "s1100"]
    assert "seeds were not searched: 1,199." in notice_of(world.get(f"{path}?text=nothing+like+this"))


def test_what_nothing_is_stored_of_is_asked_for_up_to_a_page(world: World) -> None:
    ids = [f"gone-{number}" for number in range(150)]
    write_log(world.ti, world.folder, [JobState.OPEN] * 150 + [None], ids=ids, end=End.SUCCEEDED)
    place = {"connection": "rungen_default", "app": APP, "results": f"{world.folder}/r.csv"}
    page = place | {"price": "360 USD/h"}
    path = world.save(xcoms={"rungen_page": page})
    before = world.emulator.service.count("get")
    rows = table(world, path)
    assert world.emulator.service.count("get") - before == 100
    assert {(row["cost"], row["note"]) for row in rows} == {("", "cost not known"), ("", "")}
    for query, words in {
        "sort=cost": "sorted last: the cost of 150 jobs",
        "sort=seconds": "sorted last: the duration of 150 jobs",
        "sort=time": "sorted last: the time of 150 jobs",
        "text=seed+7": "seeds were not searched: 151.",
    }.items():
        assert words in notice_of(world.get(f"{path}?{query}"))


def test_the_longest_jobs_are_first_whoever_paid_for_them(world: World) -> None:
    world.ti.dag_id = "longest"
    options = {"ledger": (world.folder / "ledger").as_uri()}
    paint(world, "shoe", "hat", **options)
    second = replace(world.again(), folder=world.folder.parent)
    path = paint(second, "shoe", "coat", "hat", "bag", **options)
    assert [row["reused"] for row in table(world, path)] == ["True", "False", "True", "False"]
    page = world.get(f"{path}?sort=seconds")
    assert shown(page)[:2] == ["hat", "coat"]
    for manifest in second.folder.rglob("manifest.json"):
        fields = json.loads(manifest.read_text())
        # in another zone, which is later as a text
        at = "2026-01-02T01:00:00+09:00" if "a hat" in str(fields["input"]) else "2026-01-01T20:00:00+00:00"
        manifest.write_text(json.dumps(fields | {"created_at": at}))
    assert shown(world.get(f"{path}?sort=time")) == ["bag", "shoe", "coat", "hat"]
    assert "Not known" not in page.text
    # the failed one was submitted by this run
    assert sum(float(row["cost"]) > 0 for row in table(world, path)) == 2


def test_too_many_rows_to_filter_are_explained(world: World) -> None:
    path = save_log(world, 10_001)
    assert "no page filters or sorts more than 10,000 rows" in world.get(f"{path}?status=failed").text


@pytest.mark.parametrize("query", ["text", "status", "sort", "jobs"])
def test_what_is_asked_for_is_a_text(world: World, query: str) -> None:
    path = save_log(world, 1)
    hostile = quote('"><script>alert(1)</script>')
    page = world.get(f"{path}?{query}={hostile}").text
    assert "<script>alert" not in page
    assert world.get(f"{path}?{query}=%ed%a0%80%00%0a").status_code == 200


# --- as files -----------------------------------------------------------------------------------------------


def test_the_table_has_what_is_filtered_with_costs(world: World) -> None:
    path = paint(world)
    answer = world.get(f"{path}?status=completed&download=csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["x-content-type-options"] == "nosniff"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["sku"], row["color"], row["status"]) for row in rows] == [
        (sku, color, "completed") for sku, color in COLORS.items() if sku != "bag"
    ]
    with (world.folder / "results.csv").open() as file:
        known = {row["sku"]: row["execution_seconds"] for row in csv.DictReader(file)}
    for row in rows:
        assert float(row["execution_seconds"]) == pytest.approx(float(known[row["sku"]]), abs=0.001)
        assert float(row["cost"]) == pytest.approx(float(row["execution_seconds"]) / 1000, abs=1e-6)
        assert row["currency"] == "USD"
        assert row["prompt"] == f"a {row['sku']} in {row['color']}"
        assert (row["size"], row["seed"]) == ("64 x 64", "70" if row["sku"] == "coat" else "7")


@pytest.mark.parametrize(
    "text",
    ["=cmd|' /C calc'!A0", "=1+cmd()", "-1+cmd()", "+cmd", "-cmd", "@SUM(A1)", "\tx", "\ud800", 'a"\r\nb'],
)
def test_no_value_of_a_table_is_a_formula(world: World, text: str) -> None:
    answer = world.get(f"{save_log(world, 1, key=text)}?download=csv")
    [row] = csv.DictReader(io.StringIO(answer.text, newline=""))
    assert row["sku"][0] not in "=+-@\t"
    assert row["sku"].lstrip("'") == text.encode(errors="replace").decode()


def test_no_table_has_a_signed_url(world: World) -> None:
    signed = f"https://files.example.org/{'x' * 950}.png?X-Amz-Signature=SECRET"
    table = world.get(f"{save_log(world, 8, key=signed, why=signed)}?download=csv").text
    assert "files.example.org" in table
    assert "X-Amz" not in table


def test_an_archive_has_the_files_that_are_filtered(world: World) -> None:
    path = paint(world)
    answer = world.get(f"{path}?text=color%3Dred&download=zip")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"].startswith("attachment;")
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    assert [name.split("-")[:3] for name in archive.namelist()] == [
        ["task", "00000", "shoe"],
        ["task", "00002", "coat"],
    ]
    stored = {file.read_bytes() for file in world.folder.glob("*/*.png")}
    assert {archive.read(name) for name in archive.namelist()} < stored


def test_an_archive_says_what_it_lacks(world: World) -> None:
    path = paint(world, "shoe", "hat", "coat")
    first, second, _ = world.ids
    for file in (world.folder / first).glob("*.png"):
        file.unlink()
    manifest = world.folder / second / "manifest.json"
    fields = json.loads(manifest.read_text())
    fields["outputs"][0]["size"] = 5 << 30
    manifest.write_text(json.dumps(fields))
    archive = zipfile.ZipFile(io.BytesIO(world.get(f"{path}?download=zip").content))
    pictures = [name for name in archive.namelist() if name.endswith(".png")]
    assert len(pictures) == 1
    assert len(archive.read("LEFT OUT.txt").decode().splitlines()) == 2


def job_folders(world: World) -> list[str]:
    with (world.folder / "results.csv").open() as file:
        return [row["job_id"] for row in csv.DictReader(file)]


def test_what_a_run_paid_does_not_depend_on_how_it_is_looked_at(world: World) -> None:
    world.ti.dag_id = "nightly"
    options = {"ledger": (world.folder / "ledger").as_uri()}
    first = paint(world, "shoe", "hat", price="360 USD/h", **options)
    second = replace(world.again(), folder=world.folder.parent)
    path = paint(second, "shoe", "hat", price="360 USD/h", **options)
    for each, reused in ((first, 0), (path, 2)):
        headers, sums = set(), set()
        for query in ("", "sort=cost", "text=hat"):
            header = words_of(world.get(f"{each.partition('/tasks/')[0]}?{query}").text.partition("<main")[0])
            headers |= set(re.findall("jobs of all tasks: (.*USD)", header))
            assert ("reused" in header) == bool(reused)
            rows = table(world, each, query)
            sums.add(sum(float(row["cost"]) for row in rows if row["sku"] == "hat"))
        assert len(headers) == len(sums) == 1
        assert (headers == {"about 0.00 USD"}, sums == {0}) == (bool(reused), bool(reused))
    runs = words_of(world.get(f"{path}/runs").text)
    assert "jobs of all runs: about" in runs
    assert "USD" not in world.get(f"{path}?status=reused").text.partition("<article")[2]


def test_canceled_jobs_cost_the_same_in_each_view(world: World) -> None:
    inputs = [given(str(number), seconds=60 if number % 2 else 0.02) for number in range(8)]
    world.emulator.service.scale(APP, 8)
    op = table_of(inputs=inputs, timeout=1, destination=world.folder.as_uri(), **POLL)
    assert world.perform(op).error is not None
    world.ti.xcoms["rungen_page"]["price"] = "3600 USD/h"
    path = world.save("failed")
    costs = card_costs(world.get(path))
    assert len(costs) == 8
    assert sum(costs) > 3
    for query in ("", "sort=cost"):
        rows = table(world, path, query)
        assert [float(row["cost"]) for row in rows] == pytest.approx(
            sorted(costs, reverse=True) if query else costs, abs=0.01
        )
        assert not any(row["note"] for row in rows)
    page = world.get(f"{path}?sort=cost")
    assert card_costs(page) == sorted(costs, reverse=True)
    assert not notice_of(page)


def test_of_many_jobs_the_same_costs_are_known_in_each_order(world: World) -> None:
    world.emulator.service.scale(APP, 150)
    ids = submit(*[given(str(number)) for number in range(150)])
    deadline = time.monotonic() + SOON
    while world.emulator.service.stats()["jobs_completed"] < 150:
        assert time.monotonic() < deadline
    write_log(world.ti, world.folder, [JobState.OPEN] * 150, ids=ids, end=End.SUCCEEDED)
    place = {"connection": "rungen_default", "app": APP, "results": f"{world.folder}/r.csv"}
    path = world.save(xcoms={"rungen_page": place | {"price": "3600 USD/h"}})
    found = list[dict[str, str]]()
    for query in ("", "sort=cost", "sort=time", "sort=seconds"):
        CACHE.clear()
        before = world.emulator.service.count("get")
        rows = table(world, path, query)
        assert world.emulator.service.count("get") - before == 100
        found.append({row["job_id"]: row["cost"] for row in rows if not row["note"]})
        assert "" not in found[-1].values()
    assert [*map(len, found)] == [100] * 4
    assert found[1:] == found[:1] * 3


@pytest.mark.parametrize("has_log", [True, False])
def test_all_pages_know_how_the_jobs_of_a_lost_worker_ended(world: World, has_log: bool) -> None:
    world.emulator.service.scale(APP, 4)
    ids = submit(given("one"), given("two"), given(fail="out of memory"), given(seconds=60))
    deadline = time.monotonic() + SOON
    while (stats := world.emulator.service.stats())["jobs_completed"] + stats["jobs_failed"] < 3:
        assert time.monotonic() < deadline
    xcoms: dict[str, Any] = {"rungen_page": {"connection": "rungen_default", "app": APP}}
    if has_log:
        write_log(world.ti, world.folder, [JobState.OPEN] * 4, ids=ids)
        xcoms["rungen_page"]["destination"] = world.folder.as_uri()
    else:
        xcoms["jobs"] = ids
    path = world.save("failed", xcoms=xcoms)
    run = path.partition("/tasks/")[0]
    for page in (path, run):
        statuses = [row["status"] for row in table(world, page)]
        assert statuses == ["completed", "completed", "failed", "unknown"]
        for status, count in {"completed": 2, "failed": 1, "unknown": 1}.items():
            filtered = world.get(f"{page}?status={status}").text
            assert filtered.count("<article") == count, (page, status)
    assert "2 completed" in words_of(world.get(run).text)


def test_a_job_of_equal_rows_is_paid_for_once(world: World) -> None:
    options = {"destination": world.folder.as_uri(), "ledger": (world.folder / "ledger").as_uri(), **POLL}
    op = table_of(inputs=[given("twin")] * 2, **options)
    assert world.perform(op).error is None
    world.ti.xcoms["rungen_page"]["price"] = "3600 USD/h"
    first, second = table(world, world.save())
    assert first["job_id"] == second["job_id"]
    assert (float(first["cost"]) > 0, first["note"]) == (True, "")
    assert (float(second["cost"]), second["reused"]) == (0, "True")


# --- several tasks ------------------------------------------------------------------------------------------


def paint_one(world: World, map_index: int, task_id: str = "paint") -> None:
    world.ti.map_index, world.ti.task_id = map_index, task_id
    folder = (world.folder / f"{task_id}{map_index}").as_uri()
    inputs = [given(f"{task_id} no. {map_index}")]
    op = table_of(inputs=inputs, destination=folder, **POLL | {"task_id": task_id})
    world.ti.pushed.clear()
    assert world.perform(op).error is None
    world.save()


def test_all_indexes_of_a_task_and_all_tasks_of_a_run_are_one_gallery(world: World) -> None:
    for map_index in range(3):
        paint_one(world, map_index)
    paint_one(world, -1, "cover")
    world.ti.task_id = "other"
    world.save(xcoms={}, operator="PythonOperator")
    run = f"/dags/dag/runs/{quote(world.ti.run_id, safe='')}"
    for path, prompts in (
        (f"{run}/tasks/paint", ["paint no. 0", "paint no. 1", "paint no. 2"]),
        (run, ["cover no. -1", "paint no. 0", "paint no. 1", "paint no. 2"]),
    ):
        page = world.get(path).text
        shown_prompts = page.split('class="prompt" dir="auto">')[1:]
        assert [part.partition("<")[0] for part in shown_prompts] == prompts
        pictures = links(page, "/files/")
        assert len(pictures) == len(prompts)
        assert all(world.get(picture).status_code == 200 for picture in pictures)
        assert "other" not in words_of(page)
        archive = zipfile.ZipFile(io.BytesIO(world.get(f"{path}?download=zip").content))
        assert len(archive.namelist()) == len(prompts)
        assert world.get(f"{path}?text=1+paint").text.count("<article") == 1
    page = world.get(f"{run}/tasks/paint/1").text
    assert {run, f"{run}/tasks/paint"} <= set(links(page))


def test_what_a_run_cost_names_tasks_without_a_price(world: World) -> None:
    path = paint(world, price="3600 USD/h")
    paint_one(world, 1)
    header = words_of(world.get(path.partition("/tasks/")[0]).text)
    assert re.search(r"jobs of all tasks: about [0-9.]+ USD, without 1 task of unknown price", header)


def run_priced(world: World, task_id: str, op: Any, *, fails: bool = False, loses: str = "") -> None:
    """Run a task of the same run, whose jobs cost a dollar a second."""
    world.ti.task_id = task_id
    world.ti.pushed.clear()
    assert (world.perform(op).error is not None) is fails
    world.ti.xcoms["rungen_page"]["price"] = "3600 USD/h"
    world.ti.pushed[:] = [each for each in world.ti.pushed if each[0] != loses]
    world.save("failed" if fails else "success")


def cost_of_run(world: World, text: str = "about") -> float:
    """Return the sum on the page of the run, which says this of it."""
    header = words_of(world.get(f"/dags/dag/runs/{quote(world.ti.run_id, safe='')}").text)
    [(found, cost)] = re.findall("jobs of all tasks: ([a-z ]+ ([0-9.]+) USD[a-z0-9 ]*)", header)
    assert text in found
    return float(cost)


def test_a_run_pays_once_for_jobs_that_run_differently_long(world: World) -> None:
    """A job counts as long as it ran, though one task collects those of two."""
    world.emulator.service.scale(APP, 60)
    ids = []
    for task_id, seconds in (("quick", 0.02), ("slow", 0.5)):
        inputs = [given(str(number), seconds=seconds) for number in range(60)]
        run_priced(world, task_id, table_of(inputs=inputs, **POLL))
        ids += world.ids
    run_priced(world, "collect", RunGenCollectResultsOperator(job_id=ids, **POLL))
    assert cost_of_run(world) == pytest.approx(60 * 0.52, rel=0.1)


@pytest.mark.parametrize("timed", [0, 60])
def test_a_run_says_of_how_many_jobs_the_service_names_no_time(
    world: World, timed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, named = world.emulator.service, dict[str, None]()
    service.scale(APP, 120)
    handle = service.handle

    def answer(method: str, path: str, headers: Any, body: bytes = b"") -> Reply:
        reply = handle(method, path, headers, body)
        if method != "GET" or b'"execution_time"' not in reply.body:
            return reply
        if len(named) < timed:
            named[path] = None
        job = json.loads(reply.body)["data"] | {"execution_time": None}
        return reply if path in named else json_reply(200, {"data": job})

    monkeypatch.setattr(service, "handle", answer)
    inputs = [given(str(number), seconds=0.1) for number in range(120)]
    run_priced(world, "paint", table_of(inputs=inputs, **POLL))
    paid = cost_of_run(world, f"without {120 - timed} jobs whose time is not known")
    assert paid == pytest.approx(timed * 0.1, rel=0.1)


def test_a_run_knows_how_long_a_failed_job_ran_that_the_page_may_not_ask_for(world: World) -> None:
    world.emulator.service.scale(APP, 4)
    inputs = [given("one", seconds=0.5), given("two", seconds=1, fail="out of memory")]
    op = table_of(inputs=inputs, max_failed=1, **POLL)
    run_priced(world, "paint", op)
    world.emulator.service.inject(Fault(on="get", status=404, times=None))
    assert cost_of_run(world) == pytest.approx(1.5, rel=0.1)


def test_the_same_row_of_other_runs_is_shown_beside_it(world: World) -> None:
    world.ti.dag_id = "history"
    first = paint(world, "shoe", "hat")
    folder = world.folder
    second = replace(world.again(), folder=folder / "again")
    path = paint(second, "hat", "shoe")
    [job] = [
        each for each in links(second.get(f"{path}?text=key%3Dshoe").text, "/jobs/") if "/files/" not in each
    ]
    [others] = links(second.get(job).text, "/runs?text=")
    page = second.get(others)
    assert shown(page) == ["shoe", "shoe"]
    assert {first, path} <= set(links(page.text))
    assert len(links(page.text, "/files/")) == 2


def test_who_may_not_see_the_dag_sees_no_gallery_of_it(world: World) -> None:
    world.ti.dag_id = "guarded"
    path = paint(world, "shoe")
    run = path.partition("/tasks/")[0]
    for each in (run, f"{run}/tasks/task", f"{path}/runs"):
        for query in ("", "?download=zip", "?download=csv"):
            assert world.pages.as_user("").get(each + query).status_code == 403
            assert world.pages.as_user(None).get(each + query).status_code == 302
            assert world.pages.as_user("viewer").get(each + query).status_code == 200
            assert "X-Amz" not in world.get(each + query).text


def test_a_run_without_tasks_of_ours_has_no_gallery(world: World) -> None:
    world.save(xcoms={}, operator="PythonOperator")
    run = f"/dags/dag/runs/{quote(world.ti.run_id, safe='')}"
    for path in (run, f"{run}/tasks/task", f"{run}/tasks/nothing", "/dags/dag/runs/nothing"):
        assert world.get(path).status_code == 404


def test_a_run_of_many_tasks_is_shown_in_time(world: World) -> None:
    for map_index in range(200):
        world.ti.map_index = map_index
        world.save(xcoms={"rungen_page": {"connection": "none", "app": APP}, "job_id": f"job-{map_index}"})
    run = f"/dags/dag/runs/{quote(world.ti.run_id, safe='')}"
    began = time.monotonic()
    page = world.get(f"{run}/tasks/task?page=2")
    assert time.monotonic() - began < SOON
    assert page.text.count("<article") == 100
    assert "200 completed" in words_of(page.text)
