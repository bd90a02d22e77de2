"""
Measures what the page of a batch costs a real API server: ``python -m bench.pages [JOBS ...]``.

Six connections load the pictures, as a browser does, while another one asks for ``/api/v2/version``.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

import psutil

from airflow_provider_rungen.emulator import Emulator
from bench.processes import ROOT, peak_memory

sys.path.append(str(ROOT / "scripts"))
from airflow_instance import AirflowInstance

_DAG = """
from airflow.sdk import DAG
from airflow_provider_rungen.operators import RunGenRunBatchOperator

given = {{"width": 64, "height": 64, "emulator": {{"seconds": 0.01}}}}
with DAG("bench_page_{jobs}", schedule=None):
    RunGenRunBatchOperator(
        task_id="batch",
        inputs=[{{"prompt": f"job {{number}}", **given}} for number in range({jobs})],
        destination="{folder}",
        poll_interval=1,
        deferrable=False,
    )
"""
_CONNECTIONS = 6
_TIMEOUT = 1800
_open = build_opener(ProxyHandler({})).open


def measure(airflow: AirflowInstance, jobs: int) -> dict[str, float]:
    """Run a batch, load its page three times and its pictures once, and return the figures."""
    dag_id = f"bench_page_{jobs}"
    run_id = airflow.trigger(dag_id)
    state = airflow.wait_for_run(dag_id, run_id, _TIMEOUT)
    if state != "success":
        raise RuntimeError(f"{dag_id}: {state}")
    with _open(f"{airflow.url}/auth/token", timeout=60) as answer:
        token = json.load(answer)["access_token"]

    def get(path: str) -> tuple[float, bytes]:
        """Return the seconds to the first byte, and the body."""
        headers = {"Authorization": f"Bearer {token}", "Accept": "text/html"}
        began = time.perf_counter()
        with _open(Request(airflow.url + path, headers=headers), timeout=60) as answer:  # noqa: S310 - to this machine
            first = answer.read(1)
            return time.perf_counter() - began, first + answer.read()

    page = f"/rungen/dags/{dag_id}/runs/{quote(run_id, safe='')}/tasks/batch/-1"
    get("/rungen/style.css")  # imports are not measured
    before = processor_time(airflow)
    pages = [get(page) for _ in range(3)]
    found = re.findall(r'<img src="([^"]*)"', pages[0][1].decode())
    if len(found) != min(jobs, 100):
        raise RuntimeError(f"{page} has {len(found)} pictures: {pages[0][1].decode()[:3000]}")
    after_pages = processor_time(airflow)
    is_over, waits = threading.Event(), []

    def ask() -> None:
        while not is_over.wait(0.02):
            waits.append(get("/api/v2/version")[0])

    asking = threading.Thread(target=ask)
    asking.start()
    began = time.perf_counter()
    with ThreadPoolExecutor(_CONNECTIONS) as connections:
        list(connections.map(get, map(unescape, found)))
    took = time.perf_counter() - began
    is_over.set()
    asking.join()
    return {
        "jobs": jobs,
        "pictures": len(found),
        "page_bytes": len(pages[0][1]),
        "page_first_byte_s": min(seconds for seconds, _ in pages),
        "page_cpu_s": (after_pages - before) / 3,
        "pictures_s": took,
        "pictures_cpu_s": processor_time(airflow) - after_pages,
        "version_worst_s": max(waits),
        "version_median_s": sorted(waits)[len(waits) // 2],
        "memory_mb": max(peak_memory(pid) for pid in servers(airflow)) / 1e6,
    }


def servers(airflow: AirflowInstance) -> list[int]:
    return [pid for name in ("api-server", "api_server") for pid in airflow.processes(name)]


def processor_time(airflow: AirflowInstance) -> float:
    """Return the seconds that the API server has worked."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in servers(airflow))


def main(sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as home, Emulator(workers=1000) as emulator:
        dags = Path(home, "dags")
        dags.mkdir()
        for jobs in sizes:
            text = _DAG.format(jobs=jobs, folder=Path(home, str(jobs)).as_uri())
            (dags / f"bench_page_{jobs}.py").write_text(text)
        environment = {"AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection()}
        with AirflowInstance(Path(home, "airflow"), dags, environment=environment) as airflow:
            for jobs in sizes:
                print({name: round(value, 3) for name, value in measure(airflow, jobs).items()}, flush=True)


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [100, 10_000])
