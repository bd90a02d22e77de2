"""A private, real Airflow (``airflow standalone``) on this machine, driven over its REST API."""

from __future__ import annotations

import contextlib
import json
import os
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

OVER = ("success", "failed")
_LOOK_EVERY = 0.5
_STOP_PATIENCE = 10.0


class AirflowError(Exception):
    """Airflow did not do what it was asked to; the message says what it said."""


class AirflowInstance:
    """
    Airflow with a database, a log folder and ports of its own; nothing of it is left after the block.

    :param home: the folder for everything it writes.
    :param dags: the folder with the DAG files.
    :param environment: more environment variables, such as connections; they win over the instance's own.
    :param start_timeout: seconds until every component has to be healthy.
    :param port: the port of the UI and the REST API; 0 takes a free one.
    :param bin_folder: the folder of the ``airflow`` to start; this interpreter's, when left out.
    """

    # those whose health its API tells
    _parts_that_tell: Sequence[str] = ("metadatabase", "scheduler", "triggerer", "dag_processor")
    # comes before each command of Airflow's
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
        # a proxy of the environment has no business with this machine's own ports
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

        :raises AirflowError: they were not in time; the message ends with the end of the log.
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
        """Start one component more, such as ``triggerer`` in place of one that was killed."""
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
                # a session of its own: a Ctrl-C is for the caller, and all of it can be found and stopped
                start_new_session=True,
            )

    def stop(self) -> None:
        """Stop everything that was started: politely first, then for good."""
        process = self._process
        if process is None:
            return
        try:
            self._signal_group(signal.SIGTERM)
            deadline = time.monotonic() + _STOP_PATIENCE
            while self.is_running() and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:  # even when a second Ctrl-C ends the wait
            self._signal_group(signal.SIGKILL)
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for started in (process, *self._components):
                started.wait()
            self._process = None
            self._components.clear()

    def processes(self, name: str = "") -> dict[int, str]:
        """
        Give the running processes of this instance, by pid; ``name`` is a part of the titles to look for.

        Titles end in or begin with such as ``airflow triggerer``, ``airflow scheduler``, ``airflow worker``.
        Where there is no ``/proc``, none are found.
        """
        if self._process is None:
            return {}
        return processes_of({self._process.pid, *(component.pid for component in self._components)}, name)

    def _environment(self) -> dict[str, str]:
        # a given port is tried, too: a stranger's Airflow on it would look healthy
        self.port, worker_log_port, trigger_log_port = free_ports(self.port, 0, 0)
        # what is set for another Airflow on this machine must not reach into this one
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
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
            # longer than the generated ones, about which Airflow's own libraries warn
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
                raise AirflowError(f"Airflow ended by itself with code {code}.\n{self._end_of_log()}")
            with contextlib.suppress(AirflowError):
                answer = self.request("GET", "/monitor/health")
                health = {name: str((answer.get(name) or {}).get("status")) for name in self._parts_that_tell}
                if set(health.values()) == {"healthy"}:
                    return
            if time.monotonic() > deadline:
                raise AirflowError(
                    f"Airflow was not healthy within {self.start_timeout:g} s "
                    f"({health or 'its API does not answer'}).\n{self._end_of_log()}"
                )
            time.sleep(_LOOK_EVERY)

    def is_running(self) -> bool:
        """Whether any process of it is left."""
        if self._process is None:
            return False
        is_leader_running = self._process.poll() is None
        if Path("/proc/self/stat").exists():
            return bool(self.processes())
        return is_leader_running or self._signal_group(0)

    def _signal_group(self, number: int) -> bool:
        assert self._process is not None  # noqa: S101 - for the type checker
        was_sent = False
        for process in (self._process, *self._components):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
                was_sent = True
        return was_sent

    def _end_of_log(self, lines: int = 40) -> str:
        text = self.log_file.read_text(errors="replace").splitlines()
        return "\n".join([f"The end of {self.log_file}:", *text[-lines:]])

    # --- the REST API ---

    def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """
        Perform one request of the public REST API and give its decoded answer.

        :raises AirflowError: it was refused, or not answered.
        """
        target = f"/api/v2{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            return self._send(method, target, body)
        except HTTPError as error:
            if error.code == 401 and not self._token:
                # before Airflow 3.2 those whom everything is allowed have to say so, too
                self._token = str(self._send("GET", "/auth/token")["access_token"])
                return self.request(method, path, body, **query)
            said = error.read().decode(errors="replace")[:2000]
            raise AirflowError(f"{method} {path}: {error.code} {said}") from None
        except (URLError, OSError) as error:
            raise AirflowError(f"{method} {path}: {error}") from None

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
        with self._opener.open(request, timeout=30) as response:
            return json.loads(response.read() or b"null")

    def version(self) -> str:
        return str(self.request("GET", "/version")["version"])

    def unpause(self, dag_id: str, timeout: float = 60) -> None:
        """
        Let runs of a DAG begin, once its file was read.

        :raises AirflowError: it was not read in time, or cannot be imported; the message holds the traceback.
        """
        begun = time.monotonic()
        while True:
            try:
                self.request("PATCH", f"/dags/{quote(dag_id)}", {"is_paused": False})
                return
            except AirflowError as error:
                spent = time.monotonic() - begun
                import_errors = self.request("GET", "/importErrors")["import_errors"]
                # they may be of other files, so this one's gets its time
                if import_errors and spent > timeout / 4:
                    told = "\n".join(f"{item['filename']}:\n{item['stack_trace']}" for item in import_errors)
                    raise AirflowError(f"DAG files cannot be imported.\n{told}") from None
                if spent > timeout:
                    raise AirflowError(f"Airflow did not read {dag_id} in {timeout:g} s: {error}") from None
            time.sleep(_LOOK_EVERY)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run of a DAG, which is unpaused first, and give the run's id."""
        self.unpause(dag_id)
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self.request("POST", f"/dags/{quote(dag_id)}/dagRuns", body)["dag_run_id"])

    def wait_for_a_run(self, dag_id: str, timeout: float) -> str:
        """
        Wait for a run that something else starts, and give its id.

        :raises AirflowError: none was started in time.
        """
        deadline = time.monotonic() + timeout
        while not (runs := self.request("GET", f"/dags/{quote(dag_id)}/dagRuns")["dag_runs"]):
            if time.monotonic() > deadline:
                raise AirflowError(f"Nothing started a run of {dag_id} in {timeout:g} s")
            time.sleep(_LOOK_EVERY)
        return str(runs[0]["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self.request("GET", _run(dag_id, run_id))["state"])

    def wait_for_run(
        self, dag_id: str, run_id: str, timeout: float, look: Callable[[], None] = lambda: None
    ) -> str:
        """
        Wait for the end of a run and give its state, ``success`` or ``failed``; call ``look`` meanwhile.

        :raises AirflowError: it is not over in time; the message tells the states of its tasks.
        """
        deadline = time.monotonic() + timeout
        while (state := self._state_if_told(dag_id, run_id)) not in OVER:
            look()
            if time.monotonic() > deadline:
                tasks = {item["task_id"]: item["state"] for item in self.task_instances(dag_id, run_id)}
                raise AirflowError(f"{dag_id} is still {state} after {timeout:g} s: {tasks}")
            time.sleep(_LOOK_EVERY)
        look()
        return state

    def _state_if_told(self, dag_id: str, run_id: str) -> str:
        try:
            return self.run_state(dag_id, run_id)
        except AirflowError as error:  # it has a lot to do
            return f"not told ({error})"

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        answer = self.request("GET", f"{_run(dag_id, run_id)}/taskInstances", limit=1000)
        return list(answer["task_instances"])

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:
        """
        Give a value that a task pushed.

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
        """Mark a task ``success``, ``failed`` or ``skipped``, as a user does in the UI."""
        index = "" if map_index is None else f"/{map_index}"
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}{index}"
        self.request("PATCH", path, {"new_state": state})

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """Give the log of one try of a task, one line an event, with its traceback if it has one."""
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
    """Give the running processes of sessions, with their titles; ``name`` is a part of those to look for."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # after the name, which may hold anything: state, parent, group, session
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (OSError, ValueError):
            continue
        title = " ".join(words).strip()
        if int(session) in sessions and state not in "ZX" and name in title:
            found[int(folder.name)] = title
    return found


def free_ports(*wanted: int) -> list[int]:
    """Find free ports of this machine, all different: for each wanted one itself, for 0 any."""
    # all are held until the last is found, so that they differ
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
