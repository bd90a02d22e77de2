"""Runs a part of a measurement in a process of its own, and says how much memory it took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.service import ROOT, clean_environment


def run_module(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run a module, and return the JSON object in the last line that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=clean_environment(**environment),
    )
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def peak_memory() -> int:
    """Return the most bytes of memory that this process used."""
    # not by getrusage(), which begins with the memory of the parent
    lines = Path("/proc/self/status").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kilobytes) * 1024
