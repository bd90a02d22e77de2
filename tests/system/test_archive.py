"""Store outputs from tasks of a real Airflow: in a folder of this machine, and in S3 (moto's server)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_rungen.emulator import Emulator, Fault
from system.stage import AirflowInstance, Run, task_processes, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

Read = Callable[[str], bytes]


@pytest.fixture(scope="session")
def s3(airflow: AirflowInstance) -> Iterator[Read]:
    """Run an S3 server with the bucket `pictures`. Airflow's connection is `my_s3`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url, region = f"http://{host}:{port}", "us-east-1"
        extra = json.dumps({"endpoint_url": url, "region_name": region})
        own = {"connection_id": "my_s3", "conn_type": "aws", "login": "me-myself", "password": "a-secret"}
        airflow.request("POST", "/connections", {**own, "extra": extra})
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name=region,
            aws_access_key_id="me-myself",
            aws_secret_access_key="a-secret",
        )
        client.create_bucket(Bucket="pictures")

        def read(uri: str) -> bytes:
            key = uri.removeprefix("s3://my_s3@pictures/")
            return bytes(client.get_object(Bucket="pictures", Key=key)["Body"].read())

        yield read
    finally:
        server.stop()


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Read]:
    """Return a destination, and a function that reads a file in it."""
    if request.param == "s3":
        return f"s3://my_s3@pictures/{tmp_path.name}/", request.getfixturevalue("s3")
    return tmp_path.as_uri(), lambda uri: Path(uri.removeprefix("file://")).read_bytes()


def check(airflow: AirflowInstance, run: Run, read: Read) -> None:
    """Check that the outputs of all jobs are stored, as the manifests list them."""
    landed = airflow.xcom(run.dag_id, run.id, "land")
    assert [job["job_id"] for job in landed] == airflow.xcom(run.dag_id, run.id, "run")
    assert "X-Amz" not in json.dumps(landed)
    for job in landed:
        text = read(job["manifest"])
        assert b"X-Amz" not in text
        manifest: dict[str, Any] = json.loads(text)
        assert manifest["complete"] is True
        assert manifest["input"]["prompt"] == run.prompt
        [stored] = manifest["outputs"]
        assert manifest["result"] == {"images": [{"image": stored["uri"]}]}
        content = read(stored["uri"])
        assert content.startswith(b"\x89PNG")
        assert (stored["size"], stored["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_outputs_are_stored(
    airflow: AirflowInstance, emulator: Emulator, start: Callable[..., Run], place: tuple[str, Read]
) -> None:
    destination, read = place
    asked = emulator.service.count("output")
    run = start("landing", seconds=8, count=30, destination=destination)
    assert run.wait_for_end() == "success"
    assert run.task("land")["try_number"] == 1
    assert emulator.service.count("output") - asked == 30
    check(airflow, run, read)
    log = run.log(task_id="land")
    assert "X-Amz-Signature" not in log
    assert "30 files" in log
    assert emulator.service.stats()["keys_leaked"] == 0


def test_an_attempt_after_a_kill_fetches_what_is_missing(
    airflow: AirflowInstance, emulator: Emulator, start: Callable[..., Run], place: tuple[str, Read]
) -> None:
    destination, read = place
    asked = emulator.service.count("output")
    # the first half arrives, and nothing of the rest
    emulator.service.inject(Fault(on="output", kind="hang", times=None, skip=20))
    try:
        run = start("landing", seconds=1, count=40, destination=destination)
        until(lambda: emulator.service.count("output") - asked == 28, 90, lambda: run.log(task_id="land"))
        os.kill(task_processes(airflow, run, "land")["task"], signal.SIGKILL)
    finally:
        emulator.service.clear_faults()
    assert run.wait_for_end() == "success"
    assert run.task("land")["try_number"] == 2
    assert emulator.service.count("output") - asked == 28 + 20
    check(airflow, run, read)
