"""Pages with made-up tasks and jobs. To look at them: ``python tests/pages/samples.py FOLDER``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pendulum
from rungen_emulator.png import draw

from airflow_provider_rungen.client.models import App, Job, JobStatus
from airflow_provider_rungen.client.money import Cost
from airflow_provider_rungen.pages import render
from airflow_provider_rungen.pages.models import (
    ContactSheet,
    FailureGroup,
    JobView,
    OutputFile,
    Pager,
    Progress,
    find_facts,
)
from airflow_provider_rungen.plugins.task_record import FailureXCom, PageXCom, TaskRecord

NOON = pendulum.datetime(2026, 3, 4, 12)
THINGS = ("an oak table", "a wicker chair", "a brass lamp", "a wool rug", "a walnut shelf", "a linen sofa")
SCENES = (
    "on a terrace in the morning",
    "in a bright studio",
    "in front of a green wall, soft light from the left",
)
#: What a model, or somebody who writes prompts, may try.
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}{% raw %}\u202etxt.exe'


def prompt(index: int) -> str:
    return f"{THINGS[index % len(THINGS)]} {SCENES[index % len(SCENES)]}, product photo no. {index}"


def picture(index: int, number: int = 0) -> OutputFile:
    return OutputFile(
        name=f"{number}-image.png",
        href=f"files/{index}-{number}.png",
        kind="image",
        size=24_310 + index,
        width=1024,
        height=1024 if index % 5 else 768,
    )


def done(index: int, *, outputs: int = 1, **changes: Any) -> JobView:
    given = {"prompt": prompt(index), "width": 1024, "height": 1024, "seed": 4000 + index}
    job = JobView(
        index=index,
        status="completed",
        key=f"SKU-{1000 + index}",
        job_id=f"15df{index:04x}-7c1e-4a55-9d0e-aa61f8a0c0de",
        seconds=2.4 + index % 7 / 3,
        cost=Cost(Decimal("0.00073333"), "USD"),
        prompt=prompt(index),
        input=given,
        facts=find_facts(given),
        outputs=[picture(index, number) for number in range(outputs)],
        href=f"job.html?index={index}",
    )
    return replace(job, **changes)


def failed(index: int, error: str = "out of memory") -> JobView:
    return done(index, outputs=0, status="failed", error=error, seconds=None)


def text_job(index: int) -> JobView:
    thing = THINGS[index % len(THINGS)]
    answer = f"Give {thing} a place of its own, solid and made to last.\n\nCare: dust with a dry cloth."
    return done(index, outputs=0, prompt=f"Describe {thing} in two sentences.", text=answer)


MARKDOWN = "# An oak table\n\nIt is **solid**.\n\n- made to last\n- easy to clean"
JSON = '{"title": "An oak table", "tags": ["wood", "kitchen"], "price": 120, "size": {"width": 90}}'


@dataclass
class SampleUrls:
    """The addresses of the samples, in one folder."""

    root: str = ""

    @property
    def overview(self) -> str:
        return f"{self.root}apps.html"

    def asset(self, name: str) -> str:
        return name

    def task(self, task: TaskRecord, *below: str) -> str:
        pages = {"progress": "progress.json", "apps": "app.html", "runs": "run.html"}
        return self.root + (pages[below[0]] if below else "task.html")

    def of_run(self, task: TaskRecord, task_id: str) -> str:
        return self.task(task)

    def run(self, task: TaskRecord, task_id: str = "") -> str:
        return f"{self.root}run.html"

    def job(self, task: TaskRecord, job_id: str) -> str:
        return f"{self.root}job.html"

    def app(self, conn_id: str, app_id: str) -> str:
        return f"{self.root}app.html"

    def airflow(self, *segments: str) -> str:
        return f"{self.root}/{'/'.join(segments)}"

    def in_airflow(self, task: TaskRecord) -> str:
        return f"{self.root}/dags/{task.dag_id}"


@dataclass
class SampleQuery:
    """Which jobs a sample shows."""

    status: str = ""
    text: str = ""
    sort: str = ""
    jobs: Sequence[str] = ()

    @property
    def parameters(self) -> Mapping[str, str]:
        return {"text": self.text} if self.text else {}

    def url(self, **changes: str) -> str:
        return f"?{urlencode({**self.parameters, **changes})}"


URLS = SampleUrls()
HOSTILE_URLS = SampleUrls("javascript:alert(7)")
PAGE = PageXCom(
    connection="rungen_default", app="flux-schnell", results="s3://bucket/catalog/results.parquet"
)
TASK = TaskRecord(
    dag_id="rungen_catalog",
    task_id="take_pictures",
    run_id="scheduled__2026-03-04T02:00:00+00:00",
    state="success",
    operator="RunGenRunTableOperator",
    page=PAGE,
    usage={"jobs": 200, "execution_seconds": "492.1", "seconds_per_job": "2.4"},
    bill={"worker_seconds": "2040.000", "price": "1.10 USD an hour", "cost": "0.62", "currency": "USD"},
)
RUNNING = replace(TASK, state="deferred", try_number=2, usage={}, bill={}, page=PageXCom(app="flux-schnell"))


def task_page(jobs: Sequence[JobView], task: TaskRecord = TASK, **changes: Any) -> str:
    count = len(jobs)
    values: dict[str, Any] = {
        "task": task,
        "urls": URLS,
        "progress": Progress(
            total=count,
            completed=sum(job.status == "completed" for job in jobs),
            failed=sum(job.status == "failed" for job in jobs),
        ),
        "jobs": jobs,
        "query": SampleQuery(),
        "found": count,
        "columns": ("sku", "color"),
        "pager": None,
        "failures": (),
        "failures_scope": "",
        "failure": None,
        "outlook": (),
        "is_reported": True,
        "may_run_elsewhere": False,
        "billing": None,
        "still_billing": (),
        "notice": "",
    }
    return render.render_template("task.html", **values | changes)


def run_page(
    jobs: Sequence[JobView], task: TaskRecord = TASK, urls: SampleUrls = URLS, text: str = ""
) -> str:
    second = replace(task, task_id="describe", name="Describe", state="failed", map_index=3)
    return render.render_template(
        "run.html",
        urls=urls,
        jobs=jobs,
        query=SampleQuery(text=text),
        found=len(jobs),
        columns=[text] * bool(text),
        pager=None,
        tasks=[task, replace(second, failure=FailureXCom(try_number=1, error=text or "out of memory"))],
        are_runs=False,
        statuses=Counter(job.status for job in jobs),
        reused=0,
        costs=["about 0.42 USD"],
        billings=[
            {"task": task, "down": text, "workers": 2, "last": 2, "an_hour": ""}
            | {"is_late": False, "is_left": True}
        ],
        notice=text,
    )


def group(count: int, reason: str, *examples: JobView) -> FailureGroup:
    return FailureGroup(reason=reason, count=count, examples=list(examples))


MOVING = Progress(total=12, completed=7, failed=1, running=3, queued=1, is_moving=True)


def moving() -> str:
    jobs = [done(index) for index in range(8)]
    states = {8: "running", 9: "running", 10: "running", 11: "queued"}
    jobs += [done(index, outputs=0, status=state, seconds=None) for index, state in states.items()]
    jobs[3] = failed(3)
    return task_page(jobs, RUNNING, progress=MOVING, failures=[group(1, "out of memory", jobs[3])])


def large() -> str:
    jobs = [done(index, reused=index % 3 == 0) for index in range(200)]
    progress = Progress(total=10_000, completed=9_962, failed=38, reused=3_321)
    failures = [
        group(31, "out of memory", *map(failed, range(17, 417, 100))),
        group(7, "height must be a multiple of 8", failed(5), failed(9)),
    ]
    pager = Pager(page=2, pages=50, previous_href="task.html?page=1", next_href="task.html?page=3")
    return task_page(jobs, progress=progress, failures=failures, pager=pager)


def hostile_job() -> JobView:
    files = [
        OutputFile(name=HOSTILE, href="files/0.svg"),
        OutputFile(name="run.html", href="javascript:alert(3)"),
        OutputFile(name="a.png", href=" jav\tascript:alert(4)", kind="image"),
        OutputFile(name="b.png", href="files/0-0.png", kind="image"),
    ]
    texts: Any = dict.fromkeys(("status", "key", "job_id", "text"), HOSTILE)
    texts |= {"error": HOSTILE * 20, "prompt": HOSTILE * 20 + "\ud800", "href": "javascript:alert(5)"}
    return JobView(index=0, **texts, input={HOSTILE: HOSTILE}, facts=[(HOSTILE, HOSTILE)], outputs=files)


_TEXTS: Any = dict.fromkeys(("dag_id", "task_id", "run_id", "state", "operator"), HOSTILE)
HOSTILE_TASK = TaskRecord(
    **_TEXTS,
    page=PageXCom(app=HOSTILE, connection=HOSTILE, results=HOSTILE, destination=HOSTILE),
    usage={HOSTILE: HOSTILE},
    bill={HOSTILE: HOSTILE},
)


def hostile() -> str:
    job = hostile_job()
    failure = FailureXCom(try_number=1, error=HOSTILE, hint=HOSTILE, inputs=1)
    return task_page(
        [job, failed(1, "x" * 4000)],
        HOSTILE_TASK,
        urls=HOSTILE_URLS,
        failure=failure,
        cost=HOSTILE,
        billing={
            "task": HOSTILE_TASK,
            "workers": 2,
            "is_late": True,
            "is_retried": False,
            **dict.fromkeys(("down", "an_hour", "so_far"), HOSTILE),
        },
        still_billing=[HOSTILE],
        failures=[group(1, HOSTILE, job)],
        notice=HOSTILE,
        query=SampleQuery(text=HOSTILE),
        columns=[HOSTILE],
    )


def job_page(job: JobView, result: Any = None, **changes: Any) -> str:
    values: dict[str, Any] = {
        "task": TASK,
        "urls": URLS,
        "job": job,
        "live": Job(id=job.job_id, app_id="flux-schnell", status=JobStatus.COMPLETED, created_at=NOON),
        "pager": None,
        "clear": "all 12 inputs",
        "result": result,
        "notice": "",
    }
    return render.render_template("job.html", **values | changes)


def app(index: int = 0, *, workers: int = 2, status: str = "RUNNING", **counts: int) -> App:
    return App(
        id=("flux-schnell", "llama-3-8b", "whisper-large", "sdxl-lora")[index % 4],
        name=("Catalog pictures", "Descriptions", "", "Campaign")[index % 4],
        description="FLUX Schnell with the studio's LoRA.",
        status=status,
        configuration={"active_workers": workers, "gpu_tier": "PERFORMANCE"},
        jobs={"completed": 10_482, "failed": 38, "in_progress": 2, "in_queue": 417, "retried": 3},
        workers=counts,
    )


def app_page() -> str:
    shown = app(ready=1, running=1, initializing=0)
    return render.render_template(
        "app.html", urls=URLS, app=shown, conn_id="rungen_default", task=TASK, notice="", an_hour="2.40 USD"
    )


def apps_page() -> str:
    stopped = [app(index, workers=0, status="STOPPED") for index in (2, 3)]
    starting = app(1, workers=1, status="INITIALIZING", initializing=1, ready=0)
    notice = "RunGen did not answer in time, so that live figures are missing."
    apps = [app(0, ready=2, running=1, idle=1), starting, *stopped]
    shown = [{"app": each, "conn_ids": ["rungen_default", "rungen_test"], "an_hour": ""} for each in apps]
    shown[0]["an_hour"] = "2.40 USD"
    notices = {"rungen_default": "", "rungen_test": "", "rungen_marketing": notice}
    return render.render_template(
        "apps.html", urls=URLS, rows=shown, notices=notices, an_hour=["2.40 USD"], priced=2
    )


def contact_sheet() -> ContactSheet:
    counts = [5 if index == 2 else 1 for index in range(30)]
    jobs = [done(index, href="", reused=index % 4 == 0, outputs=n) for index, n in enumerate(counts)]
    jobs[6] = failed(6)
    return ContactSheet(
        title="take_pictures",
        facts=[("DAG", "rungen_catalog"), ("app", "flux-schnell"), ("written", "2026-03-04 02:14 UTC")],
        progress=Progress(total=30, completed=29, failed=1, reused=8),
        jobs=jobs,
        failures=[group(1, "out of memory", jobs[6])],
        pager=Pager(page=1, pages=3, next_href="index.3fa9.2.html"),
    )


def mixed() -> str:
    sound = OutputFile(name="0-speech.mp3", href="files/0.mp3", kind="audio", size=88_000)
    report = OutputFile(name="1-report.pdf", href="files/1.pdf", size=1_250_000)
    return task_page(
        [
            text_job(0),
            replace(text_job(1), outputs=[sound, report]),
            failed(2),
            text_job(3),
            replace(text_job(4), text=MARKDOWN),
            replace(text_job(5), text=JSON),
        ]
    )


def pages() -> Mapping[str, Callable[[], str]]:
    """Return what makes the HTML of each sample, by name."""
    result = {"images": [{"image": "s3://bucket/catalog/15df/0-image.png"}]}
    down = "The store s3://bucket/catalog does not answer. Reload the page to try again."
    return {
        "task": moving,
        "large": large,
        "empty": lambda: task_page([], RUNNING, progress=Progress(total=0, is_moving=True)),
        "texts": mixed,
        "run": lambda: run_page([done(0), text_job(1), failed(2), done(3)]),
        "run_hostile": lambda: run_page([hostile_job()], HOSTILE_TASK, HOSTILE_URLS, HOSTILE),
        "hostile": hostile,
        "down": lambda: task_page([], notice=down),
        "job": lambda: job_page(done(7), result),
        "job_failed": lambda: job_page(failed(7)),
        "job_hostile": lambda: job_page(hostile_job(), HOSTILE, task=HOSTILE_TASK, urls=HOSTILE_URLS),
        "app": app_page,
        "apps": apps_page,
        "contact_sheet": lambda: render.render(contact_sheet()),
    }


def main(folder: Path) -> None:
    (folder / "files").mkdir(parents=True, exist_ok=True)
    for name, make in pages().items():
        (folder / f"{name}.html").write_text(make())
    for name in render.ASSETS:
        (folder / name).write_text(render.read_asset(name))
    for index, number in [*((index, 0) for index in range(200)), *((2, number) for number in range(1, 5))]:
        drawn = draw(f"{prompt(index)} {number or ''}", 1024, 1024 if index % 5 else 768)
        (folder / "files" / f"{index}-{number}.png").write_bytes(drawn)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
