"""Makes the rows of the table from the measurements: a figure, what it is compared with, and its target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

from bench.contenders import OURS, POOLED, SESSION
from bench.imports import ALL, HTTP, OPERATOR, PACKAGE
from bench.real_airflow import DEFERRABLE, DEFERRED, IN_PLACE, JOB, JOB_DEFERRED, JOB_TO_THE_END, TASK_EACH
from bench.row import Row, make_row
from bench.sensors import DEFERRABLE as SENSORS_DEFERRABLE
from bench.sensors import POKE, STRAIGHT
from bench.table_rows import ledger_rows, reader_rows, table_rows
from bench.watching import AT_ONCE, QUEUE

_ORDERS = {QUEUE: "ending in their order", AT_ONCE: "ending in any order"}


def make_rows(measured: dict[str, Any]) -> list[Row]:
    """Return the rows of all measurements."""
    makers: dict[str, Callable[[Any], Iterable[Row]]] = {
        "watch": _watch,
        "sizes": _sizes,
        "submits": _submits,
        "imports": _imports,
        "blocked": _blocked,
        "airflow": _airflow,
        "sensors": _sensors,
        "reader": reader_rows,
        "tables": table_rows,
        "ledger": ledger_rows,
    }
    return [row for name, make in makers.items() if name in measured for row in make(measured[name])]


def of(runs: Iterable[Mapping[str, Any]], key: str, **wanted: Any) -> float:
    """Return the median of a figure over the matching runs."""
    values: list[float] = [
        run[key] for run in runs if all(run[name] == value for name, value in wanted.items())
    ]
    return median(values)


def late(runs: Iterable[Mapping[str, Any]], percentile: int, **wanted: Any) -> float:
    """Return the median of a percentile of the time from a job's end to its event, over the matching runs."""
    percentiles = [{**run, "percentile": run["late"][percentile]} for run in runs]
    return of(percentiles, "percentile", **wanted)


def growth(runs: Iterable[Mapping[str, Any]], since: str, kind: str) -> float:
    """Return the bytes that the process grew by, from one of its stages until all triggers wait."""
    grown: list[float] = [
        run["memory_waiting"] - run[f"memory_{since}"] for run in runs if run["kind"] == kind
    ]
    return median(grown)


def _watch(runs: list[dict[str, Any]]) -> Iterable[Row]:
    jobs, interval = runs[0]["jobs"], runs[0]["poll_interval"]
    for order, words in _ORDERS.items():
        ours = of(runs, "requests_per_job", kind=OURS, order=order)
        pooled = of(runs, "requests_per_job", kind=POOLED, order=order)
        what = f"requests per job, {jobs:,} jobs of 10–60 s {words}, watched at {interval:g} s"
        yield make_row(
            f"requests {order}", what, f"{ours:.2f}", f"each job polled: {pooled:.2f}", ("≤ 1.1", ours <= 1.1)
        )
    for order, words in _ORDERS.items():
        ours, pooled, session = (of(runs, "cpu", kind=kind, order=order) for kind in (OURS, POOLED, SESSION))
        yield make_row(
            f"cpu {order}",
            f"processor time for the same, {words}",
            f"{ours:.2f} s ({ours / session:.2f} ×)",
            f"session per poll: {session:.2f} s; one session: {pooled:.2f} s",
            ("≤ a tenth of session per poll", ours <= session / 10),
        )
    for order, words in _ORDERS.items():
        ours, pooled = (late(runs, 95, kind=kind, order=order) for kind in (OURS, POOLED))
        yield make_row(
            f"late {order}",
            f"from a job's end to its event, 95th percentile, {words}",
            f"{ours:.2f} s",
            f"each job polled: {pooled:.2f} s",
            (f"≤ {interval + 1:g} s", ours <= interval + 1),
        )
    total = {kind: growth(runs, "before", kind) for kind in (OURS, POOLED)}
    each = {kind: growth(runs, "ready", kind) / jobs for kind in (OURS, POOLED)}
    yield make_row(
        "memory",
        f"memory the triggerer grows by, {jobs:,} tasks waiting",
        f"{total[OURS] / 1e6:.1f} MB ({each[OURS] / 1e3:.1f} kB a task, the rest is imports)",
        f"each job polled: {total[POOLED] / 1e6:.1f} MB ({each[POOLED] / 1e3:.1f} kB a task)",
        ("less", total[OURS] < total[POOLED]),
    )


def _sizes(runs: list[dict[str, Any]]) -> Iterable[Row]:
    honest = sorted((run for run in runs if run["counters"] == "honest"), key=lambda run: run["jobs"])
    figures = ", ".join(f"{run['requests_per_job']:.2f} ({run['jobs']:,} jobs)" for run in honest)
    # with few jobs, the request for the counters in each round weighs more
    flat = honest[-1]["requests_per_job"] <= honest[0]["requests_per_job"]
    yield make_row("sizes", "requests per job with more and more jobs", figures, "itself", ("flat", flat))
    percentiles = ", ".join(f"{run['late'][95]:.1f} s" for run in honest)
    is_soon = all(run["late"][95] <= run["poll_interval"] + 1 for run in honest)
    yield make_row(
        "sizes late", "end to event, 95th percentile, for the same", percentiles, "itself", ("≤ 6 s", is_soon)
    )
    lies = [run for run in runs if run["counters"] != "honest"]
    outcomes = "; ".join(
        f"{run['counters']}: {', '.join(f'{count:,} {word}' for word, count in run['outcomes'].items())}, "
        f"{run['requests_per_job']:.2f} requests per job, 95 % within {run['late'][95]:.0f} s"
        for run in lies
    )
    is_same = all(run["outcomes"] == {"over": run["jobs"]} for run in lies)
    yield make_row("lies", "counters that lie", outcomes, "itself", ("outcome the same", is_same))


def _submits(measured: dict[str, Any]) -> Iterable[Row]:
    ours, bare, slow = (median(measured["seconds"][kind]) for kind in ("ours", "bare", "one by one"))
    yield make_row(
        "submits",
        f"{measured['jobs']:,} submissions, {measured['latency'] * 1000:g} ms away, "
        f"{measured['at_a_time']} at a time",
        f"{ours:.2f} s ({ours / bare:.2f} ×)",
        f"a bare aiohttp loop, the limit: {bare:.2f} s; one by one: {slow:.0f} s",
        ("≤ 1.15 × the limit", ours <= 1.15 * bare),
    )


def _imports(measured: dict[str, Any]) -> Iterable[Row]:
    for temperature, words in (("warm", "with bytecode"), ("cold", "without bytecode")):
        took = {statement: median(each) * 1000 for statement, each in measured[temperature].items()}
        share = {statement: each / took[HTTP] for statement, each in took.items()}
        for name, what, statement in (
            ("import", "`airflow_provider_rungen.operators`", PACKAGE),
            ("import operator", "`RunGenRunJobOperator` from it", OPERATOR),
            ("import operator", "all operators from it", ALL),
        ):
            yield make_row(
                name,
                f"import of {what} on top of `airflow.sdk`, {words}",
                f"{took[statement]:.1f} ms ({share[statement]:.2f} ×)",
                f"`HttpOperator`: {took[HTTP]:.1f} ms",
                ("≤ a tenth", share[statement] <= 0.1),
            )


def _blocked(runs: list[dict[str, Any]]) -> Iterable[Row]:
    loads = {
        "gap": f"largest gap of a 5 ms heartbeat, {runs[0]['jobs']:,} triggers wait and finish in any order",
        "gap 20 MB": "the same, a job's result is one text of 20 MB",
        "gap numbers": "the same, a job's answer is 20 MB of numbers",
    }
    for name, what in loads.items():
        ours, pooled = (of(runs, "gap", kind=kind, load=name) * 1000 for kind in (OURS, POOLED))
        idle = of(runs, "idle_gap", kind=OURS, load=name) * 1000
        beside = f"each job polled: {pooled:.0f} ms; nothing else: {idle:.0f} ms"
        yield make_row(name, what, f"{ours:.0f} ms", beside, ("≤ 50 ms", ours <= 50))


def _airflow(measured: dict[str, Any]) -> Iterable[Row]:
    seconds, jobs = measured["seconds"], measured["jobs"]
    some = median(seconds[TASK_EACH])
    beside = (
        f"a mapped `HttpOperator` each, which only submits: {some * jobs / measured['tasks']:,.0f} s "
        f"({measured['tasks']} took {some:.0f} s)"
    )
    for dag_id, words in (
        (IN_PLACE, "on a worker"),
        (DEFERRABLE, "deferrable"),
        (DEFERRED, "deferred at once"),
    ):
        what = f"a DAG with one batch of {jobs:,} jobs of {measured['job_seconds']:g} s, {words}"
        if dag_id in seconds:
            ours, times = median(seconds[dag_id]), median(measured["deferrals"][dag_id])
            figure = f"{ours:.1f} s, {'deferred' if times else 'not deferred'}"
            yield make_row("batch", what, figure, beside, ("≤ 20 s", ours <= 20))
        else:
            unmeasured = "not measured: there is no `RunGenRunBatchOperator` yet"
            yield Row("batch", what, unmeasured, beside, "≤ 20 s", None)
    slow = median(seconds[JOB_DEFERRED])
    starts = measured["worker_starts"]
    for dag_id, name, words in (
        (JOB, "one job", "as it comes"),
        (JOB_TO_THE_END, "one job to the end", "deferred at once, `end_from_trigger`"),
    ):
        ours, begun = median(seconds[dag_id]), max(starts[dag_id])
        yield make_row(
            name,
            f"one 2 s job, deferrable, from trigger to success, {words}",
            f"{ours:.1f} s ({ours / slow:.2f} ×), {begun} {'start' if begun == 1 else 'starts'} of a worker",
            f"deferred at once, ended on a worker: {slow:.1f} s, {max(starts[JOB_DEFERRED])} starts",
            ("≤ 0.6 ×, one start", ours <= 0.6 * slow and begun == 1),
        )


def _sensors(measured: dict[str, Any]) -> Iterable[Row]:
    poke, deferrable, straight = (
        median(measured["cpu"][dag_id]) for dag_id in (POKE, SENSORS_DEFERRABLE, STRAIGHT)
    )
    least = min(poke, deferrable)
    yield make_row(
        "sensors",
        f"processor time of the machine, {measured['sensors']} sensors on "
        f"{measured['job_seconds']:g} s jobs, `start_from_trigger` and `end_from_trigger`",
        f"{straight:.0f} s ({straight / least:.2f} ×)",
        f"poke mode: {poke:.0f} s; plain deferrable: {deferrable:.0f} s",
        ("less than either", straight < least),
    )
