"""Measures tables of which most rows were paid for before. As a program, it runs one task."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.child import peak_memory, run_module
from bench.remembered import FILE_NAME, remember
from bench.service import APP, Service

TABLE, BATCH, BARE = "table", "batch", "bare"
CHANGED_SHARE = 0.01
_ROWS_AT_A_TIME = 10_000


def measure(rounds: int, *, reused_rows: int, changed_rows: int) -> dict[str, list[dict[str, Any]]]:
    """
    Run tables whose outputs are stored, in turn with what they are compared with.

    :param reused_rows: the rows of a table of which none has changed.
    :param changed_rows: the rows of a table of which a few have changed.
    """
    return {"reused": _all_reused(rounds, reused_rows), "changed": _few_changed(rounds, changed_rows)}


def _all_reused(rounds: int, rows: int) -> list[dict[str, Any]]:
    with Service() as service, tempfile.TemporaryDirectory() as folder:
        task = _Task(service, Path(folder))
        task.write_table(rows)
        task.run("remember")
        return [task.run(kind) for _ in range(rounds) for kind in (TABLE, BARE)]


def _few_changed(rounds: int, rows: int) -> list[dict[str, Any]]:
    runs = []
    with Service(workers=rows, job_seconds=0) as service, tempfile.TemporaryDirectory() as folder:
        task = _Task(service, Path(folder))
        task.write_table(rows)
        task.run(TABLE)
        for number in range(1, rounds + 1):
            task.write_table(rows, night=number)
            runs += [task.run(kind) for kind in (TABLE, BATCH)]
    return runs


class _Task:
    """A table, and where tasks put what they make of it."""

    def __init__(self, service: Service, folder: Path) -> None:
        self._service = service
        self._folder = folder
        self._rows = 0

    def write_table(self, rows: int, night: int = 0) -> None:
        """
        Write the table, as Parquet.

        :param night: every so often, a row is another one than in the nights before.
        """
        import pyarrow as pa
        from pyarrow import parquet

        self._rows = rows
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
        parquet.write_table(pa.table(columns), self._folder / "table.parquet")

    def run(self, kind: str) -> dict[str, Any]:
        """Run a task, and return what it took."""
        before = self._service.requests()
        found = run_module(
            "bench.tables",
            *(kind, str(self._folder)),
            AIRFLOW_HOME=str(self._folder / "home"),
            AIRFLOW_CONN_RUNGEN_DEFAULT=self._service.connection,
        )
        after = self._service.requests()
        sent = {name: count - before.get(name, 0) for name, count in after.items()}
        return {
            "kind": kind,
            "rows": self._rows,
            **found,
            "requests": sum(sent.values()),
            "jobs": sent.get("run", 0),
        }


# --- in the process of a task ---


class _TaskInstance:
    """What an operator needs of Airflow's task instance, without a database."""

    dag_id = "bench"
    task_id = "task"
    map_index = -1
    try_number = 1
    max_tries = 0

    def __init__(self) -> None:
        self.run_id = f"run {time.time_ns()}"
        self._pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        self._pushed[key] = value

    def xcom_pull(self, key: str, **_: Any) -> Any:
        return self._pushed.get(key)


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
    context: Any = {"ti": _TaskInstance()}
    summary = task.execute(context)
    if summary["completed"] != summary["rows"]:
        raise RuntimeError(f"a table ended with {summary}")


def _run_batch(folder: Path) -> None:
    """Run what a DAG had before there were tables: a batch, and a task that stores what it made."""
    from airflow_provider_rungen.operators import RunGenCollectResultsOperator, RunGenRunBatchOperator

    context: Any = {"ti": _TaskInstance()}
    inputs = list(map(_picture, _table_rows(folder)))
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
        if os.stat(folder / "photos" / entry["job_id"] / FILE_NAME).st_size != output["size"]:
            raise RuntimeError(f"{output['uri']} is not complete")
        found.append({"sku": row["sku"], "job_id": entry["job_id"], "output": output["uri"]})
    parquet.write_table(pa.Table.from_pylist(found), folder / "bare.parquet")


def _remember_all(folder: Path) -> None:
    inputs = map(_picture, _table_rows(folder))
    remember((folder / "ledger").as_uri(), (folder / "photos").as_uri(), _model(), inputs)


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
