"""Draws the plots of the benchmark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from bench.contenders import OURS, POOLED, SESSION
from bench.imports import HTTP, OPERATOR
from bench.rows import growth, of
from bench.watching import AT_ONCE, QUEUE

# a palette for color-blind readers
_COLORS = {OURS: "#0072B2", POOLED: "#E69F00", SESSION: "#999999"}
_NAMES = {
    OURS: "this provider",
    POOLED: "each job polled, one session",
    SESSION: "each job polled, session per poll",
}
_ORDERS = {QUEUE: "jobs end in their order", AT_ONCE: "jobs end in any order"}
_KINDS = (OURS, POOLED, SESSION)
# the last two lines often coincide
_LINES = {OURS: "-", POOLED: "-", SESSION: ":"}
_AIM = {"color": "#D55E00", "linestyle": "--", "linewidth": 1.2}


def draw(measured: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Draw the plots that have figures, and return their files and captions."""
    pyplot.rcParams.update(
        {
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "legend.frameon": False,
        }
    )
    plots = []
    if "watch" in measured:
        _requests(measured["watch"], folder / "requests.png")
        _late(measured["watch"], folder / "latency.png")
        _cost(measured["watch"], folder / "cost.png")
        plots += [
            ("requests.png", "Requests to the service while 1,000 jobs are waited for"),
            ("latency.png", "How long after a job's end its event comes"),
            ("cost.png", "Processor time and memory of the waiting process"),
        ]
    if "sizes" in measured:
        _sizes(measured["sizes"], folder / "sizes.png")
        plots.append(("sizes.png", "Requests per job with more jobs, and with counters that lie"))
    if "submits" in measured and "imports" in measured:
        _start(measured["submits"], measured["imports"], folder / "start.png")
        plots.append(("start.png", "Submitting 1,000 jobs, and importing the operators"))
    return plots


def _save(path: Path) -> None:
    pyplot.savefig(path, metadata={"Software": None})
    pyplot.close()


def _bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], colors: Sequence[str], form: str
) -> None:
    bars = axes.barh(names, values, color=colors, height=0.6)
    plain = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axes.bar_label(bars, [form.format(value) for value in values], padding=3, bbox=plain)
    if not axes.yaxis_inverted():  # the axis may be shared
        axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.22)


def _requests(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    figure, both = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    jobs = runs[0]["jobs"]
    for axes, (order, title) in zip(both, _ORDERS.items(), strict=True):
        for kind in _KINDS:
            run = next(run for run in runs if run["kind"] == kind and run["order"] == order)
            at, count = zip(*run["requests_over_time"], strict=True)
            axes.plot(at, count, _LINES[kind], color=_COLORS[kind], label=_NAMES[kind], linewidth=2)
        axes.axhline(1.1 * jobs, label="aim: 1.1 a job", **_AIM)
        axes.set_title(title)
        axes.set_xlabel("seconds")
    both[0].set_ylim(0)
    both[0].set_ylabel(f"requests so far, {jobs:,} jobs")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    _save(path)


def _late(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    figure, both = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axes, (order, title) in zip(both, _ORDERS.items(), strict=True):
        for kind in _KINDS:
            rounds = [run["late"] for run in runs if run["kind"] == kind and run["order"] == order]
            middle = [median(values) for values in zip(*rounds, strict=True)]
            axes.plot(middle, range(101), _LINES[kind], color=_COLORS[kind], label=_NAMES[kind], linewidth=2)
        axes.axvline(runs[0]["poll_interval"] + 1, label="aim for 95 %", **_AIM)
        axes.axhline(95, color="#cccccc", linewidth=0.8, zorder=0)
        axes.set_title(title)
        axes.set_xlabel("seconds from the job's end to the event")
        axes.set_xlim(0)
    both[0].set_ylim(0, 101)
    both[0].set_ylabel("% of the jobs")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    _save(path)


def _cost(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    _, (left, middle, right) = pyplot.subplots(1, 3, figsize=(11, 2.6), sharey=True)
    names = [_NAMES[kind].replace(", ", ",\n") for kind in _KINDS]
    colors = [_COLORS[kind] for kind in _KINDS]
    for axes, (order, title) in zip((left, middle), _ORDERS.items(), strict=True):
        seconds = [of(runs, "cpu", kind=kind, order=order) for kind in _KINDS]
        _bars(axes, names, seconds, colors, "{:.2f} s")
        axes.axvline(seconds[-1] / 10, **_AIM)
        axes.set_title(f"processor time, {title}")
    _bars(right, names, [growth(runs, "before", kind) / 1e6 for kind in _KINDS], colors, "{:.1f} MB")
    right.set_title("memory, imports included")
    _save(path)


def _sizes(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    _, (left, right) = pyplot.subplots(1, 2, figsize=(9, 2.8))
    honest = sorted((run for run in runs if run["counters"] == "honest"), key=lambda run: run["jobs"])
    jobs = [run["jobs"] for run in honest]
    left.plot(jobs, [run["requests_per_job"] for run in honest], "o-", color=_COLORS[OURS])
    for run in honest:
        place = (run["jobs"], run["requests_per_job"])
        left.annotate(f"{place[1]:.2f}", place, (0, 7), textcoords="offset points", ha="center")
    left.set_xscale("log")
    left.set_xticks(jobs, [f"{count:,}" for count in jobs])
    left.minorticks_off()
    left.set_ylim(0, 2)
    left.set_xlabel("jobs")
    left.set_title("requests per job")
    told = [run for run in runs if run["jobs"] == 1000]
    told.sort(key=lambda run: run["counters"] != "honest")
    names = [f"counters {run['counters']},\n95 % within {run['late'][95]:.0f} s" for run in told]
    _bars(right, names, [run["requests_per_job"] for run in told], [_COLORS[OURS]] * len(told), "{:.2f}")
    right.set_title("requests per job, 1,000 jobs")
    _save(path)


def _start(submits: Mapping[str, Any], imports: Mapping[str, Any], path: Path) -> None:
    _, (left, right) = pyplot.subplots(1, 2, figsize=(9, 2.4))
    names = {"bare": "a bare aiohttp loop", "ours": "this provider", "one by one": "one by one"}
    colors = {"bare": "#999999", "ours": _COLORS[OURS], "one by one": _COLORS[POOLED]}
    seconds = {kind: median(submits["seconds"][kind]) for kind in names}
    _bars(left, list(names.values()), list(seconds.values()), list(colors.values()), "{:.1f} s")
    left.set_title(f"{submits['jobs']:,} submissions, {submits['latency'] * 1000:g} ms away")
    lines = [
        (f"{words}, {name}", median(imports[temperature][module]) * 1000, color)
        for temperature, words in (("warm", "bytecode"), ("cold", "no bytecode"))
        for module, name, color in (
            (OPERATOR, "RunGenRunJobOperator", _COLORS[OURS]),
            (HTTP, "HttpOperator", _COLORS[POOLED]),
        )
    ]
    labels, values, shades = zip(*lines, strict=True)
    _bars(right, labels, values, shades, "{:.0f} ms")
    right.set_title("import on top of airflow.sdk")
    _save(path)
