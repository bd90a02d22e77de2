"""``rungen-demo``: run Airflow with the example DAGs and an emulated RunGen service, without a key."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from airflow_provider_rungen.emulator.server import EMULATORS, Emulator

EXAMPLES = Path(__file__).parents[1] / "example_dags"
START_SECONDS = 180.0
STOP_SECONDS = 15.0


def main(argv: Sequence[str] | None = None) -> None:
    """Start both, print the addresses, and wait for Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="rungen-demo", description=__doc__)
    parser.add_argument(
        "--home",
        type=Path,
        default=Path.home() / ".rungen-demo",
        help="the folder for Airflow's files and the pictures (default: ~/.rungen-demo)",
    )
    parser.add_argument("--port", type=int, default=0, help="port of Airflow's UI; 0 selects a free one")
    options = parser.parse_args(argv)
    home = options.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), Emulator(job_seconds=8) as emulator:
        url = f"http://127.0.0.1:{options.port or _free_port()}"
        print("Starting Airflow (about half a minute) ...", flush=True)
        with _airflow(home, url, emulator) as process:
            _wait_until_up(process, url, home)
            print(f"Airflow, no login needed: {url}")
            print(f"Paint a picture: {url}/dags/rungen_first_job")
            print(f"Pictures and Airflow's own output: {home}")
            print("Press Ctrl-C to stop.", flush=True)
            process.wait()
            sys.exit(f"Airflow ended. See {home / 'airflow.log'}.")


@contextmanager
def _airflow(home: Path, url: str, emulator: Emulator) -> Iterator[subprocess.Popen[bytes]]:
    folder = str(Path(sys.executable).parent)
    environment = {
        # settings of another Airflow and another emulator on this machine must not affect this one
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith("AIRFLOW") and name != EMULATORS
        },
        "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "NO_PROXY": "127.0.0.1",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": url.rpartition(":")[2],
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",  # no example has a schedule that starts jobs
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(),
    }
    with (home / "airflow.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "standalone"],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, which ends as a whole
        )
    try:
        yield process
    finally:
        print("\nStopping ...", flush=True)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)


def _wait_until_up(process: subprocess.Popen[bytes], url: str, home: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    opener = build_opener(ProxyHandler({}))  # a proxy could not reach this machine's own ports
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), opener.open(f"{url}/api/v2/monitor/health", timeout=5) as answer:
            if answer.read().count(b'"healthy"') >= 4:  # all but the executor are components
                return
        time.sleep(0.5)
    sys.exit(f"Airflow did not start. See {home / 'airflow.log'}.")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
