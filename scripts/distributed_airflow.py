"""Runs a private Airflow with several Celery workers and triggerers, as on several machines."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from airflow_instance import AirflowError, AirflowInstance, free_ports, processes_of
from local_services import LocalPostgres, LocalRedis

_COMMAND_TIMEOUT = 180.0
_POLL_INTERVAL = 0.5


class DistributedAirflow(AirflowInstance):
    """
    Airflow with CeleryExecutor and its own PostgreSQL and Redis.

    Its parts are ``api-server``, ``scheduler``, ``dag-processor``, ``worker-1``, ``triggerer-1`` and so on.
    Each runs under a user name of its own, so that Airflow's API shows which part did what.

    :param workers: how many Celery workers.
    :param slots: how many tasks each of them runs at a time.
    :param triggerers: how many triggerers.
    """

    # ends each part when this process ends in any way
    _prefix = ("setpriv", "--pdeathsig", "TERM")

    def __init__(
        self, home: Path, dags: Path, *, workers: int = 2, slots: int = 4, triggerers: int = 2, **options: Any
    ) -> None:
        super().__init__(home, dags, **options)
        self.log_file = self.home / "parts.log"
        self.database, self.broker = LocalPostgres(), LocalRedis()
        self._services = contextlib.ExitStack()
        self._wanted = {"worker": workers, "triggerer": triggerers}
        self._slots = slots
        self._parts: dict[str, subprocess.Popen[bytes]] = {}

    # --- starting and stopping ---

    def start(self) -> Self:
        for service in (self.database, self.broker):
            self._services.enter_context(service)
        return super().start()

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            self._services.close()

    def start_component(self, name: str) -> None:
        """Start the part with this name."""
        [port] = free_ports(0)
        if name.startswith("worker"):
            # by default all would use the same pid file
            pid_file = self.home / f"{name}.pid"
            command = ["celery", "worker", "--celery-hostname", f"{name}@%h", "--pid", str(pid_file)]
            ports = {"AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(port)}
        else:
            command = ["triggerer"] if name.startswith("triggerer") else [name]
            ports = {"AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(port)}
        self._parts[name] = self._start(*command, LOGNAME=name, **ports)
        self._components.append(self._parts[name])

    def restore(self) -> None:
        """Replace lost workers and triggerers, and return when the new ones are up."""
        self._start_missing()
        self._wait_for_parts()

    def _start_missing(self) -> None:
        for kind, wanted in self._wanted.items():
            for _ in range(wanted - len(self.parts(kind))):
                number = sum(name.startswith(kind) for name in self._parts) + 1
                self.start_component(f"{kind}-{number}")

    def _environment(self) -> dict[str, str]:
        return {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.database.url,
            "AIRFLOW__CELERY__BROKER_URL": self.broker.url,
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(self._slots),
        } | super()._environment()

    def _launch(self) -> None:
        self.run(Path(sys.executable).parent / "airflow", "db", "migrate")
        self._process = self._start("api-server")
        for name in ("scheduler", "dag-processor"):
            self.start_component(name)
        self._start_missing()

    def run(self, *command: str | Path, given: str = "") -> None:
        """
        Run a command with the environment of this Airflow, and wait for its end.

        :param given: its input.
        """
        with self.log_file.open("ab") as log:
            subprocess.run(
                command,
                cwd=self.home,
                env=self._started_with,
                input=given.encode(),
                stdout=log,
                stderr=subprocess.STDOUT,
                check=True,
                timeout=_COMMAND_TIMEOUT,
            )

    def _wait_until_healthy(self) -> None:
        super()._wait_until_healthy()
        self._wait_for_parts()

    def _wait_for_parts(self) -> None:
        """Wait for each worker and triggerer. Airflow's health check reports only one of a kind."""
        deadline = time.monotonic() + self.start_timeout
        while missing := [name for name in self.parts() if not self._is_up(name)]:
            if time.monotonic() > deadline:
                raise AirflowError(f"Not up: {', '.join(missing)}.\n{self._end_of_log()}")
            time.sleep(_POLL_INTERVAL)

    def _is_up(self, name: str) -> bool:
        if name.startswith("worker"):
            return re.search(rf"{name}@\S+ ready", self.log_file.read_text(errors="replace")) is not None
        if name.startswith("triggerer"):
            jobs = self.request("GET", "/jobs", job_type="TriggererJob", is_alive="true", limit=1000)["jobs"]
            return name in (job["unixname"] for job in jobs)
        return True

    # --- parts ---

    def parts(self, kind: str = "") -> list[str]:
        """Return the names of the running parts, or of those of a kind, such as ``worker``."""
        return [name for name in self._parts if name.startswith(kind) and self.part(name)]

    def part(self, name: str) -> dict[int, str]:
        """Return the titles of the running processes of a part, by pid."""
        return processes_of({self._parts[name].pid})

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to every process of a part."""
        for pid in self.part(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, name: str) -> None:
        """Kill a part with SIGKILL, including all of its processes."""
        while self.part(name):
            self.signal(name, signal.SIGKILL)

    def triggers_of(self, name: str) -> set[int]:
        """Return the ids of the triggers that are assigned to a triggerer."""
        rows = self.database.query(
            "SELECT trigger.id FROM trigger JOIN job ON job.id = trigger.triggerer_id "  # noqa: S608 - a part's
            f"WHERE job.unixname = '{name}'"
        )
        return {int(row[0]) for row in rows}
