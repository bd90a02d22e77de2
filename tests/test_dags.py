"""DAGs in a real Airflow (SQLite, ``dag.test()``): templates, mapping, ``.output``, every shape of answer."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS, AIRFLOW_V_3_3_PLUS
from conftest import HOME

from airflow_provider_rungen.emulator import Emulator

# the first test runs all DAGs, which takes minutes on Airflow 3.2
pytestmark = pytest.mark.timeout(900)

DAGS = Path(__file__).parent / "dags"
EXAMPLES = sorted((Path(__file__).parents[1] / "example_dags").glob("*.py"))
# As documented, and with all that may differ; tests/client/test_endpoints.py has the other combinations.
WAYS: dict[str, dict[str, Any]] = {
    "documented": {"shape": "wrapped", "words": "upper"},
    "different": {
        "shape": "flat",
        "words": "alternate",
        "id_field": "both",
        "run_status": 200,
        "time_format": "space",
        "execution_time_as": "number",
        "extra_fields": True,
    },
}
TASKS = {
    *("run[-1]", "wait[-1]", "one[-1]", "mapped[0]", "mapped[1]", "mapped[2]", "wait_mapped[-1]", "many[-1]"),
    *("each[0]", "each[1]", "each[2]", "cancel[-1]", "report_one[-1]", "report_many[-1]", "report_each[-1]"),
    "report_canceled[-1]",
}


class Runs:
    """The DAG runs. One process performs them all, since starting Airflow takes longest."""

    def __init__(self, folder: Path, emulator: Emulator) -> None:
        self.emulator = emulator
        names = [*WAYS, "deferred", "failing", "retried", "scaled"]
        self.reports = {name: folder / f"{number}.json" for number, name in enumerate(names)}
        plan = [("rungen_ways", options, str(self.reports[name])) for name, options in WAYS.items()]
        plan.append(("rungen_deferred", WAYS["documented"], str(self.reports["deferred"])))
        plan += [(f"rungen_{name}", {}, str(self.reports[name])) for name in ("failing", "retried", "scaled")]
        environment = {
            **os.environ,
            "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(),
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
        self.states: dict[str, dict[str, str]] = dict(zip(names, states, strict=True))

    def report(self, name: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.reports[name].read_text())
        return report


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with Emulator(job_seconds=0.1) as emulator:
        emulator.service.add_app("gpu", init_seconds=0.5)
        emulator.service.add_app("idle")
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


def test_the_template_was_rendered(runs: Runs) -> None:
    prompts = [job["input"]["prompt"] for job in runs.emulator.service.jobs()]
    assert prompts.count("a fox for rungen_ways") == len(WAYS)


def test_no_job_was_made_twice(runs: Runs) -> None:
    jobs = [job for job in runs.emulator.service.jobs() if job["input"]["prompt"] != "again"]
    assert len(jobs) == 4 * len(WAYS) + 3
    assert runs.emulator.service.count("run") == runs.emulator.service.stats()["jobs_created"]


def test_a_deferred_task_comes_back(runs: Runs) -> None:
    assert set(runs.states["deferred"].values()) == {"success"}
    assert runs.report("deferred") == {"collected": "well done"}


def test_a_failed_job_fails_its_dag_run(runs: Runs) -> None:
    assert runs.states["failing"] == {"bad[-1]": "failed", "collected_bad[-1]": "upstream_failed"}
    assert "out of memory" in runs.log


def test_an_app_is_scaled_down_when_its_tasks_failed_and_left_alone_when_it_was_not_up(runs: Runs) -> None:
    states = runs.states["scaled"]
    assert {task_id for task_id, state in states.items() if state == "failed"} == {
        "fail[-1]",
        "fail_before[-1]",
    }
    assert (states["app_up[-1]"], states["app_2_up[-1]"]) == ("success", "upstream_failed")
    assert (states["app_down[-1]"], states["app_2_down[-1]"]) == ("success", "success")
    assert states["never[-1]"] == states["never_too[-1]"] == states["app_2_end[-1]"] == "upstream_failed"
    stats = runs.emulator.service.stats()
    assert stats["active_workers"]["gpu"] == 0
    assert stats["worker_seconds"]["gpu"] > 0
    assert stats["worker_seconds"]["idle"] == 0
    assert runs.emulator.service.count("update_app") == 2


def test_neither_key_nor_signed_url_is_in_the_log(runs: Runs) -> None:
    assert "Submitted job" in runs.log
    lines = runs.log.splitlines()
    if not AIRFLOW_V_3_1_PLUS:
        # Airflow 3.0 itself writes in dag.test(), at DEBUG, what a task asks of it: to mask, to push, to show
        talk = ("Sending request", "Received message from task runner")
        lines = [line for line in lines if not any(words in line for words in talk)]
    assert [line for line in lines if runs.emulator.service.api_key in line] == []
    assert [line for line in lines if "X-Amz-Signature" in line] == []


def test_a_retry_succeeds(runs: Runs) -> None:
    assert runs.states["retried"] == {"paint[-1]": "success"}
    assert "the first attempt is lost" in runs.log


@pytest.mark.feature("durable")
@pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="a new job is submitted, and the log says so")
def test_a_retry_takes_up_the_job_of_the_attempt_before(runs: Runs) -> None:
    assert [job["input"]["prompt"] for job in runs.emulator.service.jobs()].count("again") == 1
    assert "of an earlier attempt, which is COMPLETED" in runs.log


@pytest.mark.skipif(
    AIRFLOW_V_3_3_PLUS, reason="from Airflow 3.3 on it takes up the job of the attempt before"
)
def test_a_retry_says_that_it_submits_anew(runs: Runs) -> None:
    assert [job["input"]["prompt"] for job in runs.emulator.service.jobs()].count("again") == 2
    assert "Not durable" in runs.log


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_dag(example: Path) -> None:
    made = runpy.run_path(str(example))
    dag = made["paint"].dag if "paint" in made else made["sheet"].operator.dag
    assert dag.dag_id == example.stem
    dag.validate()
