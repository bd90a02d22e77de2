"""Makes the rows of the table from the measurements of tables and ledgers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

from bench.ledger import BARE as FILES_BARE
from bench.ledger import FILES, HITS, MISSES, S3, SUBMISSIONS
from bench.reader import OURS
from bench.row import Row, make_row
from bench.tables import BARE, BATCH, TABLE

_MOST_BYTES = 300e6


def reader_rows(runs: list[dict[str, Any]]) -> Iterator[Row]:
    """Make the rows of `bench.reader`."""
    for file in dict.fromkeys(run["file"] for run in runs):
        of_file = [run for run in runs if run["file"] == file]
        other = next(run["reader"] for run in of_file if run["reader"] != OURS)
        speed = {reader: _rows_per_second(of_file, reader) for reader in (OURS, other)}
        peak = {reader: _most(of_file, "peak", reader=reader) for reader in (OURS, other)}
        what = f"{of_file[0]['rows']:,} rows of 1 kB from `{file}`"
        yield make_row(
            "reader speed",
            f"{what}, rows a second",
            f"{speed[OURS]:,.0f}",
            f"bare `{other}`: {speed[other]:,.0f}",
            ("≥ 0.9 ×", speed[OURS] >= 0.9 * speed[other]),
        )
        yield make_row(
            "reader memory",
            f"{what}, most memory of the process, imports of Airflow included",
            f"{peak[OURS] / 1e6:.0f} MB",
            f"bare `{other}`, without Airflow: {peak[other] / 1e6:.0f} MB",
            ("< 300 MB", peak[OURS] < _MOST_BYTES),
        )


def table_rows(measured: dict[str, list[dict[str, Any]]]) -> Iterator[Row]:
    """Make the rows of `bench.tables`."""
    runs = measured["reused"]
    what = f"a table of {runs[0]['rows']:,} rows in Parquet, all stored already"
    ours, bare = (_median(runs, "seconds", kind=kind) for kind in (TABLE, BARE))
    yield make_row(
        "reused seconds",
        what,
        f"{ours:.1f} s ({ours / bare:.1f} ×)",
        f"a bare loop over the same files, without checks: {bare:.1f} s",
        ("≤ 60 s", ours <= 60),
    )
    peak, bare_peak = (_most(runs, "peak", kind=kind) for kind in (TABLE, BARE))
    yield make_row(
        "reused memory",
        "most memory of the process for the same, imports of Airflow included",
        f"{peak / 1e6:.0f} MB",
        f"a bare loop: {bare_peak / 1e6:.0f} MB",
        ("< 300 MB", peak < _MOST_BYTES),
    )
    requests = _most(runs, "requests", kind=TABLE)
    yield make_row(
        "reused requests", "requests for the same", f"{requests:.0f}", "itself", ("1", requests == 1)
    )
    yield from _changed_rows(measured["changed"])


def _changed_rows(runs: list[dict[str, Any]]) -> Iterator[Row]:
    rows = runs[0]["rows"]
    (ours, ours_sent, bought), (batch, batch_sent, batch_bought) = (
        [_median(runs, name, kind=kind) for name in ("seconds", "requests", "jobs")]
        for kind in (TABLE, BATCH)
    )
    yield make_row(
        "changed",
        f"a table of {rows:,} rows of which 1 % changed, jobs of 0 s",
        f"{ours:.1f} s, {ours_sent:,.0f} requests, {bought:,.0f} jobs",
        f"`RunGenRunBatchOperator` and `RunGenCollectResultsOperator`: {batch:.1f} s, "
        f"{batch_sent:,.0f} requests, {batch_bought:,.0f} jobs",
        ("1 % of the jobs", bought == round(rows / 100)),
    )


def ledger_rows(runs: list[dict[str, Any]]) -> Iterator[Row]:
    """Make the rows of `bench.ledger`."""
    for store in (FILES, S3):
        of_store = [run for run in runs if run["store"] == store]
        hits, misses, bare, submissions = (
            _median(of_store, "seconds", what=what) for what in (HITS, MISSES, FILES_BARE, SUBMISSIONS)
        )
        where = "moto's S3, which takes most of it" if store == S3 else store
        beside = f"a bare read of the same files: {bare:.1f} s; submitting as many jobs: {submissions:.1f} s"
        keys = of_store[0]["keys"]
        yield make_row(
            f"ledger hits {store}",
            f"look-up of {keys:,} keys, all stored, in {where}",
            f"{hits:.1f} s",
            beside,
            ("≤ 1.5 × the bare read", hits <= 1.5 * bare),
        )
        yield make_row(
            f"ledger misses {store}",
            f"look-up of {keys:,} keys, none known, in {where}",
            f"{misses:.1f} s",
            beside,
            ("less than the bare read", misses < bare),
        )


def _rows_per_second(runs: Iterable[dict[str, Any]], reader: str) -> float:
    speeds: list[float] = [run["rows"] / run["seconds"] for run in runs if run["reader"] == reader]
    return median(speeds)


def _matching(runs: Iterable[dict[str, Any]], name: str, wanted: dict[str, str]) -> list[float]:
    return [run[name] for run in runs if all(run[key] == value for key, value in wanted.items())]


def _median(runs: Iterable[dict[str, Any]], name: str, **wanted: str) -> float:
    return median(_matching(runs, name, wanted))


def _most(runs: Iterable[dict[str, Any]], name: str, **wanted: str) -> float:
    return max(_matching(runs, name, wanted))
