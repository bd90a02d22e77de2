"""What the page of a task shows, in each state of the task and of its store."""

from __future__ import annotations

import csv
import io
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import APP
from rungen_emulator import Fault

from airflow_provider_rungen.decorators import rungen_task
from airflow_provider_rungen.operators import RunGenRunJobOperator
from airflow_provider_rungen.pages.files import FoundRows
from airflow_provider_rungen.pages.results_file import Filter, read_page
from airflow_provider_rungen.results.writers import WRITERS
from airflow_provider_rungen.schemas.output_type import FIXED_COLUMNS
from pages.world import POLL, SERVER_WARNINGS, World, given

pytestmark = SERVER_WARNINGS

WAIT: dict[str, Any] = {"wait_for_completion": True, **POLL}
STORED: dict[str, Any] = {"task_id": "task", "poll_interval": 0.02, "deferrable": False}
VIEW: dict[str, Any] = {
    "counts": {"rows": 9, "completed": 3, "failed": 1, "skipped": 1, "reused": 2, "running": 3, "waiting": 1},
    "usage": {"jobs": 4, "execution_seconds": 30.0},
    "ended": [
        {"sku": "a", "index": 0, "status": "completed", "input": '{"prompt": "one"}', "seconds": 2},
        {"sku": "b", "index": 1, "status": "refused", "error": "too wide", "input": '{"prompt": "two"}'},
        {"sku": "c", "index": 2, "status": "completed", "reused": True},
    ],
}


@pytest.mark.contract
def test_a_table_shows_its_rows_counts_costs_and_files(world: World) -> None:
    rows = [given("a red fox"), given("a hare", fail="out of memory"), given("a hare", fail="out of memory")]
    with world.emulator.connection(price="3600 USD/h"):
        page = world.table(
            *({"sku": f"s{n}", "color": "red", **row} for n, row in enumerate(rows)),
            key="sku",
            columns=["color"],
            to_input=lambda row: given(row["prompt"], **row["emulator"]),
        )
    data = world.data(page)
    assert data["state"] == "success"
    assert data["failed"] is None
    counts = {name: data["progress"][name] for name in ("total", "ended", "completed", "failed", "running")}
    assert counts == {"total": 3, "ended": 3, "completed": 1, "failed": 2, "running": 0}
    assert data["usage"]["jobs"] == len(world.emulator.service.jobs()) == 2
    assert data["usage"]["cost"] == pytest.approx(0.04)
    assert "0.04" in data["usage"]["text"]
    fox, hare, _ = data["rows"]
    assert (fox["key"], fox["prompt"], fox["columns"], fox["status"]) == (
        "s0",
        "a red fox",
        {"color": "red"},
        "completed",
    )
    assert fox["cost"] == pytest.approx(fox["seconds"]) == pytest.approx(0.02)
    assert fox["input"]["width"] == "64"
    [picture] = fox["outputs"]
    assert picture["kind"] == "image"
    assert world.pages.get(picture["url"]).content.startswith(b"\x89PNG")
    assert (hare["error"], hare["outputs"], hare["prompt"]) == ("out of memory", [], "a hare")
    about = data["about"]
    assert about["results"].endswith(".jsonl")
    assert Path(about["sheet"].removeprefix("file://")).exists()
    assert about["destination"] == world.folder.as_uri()
    lines = world.pages.api(page, "results").text.splitlines()
    assert [json.loads(line)["sku"] for line in lines] == ["s0", "s1", "s2"]


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_come_by_the_hundred_and_are_filtered_on_the_server(world: World, suffix: str) -> None:
    results = world.folder / f"results{suffix}"
    columns = {"sku": "text", **FIXED_COLUMNS}
    statuses = ["completed", "completed", "failed", "refused", "skipped"]
    rows = [
        dict.fromkeys(columns)
        | {"sku": f"s{n}\n,", "index": n, "status": statuses[n % 5], "reused": n % 50 == 0}
        for n in range(530)
    ]
    with results.open("wb") as file:
        WRITERS[suffix](file, columns, rows)
    record = {"connection": "rungen_default", "key": ["sku"], "destination": world.folder.as_uri()}
    page = world.save(xcoms={"rungen_page": record, "results": results.as_uri()})
    for status, expected in (
        ("", range(530)),
        ("completed", [n for n in range(530) if n % 5 < 2]),
        ("failed", [n for n in range(530) if n % 5 in (2, 3)]),
        ("reused", range(0, 530, 50)),
    ):
        found: list[int] = []
        cursor: Any = 0
        while cursor is not None:
            data = world.data(page, status=status, cursor=cursor)
            assert len(data["rows"]) <= 100
            found += [int(row["index"]) for row in data["rows"]]
            cursor = data["next"]
        assert found == [*expected]
    assert data["rows"][0]["key"] == "s0\n,"


@pytest.mark.parametrize("suffix", WRITERS)
def test_one_row_of_5_000_is_found_on_the_server_and_downloaded(world: World, suffix: str) -> None:
    results = world.folder / f"results{suffix}"
    columns = {"sku": "text", **FIXED_COLUMNS}
    rows = [
        dict.fromkeys(columns)
        | {"sku": f"sku-{n}", "index": n, "status": "completed", "job_id": f"job-{n}", "reused": n % 2 == 0}
        | {"input": json.dumps({"prompt": f"a Füchsin, number {n}."}), "result": json.dumps(f"text{n}!")}
        for n in range(5000)
    ]
    with results.open("wb") as file:
        WRITERS[suffix](file, columns, rows)
    record = {"connection": "rungen_default", "key": ["sku"], "destination": world.folder.as_uri()}
    page = world.save(xcoms={"rungen_page": record, "results": results.as_uri()})
    for words in ("sku-4321", "SKU-43 NUMBER 4321.", "text4321!", "JOB-4321"):
        data = world.data(page, q=words)
        assert [row["key"] for row in data["rows"]] == ["sku-4321"], words
        assert data["next"] is None
    assert world.data(page, q="sku-4321", status="reused")["rows"] == []
    assert [row["key"] for row in world.data(page, q="sku-4321", status="new")["rows"]] == ["sku-4321"]
    assert world.data(page, status="new")["rows"][0]["key"] == "sku-1"
    for words, count in (("number sku-432", 11), ("none", 0)):
        answer = world.pages.api(page, "results", q=words)
        is_csv = suffix == ".csv"
        assert f"-found.{'csv' if is_csv else 'jsonl'}" in answer.headers["content-disposition"]
        found = (
            csv.DictReader(io.StringIO(answer.text)) if is_csv else map(json.loads, answer.text.splitlines())
        )
        skus = [row["sku"] for row in found]
        assert (len(skus), all("sku-432" in sku for sku in skus)) == (count, True)


def test_what_a_filter_downloads_comes_in_bounded_parts(world: World) -> None:
    (world.folder / "r.jsonl").write_bytes((b'{"sku": "a", "x": "' + b"x" * 1000 + b'"}\n') * 2000)
    found = FoundRows(str(world.folder), "", "r.jsonl", Filter(words="a"))
    parts = [*iter(found.read, None)]
    assert max(map(len, parts)) < 400_000
    assert sum(part.count(b"\n") for part in parts) == 2000


def test_a_page_of_many_rows_reads_what_one_of_few_does() -> None:
    class Counting(io.BytesIO):
        count = 0

        def readline(self, *args: Any) -> bytes:
            line = super().readline(*args)
            self.count += len(line)
            return line

    few, many = (Counting(b'{"status": "completed"}\n' * number) for number in (101, 100_000))
    for file in (few, many):
        page = read_page(file, "results.jsonl", 0, Filter())
        assert (len(page.rows), page.next) == (100, 2400)
    assert many.count == few.count


@pytest.mark.parametrize(
    "content", [b"no json\n", b"[1, 2]\n", b"\xff\xfe\n", b'{"a": ' + b"[" * 100_000 + b"\n"]
)
def test_a_results_file_that_is_none_gives_a_page_without_rows(world: World, content: bytes) -> None:
    (world.folder / "r.jsonl").write_bytes(content)
    data = world.data(
        world.save(xcoms={"rungen_page": {"connection": "c"}, "results": f"{world.folder}/r.jsonl"})
    )
    assert data["rows"] == []


def test_a_running_table_shows_its_view(world: World) -> None:
    xcoms = {"rungen_page": world.write_view(VIEW, key=["sku"], price="1.20 USD/h")}
    page = world.save("deferred", xcoms=xcoms)
    data = world.data(page)
    assert data["is_moving"]
    assert (data["progress"]["ended"], data["progress"]["total"], data["progress"]["running"]) == (5, 9, 3)
    assert data["usage"]["cost"] == pytest.approx(0.01)
    assert [(row["key"], row["status"]) for row in data["rows"]] == [
        ("a", "completed"),
        ("b", "refused"),
        ("c", "completed"),
    ]
    assert data["rows"][1]["error"] == "too wide"
    for status, keys in (("completed", ["a", "c"]), ("failed", ["b"]), ("reused", ["c"])):
        assert [row["key"] for row in world.data(page, status=status)["rows"]] == keys


def test_a_running_table_says_as_of_when_and_what_is_queued_and_why(world: World) -> None:
    hint = "2 queued: app flux has no worker"
    view = VIEW | {"at": 1_700_000_000.5, "hint": hint, "counts": VIEW["counts"] | {"queued": 2}}
    xcoms = {"rungen_page": world.write_view(view, key=["sku"])}
    data = world.data(world.save("deferred", xcoms=xcoms))
    assert (data["hint"], data["at"]) == (hint, 1_700_000_000.5)
    assert (data["progress"]["running"], data["progress"]["queued"]) == (1, 2)
    assert data["duration"] >= 0
    world.again()
    data = world.data(world.save("failed", xcoms=xcoms))
    assert (data["hint"], data["at"], data["progress"]["queued"]) == ("", None, 0)


def test_a_search_finds_what_a_running_table_has_written(world: World) -> None:
    page = world.save("running", xcoms={"rungen_page": world.write_view(VIEW, key=["sku"])})
    assert [row["key"] for row in world.data(page, q="TOO wide")["rows"]] == ["b"]


def test_one_job_shows_its_prompt(world: World) -> None:
    page = world.run(RunGenRunJobOperator(input=given(), **WAIT))
    assert [row["prompt"] for row in world.data(page)["rows"]] == ["a red fox"]
    world.again()
    made: Any = rungen_task(**POLL)(paint)()
    page = world.run(made.operator)
    # as Airflow does once a function has returned it
    world.database.render(world.ti, input=paint())
    assert [row["prompt"] for row in world.data(page)["rows"]] == ["a red fox"]


def test_a_task_that_never_bought_says_nothing_of_costs_and_names_no_results(world: World) -> None:
    record = {"connection": "c", "results": f"{world.folder}/r.jsonl", "destination": str(world.folder)}
    failure = {"try_number": 1, "error": "No such app", "hint": "Check app_id"}
    data = world.data(world.save("failed", xcoms={"rungen_page": record, "rungen_failure": failure}))
    assert (data["failed"]["cost"], data["usage"]["text"], data["about"]["results"]) == ("", "", "")


def test_a_table_that_was_killed_shows_what_it_wrote_last(world: World) -> None:
    data = world.data(world.save("failed", xcoms={"rungen_page": world.write_view(VIEW, key=["sku"])}))
    assert len(data["rows"]) == 3
    assert (data["progress"]["ended"], data["progress"]["running"]) == (5, 0)
    assert "did not report why" in data["failed"]["why"]
    assert data["failed"]["cost"] == "4 jobs, 30 s of work"


def test_before_anything_ended_only_the_number_of_rows_is_known(world: World) -> None:
    record = {"connection": "rungen_default", "app": APP, "rows": 12, "destination": world.folder.as_uri()}
    data = world.data(
        world.save("running", xcoms={"rungen_page": record | {"view": ".rungen/runs/a/b.json"}})
    )
    assert (data["progress"]["ended"], data["progress"]["total"], data["rows"]) == (0, 12, [])
    assert data["notices"] == []


def paint() -> dict[str, Any]:
    return given()


@pytest.mark.contract
def test_one_job_shows_what_it_has_stored(world: World) -> None:
    made: Any = rungen_task(destination=world.folder.as_uri(), **STORED)(paint)()
    data = world.data(world.run(made.operator))
    [row] = data["rows"]
    [job] = world.emulator.service.jobs()
    assert (row["job_id"], row["status"], data["progress"]["ended"]) == (job["id"], "completed", 1)
    assert world.pages.get(row["outputs"][0]["url"]).headers["content-type"] == "image/png"


@pytest.mark.contract
def test_a_failure_says_why_where_what_it_cost_and_what_to_do(world: World) -> None:
    with world.emulator.connection(price="3600 USD/h"):
        page = world.run(RunGenRunJobOperator(input=given(fail="CUDA out of memory"), **WAIT))
    data = world.data(page)
    failed = data["failed"]
    assert "CUDA out of memory" in failed["why"]
    assert (failed["app"], failed["connection"]) == (APP, "rungen_default")
    assert failed["cost"].startswith("1 job, 0.02")
    assert failed["do"]
    assert [row["status"] for row in data["rows"]] == ["failed"]
    assert (data["progress"]["ended"], data["progress"]["failed"]) == (1, 1)


@pytest.mark.contract
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"on": "any", "status": 403, "body": {"error": "invalid API key"}}, "invalid API key"),
        ({"on": "run", "status": 400, "body": {"error": "width must be a multiple of 8"}}, "multiple of 8"),
    ],
)
def test_what_was_never_bought_costs_nothing(world: World, fault: dict[str, Any], words: str) -> None:
    world.emulator.service.inject(Fault(**fault, times=None))
    failed = world.data(world.run(RunGenRunJobOperator(input=given(), **WAIT)))["failed"]
    assert words in failed["why"]
    assert failed["cost"] == "nothing: no job was bought"


def test_a_retry_says_why_the_last_attempt_failed_until_it_succeeds(world: World) -> None:
    failure = {"try_number": 1, "error": "No worker", "hint": "Scale up", "still_billing": ["j1"]}
    xcoms = {"rungen_page": {"connection": "c", "app": APP}, "rungen_failure": failure, "usage": {"jobs": 1}}
    failed = world.data(world.save("running", xcoms=xcoms, try_number=2))["failed"]
    assert (failed["why"], failed["do"], failed["attempt"]) == ("No worker", "Scale up", 1)
    assert failed["cost"] == "1 job. Job j1 may still run, and be billed"
    world.again()
    assert (
        "Attempt 1 failed: No worker"
        in world.data(world.save("failed", xcoms=xcoms, try_number=2))["failed"]["why"]
    )
    world.again()
    assert world.data(world.save("success", xcoms=xcoms, try_number=2))["failed"] is None


@pytest.mark.parametrize("down_at", [None, "2026-01-01T00:00:00+00:00"])
def test_a_teardown_shows_the_bill_of_its_app(world: World, down_at: str | None) -> None:
    bill = {
        "app_id": APP,
        "active_workers": 2,
        "down_at": down_at,
        "seconds": 7200.0,
        "cost": 2.4,
        "currency": "USD",
    }
    data = world.data(
        world.save("failed", xcoms={"rungen_page": {"connection": "c", "app": APP}, "usage": bill})
    )
    assert (data["usage"]["text"], data["failed"]["cost"]) == ("2 h of work, 2.40 USD",) * 2
    assert any("may still be up, and billed" in notice for notice in data["notices"]) == (down_at is None)


def test_each_mapped_task_has_a_page_of_its_own(world: World) -> None:
    world.ti.map_index = 3
    page = world.table(given("one"))
    assert page.endswith("?map_index=3")
    data = world.data(page)
    assert data["about"]["map_index"] == 3
    assert data["about"]["results"].endswith(".3.jsonl")
    assert world.pages.get(data["rows"][0]["outputs"][0]["url"]).status_code == 200


@pytest.mark.parametrize("run_id", ["a/b", "ü 1+2", "x?y#z"])
def test_runs_may_have_any_name(world: World, monkeypatch: pytest.MonkeyPatch, run_id: str) -> None:
    monkeypatch.setenv("AIRFLOW__SCHEDULER__ALLOWED_RUN_ID_PATTERN", ".*")
    world.ti.run_id = f"{run_id}{world.ti.run_id}"
    page = world.table(given("one"))
    assert world.pages.get(page).status_code == 200
    assert world.pages.get(world.data(page)["rows"][0]["outputs"][0]["url"]).status_code == 200


@pytest.mark.parametrize(
    "query", [{"cursor": "-1"}, {"cursor": "x"}, {"cursor": "9" * 30}, {"status": "'; DROP"}]
)
def test_a_query_is_never_an_error(world: World, query: dict[str, str]) -> None:
    page = world.table(given("one"))
    assert world.pages.api(page, **query).status_code == 200


@pytest.mark.parametrize(
    ("place", "words"),
    [("dag/none/task", "has not run"), ("dag/none/task?map_index=x", "has not run"), ("dag/x", "")],
)
def test_a_task_that_did_not_run_is_explained(world: World, place: str, words: str) -> None:
    answer = world.pages.api(f"/rungen/task/{place}")
    assert answer.status_code == 404
    assert words in answer.text


def test_a_task_of_somebody_else_has_no_page(world: World) -> None:
    answer = world.pages.api(world.save(operator="PythonOperator", xcoms={"return_value": "secret"}))
    assert (answer.status_code, "runs nothing at RunGen" in answer.text) == (404, True)


@pytest.mark.parametrize(
    "value", [None, "text", 7, [1], {"connection": 5}, {"view": "../../x"}, {"jobs": "x" * 5}]
)
@pytest.mark.parametrize("key", ["rungen_page", "rungen_failure", "usage", "results", "return_value"])
def test_whatever_is_in_xcom_the_page_is_made(world: World, key: str, value: Any) -> None:
    page = world.save("failed", xcoms={"rungen_page": {"connection": "c"}, key: value})
    assert world.pages.api(page).status_code == 200


def test_an_xcom_that_is_too_large_is_named(world: World) -> None:
    record = {"connection": "c", "app": "x" * (1 << 20)}
    assert (
        "The XCom rungen_page is larger"
        in world.data(world.save(xcoms={"rungen_page": record}))["notices"][0]
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "7",
        "{",
        '{"counts": 3, "usage": [], "ended": {"a": 1}}',
        '{"counts": {"rows": "x"}, "ended": [3, {"key": 5}, {"outputs": {}}]}',
    ],
)
def test_a_view_that_is_none_gives_a_page(world: World, content: str) -> None:
    xcoms = {"rungen_page": world.write_view({})}
    (world.folder / xcoms["rungen_page"]["view"]).write_text(content)
    assert world.data(world.save("running", xcoms=xcoms))["state"] == "running"


@pytest.mark.parametrize("gone", ["results", "store"])
def test_what_was_removed_is_explained(world: World, gone: str) -> None:
    page = world.table(given("one"))
    path = world.data(page)["about"]["results"].removeprefix("file://")
    picture = world.data(page)["rows"][0]["outputs"][0]["url"]
    Path(path).unlink() if gone == "results" else shutil.rmtree(world.folder)
    data = world.data(page)
    # the view has the last rows
    assert (len(data["rows"]), data["progress"]["total"]) == (int(gone == "results"), 1)
    assert any("moved or removed" in notice for notice in data["notices"])
    assert world.pages.get(picture).status_code == (200 if gone == "results" else 404)
    assert world.pages.api(page, "results").status_code == 404


@pytest.mark.parametrize(
    ("scheme", "module", "package"),
    [("gs", "gcsfs", "google"), ("abfs", "adlfs", "microsoft-azure"), ("wasb", "adlfs", "microsoft-azure")],
)
def test_a_store_whose_package_the_api_server_misses(
    world: World, scheme: str, module: str, package: str
) -> None:
    if find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    store = f"{scheme}://bucket/store"
    record = {"connection": "c", "destination": store, "view": ".rungen/runs/a/b.json"}
    page = world.save(xcoms={"rungen_page": record, "results": f"{store}/r.jsonl"})
    install = f"Install apache-airflow-providers-{package}"
    assert world.data(page)["notices"] == [f"Rows are missing: {install} where the API server runs."]
    assert install in world.pages.api(page, "results").text


def test_texts_and_values_are_shown_as_they_are(world: World) -> None:
    results = world.folder / "r.csv"
    long = "x" * 10_000
    with results.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sku", "status", "input", "result", "seconds", "cost", "outputs"])
        writer.writerow(
            ["a", "completed", '{"messages": [{"content": "Hi?"}]}', '{"text": "Hello"}', "nan", "", ""]
        )
        writer.writerow(
            ["b", "completed", '{"prompt": "' + long + '"}', '[{"generated_text": "One"}]', "1", "0.5", ""]
        )
        writer.writerow(["c", "completed", "{", '{"scores": [1, 2]}', "x", "x", "not json"])
    xcoms = {"rungen_page": {"connection": "c", "key": ["sku"]}, "results": str(results)}
    hi, one, scores = world.data(world.save(xcoms=xcoms))["rows"]
    assert (hi["prompt"], hi["text"], hi["seconds"], hi["cost"]) == ("Hi?", "Hello", None, None)
    assert (len(one["prompt"]), one["text"], one["seconds"], one["cost"]) == (4001, "One", 1, 0.5)
    assert (scores["prompt"], scores["text"], scores["outputs"]) == ("", '{"scores": [1, 2]}', [])


def test_what_this_attempt_bought_and_what_never_ran_is_told_apart(world: World) -> None:
    counts = {"jobs": 6, "bought": 0, "ran": 4, "canceled_before_run": 2}
    page = world.save("failed", xcoms={"rungen_page": {"connection": "c"}, "usage": counts})
    text = "6 jobs, none by this attempt, 6 submitted, 4 ran, 2 canceled before they ran"
    assert world.data(page)["usage"]["text"] == text


def test_a_task_that_was_killed_early_claims_nothing_about_its_jobs(world: World) -> None:
    record = {"connection": "c", "rows": 12, "results": f"{world.folder}/r.jsonl"}
    data = world.data(
        world.save("failed", xcoms={"rungen_page": record, "usage": {"jobs": 12, "completed": 0}})
    )
    assert (data["progress"], data["usage"]["text"], data["notices"]) == (None, "12 jobs", [])
