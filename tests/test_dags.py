"""DAGs in a real Airflow (SQLite, ``dag.test()``): templates, mapping, ``.output``, every shape of answer."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.version_compat import (
    AIRFLOW_V_3_3_PLUS,
)
from conftest import HOME
from odd_answers import OddService
from pyarrow import parquet
from rungen_emulator import Emulator

from airflow_provider_rungen.results import read_results

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from airflow_instance import EXAMPLES as EXAMPLE_DAGS
from demo import ANSWER, add_language_model, change_two_colors, format_summary

# the first test runs all DAGs, which takes minutes on Airflow 3.2
pytestmark = [
    pytest.mark.contract,
    pytest.mark.timeout(900),
    # of Airflow 3.1, by its own ApprovalOperator
    pytest.mark.filterwarnings("ignore:The `airflow.operators.branch"),
]

DAGS = Path(__file__).parent / "dags"
EXAMPLES = sorted(EXAMPLE_DAGS.glob("rungen_*.py"))
# As documented, and with all that may differ; tests/client/test_endpoints.py has the other combinations.
WAYS: dict[str, dict[str, Any]] = {
    "documented": {"style": {}},
    "different": {
        "style": {
            "shape": "flat",
            "words": "alternate",
            "id_field": "both",
            "run_status": 200,
            "time_format": "space",
            "execution_time_as": "number",
            "extra_fields": True,
        }
    },
}
# The apps of blocks with branches.
BRANCHED = ("leaf", "group", "inner")
BOATS = ["a green boat", "a red boat"]
NIGHT = ["a harbor at dawn", "a market in the rain", "a mountain hut at night"]
# What a user types into the form of the first job. Prompts are no templates.
FORM = {"prompt": "{{ 7 * 7 }}", "width": 320, "height": 256, "seed": 12}
TASKS = {
    *("run[-1]", "wait[-1]", "one[-1]", "mapped[0]", "mapped[1]", "mapped[2]", "wait_mapped[-1]", "many[-1]"),
    *("each[0]", "each[1]", "each[2]", "cancel[-1]", "report_one[-1]", "report_many[-1]", "report_each[-1]"),
    "report_canceled[-1]",
}


class Runs:
    """The DAG runs. One process performs them all, since starting Airflow takes longest."""

    def __init__(self, folder: Path, emulator: Emulator) -> None:
        self.emulator = emulator
        self.stored, self.costs, self.chain = folder / "stored", folder / "costs.jsonl", folder / "chain"
        changed = {"table": str(change_two_colors(folder / "changed.csv"))}
        runs: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
            **{name: ("rungen_ways", options, {}) for name, options in WAYS.items()},
            **{name: (f"rungen_{name}", {}, {}) for name in ("failing", "retried")},
            "chained": ("rungen_chained", {}, {"folder": str(self.chain), "without": 2}),
            "scaled": ("rungen_scaled", {}, {"results": str(self.costs)}),
            "branches": ("rungen_branches", {}, {}),
            "first night": ("rungen_catalog", {}, {}),
            "second night": ("rungen_catalog", {}, changed),
            **{name: (f"rungen_{name}", {}, {}) for name in ("descriptions", "second_stage")},
            "fired": ("rungen_fire_and_collect", {}, {}),
            "first job": ("rungen_first_job", {}, FORM),
            **{f"gpu {number}": ("rungen_scaled_app", {}, {}) for number in ("once", "twice")},
        }
        self.reports = {name: folder / f"{number}.json" for number, name in enumerate(runs)}
        plan = [
            (dag_id, options, str(self.reports[name]), conf) for name, (dag_id, options, conf) in runs.items()
        ]
        # Airflow reads DAG files from one folder
        dags = folder / "dags"
        dags.mkdir()
        for source in (DAGS, EXAMPLE_DAGS):
            (dags / source.name).symlink_to(source)
        environment = {
            **os.environ,
            "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(price="3600 USD/h"),
            "AIRFLOW_CONN_WAREHOUSE": json.dumps({"conn_type": "sqlite", "host": ":memory:"}),
            "RUNGEN_FOLDER": str(self.stored),
        }
        done = subprocess.run(
            [sys.executable, str(DAGS / "perform.py"), emulator.url, json.dumps(plan)],
            env=environment,
            cwd=HOME,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        self.log = done.stdout + done.stderr
        assert done.returncode == 0, self.log[-5000:]
        states = [
            json.loads(line.removeprefix("STATES "))
            for line in done.stdout.splitlines()
            if line.startswith("STATES ")
        ]
        self.states: dict[str, dict[str, str]] = dict(zip(runs, states, strict=True))

    def report(self, name: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.reports[name].read_text())
        return report

    def value(self, name: str, task_id: str) -> Any:
        """Return what a task returned."""
        return json.loads(self.reports[name].with_suffix(".values").read_text())[task_id]

    def prompts(self, start: str = "") -> list[str]:
        """Return the prompts of the jobs that the service has, in order."""
        prompts = [str(job["input"]["prompt"]) for job in self.emulator.service.jobs()]
        return [prompt for prompt in prompts if prompt.startswith(start)]

    def updates(self) -> list[str]:
        """Return the ids of the apps that were updated, once for each time."""
        records = [record for record in self.emulator.service.records() if record.method == "PUT"]
        return [found[1] for each in records if (found := re.fullmatch("/app/([^/]+)", each.path))]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with Emulator(OddService(job_seconds=0.1)) as emulator:
        add_language_model(emulator)
        emulator.service.add_app("gpu", init_seconds=0.5)
        for name in ("idle", *BRANCHED):
            emulator.service.add_app(name)
        yield Runs(tmp_path_factory.mktemp("reports"), emulator)


@pytest.mark.parametrize("way", WAYS)
def test_a_dag_of_every_operator_succeeds_in_every_shape(runs: Runs, way: str) -> None:
    assert set(runs.states[way]) == TASKS
    assert set(runs.states[way].values()) == {"success"}, runs.states[way]
    report = runs.report(way)
    [image] = report["one"]["images"]
    assert "X-Amz-Signature" in image["image"]
    assert report["many"] == ["You said: one", "You said: two", "You said: three"]
    assert report["each"] == report["many"]
    assert report["canceled"] == []
    assert runs.prompts().count("a fox for rungen_ways") == len(WAYS), "the template was rendered"


def test_no_job_was_made_twice(runs: Runs) -> None:
    examples = (
        *runs.prompts("studio photo"),
        *runs.prompts("As JSON"),
        *runs.prompts("Write a scene"),
        *runs.prompts(str(ANSWER["scene"])),
        *runs.prompts("link"),
        *BOATS,
        *NIGHT,
        FORM["prompt"],
    )
    jobs = [prompt for prompt in runs.prompts() if prompt not in ("again", *examples)]
    assert len(jobs) == 4 * len(WAYS) + 12
    assert runs.emulator.service.count("run") == runs.emulator.service.stats()["jobs_created"]


def test_a_deferred_task_comes_back(runs: Runs) -> None:
    assert runs.states["scaled"]["work[-1]"] == "success"
    assert "Waiting in the triggerer" in runs.log


def test_a_failed_job_fails_its_dag_run(runs: Runs) -> None:
    states = {**runs.states["failing"]}
    assert (states.pop("submitted[-1]"), states.pop("collected_bad[-1]")) == ("success", "upstream_failed")
    assert states == dict.fromkeys(("bad[-1]", "wait_for_bad[-1]", "bad_table[-1]", "late[-1]"), "failed")
    assert "out of memory" in runs.log


@pytest.mark.skipif(
    not AIRFLOW_V_3_3_PLUS,
    reason="dag.test() of Airflow 3.1 and 3.2 gives callbacks no exception",
)
def test_a_callback_finds_the_app_and_the_jobs_of_a_failed_task(runs: Runs) -> None:
    def found(kind: str, app_id: str, *prompts: str) -> dict[str, Any]:
        jobs = runs.emulator.service.jobs()
        ids = [job["id"] for prompt in prompts for job in jobs if job["input"]["prompt"] == prompt]
        return {"kind": kind, "app_id": app_id, "job_ids": ids}

    assert runs.report("failing") == {
        "late": found("AirflowTaskTimeout", "flux-schnell", "late"),
        "bad": found("RunGenJobFailedError", "flux-schnell", "fail: out of memory"),
        "wait_for_bad": found("AirflowFailException", "flux-schnell", "fail: no luck"),
        "bad_table": found("RunGenJobFailedError", "llama-text", "bad"),
    }


def test_an_app_is_scaled_down_when_its_tasks_failed_and_left_alone_when_it_was_not_up(runs: Runs) -> None:
    states = runs.states["scaled"]
    failed = {task_id for task_id, state in states.items() if state == "failed"}
    assert failed == {"fail[-1]", "fail_before[-1]"}
    assert (states["app_up[-1]"], states["idle_up[-1]"]) == ("success", "upstream_failed")
    assert (states["app_down[-1]"], states["idle_down[-1]"]) == ("success", "success")
    assert states["never[-1]"] == states["never_too[-1]"] == states["idle_end[-1]"] == "upstream_failed"
    stats = runs.emulator.service.stats()
    assert stats["active_workers"]["gpu"] == 0
    assert stats["worker_seconds"]["gpu"] > 0
    assert stats["worker_seconds"]["idle"] == 0
    assert [count for count in runs.updates() if count == "gpu"] == ["gpu"] * 2


def test_a_branch_in_a_block_does_not_skip_scaling_down(runs: Runs) -> None:
    states = runs.states["branches"]
    skipped = {task_id for task_id, state in states.items() if state == "skipped"}
    assert skipped == {"alert[-1]", "alert_too[-1]", "paint_big[-1]"}
    active = runs.emulator.service.stats()["active_workers"]
    for app in BRANCHED:
        assert (runs.updates().count(app), active[app]) == (2, 0), "up and down"


def test_the_bill_is_what_the_service_counted(runs: Runs) -> None:
    bill = runs.report("scaled")["bill"]
    paid = runs.emulator.service.stats()["worker_seconds"]["gpu"]
    assert bill["seconds"] == pytest.approx(paid, abs=2)
    assert bill["cost"] == pytest.approx(bill["seconds"], abs=0.001)


def test_the_rows_of_a_table_cost_the_seconds_that_their_jobs_ran(runs: Runs) -> None:
    rows = [json.loads(line) for line in runs.costs.read_text().splitlines()]
    assert len(rows) == 2
    # a worker costs 1 in a second
    assert [float(row["cost"]) for row in rows] == pytest.approx([row["seconds"] for row in rows])
    assert 0 < sum(float(row["cost"]) for row in rows) <= float(runs.report("scaled")["bill"]["cost"])


def test_neither_key_nor_signed_url_is_in_the_log(runs: Runs) -> None:
    assert "Submitted job" in runs.log
    lines = runs.log.splitlines()
    assert [line for line in lines if runs.emulator.service.api_key in line] == []
    assert [line for line in lines if "X-Amz-Signature" in line] == []


def test_what_the_form_of_the_first_job_holds_is_its_input(runs: Runs) -> None:
    assert runs.states["first job"] == {"paint[-1]": "success"}
    [job] = [job for job in runs.emulator.service.jobs() if job["input"]["prompt"] == FORM["prompt"]]
    assert job["input"] == FORM, "numbers stay numbers, and empty fields are left out"
    [output] = runs.value("first job", "paint")["outputs"]
    assert runs.value("first job", "paint")["job_id"] == job["id"]
    assert Path(output["uri"].removeprefix("file://")).is_relative_to(runs.stored / "first_job")


def test_the_second_run_of_the_scaled_app_pays_for_nothing(runs: Runs) -> None:
    assert set(runs.states["gpu once"].values()) == set(runs.states["gpu twice"].values()) == {"success"}
    assert [runs.value(name, "plan") for name in ("gpu once", "gpu twice")] == [3, 0]
    # each once; they are sent side by side, in no order
    assert sorted(prompt for prompt in runs.prompts() if prompt in NIGHT) == sorted(NIGHT)
    [app] = [app for app in runs.updates() if app not in ("gpu", "idle", *BRANCHED)][::2]
    assert runs.updates().count(app) == 2, "up and down, once"


def test_a_retry_succeeds(runs: Runs) -> None:
    assert runs.states["retried"] == {"paint[-1]": "success"}
    assert "the first attempt is lost" in runs.log


@pytest.mark.feature("durable")
@pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="a new job is submitted, and the log says so")
def test_a_retry_takes_up_the_job_of_the_attempt_before(runs: Runs) -> None:
    assert runs.prompts().count("again") == 1
    assert "Resuming a job" in runs.log


@pytest.mark.skipif(AIRFLOW_V_3_3_PLUS, reason="since Airflow 3.3 it takes up the job")
def test_a_retry_says_that_it_submits_anew(runs: Runs) -> None:
    assert runs.prompts().count("again") == 2
    assert "Not durable" in runs.log


def test_a_catalog_pays_for_what_changed(runs: Runs) -> None:
    assert runs.states["first night"] == runs.states["second night"] == {"paint[-1]": "success"}
    summaries = [runs.value(name, "paint") for name in ("first night", "second night")]
    assert [summary["completed"] for summary in summaries] == [10, 10]
    assert [*map(format_summary, summaries)] == ["10 rows: 10 bought", "10 rows: 2 bought, 8 reused"]
    prompts = runs.prompts("studio photo")
    assert len(prompts) == len(set(prompts)) == 12, "no product is paid for twice, unless it changed"
    assert {prompt.removeprefix("studio photo of ") for prompt in prompts[10:]} == {
        *("rubber boots, green", "wall clock, red")
    }
    rows = read_results(summaries[1]).rows()
    assert [row["sku"] for row in rows if not row["reused"]] == ["BT-220", "CL-032"]


def test_a_table_is_the_rows_of_the_next(runs: Runs) -> None:
    states = runs.states["chained"]
    assert states == dict.fromkeys(
        ["first[-1]", "second[-1]", "third[-1]", "mapped[0]", "mapped[1]"], "success"
    )
    rows = [json.loads(line) for line in (runs.chain / "third.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["1", "3"], "of CSV"
    said = "You said: link {0}: You said: link {0}: You said: link {0}"
    assert [json.loads(row["result"]) for row in rows] == [said.format(number) for number in (1, 3)]
    assert len(runs.prompts("link")) == 3 * 2 + 2


def test_the_pictures_of_a_catalog_are_on_one_page(runs: Runs) -> None:
    results = runs.value("second night", "paint")["results"].removeprefix("file://")
    text = Path(results).with_suffix(".html").read_text()
    assert "studio photo of enamel kettle, red" in text
    assert '"reused": 8' in text


def test_texts_become_typed_columns(runs: Runs) -> None:
    assert runs.states["descriptions"] == {"describe[-1]": "success"}
    table = parquet.read_table(runs.stored / "descriptions.parquet")
    assert table.column("sku").to_pylist() == ["KT-104", "BT-220"]
    assert table.column("headline").to_pylist() == [ANSWER["headline"]] * 2
    assert table.column("keywords").to_pylist() == [ANSWER["keywords"]] * 2


def test_the_texts_of_one_table_are_painted_by_the_next(runs: Runs) -> None:
    assert runs.states["second_stage"] == {"write[-1]": "success", "paint[-1]": "success"}
    assert runs.prompts(str(ANSWER["scene"])) == [f"{ANSWER['scene']}, watercolor"], "equal rows share a job"
    rows = [*read_results(runs.value("second_stage", "paint")).rows()]
    assert [row["reused"] for row in rows] == [False, True, True]
    assert len({row["output"] for row in rows}) == 1


def test_what_one_task_submitted_another_collects(runs: Runs) -> None:
    states = runs.states["fired"]
    assert states == dict.fromkeys(["fire[0]", "fire[1]", "wait[-1]", "collect[-1]"], "success")
    assert sorted(prompt for prompt in runs.prompts() if prompt in BOATS) == BOATS
    rows = read_results(runs.value("fired", "collect")).rows()
    assert [(row["status"], row["reused"]) for row in rows] == [("completed", False)] * 2
    for row in rows:
        assert Path(row["output"].removeprefix("file://")).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_starts_no_run_by_itself(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    assert len(example.read_text().splitlines()) <= 40
    dag = runpy.run_path(str(example))["dag"]
    assert dag.dag_id == example.stem
    dag.validate()
    assert all([dag.description, dag.doc_md, dag.tags])
    assert type(dag.timetable).__name__ == "NullTimetable", "so unpausing it starts no run"
