"""``python -m bench.s3``: an S3 of this machine, by moto, with an empty bucket."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator

from bench.service import ROOT, clean_environment

BUCKET = "bench"
_LOGIN, _PASSWORD, _REGION = "bench", "a-secret", "us-east-1"


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run the server in a process of its own, and yield Airflow's connection to it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.s3"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=clean_environment(),
    )
    assert process.stdout is not None  # noqa: S101 - for the type checker
    try:
        extra = {"endpoint_url": process.stdout.readline().strip(), "region_name": _REGION}
        yield json.dumps({"conn_type": "aws", "login": _LOGIN, "password": _PASSWORD, "extra": extra})
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name=_REGION,
        aws_access_key_id=_LOGIN,
        aws_secret_access_key=_PASSWORD,
    )
    client.create_bucket(Bucket=BUCKET)
    print(url, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
