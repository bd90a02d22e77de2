"""Counts into Airflow's own metrics (`[metrics]` of its configuration): cheap, and never a reason to fail."""

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

if TYPE_CHECKING:
    from airflow_provider_rungen.client.flow import Request, Response
    from airflow_provider_rungen.client.models import Job

log = logging.getLogger(__name__)

_is_in_triggerer = False


def incr(name: str, count: int = 1) -> None:
    """Count something that happened."""
    if count:
        _tell("incr", name, count)


def gauge(name: str, value: float) -> None:
    """Tell how many there are now, on this machine."""
    _tell("gauge", f"{name}.{_hostname()}", value)


@contextmanager
def timing(name: str) -> Iterator[None]:
    """Tell how long a block took, however it ended."""
    begun_at = time.monotonic()
    try:
        yield
    finally:
        _tell("timing", name, timedelta(seconds=time.monotonic() - begun_at))


def count_request(request: Request, response: Response | None) -> None:
    """Count a request by method and class of status, and the job that it created."""
    answer = "unanswered" if response is None else f"{response.status // 100}xx"
    incr(f"requests.{request.method.lower()}.{answer}")
    if answer == "2xx" and request.path.endswith("/run_async"):
        incr("jobs.submitted")


def counting(take: Callable[[Job], Job]) -> Callable[[Job], Job]:
    """Count the jobs that are over, by how they ended, before something is taken from them."""

    def count_and_take(job: Job) -> Job:
        incr(f"jobs.{job.status.lower()}")
        return take(job)

    return count_and_take


def prepare_in_triggerer() -> None:
    """
    Count where a triggerer does, and make what sends metrics now: that may look up a host, and read files.

    Since Airflow 3.2 there are two copies of the module: a worker sets up that of the task SDK, a triggerer
    that of the core, and the other one sends nothing.
    """
    global _is_in_triggerer  # noqa: PLW0603 - what kind of process this is
    if not _is_in_triggerer:
        _is_in_triggerer = True
        _stats.cache_clear()
        gauge("watched_jobs", 0)


def _tell(kind: str, name: str, value: Any) -> None:
    try:
        if (stats := _stats()) is not None:
            getattr(stats, kind)(f"rungen.{name}", value)
    except Exception:
        log.debug("The metric rungen.%s was not sent", name, exc_info=True)


@functools.cache
def _stats() -> Any:
    """Return what sends Airflow's metrics, or ``None`` and warn where this Airflow keeps it elsewhere."""
    from airflow_provider_rungen._airflow import AIRFLOW_V_3_2_PLUS

    name = "airflow.stats"
    if AIRFLOW_V_3_2_PLUS:
        name = "airflow.observability.stats" if _is_in_triggerer else "airflow.sdk.observability.stats"
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        log.warning("No RunGen metrics are sent: this Airflow has no %s (%s)", name, error)
        return None
    return getattr(module, "Stats", module)


@functools.cache
def _hostname() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())
