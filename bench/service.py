"""Runs the emulator in a separate process, and controls it over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.request import ProxyHandler, Request, build_opener

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
APP = "flux-schnell"
KEY = "rungen-emulator-key"
_SUBMITTING = 32
# a proxy could not reach this machine's own ports
_opener = build_opener(ProxyHandler({}))


def clean_environment(**more: str) -> dict[str, str]:
    """Return an environment for a measured process, without settings of another Airflow or a proxy."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW_", "RUNGEN_")) and not name.lower().endswith("_proxy")
    }
    return {**kept, "NO_PROXY": "127.0.0.1", "AIRFLOW__CORE__LOAD_EXAMPLES": "False", **more}


class Service:
    """
    The emulator, until the end of the block.

    :param workers: the workers of its app at the start.
    :param options: options of its command line.
    """

    def __init__(self, workers: int = 0, **options: Any) -> None:
        self._options = {"workers": workers, **options}
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.connection = ""

    def __enter__(self) -> Self:
        words = [sys.executable, "-m", "airflow_provider_rungen.emulator"]
        for name, value in self._options.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        self._process = subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, env=clean_environment(), cwd=ROOT
        )
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        assignment = shlex.split(self._process.stdout.readline())[1]
        self.connection = assignment.partition("=")[2]
        self.url = json.loads(self.connection)["host"]
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def connection_by(self, url: str) -> str:
        """Return the Airflow connection with another address."""
        return json.dumps({**json.loads(self.connection), "host": url})

    def control(self, method: str, path: str, body: Any = None) -> Any:
        request = Request(  # noqa: S310 - always http to this machine
            f"{self.url}/_emulator/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        with _opener.open(request, timeout=60) as response:
            return json.loads(response.read())

    def scale(self, workers: int) -> None:
        """Set the number of workers, which starts the queued jobs."""
        self.control("POST", "workers", {"app_id": APP, "workers": workers})

    def requests(self) -> dict[str, int]:
        """Return the number of requests by operation."""
        return dict(self.control("GET", "stats")["requests"])

    def jobs(self) -> list[dict[str, Any]]:
        return list(self.control("GET", "jobs"))

    def answer_counters(self, jobs: Mapping[str, int] | None) -> None:
        """Answer every request for the app with these job counters, or without counters."""
        answer = {"id": APP, "name": APP, "status": "RUNNING"} | ({} if jobs is None else {"jobs": jobs})
        fault = {"on": "get_app", "status": 200, "body": {"data": answer}, "times": None}
        self.control("POST", "faults", fault)

    def submit(self, inputs: Sequence[Mapping[str, Any]]) -> list[str]:
        """Submit jobs in order, and return their ids."""
        return asyncio.run(self._submit(inputs))

    async def _submit(self, inputs: Sequence[Mapping[str, Any]]) -> list[str]:
        ids = [""] * len(inputs)
        left = iter(enumerate(inputs))

        async def work(session: aiohttp.ClientSession, left: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
            for place, given in left:
                async with session.post(
                    f"{self.url}/app/{APP}/run_async", json={"input": given}, headers={"x-api-key": KEY}
                ) as answer:
                    answer.raise_for_status()
                    ids[place] = (await answer.json())["data"]["id"]

        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(work(session, left) for _ in range(_SUBMITTING)))
        return ids
