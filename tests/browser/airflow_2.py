"""Runs Airflow 2.11 from an environment of its own, with a user who can sign in."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from airflow_instance import AirflowInstance


class Airflow2(AirflowInstance):
    """
    An `AirflowInstance` of Airflow 2.11.

    :param python: the interpreter of the environment that it is installed in.
    """

    user = "admin"
    _monitored = ("metadatabase", "scheduler", "triggerer")

    def __init__(self, python: Path, home: Path, dags: Path, *, environment: Mapping[str, str]) -> None:
        super().__init__(home, dags, environment=environment, bin_folder=python.parent)

    @property
    def password(self) -> str:
        return (self.home / "standalone_admin_password.txt").read_text().strip()

    def _environment(self) -> dict[str, str]:
        environment = super()._environment()
        return environment | {
            "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.basic_auth",
            "AIRFLOW__WEBSERVER__WEB_SERVER_HOST": "127.0.0.1",
            "AIRFLOW__WEBSERVER__WEB_SERVER_PORT": str(self.port),
            "AIRFLOW__WEBSERVER__WORKERS": "1",
        }

    def _send(self, method: str, target: str, body: Any = None) -> Any:
        path = target.removeprefix("/api/v2").removeprefix("/monitor")
        given = {key: value for key, value in (body or {}).items() if key != "logical_date"}
        told = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request = Request(  # noqa: S310 - always http to this machine
            f"{self.url}/api/v1{path}",
            data=None if body is None else json.dumps(given).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Basic {told}"},
            method=method,
        )
        with self._opener.open(request, timeout=30) as response:
            return json.loads(response.read() or b"null")
