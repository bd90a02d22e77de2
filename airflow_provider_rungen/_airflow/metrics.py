"""Send metrics through Airflow (`[metrics]` in its configuration). A failure to do so is never an error."""

from __future__ import annotations

import functools
import importlib
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import stats_module

if TYPE_CHECKING:
    from airflow_provider_rungen.client.flow import Request, Response
    from airflow_provider_rungen.client.models import Job

log = logging.getLogger(__name__)

_is_in_triggerer = False


def incr(name: str, count: int = 1) -> None:
    """Increment a counter."""
    if count:
        _send("incr", name, count)


def gauge(name: str, value: float) -> None:
    """Set a gauge of this machine."""
    _send("gauge", f"{name}.{_hostname()}", value)


@contextmanager
def timing(name: str) -> Iterator[None]:
    """Send how long a block took, even if it ends with an error."""
    begun_at = time.monotonic()
    try:
        yield
    finally:
        _send("timing", name, timedelta(seconds=time.monotonic() - begun_at))


def count_request(request: Request, response: Response | None) -> None:
    """Count a request by its method and class of status, and the job that it created."""
    answer = "unanswered" if response is None else f"{response.status // 100}xx"
    incr(f"requests.{request.method.lower()}.{answer}")
    if answer == "2xx" and request.path.endswith("/run_async"):
        incr("jobs.submitted")


def count_end(job: Job) -> None:
    """Count a job that has ended by its status."""
    incr(f"jobs.{job.status.lower()}")


def counting(take: Callable[[Job], Job]) -> Callable[[Job], Job]:
    """Return a function that counts a job by its status, and then calls ``take``, which may reduce it."""

    def count_and_take(job: Job) -> Job:
        count_end(job)
        return take(job)

    return count_and_take


def prepare_in_triggerer() -> None:
    """
    Send metrics as a triggerer does, and set up their sender, which may look up a host and read files.

    Airflow 3.2 and later has two copies of its module. A worker sets up the one of the task SDK, a triggerer
    the one of the core. The other one sends nothing.
    """
    global _is_in_triggerer  # noqa: PLW0603 - what kind of process this is
    if not _is_in_triggerer:
        _is_in_triggerer = True
        _stats.cache_clear()
        gauge("watched_jobs", 0)


def _send(kind: str, name: str, value: Any) -> None:
    try:
        if (stats := _stats()) is not None:
            getattr(stats, kind)(f"rungen.{name}", value)
    except Exception:
        log.debug("Could not send metric rungen.%s", name, exc_info=True)


@functools.cache
def _stats() -> Any:
    """Return what sends Airflow's metrics. Warn and return ``None`` if this Airflow has it elsewhere."""
    name = stats_module(is_in_triggerer=_is_in_triggerer)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        log.warning("No RunGen metrics are sent: this Airflow has no %s (%s)", name, error)
        return None
    return getattr(module, "Stats", module)


@functools.cache
def _hostname() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())
