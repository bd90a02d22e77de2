"""
Tables of which rows were paid for before.

A table runs as a task does, without Airflow's database, in a process of its own. The stored jobs, with one
small file each, are written before. The bare loop reads the table, and for each row the entry of the
ledger, the manifest and the size of the file. Memory is the most that the process held in the worst round,
imports of Airflow included.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from airflow_provider_rungen.emulator import Emulator
from bench.page import Row
from bench.processes import APP, peak_memory, run_python

TABLE, BATCH, BARE = "table", "batch", "bare"
CHANGED_SHARE = 0.01
_ROWS_AT_A_TIME = 10_000
_FILE_NAME, _FILE = "0-output.png", b"a picture"
_CREATED_AT = "2026-11-01T12:00:00+00:00"


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Run tables whose outputs are stored, in turn with what they are compared with."""
    yield from _all_reused(rounds, round(100_000 * scale))
    yield from _few_changed(rounds, round(10_000 * scale))


def _all_reused(rounds: int, rows: int) -> Iterator[Row]:
    with Emulator() as emulator, tempfile.TemporaryDirectory() as folder:
        _write_table(Path(folder), rows)
        _run("remember", folder, emulator)
        runs = [[_run(kind, folder, emulator) for kind in (TABLE, BARE)] for _ in range(rounds)]
    seconds, bare = (median(run["seconds"] for run in found) for found in zip(*runs, strict=True))
    peak, bare_peak = (max(run["peak"] for run in found) / 1e6 for found in zip(*runs, strict=True))
    requests = max(run["requests"] for run, _ in runs)
    yield Row(
        f"{rows:,} rows in Parquet, all stored already",
        f"{seconds:.1f} s ({seconds / bare:.1f} ×)",
        f"a bare loop over the same files, without checks: {bare:.1f} s",
        "≤ 60 s",
        seconds <= 60,
    )
    yield Row("memory for the same", f"{peak:.0f} MB", f"{bare_peak:.0f} MB", "< 300 MB", peak < 300)
    yield Row("requests for the same", f"{requests:.0f}", "", "1", requests == 1)


def _few_changed(rounds: int, rows: int) -> Iterator[Row]:
    with Emulator(workers=rows, job_seconds=0) as emulator, tempfile.TemporaryDirectory() as folder:
        _write_table(Path(folder), rows)
        _run(TABLE, folder, emulator)
        runs = []
        for night in range(1, rounds + 1):
            _write_table(Path(folder), rows, night)
            runs.append([_run(kind, folder, emulator) for kind in (TABLE, BATCH)])
    table, batch = (
        [median(run[name] for run in found) for name in ("seconds", "requests", "jobs")]
        for found in zip(*runs, strict=True)
    )
    yield Row(
        f"{rows:,} rows of which 1 % changed, jobs of 0 s",
        "{:.1f} s, {:,.0f} requests, {:,.0f} jobs".format(*table),
        "`RunGenRunBatchOperator` and `RunGenCollectResultsOperator`: "
        "{:.1f} s, {:,.0f} requests, {:,.0f} jobs".format(*batch),
        "1 % of the jobs",
        table[2] == round(rows * CHANGED_SHARE),
    )


def _run(kind: str, folder: str, emulator: Emulator) -> dict[str, Any]:
    """Run a task, and return what it took."""
    emulator.service.reset()
    environment = {"AIRFLOW_HOME": f"{folder}/home"}
    environment["AIRFLOW_CONN_RUNGEN_DEFAULT"] = emulator.airflow_connection()
    found: dict[str, Any] = run_python("-m", "bench.tables", kind, folder, **environment)
    sent = emulator.service.stats()["requests"]
    return {**found, "requests": sum(sent.values()), "jobs": sent.get("run", 0)}


def _write_table(folder: Path, rows: int, night: int = 0) -> None:
    """
    Write the table, as Parquet.

    :param night: every so often, a row is another one than in the nights before.
    """
    import pyarrow as pa
    from pyarrow import parquet

    every = round(1 / CHANGED_SHARE)
    titles = [
        f"product {number}" + (f" of night {night}" if night and number % every == 0 else "")
        for number in range(rows)
    ]
    columns = {
        "sku": [f"sku-{number:06}" for number in range(rows)],
        "title": titles,
        "color": [("red", "blue", "green")[number % 3] for number in range(rows)],
        "price": [number / 7 for number in range(rows)],
    }
    parquet.write_table(pa.table(columns), folder / "table.parquet")


# --- in the process of a task ---


def _make_context() -> Any:
    from airflow_provider_rungen.emulator.fakes import FakeTaskInstance

    ti = FakeTaskInstance()
    ti.run_id = f"run {time.time_ns()}"
    return {"ti": ti}


def _picture(row: Mapping[str, Any]) -> dict[str, Any]:
    # small, since the emulator paints it
    return {"prompt": f"studio photo of {row['title']}, {row['color']}", "width": 64, "height": 64}


def _table_rows(folder: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    with parquet.ParquetFile(folder / "table.parquet") as file:
        for batch in file.iter_batches(_ROWS_AT_A_TIME):
            yield from batch.to_pylist()


def _run_table(folder: Path) -> None:
    from airflow_provider_rungen.operators import Ledger, RunGenRunTableOperator

    task = RunGenRunTableOperator(
        task_id="task",
        table=(folder / "table.parquet").as_uri(),
        key="sku",
        to_input=_picture,
        destination=(folder / "photos").as_uri(),
        results=(folder / "results.parquet").as_uri(),
        ledger=Ledger((folder / "ledger").as_uri()),
    )
    summary = task.execute(_make_context())
    if summary["completed"] != summary["rows"]:
        raise RuntimeError(f"a table ended with {summary}")


def _run_batch(folder: Path) -> None:
    """Run what a DAG had before there were tables: a batch, and a task that stores what it made."""
    from airflow_provider_rungen.operators import RunGenCollectResultsOperator, RunGenRunBatchOperator

    context, inputs = _make_context(), list(map(_picture, _table_rows(folder)))
    job_ids = RunGenRunBatchOperator(task_id="run", inputs=inputs).execute(context)
    collect = RunGenCollectResultsOperator(
        task_id="collect", job_id=job_ids, destination=(folder / f"photos-{time.time_ns()}").as_uri()
    )
    if len(collect.execute(context)) != len(inputs):
        raise RuntimeError("a batch did not store all its jobs")


def _run_bare(folder: Path) -> None:
    """Do the same as a table with nothing to buy, in the fewest lines, and without its checks."""
    import pyarrow as pa
    from pyarrow import parquet

    from airflow_provider_rungen.execution.ledger.entries import ledger_key

    ledger, model, found = folder / "ledger", _model(), []
    for row in _table_rows(folder):
        key = ledger_key(_picture(row), model, "1", ())
        entry = json.loads((ledger / key[:2] / f"{key}.json").read_bytes())
        manifest = json.loads((folder / "photos" / entry["job_id"] / "manifest.json").read_bytes())
        [output] = manifest["outputs"]
        if os.stat(folder / "photos" / entry["job_id"] / _FILE_NAME).st_size != output["size"]:
            raise RuntimeError(f"{output['uri']} is not complete")
        found.append({"sku": row["sku"], "job_id": entry["job_id"], "output": output["uri"]})
    parquet.write_table(pa.Table.from_pylist(found), folder / "bare.parquet")


def _remember_all(folder: Path) -> None:
    """Store a job with one file for each row, and remember it in the ledger, as an earlier run does."""
    from airflow_provider_rungen.client.daemon_threads import batches
    from airflow_provider_rungen.execution.archive.storage import Storage
    from airflow_provider_rungen.execution.ledger.book import LedgerBook
    from airflow_provider_rungen.operators import Ledger

    storage = Storage((folder / "photos").as_uri()).prepare()
    book = LedgerBook(Ledger((folder / "ledger").as_uri()), _model(), "b" * 36)
    book.open()
    for inputs in batches(map(_picture, _table_rows(folder)), _ROWS_AT_A_TIME):
        files: dict[Any, bytes] = {}
        jobs = {}
        for job_input in inputs:
            key = book.key(job_input)
            jobs[key] = _add_job(storage, str(uuid.uuid5(uuid.NAMESPACE_OID, key)), job_input, files)
        storage.write_all(files)
        book.add_done(jobs)


def _add_job(storage: Any, job_id: str, job_input: Mapping[str, Any], files: dict[Any, bytes]) -> Any:
    """Add the files of a job to those that are written, and return the job."""
    from airflow_provider_rungen.execution.archive.manifests import MANIFEST, manifest_text
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob

    uri = storage.uri_of(job_id, _FILE_NAME)
    output = {
        "uri": uri,
        "size": len(_FILE),
        "sha256": hashlib.sha256(_FILE).hexdigest(),
        "content_type": "image/png",
    }
    manifest = {
        "job_id": job_id,
        "app_id": APP,
        "complete": True,
        "status": "COMPLETED",
        "created_at": _CREATED_AT,
        "execution_time": 2.0,
        "landed_at": _CREATED_AT,
        "input": job_input,
        "result": {"images": [uri]},
        "outputs": [{**output, "at": "result.images[0]"}],
    }
    files[job_id, _FILE_NAME] = _FILE
    files[job_id, MANIFEST] = manifest_text(manifest)
    return StoredJob(
        app_id=APP,
        job_id=job_id,
        manifest=storage.uri_of(job_id, MANIFEST),
        outputs=[output],
        result=manifest["result"],
        execution_seconds=2.0,
        created_at=_CREATED_AT,
    )


def _model() -> str:
    from airflow_provider_rungen.execution.ledger.entries import model_identity
    from airflow_provider_rungen.hooks import RunGenHook

    with RunGenHook() as hook:
        return model_identity(hook.get_app(app_id=APP))


_TASKS: dict[str, Callable[[Path], None]] = {
    TABLE: _run_table,
    BATCH: _run_batch,
    BARE: _run_bare,
    "remember": _remember_all,
}


def main(kind: str, folder: str) -> None:
    import airflow_provider_rungen.operators  # noqa: F401 - its import is not what is measured

    began = time.perf_counter()
    _TASKS[kind](Path(folder))
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
