"""The DAGs that tests/test_dags.py runs in a real Airflow."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, TaskGroup, task

from airflow_provider_rungen.operators import (
    RunGenCancelJobOperator,
    RunGenCollectResultsOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
    SqlRows,
    scaled_app,
)
from airflow_provider_rungen.sensors import RunGenJobSensor

FAST: dict[str, Any] = {"poll_interval": 0.05}
START = datetime(2025, 1, 1)
FOLDER = os.environ.get("RUNGEN_FOLDER", "")


def write_report(name: str, value: Any) -> None:
    path = Path(os.environ["RUNGEN_TEST_REPORT"])
    known = json.loads(path.read_text()) if path.exists() else {}
    # the output of a mapped task comes as a lazy sequence
    path.write_text(json.dumps(known | {name: value}, default=list))


@task
def report(name: str, value: Any) -> None:
    write_report(name, value)


def report_failure(context: Any) -> None:
    error = context["exception"]
    job_ids = error.job_ids or [row["job_id"] for row in error.failed_rows]
    of_error = {"kind": type(error).__name__, "app_id": error.app_id, "job_ids": job_ids}
    write_report(context["ti"].task_id, of_error)


with DAG("rungen_ways", schedule=None, start_date=START) as ways:
    run = RunGenRunJobOperator(task_id="run", input={"prompt": "a fox for {{ dag.dag_id }}", "width": 64})
    wait = RunGenJobSensor(task_id="wait", job_id=run.output, poke_interval=0.05, output_type="flux-schnell")
    one = RunGenCollectResultsOperator(task_id="one", job_id=run.output, **FAST)
    run >> wait >> one

    mapped = RunGenRunJobOperator.partial(
        task_id="mapped",
        app_id="llama-text",
        wait_for_completion=True,
        input_schema={"$schema": "https://json-schema.org/draft/2020-12/schema", "required": ["prompt"]},
        **FAST,
    ).expand(input=[{"prompt": word} for word in ("one", "two", "three")])
    wait_mapped = RunGenJobSensor(task_id="wait_mapped", job_id=mapped.output, deferrable=True)
    many = RunGenCollectResultsOperator(task_id="many", job_id=mapped.output, **FAST)
    mapped >> wait_mapped >> many

    each = RunGenCollectResultsOperator.partial(
        task_id="each", output_type={"type": "string"}, **FAST
    ).expand(job_id=mapped.output)
    cancel = RunGenCancelJobOperator(task_id="cancel", job_id=mapped.output)
    many >> cancel

    (
        report.override(task_id="report_one")("one", one.output)
        >> report.override(task_id="report_many")("many", many.output)
        >> report.override(task_id="report_each")("each", each.output)
        >> report.override(task_id="report_canceled")("canceled", cancel.output)
    )

with DAG(
    "rungen_failing", schedule=None, start_date=START, default_args={"on_failure_callback": report_failure}
) as failing:
    bad = RunGenRunJobOperator(
        task_id="bad", input={"prompt": "fail: out of memory"}, wait_for_completion=True, **FAST
    )
    collected_bad = RunGenCollectResultsOperator(task_id="collected_bad", job_id=bad.output, **FAST)
    submitted = RunGenRunJobOperator(task_id="submitted", input={"prompt": "fail: no luck"})
    RunGenJobSensor(task_id="wait_for_bad", job_id=submitted.output, poke_interval=0.05)
    fails = {"prompt": "bad", "emulator": {"fail": "no luck", "seconds": 0}}
    RunGenRunTableOperator(
        task_id="bad_table",
        app_id="llama-text",
        table=[fails, {"prompt": "good"}],
        destination=FOLDER,
        **FAST,
    )
    RunGenRunTableOperator(
        task_id="late",
        table=[{"prompt": "late", "emulator": {"seconds": 60}}] * 2,
        destination=FOLDER,
        execution_timeout=timedelta(seconds=2),
        **FAST,
    )

with DAG("rungen_scaled", schedule=None, start_date=START) as scaled:

    @task
    def fail() -> None:
        raise RuntimeError("in the middle")

    @task
    def never() -> None: ...

    with scaled_app("gpu", 2, poll_interval=0.05) as gpu:
        RunGenRunJobOperator.partial(task_id="paint", app_id="gpu", wait_for_completion=True, **FAST).expand(
            input=[{"prompt": "one"}, {"prompt": "two"}]
        )
        RunGenRunTableOperator(
            task_id="table",
            app_id="gpu",
            table=[{"id": number, "prompt": f"row {number}"} for number in range(2)],
            key="id",
            destination=FOLDER,
            results="{{ dag_run.conf['results'] }}",
            **FAST,
        )
        work = RunGenRunJobOperator(
            task_id="work",
            app_id="gpu",
            input={"prompt": "y", "emulator": {"seconds": 2}},
            wait_for_completion=True,
            deferrable=True,
            **FAST,
        )
        work >> fail() >> never()
    bill: Any = gpu.down.output
    report.override(task_id="report_bill")("bill", bill["usage"])
    with scaled_app("idle", 2, name="idle") as idle:
        never.override(task_id="never_too")()
    work >> fail.override(task_id="fail_before")() >> idle.up

with DAG("rungen_branches", schedule=None, start_date=START) as branches:

    @task.branch
    def choose(*task_ids: str) -> list[str]:
        return list(task_ids)

    # a branch that ends the block, and one in it, neither of which chooses a task of it
    with scaled_app("leaf", 1, name="leaf", poll_interval=0.05):
        last = RunGenRunJobOperator(task_id="paint_first", app_id="leaf", input={"prompt": "x"}, **FAST)
        quality: Any = choose.override(task_id="quality")("publish")
        last >> quality
    quality >> [never.override(task_id=name)() for name in ("publish", "alert")]
    # what follows a group follows the branch that ends it
    with scaled_app("group", 1, name="group", poll_interval=0.05), TaskGroup("check") as check:
        group_last = RunGenRunJobOperator(task_id="paint_too", app_id="group", input={"prompt": "x"}, **FAST)
        group_quality: Any = choose.override(task_id="quality")("publish_too")
        group_last >> group_quality
    check >> [never.override(task_id=name)() for name in ("publish_too", "alert_too")]
    with scaled_app("inner", 1, name="inner", poll_interval=0.05):
        which: Any = choose.override(task_id="which")()
        which >> RunGenRunJobOperator(task_id="paint_big", app_id="inner", input={"prompt": "x"}, **FAST)

with DAG("rungen_chained", schedule=None, start_date=START) as chained:
    CHAIN: dict[str, Any] = {
        "key": "id",
        "app_id": "llama-text",
        "destination": "{{ dag_run.conf['folder'] }}",
        "deferrable": True,
        **FAST,
    }
    first = RunGenRunTableOperator(
        task_id="first",
        table=SqlRows(
            "SELECT value AS id FROM json_each('[1, 2, 3]') WHERE value <> {{ dag_run.conf['without'] }}",
            conn_id="warehouse",
        ),
        to_input=lambda row: {"prompt": f"link {row['id']}"},
        results="{{ dag_run.conf['folder'] }}/first.parquet",
        **CHAIN,
    )
    second = RunGenRunTableOperator(
        task_id="second",
        table=first.output,
        where="completed",
        to_input=lambda row: {"prompt": f"link {row['id']}: {json.loads(row['result'])}"},
        results="{{ dag_run.conf['folder'] }}/second.csv",
        **CHAIN,
    )
    uri: Any = second.output

    third = RunGenRunTableOperator(
        task_id="third",
        table=uri["results"],
        to_input=lambda row: {"prompt": f"link {row['id']}: {json.loads(row['result'])}"},
        results="{{ dag_run.conf['folder'] }}/third.jsonl",
        **CHAIN,
    )
    mapped_tables = RunGenRunTableOperator.partial(
        task_id="mapped", table=lambda params, ti: [{"id": ti.map_index, "prompt": "link"}], **CHAIN
    ).expand(results=[f"{{{{ dag_run.conf['folder'] }}}}/{n}.csv" for n in range(2)])
    third >> mapped_tables


class RaisingAfterSubmission(RunGenRunJobOperator):
    """Raises after the submission in its first attempt."""

    def execute(self, context: Any) -> Any:
        job_id = super().execute(context)
        if context["ti"].try_number == 1:
            raise RuntimeError("the first attempt is lost")
        return job_id


with DAG("rungen_retried", schedule=None, start_date=START) as retried:
    RaisingAfterSubmission(
        task_id="paint",
        input={"prompt": "again"},
        retries=1,
        retry_delay=timedelta(0),
        **FAST,
    )
