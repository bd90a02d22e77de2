"""Runs a private Airflow (``airflow standalone``) on this machine, and drives it over its REST API."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import ProxyHandler, Request, build_opener

import psutil

#: The folder of the example DAGs.
EXAMPLES = Path(__file__).resolve().parents[1] / "example_dags"

_ENDED = ("success", "failed")
# Seconds between the tries of a request that found the database busy.
_BUSY_PAUSES = (1, 2, 4)
_POLL_INTERVAL = 0.5
_STOP_TIMEOUT = 10.0


class AirflowError(Exception):
    """Airflow refused or failed; the message holds its answer."""


class AirflowInstance:
    """
    Airflow with its own database, log folder and ports. All of its processes end with the block.

    :param home: the folder for everything it writes.
    :param dags: the folder with the DAG files.
    :param environment: more environment variables, such as connections. They override the instance's own.
    :param start_timeout: seconds within which every component has to be healthy.
    :param port: the port of the UI and the REST API; 0 selects a free one.
    :param bin_folder: the folder of the ``airflow`` to start. By default it is this interpreter's.
    """

    # the components whose health its API reports
    _monitored: Sequence[str] = ("metadatabase", "scheduler", "triggerer", "dag_processor")
    # what each of its commands starts with
    _prefix: Sequence[str] = ()

    def __init__(
        self,
        home: Path,
        dags: Path,
        *,
        environment: Mapping[str, str] | None = None,
        start_timeout: float = 180,
        port: int = 0,
        bin_folder: Path | None = None,
    ) -> None:
        self._bin_folder = bin_folder or Path(sys.executable).parent
        self.home = home.resolve()
        self.dags = dags.resolve()
        self.log_file = self.home / "standalone.log"
        self.start_timeout = start_timeout
        self.port = port
        self._more_environment = dict(environment or {})
        self._token = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._components: list[subprocess.Popen[bytes]] = []
        # a proxy could not reach this machine's own ports
        self._opener = build_opener(ProxyHandler({}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- starting and stopping ---

    def start(self) -> Self:
        """
        Start Airflow, and return when all of its components are healthy.

        :raises AirflowError: they were not in time. The message ends with the end of the log.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        self._started_with = self._environment()
        self.log_file.unlink(missing_ok=True)
        try:
            self._launch()
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def _launch(self) -> None:
        self._process = self._start("standalone")

    def start_component(self, name: str) -> None:
        """Start one more component, such as a ``triggerer`` that replaces a killed one."""
        self._components.append(self._start(name))

    def _start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as output:
            return subprocess.Popen(
                [*self._prefix, self._bin_folder / "airflow", *command],
                cwd=self.home,
                env=self._started_with | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # a new session: Ctrl-C reaches only the caller, and all of its processes can be found
                start_new_session=True,
            )

    def stop(self) -> None:
        """Stop everything that was started: with SIGTERM first, then with SIGKILL."""
        process = self._process
        if process is None:
            return
        try:
            self._signal_groups(signal.SIGTERM)
            deadline = time.monotonic() + _STOP_TIMEOUT
            while self.is_running() and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:  # even when a second Ctrl-C ends the wait
            self._signal_groups(signal.SIGKILL)
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for started in (process, *self._components):
                started.wait()
            self._process = None
            self._components.clear()

    def processes(self, name: str = "") -> dict[int, str]:
        """
        Return the titles of the running processes of this instance, by pid.

        :param name: a part of the titles to find, such as ``airflow triggerer`` or ``airflow worker``.
        """
        if self._process is None:
            return {}
        return processes_of({self._process.pid, *(component.pid for component in self._components)}, name)

    def _environment(self) -> dict[str, str]:
        # a given port is tried, too: another Airflow on it would look healthy
        self.port, worker_log_port, trigger_log_port = free_ports(self.port, 0, 0)
        # settings of another Airflow and another emulator on this machine must not affect this one
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("AIRFLOW") and name != "RUNGEN_EMULATOR"
        }
        no_proxy = ",".join(filter(None, (inherited.get("NO_PROXY"), inherited.get("no_proxy"), "127.0.0.1")))
        return {
            **inherited,
            # standalone starts its components by the name `airflow`
            "PATH": f"{self._bin_folder}{os.pathsep}{inherited.get('PATH', os.defpath)}",
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            # longer than a generated one, about which a library of Airflow warns
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "8",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(trigger_log_port),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(worker_log_port),
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            **self._more_environment,
        }

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        health: dict[str, str] = {}
        while True:
            assert self._process is not None  # noqa: S101 - for the type checker
            if (code := self._process.poll()) is not None:
                raise AirflowError(f"Airflow ended with code {code}.\n{self._end_of_log()}")
            with contextlib.suppress(AirflowError):
                answer = self.request("GET", "/monitor/health")
                health = {name: str((answer.get(name) or {}).get("status")) for name in self._monitored}
                if set(health.values()) == {"healthy"}:
                    return
            if time.monotonic() > deadline:
                raise AirflowError(
                    f"Airflow was not healthy within {self.start_timeout:g} s "
                    f"({health or 'its API does not answer'}).\n{self._end_of_log()}"
                )
            time.sleep(_POLL_INTERVAL)

    def is_running(self) -> bool:
        """Return whether any of its processes is left."""
        return bool(self.processes())

    def _signal_groups(self, number: int) -> None:
        assert self._process is not None  # noqa: S101 - for the type checker
        for process in (self._process, *self._components):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)

    def _end_of_log(self, lines: int = 40) -> str:
        text = self.log_file.read_text(errors="replace").splitlines()
        return "\n".join([f"The end of {self.log_file}:", *text[-lines:]])

    # --- the REST API ---

    def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """
        Send a request to the public REST API, and return its decoded answer.

        :raises AirflowError: it was refused, or not answered.
        """
        target = f"/api/v2{path}" + (f"?{urlencode(query)}" if query else "")
        pauses = iter(_BUSY_PAUSES)
        while True:
            try:
                return self._send(method, target, body)
            except HTTPError as error:
                if error.code == 401 and not self._token:
                    # before Airflow 3.2 even an administrator needs a token
                    self._token = str(self._send("GET", "/auth/token")["access_token"])
                    return self.request(method, path, body, **query)
                answer = error.read().decode(errors="replace")[:2000]
                if "Database error" not in answer or (pause := next(pauses, None)) is None:
                    raise AirflowError(f"{method} {path}: {error.code} {answer}") from None
            except (URLError, OSError) as error:
                raise AirflowError(f"{method} {path}: {error}") from None
            time.sleep(pause)  # SQLite was busy, so that nothing was written

    def _send(self, method: str, target: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = Request(  # noqa: S310 - always http to this machine
            f"{self.url}{target}",
            data=None if body is None else json.dumps(body).encode(),
            headers=headers,
            method=method,
        )
        with self._opener.open(request, timeout=60) as response:
            return json.loads(response.read() or b"null")

    def log_in(self, username: str, password: str) -> None:
        """Send later requests as a user of Airflow's simple auth manager."""
        answer = self._send("POST", "/auth/token", {"username": username, "password": password})
        self._token = str(answer["access_token"])

    def version(self) -> str:
        return str(self.request("GET", "/version")["version"])

    def unpause(self, dag_id: str, timeout: float = 60) -> None:
        """
        Unpause a DAG, as soon as its file was read.

        :raises AirflowError: it was not read in time, or cannot be imported. The message holds the traceback.
        """
        begun = time.monotonic()
        while True:
            try:
                self.request("PATCH", f"/dags/{quote(dag_id)}", {"is_paused": False})
                return
            except AirflowError as error:
                spent = time.monotonic() - begun
                import_errors = self.request("GET", "/importErrors")["import_errors"]
                # they may be errors of other files, so this one still gets its time
                if import_errors and spent > timeout / 4:
                    tracebacks = "\n".join(
                        f"{item['filename']}:\n{item['stack_trace']}" for item in import_errors
                    )
                    raise AirflowError(f"DAG files cannot be imported.\n{tracebacks}") from None
                if spent > timeout:
                    raise AirflowError(f"Airflow did not read {dag_id} in {timeout:g} s: {error}") from None
            time.sleep(_POLL_INTERVAL)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Unpause a DAG, start a run of it, and return the run's id."""
        self.unpause(dag_id)
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self.request("POST", f"/dags/{quote(dag_id)}/dagRuns", body)["dag_run_id"])

    def wait_for_new_run(self, dag_id: str, timeout: float) -> str:
        """
        Wait for a run that something else starts, and return its id.

        :raises AirflowError: none was started in time.
        """
        deadline = time.monotonic() + timeout
        while not (runs := self.request("GET", f"/dags/{quote(dag_id)}/dagRuns")["dag_runs"]):
            if time.monotonic() > deadline:
                raise AirflowError(f"Nothing started a run of {dag_id} in {timeout:g} s")
            time.sleep(_POLL_INTERVAL)
        return str(runs[0]["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self.request("GET", _run(dag_id, run_id))["state"])

    def wait_for_run(
        self, dag_id: str, run_id: str, timeout: float, on_poll: Callable[[], None] = lambda: None
    ) -> str:
        """
        Wait for the end of a run, and return its state: ``success`` or ``failed``.

        :param timeout: seconds to wait at most.
        :param on_poll: called at each poll.
        :raises AirflowError: it has not ended in time. The message holds the states of its tasks.
        """
        deadline = time.monotonic() + timeout
        while (state := self._state_or_error(dag_id, run_id)) not in _ENDED:
            on_poll()
            if time.monotonic() > deadline:
                tasks = {item["task_id"]: item["state"] for item in self.task_instances(dag_id, run_id)}
                raise AirflowError(f"{dag_id} is still {state} after {timeout:g} s: {tasks}")
            time.sleep(_POLL_INTERVAL)
        on_poll()
        return state

    def _state_or_error(self, dag_id: str, run_id: str) -> str:
        try:
            return self.run_state(dag_id, run_id)
        except AirflowError as error:  # it may be overloaded
            return f"unknown ({error})"

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        answer = self.request("GET", f"{_run(dag_id, run_id)}/taskInstances", limit=1000)
        return list(answer["task_instances"])

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:
        """
        Return a value that a task pushed.

        :raises AirflowError: it pushed none.
        """
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}/xcomEntries/{quote(key)}"
        return self.request("GET", path, map_index=map_index)["value"]

    def clear(self, dag_id: str, run_id: str, task_ids: Sequence[str], *, is_downstream: bool = True) -> None:
        """Clear tasks of a run, so that they run again."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": list(task_ids),
            "only_failed": False,
            "include_downstream": is_downstream,
        }
        self.request("POST", f"/dags/{quote(dag_id)}/clearTaskInstances", body)

    def set_task_state(
        self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int | None = None
    ) -> None:
        """Mark a task ``success``, ``failed`` or ``skipped``, as in the UI."""
        index = "" if map_index is None else f"/{map_index}"
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}{index}"
        self.request("PATCH", path, {"new_state": state})

    def answer(
        self, dag_id: str, run_id: str, task_id: str, option: str, timeout: float = 120
    ) -> dict[str, Any]:
        """
        Answer a task that asks a human, such as an ``ApprovalOperator``, and return what it asked.

        :param timeout: seconds within which it has to ask.
        :raises AirflowError: it has not asked in time.
        """
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}/-1/hitlDetails"
        # the scheduler fails a task that is answered before it has seen its process end
        seen = f"executor event with state success .*task_id='{task_id}', run_id='{re.escape(run_id)}'"
        deadline = time.monotonic() + timeout
        while not re.search(seen, self.log_file.read_text(errors="replace")):
            if time.monotonic() > deadline:
                raise AirflowError(f"Task {task_id} of {dag_id} has asked nothing in {timeout:g} s")
            time.sleep(_POLL_INTERVAL)
        asked: dict[str, Any] = self.request("GET", path)
        self.request("PATCH", path, {"chosen_options": [option], "params_input": {}})
        return asked

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """Return the log of one try of a task, one line per event, with tracebacks."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}/logs/{try_number}"
        answer = self.request("GET", path, map_index=map_index, full_content="true")
        return "\n".join(_log_line(event) for event in answer["content"])


def _run(dag_id: str, run_id: str) -> str:
    return f"/dags/{quote(dag_id)}/dagRuns/{quote(run_id, safe='')}"


def _log_line(event: Any) -> str:
    if not isinstance(event, dict):
        return str(event)
    level = str(event.get("level") or "").upper()
    parts = [event.get("timestamp"), level, event.get("event"), event.get("reason")]
    line = " ".join(str(part) for part in parts if part)
    for error in event.get("error_detail") or ():
        line += f"\n  {error.get('exc_type')}: {error.get('exc_value')}"
        for frame in error.get("frames") or ():
            line += f"\n    {frame.get('filename')}:{frame.get('lineno')} {frame.get('name')}"
    return line


def processes_of(sessions: Collection[int], name: str = "") -> dict[int, str]:
    """
    Return the titles of the running processes of sessions, by pid.

    :param name: a part of the titles to find.
    """
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getsid(process.pid) not in sessions or process.status() == psutil.STATUS_ZOMBIE:
                continue
            title = " ".join(process.cmdline()).strip()
            if name in title:
                found[process.pid] = title
    return found


def free_ports(*wanted: int) -> list[int]:
    """
    Return the given ports, with a free one instead of each 0.

    :raises AirflowError: a given port cannot be used.
    """
    # all stay bound until the last is found, so that they differ
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in wanted]
        for each, port in zip(sockets, wanted, strict=True):
            # as the server does: a connection of the last instance may linger on the port
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                each.bind(("127.0.0.1", port))
            except OSError as error:
                raise AirflowError(f"Port {port} cannot be used: {error.strerror}") from None
        return [int(each.getsockname()[1]) for each in sockets]
