"""Draws the plots of the benchmark page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.charts import Bar, Bars, Legend, Line, Lines, Panel, chart
from bench.contenders import OURS, POOLED, SESSION
from bench.imports import HTTP, OPERATOR
from bench.real_airflow import DEFERRABLE, TASK_EACH
from bench.rows import growth, of
from bench.watching import AT_ONCE, QUEUE

_LOOKS = {OURS: "ours", POOLED: "other", SESSION: "third"}
_NAMES = {
    OURS: "this provider",
    POOLED: "each job polled, one session",
    SESSION: "each job polled, session per poll",
}
_ORDERS = {QUEUE: "Jobs end in their order", AT_ONCE: "Jobs end in any order"}
_LEGEND = {_LOOKS[kind]: name for kind, name in _NAMES.items()}


def draw(measured: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Draw the plots that have figures, and return their files and captions, the headline first."""
    drawn = []
    for file, caption, panels in _plots(measured):
        (folder / file).write_text(chart(caption, panels))
        drawn.append((file, caption))
    return drawn


def _plots(measured: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Panel]]]:
    if "airflow" in measured:
        jobs = measured["airflow"]["jobs"]
        yield "headline.svg", f"A DAG that runs {jobs:,} jobs", [_headline(measured["airflow"])]
    if "watch" in measured:
        runs = measured["watch"]
        yield "requests.svg", "Requests to the service while 1,000 jobs are waited for", _requests(runs)
        yield "latency.svg", "How long after a job's end its event comes", _late(runs)
        yield "cost.svg", "Processor time and memory of the waiting process", _cost(runs)
    if "sizes" in measured:
        caption = "Requests per job with more jobs, and with counters that lie"
        yield "sizes.svg", caption, _sizes(measured["sizes"])
    if "submits" in measured and "imports" in measured:
        panels = _start(measured["submits"], measured["imports"])
        yield "start.svg", "Submitting 1,000 jobs, and importing the operators", panels


def _headline(measured: Mapping[str, Any]) -> Bars:
    jobs, seconds = measured["jobs"], measured["seconds"]
    ours = median(seconds[DEFERRABLE])
    each = median(seconds[TASK_EACH]) * jobs / measured["tasks"]
    return Bars(
        f"{jobs:,} jobs of {measured['job_seconds']:g} s, from trigger to success",
        [
            Bar("one RunGenRunBatchOperator, which waits for all", ours, f"{ours:.0f} s", "ours"),
            Bar(f"{jobs:,} mapped HttpOperators, which only submit", each, f"{each:.0f} s", "other"),
        ],
    )


def _requests(runs: Sequence[Mapping[str, Any]]) -> list[Panel]:
    jobs = runs[0]["jobs"]
    plots = [
        Lines(
            title,
            [Line(_run(runs, kind, order)["requests_over_time"], _LOOKS[kind]) for kind in _NAMES],
            "seconds",
            f"requests so far, {jobs:,} jobs",
            y_aim=1.1 * jobs,
        )
        for order, title in _ORDERS.items()
    ]
    return [*plots, Legend(_LEGEND | {"aim": "aim: 1.1 requests a job"})]


def _run(runs: Sequence[Mapping[str, Any]], kind: str, order: str) -> Mapping[str, Any]:
    return next(run for run in runs if run["kind"] == kind and run["order"] == order)


def _late(runs: Sequence[Mapping[str, Any]]) -> list[Panel]:
    panels: list[Panel] = []
    aim = runs[0]["poll_interval"] + 1
    for order, title in _ORDERS.items():
        lines = []
        for kind in _NAMES:
            rounds = [run["late"] for run in runs if run["kind"] == kind and run["order"] == order]
            middle = [median(values) for values in zip(*rounds, strict=True)]
            lines.append(Line([(seconds, share) for share, seconds in enumerate(middle)], _LOOKS[kind]))
        panels.append(
            Lines(title, lines, "seconds from the job's end to the event", "% of the jobs", x_aim=aim)
        )
    return [*panels, Legend(_LEGEND | {"aim": f"aim: 95 % within {aim:g} s"})]


def _cost(runs: Sequence[Mapping[str, Any]]) -> list[Panel]:
    panels: list[Panel] = []
    for order, title in _ORDERS.items():
        seconds = {kind: of(runs, "cpu", kind=kind, order=order) for kind in _NAMES}
        bars = [Bar(_NAMES[kind], value, f"{value:.2f} s", _LOOKS[kind]) for kind, value in seconds.items()]
        panels.append(Bars(f"Processor time. {title}", bars, aim=seconds[SESSION] / 10))
    grown = {kind: growth(runs, "before", kind) / 1e6 for kind in _NAMES}
    bars = [Bar(_NAMES[kind], value, f"{value:.1f} MB", _LOOKS[kind]) for kind, value in grown.items()]
    panels += [Bars("Memory, imports included", bars), Legend({"aim": "aim: a tenth of session per poll"})]
    return panels


def _sizes(runs: Sequence[Mapping[str, Any]]) -> list[Panel]:
    honest = sorted((run for run in runs if run["counters"] == "honest"), key=lambda run: run["jobs"])
    lying = sorted((run for run in runs if run["jobs"] == 1000), key=lambda run: run["counters"] != "honest")
    return [
        Bars("Requests per job", [_per_job(f"{run['jobs']:,} jobs", run) for run in honest]),
        Bars(
            "Requests per job, 1,000 jobs",
            [
                _per_job(f"counters {run['counters']}, 95 % within {run['late'][95]:.0f} s", run)
                for run in lying
            ],
        ),
    ]


def _per_job(name: str, run: Mapping[str, Any]) -> Bar:
    return Bar(name, run["requests_per_job"], f"{run['requests_per_job']:.2f}", "ours")


def _start(submits: Mapping[str, Any], imports: Mapping[str, Any]) -> list[Panel]:
    kinds = {
        "bare": ("a bare aiohttp loop", "third"),
        "ours": ("this provider", "ours"),
        "one by one": ("one by one", "other"),
    }
    bars = []
    for kind, (name, look) in kinds.items():
        seconds = median(submits["seconds"][kind])
        bars.append(Bar(name, seconds, f"{seconds:.1f} s", look))
    imported = []
    for temperature, words in (("warm", "with bytecode"), ("cold", "without bytecode")):
        for module, name, look in (
            (OPERATOR, "RunGenRunJobOperator", "ours"),
            (HTTP, "HttpOperator", "other"),
        ):
            value = median(imports[temperature][module]) * 1000
            imported.append(Bar(f"{name}, {words}", value, f"{value:.0f} ms", look))
    return [
        Bars(f"{submits['jobs']:,} submissions, {submits['latency'] * 1000:g} ms away", bars),
        Bars("Import on top of airflow.sdk", imported),
    ]
