"""
Make ``.venv``, and install the package, the emulator and extras of the package into it, for the Makefile.

Arguments: the extras, such as ``dev``. It needs only Python, and prints every few seconds what it does.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
OPTIONS = ("--disable-pip-version-check", "--progress-bar=off", "-c", "constraints.txt")
# Seconds between two lines.
INTERVAL = 5


def main(extras: list[str]) -> int:
    with Progress() as progress:
        if not PYTHON.with_name("pip").exists():
            progress.begin("making .venv")
            subprocess.run([sys.executable, "-m", "venv", ROOT / ".venv"], check=True)
        return install(f".[{','.join(extras)}]", progress)


class Progress:
    """Prints each phase, and while it lasts, every few seconds how long all has taken so far."""

    def __init__(self) -> None:
        self.phase = ""
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick)

    def __enter__(self) -> Progress:
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._ticker.join()

    def begin(self, phase: str) -> None:
        self.phase = phase
        self._print()

    def _tick(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._print()

    def _print(self) -> None:
        print(f"  {time.monotonic() - self._began:4.0f} s  {self.phase}", flush=True)


def install(package: str, progress: Progress) -> int:
    """Return pip's exit code. Its output is printed only when it fails."""
    progress.begin("finding packages")
    output = []
    with subprocess.Popen(
        [PYTHON, "-m", "pip", "install", *OPTIONS, "-e", "emulator", "-e", package],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as pip:
        for line in pip.stdout or ():
            output.append(line)
            if found := re.match(r"Collecting ([\w.-]+)", line):
                progress.phase = f"downloading {found[1]}"
            elif line.startswith("Installing collected packages"):
                progress.begin(f"installing {line.count(',') + 1} packages")
    if pip.returncode:
        print("".join(output), file=sys.stderr)
    return pip.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
