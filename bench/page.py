"""Writes the page, the raw figures and the plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import plots
from bench.row import Row
from bench.rows import make_rows, of

_HEAD = """\
# Benchmarks

This page, its plots and [the raw figures](results.json) are made by `make bench`.

"""
_HOW = """\

## How it is measured

- Everything goes over real HTTP to the [emulator](../testing.md). It runs in a process of its own, as
  does each of those who wait. Figures are medians over the rounds.
- **Each job polled** are two triggers written for this page, as many providers have them: they ask for
  one job, sleep, and ask again, over one shared session, or with a session for each poll.
- **First come, first served** is simulated by `python -m bench.simulate` with a virtual clock, polled
  every 5 s. *The fewest possible* is what an oracle needs. It knows how many jobs have ended, when each
  started, and how durations are distributed. *A plain poller* asks for no counters: it polls the oldest
  jobs until it meets a queued one.
- **Jobs ending in their order** run on an app with a worker for every 20 jobs, and end evenly between 10
  and 60 s. **Jobs ending in any order** all run at once, each for a time between 10 and 60 s by chance.
- **Counters that lie** are frozen, all zero, or absent.
- Processor time is that of the waiting process, without imports and logging. Memory is what it holds when
  all wait, over what Airflow's triggerer imports.
- The heartbeat is measured with time ten times as fast.
- An import is measured in a fresh process, after `import airflow.sdk`.
- A DAG's time is from the request that triggers it to the end of its run, in a private `airflow
  standalone`.
- The sensors wait all at once. Counted is what all processes of the machine work, less what they work
  when Airflow runs nothing.
- Readers and tables run in processes of their own. Most memory is that of the worst round.
- A look-up of a stored key reads the entry and the manifest, and asks for the size of the file. S3 is
  emulated by moto, and has a tenth of the keys.
"""


def kept(folder: Path) -> dict[str, Any]:
    """Return what was measured for the last page, if anything was."""
    file = folder / "results.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def write(measured: dict[str, Any], folder: Path) -> list[Row]:
    """Write the folder's page, and give the rows of its table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [*_simulated(measured.get("simulated", ())), *make_rows(measured)]
    drawn = plots.draw(measured, folder)
    (folder / "results.json").write_text(_json({**measured, "rows": [row.as_json() for row in rows]}))
    (folder / "README.md").write_text(_page(measured, rows, drawn))
    return rows


def _simulated(runs: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Make the rows of `bench.simulate`."""
    for load in dict.fromkeys(run["load"] for run in runs):
        ours, least, plain, each = (of(runs, name, load=load) for name in ("ours", "fewest", "plain", "each"))
        yield Row(
            f"simulated {load}",
            f"requests per job, {runs[0]['jobs']:,} jobs, first come, first served, {load}",
            f"{ours:.2f}",
            f"the fewest possible: {least:.2f}; a plain poller: {plain:.2f}; each job polled: {each:.1f}",
            "≤ 1.25 × the fewest",
            ours <= 1.25 * least,
        )


def _json(value: dict[str, Any]) -> str:
    """Return JSON with a line for each run."""
    parts = []
    for name, part in value.items():
        if isinstance(part, list):
            lines = ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in part)
            parts.append(f" {json.dumps(name)}: [\n  {lines}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(part, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _page(measured: dict[str, Any], rows: list[Row], drawn: list[tuple[str, str]]) -> str:
    machine = measured["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    headline, *others = drawn
    text = _HEAD + (
        f"{_image(*headline)}\n"
        f"Measured on {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB of memory, "
        f"{machine['system']}, Python {machine['python']}, {packages}.\n"
        f"{_rounds(measured['settings'])}\n\n"
        "| what | this provider | beside | aim | |\n| --- | --- | --- | --- | --- |\n"
    )
    for row in rows:
        text += f"| {row.what} | {row.figure} | {row.beside} | {row.aim} | {row.verdict()} |\n"
    missed = [row for row in rows if row.is_reached is False]
    if missed:
        text += "\n## What falls short, and why\n\n"
        for row in missed:
            text += f"- {row.what}: {row.figure}, {row.aim} was aimed at. {row.why}".rstrip() + "\n"
    for file, words in others:
        text += f"\n## {words}\n\n{_image(file, words)}"
    return text + _HOW


def _image(file: str, words: str) -> str:
    return f"![{words}]({file})\n"


def _rounds(settings: dict[str, Any]) -> str:
    days = settings["days"]
    told = ", ".join(
        f"{name} {count}" + (f" (on {days[name]})" if name in days else "")
        for name, count in settings["rounds"].items()
    )
    scaled = "" if settings["scale"] == 1 else f" Jobs: {settings['scale']:g} of the usual."
    return f"Rounds: {told}.{scaled}"
