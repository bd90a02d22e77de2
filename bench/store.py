"""
The store of paid work.

A table runs as a task does, without Airflow's database, in its own process; the service is the emulator, S3
is moto in a process of its own. Jobs take 0 s. Stores with many records are written as a merged one is: no
table ran for them. Requests to S3 are all that a task sends, the look whether the folder can be used
included. Memory is the peak above that after the imports (pyarrow among them).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rungen_emulator import Emulator
from rungen_emulator.server import EMULATORS

from bench.object_store import ObjectStore
from bench.page import Row
from bench.processes import run_python, submit
from bench.store_task import text, titles, write_table
from bench.submits import LATENCY, FarAway

TEXT = "llama-text"
#: What `--profile` sets: the folder for the profiles of tasks.
_profiles: list[Path] = []


class Place:
    """
    Where a measurement runs tasks: a folder of this machine, the emulator, and S3 if it is asked for.

    :param folder: a temporary folder.
    :param objects: S3.
    """

    def __init__(self, folder: Path, emulator: Emulator, objects: ObjectStore | None) -> None:
        self.folder, self.emulator, self.objects = folder, emulator, objects
        self._environment = {
            "AIRFLOW_HOME": str(folder / "home"),
            "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(),
            EMULATORS: emulator.url,
            **({} if objects is None else objects.environment),
        }
        self.destination = (folder / "store").as_uri() if objects is None else objects.uri("store")

    def run(self, kind: str, **given: Any) -> dict[str, Any]:
        """Run a task in a process of its own. Return its figures, and the requests that it sent."""
        before = Counter(self.emulator.service.stats()["requests"])
        if self.objects is not None:
            self.objects.take_counts()
        if _profiles and kind == "table":
            given["profile"] = str(_profiles[0] / f"{time.time_ns()}.prof")
        given = {"table": (self.folder / "table.parquet").as_uri(), "url": self.emulator.url, **given}
        given.setdefault("destination", self.destination)
        found: dict[str, Any] = run_python(
            "-m", "bench.store_task", kind, given=json.dumps(given), **self._environment
        )
        found["requests"] = Counter(self.emulator.service.stats()["requests"]) - before
        if self.objects is not None:
            found["s3"] = self.objects.take_counts()
        return found

    def write_table(self, count: int, changed: int = 0) -> None:
        write_table(self.folder / "table.parquet", titles(count, changed))

    def add_known(self, count: int, **given: Any) -> None:
        """
        Add a store in which a table of so many rows was bought.

        :param given: see `make_records`.
        """
        made = self.folder / "made"
        self.run("records", folder=str(made), count=count, **given)
        paths = (made / "paths").read_text().split()
        kind = "open" if "jobs" in given else "done"
        header = b'{"version": 1}\n'
        if self.objects is not None:
            records = {
                f"store/.rungen/{kind}/{each.name}": each.read_bytes() for each in made.glob(f"{kind}/*")
            }
            self.objects.put({"store/.rungen/store.json": header, **records})
            for start in range(0, len(paths), 20_000):
                self.objects.fill(f"store/{path}" for path in paths[start : start + 20_000])
            return
        store = self.folder / "store"
        (store / ".rungen").mkdir(parents=True)
        (store / ".rungen" / "store.json").write_bytes(header)
        (made / "done").rename(store / ".rungen" / "done")
        for path in paths:
            (store / path).parent.mkdir(parents=True, exist_ok=True)
            (store / path).write_bytes(b"x")


@contextmanager
def _place(*, s3: bool = False, emulator: type[Emulator] = Emulator, **options: Any) -> Iterator[Place]:
    options = {"workers": 1_000_000, "job_seconds": 0, **options}
    with tempfile.TemporaryDirectory() as folder, emulator(**options) as service:
        if not s3:
            yield Place(Path(folder), service, None)
            return
        with ObjectStore() as objects:
            yield Place(Path(folder), service, objects)


def _buying_seconds(place: Place) -> float:
    """Return the seconds between the first POST and the last."""
    times = [each.time for each in place.emulator.service.requests if each.operation == "run"]
    place.emulator.service.requests.clear()
    return times[-1] - times[0]


# --- the measurements ---


def new_far_away(scale: float) -> Iterator[Row]:
    """Buy rows of a service that is 50 ms away."""
    rows = round(1_000 * scale)
    with _place(emulator=FarAway) as place:
        place.write_table(rows)
        place.run("bare", app=TEXT)
        bare = _buying_seconds(place)
        ours_run = place.run("table", app=TEXT)
        ours = _buying_seconds(place)
    assert ours_run["jobs"] == rows  # noqa: S101
    yield Row(
        f"{rows:,} new rows, the service {1000 * LATENCY:.0f} ms away: first submission to last",
        f"{ours:.2f} s ({ours / bare:.2f} ×)",
        f"bare aiohttp, 16 at a time: {bare:.2f} s",
        "≤ 1.3 ×",
        ours <= 1.3 * bare,
    )


def pictures_on_s3(scale: float) -> Iterator[Row]:
    """Buy rows with a picture each on S3, and run the same the next night."""
    rows = round(1_000 * scale)
    with _place(s3=True) as place:
        place.write_table(rows)
        first = place.run("table")
        outputs = first["s3"]["PUT files"]
        others = first["s3"].total() - outputs
        assert (first["jobs"], outputs) == (rows, rows)  # noqa: S101
        yield Row(
            f"{rows:,} new rows on S3: requests beside the outputs",
            f"{others:,} ({others / rows:.2f} a row)",
            _shown(first["s3"]),
            "≤ 2.5 a row, and 100",
            others <= 2.5 * rows + 100,
        )
        night = place.run("table")
        assert night["jobs"] == 0  # noqa: S101
        count = night["s3"].total()
        is_reached = count <= 20 and night["seconds"] <= 2 and night["requests"].total() == 1
        figure = f"{count} requests, {night['seconds']:.1f} s, {night['requests'].total()} to RunGen"
        yield Row(
            f"the same rows the second night, {rows:,} pictures on S3",
            figure,
            _shown(night["s3"]),
            "≤ 20 requests, ≤ 2 s, one to RunGen",
            is_reached,
        )


def new_cpu(scale: float) -> Iterator[Row]:
    """Buy rows without outputs, local: the processor time of the task."""
    rows = round(10_000 * scale)
    with _place() as place:
        place.write_table(rows)
        bare = place.run("bare", app=TEXT, fetches=True)
        ours = place.run("table", app=TEXT)
    assert ours["jobs"] == rows  # noqa: S101
    each, other = (1000 * found["cpu"] / rows for found in (ours, bare))
    yield Row(
        f"{rows:,} new rows, local, no outputs: processor time a row",
        f"{each:.2f} ms (in {ours['seconds']:.0f} s)",
        f"bare aiohttp, each job fetched once: {other:.2f} ms",
        "≤ 5 ms more",
        each - other <= 5,
    )


def known_on_s3(scale: float) -> Iterator[Row]:
    """Run a table whose rows are all known, with a picture each on S3."""
    rows = round(100_000 * scale)
    with _place(s3=True) as place:
        place.write_table(rows)
        place.add_known(rows, with_pictures=True)
        found = place.run("table")
    assert (found["jobs"], found["completed"]) == (0, rows)  # noqa: S101
    count = found["s3"].total()
    yield Row(
        f"{rows:,} known rows with pictures on S3",
        f"{count} requests, {found['seconds']:.0f} s, {found['memory'] / 1e6:.0f} MB",
        _shown(found["s3"]),
        "≤ 250 requests",
        count <= 250,
    )


def known_million(scale: float) -> Iterator[Row]:
    """Run a table of a million rows that are known, then with 10,000 new ones."""
    rows = round(1_000_000 * scale)
    new = rows // 100
    with _place() as place:
        place.write_table(rows)
        place.add_known(rows, app=TEXT)
        results = (place.folder / "results.parquet").as_uri()
        found = place.run("table", app=TEXT, results=results)
        assert (found["jobs"], found["completed"]) == (0, rows)  # noqa: S101
        seconds, memory, requests = found["seconds"], found["memory"] / 1e6, found["requests"].total()
        yield Row(
            f"{rows:,} known rows (Parquet, local, no outputs)",
            f"{seconds:.0f} s, {memory:.0f} MB, {requests} request to RunGen",
            "",
            "≤ 60 s, ≤ 300 MB, one request",
            seconds <= 60 and memory <= 300 and requests == 1,
        )
        place.write_table(rows, new)
        found = place.run("table", app=TEXT, results=results)
        assert (found["jobs"], found["completed"]) == (new, rows)  # noqa: S101
        memory = found["memory"] / 1e6
        yield Row(
            f"{new:,} new rows among {rows:,}",
            f"{memory:.0f} MB, {found['seconds']:.0f} s",
            "",
            "≤ 300 MB",
            memory <= 300,
        )


def few_of_many(scale: float) -> Iterator[Row]:
    """Run a small table on a store that knows much."""
    rows = round(1_000_000 * scale)
    with _place(s3=True) as place:
        place.write_table(100)
        place.add_known(rows, app=TEXT)
        found = place.run("table", app=TEXT)
    assert found["completed"] == 100  # noqa: S101
    count = found["s3"].total()
    yield Row(
        f"100 rows of a store that knows {rows:,}",
        f"{count} requests, {found['seconds']:.0f} s, {found['memory'] / 1e6:.0f} MB",
        _shown(found["s3"]),
        "≤ 300 requests",
        count <= 300,
    )


def adopted(scale: float) -> Iterator[Row]:
    """Go on with the open jobs of a run that was killed."""
    rows = round(2_000 * scale)
    with _place(s3=True) as place:
        place.write_table(rows)
        inputs = [text({"title": title}) for title in titles(rows)]
        place.add_known(rows, app=TEXT, jobs=submit(place.emulator.service, inputs, TEXT))
        found = place.run("table", app=TEXT)
    assert (found["completed"], found["requests"]["run"]) == (rows, 0)  # noqa: S101
    count = found["s3"].total()
    yield Row(
        f"{rows:,} open jobs of a killed run, on S3",
        f"{count:,} requests {found['seconds']:.0f} s",
        _shown(found["s3"]),
        "one a job for its claim, and 50",
        count <= rows + 50,
    )


def deferred(scale: float) -> Iterator[Row]:
    """Run a deferred table of which 50 jobs are in flight."""
    rows = round(2_000 * scale)
    with _place(s3=True, job_seconds=0.5) as place:
        place.write_table(rows)
        found = place.run("table", app=TEXT, deferrable=True, max_in_flight=50)
    assert found["jobs"] == rows  # noqa: S101
    beside = {kind: n for kind, n in found["s3"].items() if kind.startswith("PUT") and ".rungen" in kind}
    writes = sum(beside.values())
    yield Row(
        f"a deferred table of {rows:,} rows, 50 in flight: writes beside outputs and results",
        f"{writes:,} ({writes / rows:.2f} a row) in {found['deferrals']} deferrals, {found['seconds']:.0f} s",
        _shown(found["s3"]),
        "≤ 4 a row",
        writes <= 4 * rows,
    )


def _shown(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}".strip() for kind, count in sorted(counts.items()))


MEASURES: dict[str, Callable[[float], Iterator[Row]]] = {
    each.__name__: each
    for each in (
        new_far_away,
        pictures_on_s3,
        new_cpu,
        known_on_s3,
        known_million,
        few_of_many,
        adopted,
        deferred,
    )
}


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Measure all, once."""
    for each in MEASURES.values():
        yield from each(scale)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.store", description="Measure the store.")
    parser.add_argument("names", nargs="*", choices=[[], *MEASURES], help="all when left out")
    parser.add_argument("--scale", type=float, default=1.0, help="a share of the rows")
    parser.add_argument("--profile", type=Path, help="the folder for profiles of the tasks")
    given = parser.parse_args()
    if given.profile:
        given.profile.mkdir(parents=True, exist_ok=True)
        _profiles.append(given.profile.resolve())
    for name in given.names or MEASURES:
        for row in MEASURES[name](given.scale):
            print(row, flush=True)
