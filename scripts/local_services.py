"""Runs a private PostgreSQL and a private Redis from Debian's packages, and removes them after the block."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from airflow_instance import free_ports

_POSTGRES_VERSIONS = Path("/usr/lib/postgresql")
_SETPRIV = "/usr/bin/setpriv"
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 10.0


class ServiceError(Exception):
    """A service is not installed, or could not be started; the message says which, or holds its output."""


class LocalService:
    """A server with its own folder, port and password. It ends with the process that started it."""

    name: str
    #: The account it runs under when root starts it. By default it is the caller's.
    account: str | None = None
    _end_signal = signal.SIGTERM

    def __init__(self) -> None:
        self.password = secrets.token_urlsafe(24)
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}

    @property
    def url(self) -> str:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._find_programs()
        [self.port] = free_ports(0)
        self.folder = Path(tempfile.mkdtemp(prefix=f"rungen-{self.name}-"))
        try:
            if self.account is not None and os.geteuid() == 0:
                account = pwd.getpwnam(self.account)
                self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
                os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._start()
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        try:
            if process is not None:
                process.send_signal(self._end_signal)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_TIMEOUT)
        finally:  # even when a second Ctrl-C ends the wait
            if process is not None:
                process.kill()
                process.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _find_programs(self) -> None:
        """
        Find the programs.

        :raises ServiceError: they are not installed.
        """
        raise NotImplementedError

    def _start(self) -> None:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _run(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, check=False, timeout=120, **options, **self._as
        )

    def _serve(self, *command: str | Path, configuration: str = "") -> None:
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                # ends it even when this process is killed
                [_SETPRIV, "--pdeathsig", self._end_signal.name.removeprefix("SIG"), *command],
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches only the caller
                start_new_session=True,
                **self._as,
            )
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        with self._process.stdin as given:
            given.write(configuration.encode())

    def _wait_until_ready(self) -> None:
        assert self._process is not None  # noqa: S101 - for the type checker
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / "log").read_text(errors="replace")
                raise ServiceError(f"{self.name} did not start:\n{log}")
            time.sleep(0.1)


class LocalPostgres(LocalService):
    """PostgreSQL with an empty database. It is for tests: its data do not survive a power failure."""

    name = account = "postgres"
    _end_signal = signal.SIGQUIT  # an immediate shutdown, since its folder is deleted anyway

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://airflow:{self.password}@127.0.0.1:{self.port}/postgres"

    def dump(self) -> bytes:
        """
        Return the content of the database as text.

        :raises ServiceError: pg_dump fails.
        """
        done = self._run(self._programs / "pg_dump", *self._address(), env=self._environment())
        if done.returncode:
            raise ServiceError(f"pg_dump: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def query(self, statement: str) -> list[list[str]]:
        """
        Return the rows of an answer as text.

        :raises ServiceError: psql fails.
        """
        command: list[str | Path] = [self._programs / "psql", *self._address(), "-AtF", "\t", "-c", statement]
        done = self._run(*command, env=self._environment())
        if done.returncode:
            raise ServiceError(f"psql: {done.stderr.decode(errors='replace')}")
        return [line.split("\t") for line in done.stdout.decode().splitlines()]

    def _address(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "airflow", "-d", "postgres"]

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "PGPASSWORD": self.password}

    def _find_programs(self) -> None:
        # Debian installs each version in a folder of its own
        found = sorted(_POSTGRES_VERSIONS.glob("*/bin/initdb"), key=lambda path: float(path.parents[1].name))
        if not found:
            raise ServiceError("PostgreSQL is missing: apt-get install postgresql")
        self._programs = found[-1].parent

    def _start(self) -> None:
        data, password = self.folder / "data", self.folder / "password"
        password.touch(0o600)
        password.write_text(self.password)
        if self._as:
            os.chown(password, self._as["user"], self._as["group"])
        done = self._run(
            *(self._programs / "initdb", "-D", data, "-U", "airflow", "-E", "UTF8", "--locale=C.UTF-8"),
            *("--no-sync", "--auth=scram-sha-256", f"--pwfile={password}"),
        )
        if done.returncode:
            raise ServiceError(f"initdb: {done.stderr.decode(errors='replace')}")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "300",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._serve(self._programs / "postgres", "-D", data, *given)

    def _is_ready(self) -> bool:
        probe = self._run(self._programs / "pg_isready", *self._address(), env=self._environment())
        return probe.returncode == 0


class LocalRedis(LocalService):
    """Redis without persistence."""

    name = "redis"

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def _find_programs(self) -> None:
        if not shutil.which("redis-server"):
            raise ServiceError("Redis is missing: apt-get install redis-server")

    def _start(self) -> None:
        # through its input, since all users can read the arguments of a process
        configuration = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"requirepass {self.password}",
            f"dir {self.folder}",
            'save ""',
        ]
        self._serve("redis-server", "-", configuration="\n".join(configuration))

    def _is_ready(self) -> bool:
        environment = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": self.password}
        command = ["redis-cli", "-h", "127.0.0.1", "-p", str(self.port), "ping"]
        return self._run(*command, env=environment).stdout.strip() == b"PONG"
