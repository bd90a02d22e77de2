"""Measures looking up keys in a ledger, beside submitting jobs. As a program, it does one of these."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.child import run_module
from bench.remembered import FILE_NAME, remember
from bench.s3 import BUCKET, s3_server
from bench.service import APP, Service

FILES, S3 = "a folder", "S3"
HITS, MISSES, BARE, SUBMISSIONS = "hits", "misses", "bare", "submissions"
AT_A_TIME = 16
# The emulated S3 is slow, and takes as long for each key.
S3_SHARE = 0.1
_MODEL = f"app:{APP}"
_RUN = "c" * 36


def measure(rounds: int, keys: int) -> list[dict[str, Any]]:
    """Look keys up in each store, in turn with what it is compared with."""
    runs = []
    with Service() as service, tempfile.TemporaryDirectory() as folder, s3_server() as connection:
        for store, base, count in (
            (FILES, Path(folder).as_uri(), keys),
            (S3, f"s3://bench_s3@{BUCKET}", round(keys * S3_SHARE)),
        ):
            environment = {
                "AIRFLOW_HOME": f"{folder}/home",
                "AIRFLOW_CONN_RUNGEN_DEFAULT": service.connection,
                "AIRFLOW_CONN_BENCH_S3": connection,
            }
            run_module("bench.ledger", "remember", base, str(count), **environment)
            for _ in range(rounds):
                for what in (HITS, MISSES, BARE, SUBMISSIONS):
                    found = run_module("bench.ledger", what, base, str(count), **environment)
                    runs.append({"store": store, "what": what, "keys": count, **found})
    return runs


# --- in a process of its own ---


def _inputs(count: int, of: str = HITS) -> Iterator[dict[str, Any]]:
    return ({"prompt": f"{of} {number}", "width": 1024, "height": 1024} for number in range(count))


def _remember(base: str, count: int) -> None:
    remember(f"{base}/ledger", f"{base}/photos", _MODEL, _inputs(count))


def _find(base: str, count: int, of: str, expected: int) -> None:
    from airflow_provider_rungen.execution.ledger.book import LedgerBook
    from airflow_provider_rungen.operators import Ledger

    book = LedgerBook(Ledger(f"{base}/ledger"), _MODEL, _RUN)
    book.open()
    keys = [book.key(each) for each in _inputs(count, of)]
    found = book.find(keys, lambda job: None, destination=f"{base}/photos")
    if len(found.stored) != expected:
        raise RuntimeError(f"{len(found.stored)} of {count} keys were found, not {expected}")


def _read_bare(base: str, count: int) -> None:
    """Read the files that a look-up needs, as fast as the file system lets them be read."""
    from airflow_provider_rungen._airflow import ObjectStoragePath
    from airflow_provider_rungen.execution.ledger.entries import ledger_key

    fs, root = ObjectStoragePath(base).fs, str(ObjectStoragePath(base).path).rstrip("/")
    keys = [ledger_key(each, _MODEL, "1", ()) for each in _inputs(count)]
    entries = _read(fs, [f"{root}/ledger/{key[:2]}/{key}.json" for key in keys])
    folders = [f"{root}/photos/{json.loads(entry)['job_id']}" for entry in entries]
    for manifest in _read(fs, [f"{folder}/manifest.json" for folder in folders]):
        json.loads(manifest)
    _read(fs, [f"{folder}/{FILE_NAME}" for folder in folders])


def _read(fs: Any, paths: list[str]) -> list[bytes]:
    contents: list[bytes] = fs.cat_ranges(paths, None, None)
    return contents


def _submit(_: str, count: int) -> None:
    from airflow_provider_rungen.client import endpoints
    from airflow_provider_rungen.hooks import RunGenHook

    left = _inputs(count)

    async def submit() -> None:
        async with RunGenHook() as hook:

            async def work() -> None:
                for given in left:
                    await hook.aperform(endpoints.run_job(APP, given))

            await asyncio.gather(*(work() for _ in range(AT_A_TIME)))

    asyncio.run(submit())


_PARTS: dict[str, Callable[[str, int], None]] = {
    "remember": _remember,
    HITS: lambda base, count: _find(base, count, HITS, count),
    MISSES: lambda base, count: _find(base, count, MISSES, 0),
    BARE: _read_bare,
    SUBMISSIONS: _submit,
}


def main(what: str, base: str, count: str) -> None:
    import airflow_provider_rungen.hooks
    import airflow_provider_rungen.operators  # noqa: F401 - their imports are not what is measured

    began = time.perf_counter()
    _PARTS[what](base, int(count))
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(*sys.argv[1:])
