"""Use the client as a Python SDK, without Airflow. The arguments are the URL and the key of an emulator."""

from __future__ import annotations

import asyncio
import io
import sys
import time

sys.modules["airflow"] = None  # type: ignore[assignment]  # whoever imports it gets an ImportError

from airflow_provider_rungen.client import endpoints, polling  # noqa: E402
from airflow_provider_rungen.client.download import Downloader  # noqa: E402
from airflow_provider_rungen.client.models import Job, JobStatus  # noqa: E402
from airflow_provider_rungen.client.output_urls import find_outputs  # noqa: E402
from airflow_provider_rungen.client.senders import AsyncSender, Sender  # noqa: E402
from airflow_provider_rungen.client.settings import Settings  # noqa: E402
from airflow_provider_rungen.client.transport import adrive, drive  # noqa: E402

APP = "flux-schnell"


def blocking(settings: Settings) -> None:
    sender = Sender(settings)
    try:
        deadline = time.time() + 30
        drive(endpoints.scale_app(APP, 3), sender)
        app = drive(endpoints.get_app(APP), sender)
        assert app.active_workers == 3, app
        job = drive(endpoints.run_job(APP, {"prompt": "a lighthouse"}), sender)
        wait = polling.wait_for_jobs(APP, [job.id], poll_interval=0.1, deadline=deadline)
        [done] = drive(wait, sender)
        assert done.status is JobStatus.COMPLETED, done
    finally:
        sender.close()


async def asynchronous(settings: Settings) -> None:
    sender = AsyncSender(settings)
    try:
        job = await adrive(endpoints.run_job(APP, {"prompt": "a fox"}), sender)
        wait = polling.wait_for_jobs(APP, [job.id], poll_interval=0.1, deadline=time.time() + 30)
        [done] = await adrive(wait, sender)
        await download(settings, done)
    finally:
        await sender.close()


async def download(settings: Settings, job: Job) -> None:
    downloader, file = Downloader(settings, max_bytes=10_000_000, at_once=1), io.BytesIO()
    try:
        [output] = find_outputs(job.result)
        await downloader.fetch(output.url, file)
    finally:
        await downloader.close()
    assert file.getvalue().startswith(b"\x89PNG"), file.getvalue()[:20]


if __name__ == "__main__":
    SETTINGS = Settings(base_url=sys.argv[1], api_key=sys.argv[2])
    blocking(SETTINGS)
    asyncio.run(asynchronous(SETTINGS))
    names = (name.split(".") for name in sys.modules)
    print(*sorted({parts[1] for parts in names if parts[0] == "airflow_provider_rungen" and parts[1:]}))
