"""Writes the page of the benchmarks, and its figures as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PACKAGES = ("apache-airflow", "apache-airflow-providers-http", "aiohttp", "requests")
_HEAD = """\
# Benchmarks

`make bench` makes this page and [its figures](results.json) with the [emulator](../testing.md), over real
HTTP unless it says otherwise. Figures are medians over the rounds.

"""


@dataclass(frozen=True)
class Row:
    """
    A row of a table.

    :param what: what is measured.
    :param figure: the figure of this provider.
    :param beside: what it is compared with.
    :param aim: the target.
    :param is_reached: whether the target is met.
    :param why: the reason if it is not.
    """

    what: str
    figure: str
    beside: str
    aim: str
    is_reached: bool
    why: str = ""

    def __str__(self) -> str:
        verdict = "reached" if self.is_reached else f"**not reached** {self.why}".strip()
        return f"| {self.what} | {self.figure} | {self.beside} | {self.aim} | {verdict} |"


def load(folder: Path) -> dict[str, Any]:
    """Return the figures of the last page, unless they are of another machine."""
    file, machine = folder / "results.json", describe_machine()
    measured: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return measured if measured.get("machine") == machine else {"machine": machine}


def describe_machine() -> str:
    """Describe the machine and the versions, without anything that identifies its owner."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ", ".join(
        [
            f"{os.cpu_count()} cores of {(*names, platform.machine())[0]}",
            f"{memory:.0f} GiB of memory",
            platform.system(),
            f"Python {platform.python_version()}",
            *(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES),
        ]
    )


def as_json(day: str, rounds: int, rows: list[Row]) -> dict[str, Any]:
    """Return the figures of a measurement as the file has them."""
    return {"day": day, "rounds": rounds, "rows": [asdict(row) for row in rows]}


def write(measured: dict[str, Any], texts: dict[str, str], folder: Path) -> None:
    """
    Write the page.

    :param measured: the machine, and the figures of each measurement.
    :param texts: what is measured, and how: a title, and paragraphs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    parts = [f"{_HEAD}Measured on {measured['machine']}.\n"]
    for name, text in texts.items():
        if name not in measured:
            continue
        title, _, how = text.strip().partition("\n\n")
        found = measured[name]
        rounds = "1 round" if found["rounds"] == 1 else f"{found['rounds']} rounds"
        parts += [
            f"\n## {title.rstrip('.')}\n\n{how}\n\n" if how else f"\n## {title.rstrip('.')}\n\n",
            f"`python -m bench --only {name}`, {rounds} on {found['day']}:\n\n",
            "| what | this provider | beside | aim | |\n| --- | --- | --- | --- | --- |\n",
            *(f"{Row(**row)}\n" for row in found["rows"]),
        ]
    (folder / "README.md").write_text("".join(parts))
