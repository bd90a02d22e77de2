"""A private Airflow in parts, as on several machines: Celery workers and triggerers, several of each."""

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

_COMMAND_PATIENCE = 180.0
_LOOK_EVERY = 0.5


class DistributedAirflow(AirflowInstance):
    """
    Airflow with CeleryExecutor around a PostgreSQL and a Redis of its own.

    Its parts are ``api-server``, ``scheduler``, ``dag-processor``, ``worker-1``, ``triggerer-1`` and so on.
    To Airflow each is a user of that name, so that its API tells which of them did what.

    :param workers: how many Celery workers.
    :param slots: how many tasks each of them runs at a time.
    :param triggerers: how many triggerers.
    """

    # its parts end with this process, however it ends
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
        """Start a part of this name."""
        [port] = free_ports(0)
        if name.startswith("worker"):
            # by itself, each would keep its pid in the same file
            pid_file = self.home / f"{name}.pid"
            command = ["celery", "worker", "--celery-hostname", f"{name}@%h", "--pid", str(pid_file)]
            ports = {"AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(port)}
        else:
            command = ["triggerer"] if name.startswith("triggerer") else [name]
            ports = {"AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(port)}
        self._parts[name] = self._start(*command, LOGNAME=name, **ports)
        self._components.append(self._parts[name])

    def restore(self) -> None:
        """Start as many new workers and triggerers as were lost, and return when they are up."""
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
        """Run a command to its end as a part of this Airflow; ``given`` is its input."""
        with self.log_file.open("ab") as log:
            subprocess.run(
                command,
                cwd=self.home,
                env=self._started_with,
                input=given.encode(),
                stdout=log,
                stderr=subprocess.STDOUT,
                check=True,
                timeout=_COMMAND_PATIENCE,
            )

    def _wait_until_healthy(self) -> None:
        super()._wait_until_healthy()
        self._wait_for_parts()

    def _wait_for_parts(self) -> None:
        """Wait for each of several, of which Airflow's own word of its health says nothing."""
        deadline = time.monotonic() + self.start_timeout
        while missing := [name for name in self.parts() if not self._is_up(name)]:
            if time.monotonic() > deadline:
                raise AirflowError(f"Not up: {', '.join(missing)}.\n{self._end_of_log()}")
            time.sleep(_LOOK_EVERY)

    def _is_up(self, name: str) -> bool:
        if name.startswith("worker"):
            return re.search(rf"{name}@\S+ ready", self.log_file.read_text(errors="replace")) is not None
        if name.startswith("triggerer"):
            jobs = self.request("GET", "/jobs", job_type="TriggererJob", is_alive="true", limit=1000)["jobs"]
            return name in (job["unixname"] for job in jobs)
        return True

    # --- its parts ---

    def parts(self, kind: str = "") -> list[str]:
        """Give the names of the parts that run, or of those of a kind, such as ``worker``."""
        return [name for name in self._parts if name.startswith(kind) and self.part(name)]

    def part(self, name: str) -> dict[int, str]:
        """Give the running processes of a part, by pid, with their titles."""
        return processes_of({self._parts[name].pid})

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to every process of a part."""
        for pid in self.part(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, name: str) -> None:
        """Kill a part for good, with all that it runs."""
        while self.part(name):
            self.signal(name, signal.SIGKILL)

    def triggers_of(self, name: str) -> set[int]:
        """Give the ids of the triggers that a triggerer has been given."""
        rows = self.database.query(
            "SELECT trigger.id FROM trigger JOIN job ON job.id = trigger.triggerer_id "  # noqa: S608 - a part's
            f"WHERE job.unixname = '{name}'"
        )
        return {int(row[0]) for row in rows}
