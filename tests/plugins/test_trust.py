"""What those who write XComs, connections and files cannot make the pages show or do."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from conftest import APP

from plugins.conftest import World, result_row

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.filterwarnings("ignore")]

SECRET = "HUNTER2secret"


def page_of_results(world: World, results: str) -> str:
    record = {"connection": "rungen_default", "app": APP, "results": results, "key": ["name", "password"]}
    return world.save(xcoms={"rungen_page": record})


def to_csv(rows: list[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("passwords.json.generated", json.dumps({"password": SECRET})),
        ("payroll.csv", f"name,password\nroot,{SECRET}\n"),
        ("twice.csv", f"{SECRET},{SECRET}\nroot,1\n"),
        ("ragged.csv", f"name,password\nroot,{SECRET},{SECRET}\n"),
        ("quoted.csv", f'name,password\n"root"{SECRET},1\n'),
        ("few_columns.csv", f"index,status,job_id,name,password\n0,completed,j,root,{SECRET}\n"),
        ("payroll.jsonl", json.dumps({"name": "root", "password": SECRET})),
        ("list.jsonl", json.dumps([SECRET])),
        ("text.jsonl", SECRET),
        ("no.parquet", SECRET),
        # a results table, and below it something else
        ("mixed.jsonl", f"{json.dumps(result_row(status='completed'))}\n{json.dumps({'name': SECRET})}\n"),
    ],
)
def test_nothing_of_a_file_that_is_no_results_table_is_shown(world: World, name: str, content: str) -> None:
    (world.folder / name).write_text(content)
    path = page_of_results(world, str(world.folder / name))
    page = world.pages.as_user("viewer").get(path)
    assert page.status_code == 200
    assert SECRET not in page.text
    assert "no results table" in page.text
    job = world.get(f"{path}/jobs/{SECRET}")
    assert job.status_code == 404
    assert SECRET not in job.text


@pytest.mark.parametrize("results", ["", "/", "/**/", "/**/*.csv", "/*.csv", "/folder.csv", "/folder.csv/"])
def test_results_are_a_single_file(world: World, results: str) -> None:
    table = to_csv([result_row(index=0, status="completed", job_id="j", name="root", password=SECRET)])
    folder = world.folder / "folder.csv"
    folder.mkdir()
    for file in (world.folder / "results.csv", folder / "results.csv"):
        file.write_text(table)
    assert SECRET not in world.get(page_of_results(world, f"{world.folder}{results}")).text


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_results_table_is_shown(world: World, tmp_path: Path, scheme: str) -> None:
    table = to_csv([result_row(index=0, status="completed", job_id="j", name="root", password="shown")])
    (tmp_path / "results[1].csv").write_text(table)
    page = world.get(page_of_results(world, f"{scheme}{tmp_path}/results[1].csv"))
    assert "root, shown" in page.text
    assert "no results table" not in page.text
