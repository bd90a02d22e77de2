"""What the system tests share: a run of a DAG, and the jobs that the emulator saw of it."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rungen_emulator import Emulator

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from airflow_instance import AirflowError, AirflowInstance

__all__ = ["AirflowInstance", "Place", "Run", "task_processes", "until"]


class Place:
    """A folder on this machine in which tasks store files."""

    def __init__(self, folder: Path) -> None:
        self.uri = folder.as_uri()

    def read(self, uri: str) -> bytes:
        return Path(uri.removeprefix("file://")).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        Path(f"{self.uri.removeprefix('file://')}/{name}").write_bytes(content)


class S3Place(Place):
    """A folder in S3 in which tasks store files."""

    def __init__(self, client: Any, connection: str, bucket: str, folder: str) -> None:
        self.uri = f"s3://{connection}@{bucket}/{folder}"
        self._client, self._bucket, self._folder = client, bucket, folder

    def read(self, uri: str) -> bytes:
        key = uri.partition(f"{self._bucket}/")[2]
        return bytes(self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read())

    def write(self, name: str, content: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=f"{self._folder}/{name}", Body=content)


class Run:
    """
    A run of a system test's DAG, and its jobs.

    :param like: a run with the same inputs, whose jobs count as its own, too.
    """

    def __init__(
        self,
        airflow: AirflowInstance,
        emulator: Emulator,
        dag_id: str,
        *,
        seconds: float,
        like: Run | None = None,
        **conf: Any,
    ) -> None:
        self.airflow, self.emulator, self.dag_id = airflow, emulator, dag_id
        self.prompt: str = f"system test {uuid.uuid4()}" if like is None else like.prompt
        job_input = {"prompt": self.prompt, "emulator": {"seconds": seconds}}
        self.id = airflow.trigger(dag_id, {"input": job_input, "count": 1} | conf)

    def jobs(self) -> list[dict[str, Any]]:
        return [job for job in self.emulator.service.jobs() if job["input"]["prompt"].startswith(self.prompt)]

    def bought(self) -> Counter[str]:
        """Return how many jobs each input has."""
        return Counter(job["input"]["prompt"] for job in self.jobs())

    def jobs_by_status(self) -> dict[str, int]:
        return dict(Counter(job["status"] for job in self.jobs()))

    def tasks(self, task_id: str = "run") -> list[dict[str, Any]]:
        instances = self.airflow.task_instances(self.dag_id, self.id)
        return [instance for instance in instances if instance["task_id"] == task_id]

    def task(self, task_id: str = "run") -> dict[str, Any]:
        [task] = self.tasks(task_id)
        return task

    def log(self, try_number: int = 1, task_id: str = "run", map_index: int = -1) -> str:
        return self.airflow.log(self.dag_id, self.id, task_id, try_number, map_index)

    def wait_for_log(self, text: str, try_number: int = 1, timeout: float = 120) -> None:
        def log() -> str:
            try:
                return self.log(try_number)
            except AirflowError:  # it has not begun
                return ""

        until(lambda: text in log(), timeout, log)

    def kill(self, who: str = "task", number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the running task, or to its supervisor."""
        os.kill(task_processes(self.airflow, self)[who], number)

    def mark(self, state: str) -> None:
        self.airflow.set_task_state(self.dag_id, self.id, "run", state)

    def clear(self) -> None:
        self.airflow.clear(self.dag_id, self.id, ["run"])

    def wait_for_jobs(self, count: int, status: str = "RUNNING", timeout: float = 90) -> None:
        until(lambda: self.jobs_by_status().get(status, 0) >= count, timeout, lambda: str(self.jobs()))

    def wait_for_state(self, state: str, timeout: float = 90, task_id: str = "run") -> None:
        until(
            lambda: {task["state"] for task in self.tasks(task_id)} == {state},
            timeout,
            lambda: str(self.tasks(task_id)),
        )

    def wait_for_trigger(self, task_id: str = "run") -> None:
        """Wait until the triggerer runs the task. Before that, Airflow reports a kill to nobody."""

        def log() -> str:
            return self.log(task_id=task_id)

        self.wait_for_state("deferred", task_id=task_id)
        until(lambda: "(ID" in log() and " starting" in log(), 30, log)

    def wait_for_end(self, timeout: float = 150) -> str:
        return self.airflow.wait_for_run(self.dag_id, self.id, timeout)


def until(is_true: Callable[[], bool], timeout: float, describe: Callable[[], str]) -> None:
    give_up_at = time.monotonic() + timeout
    while not is_true():
        if time.monotonic() > give_up_at:
            pytest.fail(f"not true after {timeout} s: {describe()}")
        time.sleep(0.2)


def task_processes(airflow: AirflowInstance, run: Run, task_id: str = "run") -> dict[str, int]:
    """Return the pids of a running task and of its supervisor."""
    found = {
        "supervisor" if "LocalExecutor" in title else "task": pid
        for pid, title in airflow.processes(run.task(task_id)["id"]).items()
    }
    assert set(found) == {"supervisor", "task"}
    return found
