"""The contact sheet: the page as one file beside the results."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from conftest import APP, FakeTaskInstance, run_task, table_of
from rungen_emulator import Emulator

from airflow_provider_rungen.results.rows import ResultRow, Status
from airflow_provider_rungen.results.sheet import MAX_ROWS, relative, write_sheet
from pages.world import POLL, given

SUMMARY: dict[str, Any] = {
    "results": "r",
    "rows": 9,
    "completed": 9,
    "failed": 0,
    "skipped": 0,
    "reused": 0,
    "jobs": 9,
    "execution_seconds": 9.0,
}


def data_of(sheet: str) -> Any:
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', sheet, re.DOTALL)
    return json.loads(text)


def write(folder: Path, rows: Iterable[ResultRow]) -> str:
    (folder / "results").mkdir(exist_ok=True)
    uri = f"{folder}/results/r.jsonl"
    write_sheet(uri, rows, SUMMARY, key=["sku"], ti=FakeTaskInstance(), app_id=APP)
    sheet = folder / "results/r.html"
    return sheet.read_text() if sheet.is_file() else ""


def row(number: int, *outputs: str, **fields: Any) -> ResultRow:
    return ResultRow(
        index=number, status=Status.COMPLETED, values={"sku": f"s{number}"}, outputs=outputs, **fields
    )


@pytest.mark.contract
@pytest.mark.parametrize("max_failed", [0, 1])
def test_a_table_has_a_sheet_with_prompts_columns_costs_and_pictures(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, max_failed: int
) -> None:
    rows = [{"sku": f"s{n}", "title": "Kettle", **given(text)} for n, text in enumerate(("a fox", "a hare"))]
    rows += [{"sku": "s2", "title": "Pot", **given("a pot", fail="out of memory")}]
    with rungen_emulator.connection(price="3600 USD/h"):
        operator = table_of(
            inputs=rows, key="sku", columns=["title"], destination=tmp_path.as_uri(), max_failed=max_failed,
            to_input=lambda row: given(row["prompt"], **row["emulator"]), **POLL,
        )  # fmt: skip
        outcome = run_task(operator, context)
    assert (outcome.error is None) == bool(max_failed)
    [sheet] = tmp_path.glob("results/**/*.html")
    data = data_of(sheet.read_text())
    assert (data["progress"]["ended"], data["progress"]["failed"], data["usage"]["cost"]) == (
        3,
        1,
        pytest.approx(0.06),
    )
    fox, _, pot = data["rows"]
    assert (fox["key"], fox["prompt"], fox["columns"]) == ("s0", "a fox", {"title": "Kettle"})
    assert fox["cost"] == pytest.approx(0.02)
    assert (pot["error"], pot["outputs"], pot["prompt"]) == ("out of memory", [], "a pot")
    picture = sheet.parent / unquote(fox["outputs"][0]["url"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "http" not in re.sub(r"https://\S+", "", json.dumps(fox["outputs"]))


@pytest.mark.contract
def test_texts_have_no_sheet(rungen_emulator: Emulator, context: Any, tmp_path: Path) -> None:
    operator = table_of(inputs=[given()], destination=tmp_path.as_uri(), app_id="llama-text", **POLL)
    assert run_task(operator, context).error is None
    assert not [*tmp_path.glob("**/*.html")]


def test_a_policy_lets_only_its_own_script_and_style_run(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><!--<script>"
    sheet = write(
        tmp_path, [row(1, f"{tmp_path}/a.png", input=json.dumps({"prompt": hostile}), error=hostile)]
    )
    [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', sheet)
    [style] = re.findall(r"<style>(.*?)</style>", sheet, re.DOTALL)
    [script] = re.findall(r"<script>(.*?)</script>", sheet, re.DOTALL)
    for kind, text in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert sheet.count("<script") == 2
    assert '"{root}' not in sheet
    assert data_of(sheet)["rows"][0]["prompt"] == hostile


def test_only_the_first_rows_are_taken_and_skipped_ones_are_left_out(tmp_path: Path) -> None:
    def rows() -> Any:
        yield ResultRow(index=0, status=Status.SKIPPED)
        for number in range(1, MAX_ROWS + 2):
            assert number <= MAX_ROWS
            yield row(number, f"{tmp_path}/{number}.png")

    data = data_of(write(tmp_path, rows()))
    assert [each["index"] for each in data["rows"]] == [*range(1, MAX_ROWS + 1)]
    assert data["notices"] == ["Only the first 1,000 rows are shown."]


@pytest.mark.parametrize(
    ("uri", "folder", "expected"),
    [
        ("file:///a/files/x 1.png", "file:///a/results/d", "../../files/x%201.png"),
        ("/a/files/x#?.png", "file:///a", "files/x%23%3F.png"),
        ("s3://b/a/files/x.png", "s3://b/a/results", "../files/x.png"),
        ("s3://other/a/x.png", "s3://b/a", None),
        ("gs://b/x.png", "s3://b", None),
        ("/a/javascript:alert(1)", "/a", "javascript%3Aalert%281%29"),
    ],
)
def test_pictures_are_named_from_where_the_sheet_is(uri: str, folder: str, expected: str | None) -> None:
    assert relative(uri, folder) == expected


def test_a_store_that_fails_is_logged_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "results/r.html").mkdir(parents=True)
    assert not write(tmp_path, [row(1, f"{tmp_path}/a.png")])
    assert "No contact sheet" in caplog.text


@pytest.mark.contract
def test_s3_has_a_sheet_with_its_type_and_relative_pictures(
    s3: str, s3_client: Any, rungen_emulator: Emulator, context: Any
) -> None:
    assert run_task(table_of(inputs=[given()], destination=s3, **POLL), context).error is None
    listed = s3_client.list_objects_v2(Bucket="bucket", Prefix=s3.rpartition("/")[2])["Contents"]
    [key] = [each["Key"] for each in listed if each["Key"].endswith(".html")]
    answer = s3_client.get_object(Bucket="bucket", Key=key)
    assert answer["ContentType"] == "text/html"
    url = data_of(answer["Body"].read().decode())["rows"][0]["outputs"][0]["url"]
    assert url.startswith("../../files/")
    names = {each["Key"].partition("/")[2] for each in listed}
    assert url.removeprefix("../../") in names
