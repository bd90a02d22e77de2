"""What the measurements of the store do in the process of a task: run a table, or make a store of one."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.processes import APP, KEY, peak_memory

# So many records has a file of a store that was merged.
_RECORDS_A_FILE = 64_000
#: The one job of synthetic records, but for its number.
_JOB = "00000000-0000-4000-8000-{:012}"
_AT = 1_700_000_000.0
AT_A_TIME = 16


def picture(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input of a row. The picture is small, since the emulator paints it."""
    return {"prompt": f"studio photo of {row['title']}", "width": 64, "height": 64}


def text(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input of a row whose result is a text."""
    return {"prompt": f"describe {row['title']}"}


INPUTS = {"flux-schnell": picture, "llama-text": text}


def titles(count: int, changed: int = 0) -> list[str]:
    """
    Return the titles of a table.

    :param changed: how many rows, spread over it, are others than before.
    """
    every = count // changed if changed else count + 1
    return [f"product {n}" + (" (new)" if changed and n % every == 0 else "") for n in range(count)]


def write_table(path: Path, names: list[str]) -> None:
    """Write a table, as Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"sku": [f"sku-{number:07}" for number in range(len(names))], "title": names}
    parquet.write_table(pa.table(columns), path)


# --- the tasks ---


def run_table(given: Mapping[str, Any]) -> dict[str, Any]:
    """Run a table, deferred if that is asked, and return its summary."""
    from rungen_emulator.fakes import FakeTaskInstance
    from rungen_emulator.testing import run_operator

    from airflow_provider_rungen.operators import RunGenRunTableOperator

    app = given.get("app", APP)
    task = RunGenRunTableOperator(
        task_id="task",
        app_id=app,
        table=given["table"],
        key="sku",
        to_input=INPUTS[app],
        destination=given["destination"],
        results=given.get("results"),
        deferrable=given.get("deferrable", False),
        max_in_flight=given.get("max_in_flight", 100_000),
        poll_interval=given.get("poll_interval", 1),
    )
    run_id = f"run-{time.time_ns()}"
    if task.deferrable:
        result = run_operator(task, timeout=None)
        if result.error is not None:
            raise result.error
        return {**result.value, "deferrals": len(result.events)}
    ti = FakeTaskInstance()
    ti.run_id = given.get("run_id", run_id)
    context: Any = {"ti": ti}
    summary: dict[str, Any] = task.execute(context)
    return summary


def run_bare(given: Mapping[str, Any]) -> dict[str, Any]:
    """Submit the rows with aiohttp alone, and fetch each job once."""
    import aiohttp
    from pyarrow import parquet

    app = given.get("app", APP)
    inputs = [INPUTS[app](row) for row in parquet.read_table(given["table"][7:]).to_pylist()]
    url, headers = f"{given['url']}/app/{app}", {"x-api-key": KEY}

    async def work(session: aiohttp.ClientSession, left: Iterator[dict[str, Any]]) -> None:
        for job_input in left:
            async with session.post(f"{url}/run_async", json={"input": job_input}) as answer:
                answer.raise_for_status()
                job = (await answer.json())["data"]["id"]
            if given.get("fetches"):
                async with session.get(f"{url}/job/{job}") as answer:
                    answer.raise_for_status()
                    await answer.json()

    async def run() -> None:
        left = iter(inputs)
        async with aiohttp.ClientSession(headers=headers) as session:
            await asyncio.gather(*(work(session, left) for _ in range(AT_A_TIME)))

    asyncio.run(run())
    return {}


def make_records(given: Mapping[str, Any]) -> dict[str, Any]:
    """
    Write the records of a store in which each row of a table was bought, and the paths of the outputs.

    With ``jobs``, each is an open one of a run that was killed.
    """
    from airflow_provider_rungen.client.endpoints import get_app
    from airflow_provider_rungen.hooks import RunGenHook
    from airflow_provider_rungen.store.keys import input_key, model_identity
    from airflow_provider_rungen.store.records import Output, Record, Status

    app = given.get("app", APP)
    with RunGenHook() as hook:
        model = model_identity(hook.perform(get_app(app)))
    folder = Path(given["folder"])
    (folder / "done").mkdir(parents=True)
    (folder / "open").mkdir()
    at = time.time() if "jobs" in given else _AT
    lines: list[bytes] = []
    names = titles(given["count"])
    with (folder / "paths").open("w") as paths:
        for number, title in enumerate(names):
            key = input_key(INPUTS[app]({"title": title}), model)
            if "jobs" in given:
                claim = Record(key=key, n=1, app=app, run="a killed run", by="a killed attempt", at=at)
                (folder / "open" / f"{key}.1").write_bytes(claim.to_line())
                (folder / "open" / f"{key}.1.{given['jobs'][number]}").write_bytes(b"\n")
                continue
            record = Record(
                key=key,
                n=1,
                app=app,
                job=_JOB.format(number),
                run=hashlib.sha256(b"an earlier run").hexdigest()[:16],
                by="an earlier attempt",
                at=at,
                status=Status.COMPLETED,
                created_at="2026-01-01T00:00:00+00:00",
                seconds=1.25,
                result={"text": f"a text of {number}"},
            )
            if given.get("with_pictures"):
                digest = hashlib.sha256(str(number).encode()).hexdigest()
                output = Output(number=0, name="image.png", size=1, sha256=digest, type="image/png")
                result = {"image": record.path_of(output), "seed": number}
                record = record.model_copy(update={"outputs": (output,), "result": result})
                paths.write(f"{record.path_of(output)}\n")
            lines.append(record.to_line())
            if len(lines) == _RECORDS_A_FILE or number == len(names) - 1:
                name = f"20260101T000000-run-{number}.jsonl.gz"
                (folder / "done" / name).write_bytes(gzip.compress(b"".join(lines), 3, mtime=0))
                lines = []
    return {}


TASKS = {"table": run_table, "bare": run_bare, "records": make_records}


def main(kind: str) -> None:
    given = json.loads(sys.stdin.read())
    import pyarrow.parquet  # noqa: F401 - its import is not what is measured

    import airflow_provider_rungen.hooks
    import airflow_provider_rungen.operators

    if kind == "table":
        import airflow_provider_rungen.work.table_run  # noqa: F401

    imported, began, worked = peak_memory(), time.perf_counter(), time.process_time()
    if given.get("profile"):
        import cProfile

        profile = cProfile.Profile()
        result = profile.runcall(TASKS[kind], given)
        profile.dump_stats(given["profile"])
    else:
        result = TASKS[kind](given)
    figures = {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - worked,
        "memory": peak_memory() - imported,
    }
    print(json.dumps({**result, **figures}))
    sys.stdout.flush()
    os._exit(0)  # what a task leaves to threads of libraries is not measured


if __name__ == "__main__":
    main(sys.argv[1])
