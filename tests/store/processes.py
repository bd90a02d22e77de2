"""Attempts of a table in processes of their own, which are killed or stopped at any call."""

from __future__ import annotations

import contextlib
import gzip
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from rungen_emulator import Emulator

# What Python announces before it is done to a file.
_CALLS = {"open", "os.scandir", "os.link", "os.rename", "os.remove", "os.mkdir"}
_PRELOADED = [
    "rungen_emulator.testing",
    "rungen_emulator.names",
    "airflow_provider_rungen.operators",
    "airflow_provider_rungen.work.table_run",
    "airflow_provider_rungen.results.sink",
    "upath.implementations.local",
    "airflow.providers.amazon.aws.fs",
]


@dataclass
class Attempt:
    """
    An attempt of a table of prompts.

    :param destination: its store.
    :param folder: what is below it: the results, and what the attempt says at its end.
    :param environment: its connections.
    :param strike: the signal that it sends itself before its n-th call to a file of a local store.
    :param id_seconds: how long the file of the id of a job takes.
    :param begin_at: when it begins (seconds since 1970).
    :param waits: the seconds that the package waits, by name.
    """

    destination: str
    folder: Path
    environment: Mapping[str, str]
    rows: int = 2
    run: str = "night 1"
    deferrable: bool = False
    strike: tuple[int, int] = (0, signal.SIGKILL)
    id_seconds: float = 0.0
    begin_at: float = 0.0
    waits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = f"{time.monotonic_ns()}"

    def start(self) -> Attempt:
        self._process = _server().Process(target=_perform, args=(self,), daemon=True)
        self._process.start()
        return self

    def wait(self) -> dict[str, Any]:
        """Wait for its end, and return what it printed; nothing if it was killed."""
        self._process.join(120)
        assert self._process.exitcode is not None, "it does not end"
        path = self.folder / f"{self.name}.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def result(self) -> dict[str, Any]:
        return self.start().wait()

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    @property
    def is_stopped(self) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid or 0, number)


def environment_of(emulator: Emulator) -> dict[str, str]:
    names = {"AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(), "RUNGEN_EMULATOR": emulator.url}
    stores = {name: value for name, value in os.environ.items() if name.endswith("_S3")}
    return {**names, **stores}


def recorded(contents: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the records in the files of a store, by name."""
    done = (gzip.decompress(content) for path, content in contents.items() if path.endswith(".gz"))
    return [json.loads(line) for lines in done for line in lines.splitlines()]


def named(paths: Iterable[str]) -> set[str]:
    """Return the jobs that are named in ``open``."""
    names = (path.rpartition("/")[2].split(".", 2) for path in paths if "/open/" in path)
    return {name[2] for name in names if len(name) == 3 and name[0]}  # others are temporary


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


# --- in the process of the attempt ---


def _perform(attempt: Attempt) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(quiet, number)
    os.environ.update(attempt.environment)
    from rungen_emulator.fakes import FakeTaskInstance
    from rungen_emulator.testing import run_operator

    from airflow_provider_rungen.operators import RunGenRunTableOperator

    for name, seconds in attempt.waits.items():
        module, _, constant = name.rpartition(".")
        setattr(import_module(f"airflow_provider_rungen.{module}"), constant, seconds)
    ti = FakeTaskInstance()
    ti.run_id = attempt.run
    operator = RunGenRunTableOperator(
        task_id="task",
        table=[{"prompt": f"a fox, no. {number}"} for number in range(attempt.rows)],
        destination=attempt.destination,
        results=(attempt.folder / f"{attempt.run}.jsonl").as_uri(),
        deferrable=attempt.deferrable,
        poll_interval=0.02,
    )
    calls, folder = 0, attempt.destination.removeprefix("file://")

    def strike(event: str, args: tuple[Any, ...]) -> None:
        nonlocal calls
        if event in _CALLS and str(args[0]).startswith(folder):
            calls += 1
            if calls == attempt.strike[0]:
                os.kill(os.getpid(), attempt.strike[1])

    def slow_down(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.link" and attempt.id_seconds and named([str(args[1])]):
            time.sleep(attempt.id_seconds)

    sys.addaudithook(strike)
    sys.addaudithook(slow_down)
    time.sleep(max(attempt.begin_at - time.time(), 0))
    result = run_operator(operator, context={"ti": ti, "task_state_store": None}, timeout=None)
    error = repr(result.error) if result.error else ""
    outcome = {"error": error, "value": result.value, "calls": calls, "log": result.log}
    (attempt.folder / f"{attempt.name}.json").write_text(json.dumps(outcome))
