"""Questions to the service, with the API key of a connection: bounded in number and in time, and cached."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.flow import Flow, Gather
from airflow_provider_rungen.client.models import App, Job
from airflow_provider_rungen.exceptions import RunGenConnectionError, RunGenError
from airflow_provider_rungen.hooks.base import FlowHook
from airflow_provider_rungen.hooks.rungen import LOOK_UP_EVERY
from airflow_provider_rungen.plugins import connections
from airflow_provider_rungen.plugins.cache import FRESH, LASTING, Cache

T = TypeVar("T")
# How many requests for jobs are in flight at a time, for one page.
MAX_AT_A_TIME = 12
_MAX_ENTRIES = 2000
# A larger answer is not kept.
_MAX_CHARS = 32_000


class PageHook(FlowHook):
    """The hook as a page uses it: see `connections.get_connection`."""

    @classmethod
    def get_connection(cls, conn_id: str) -> Any:
        return connections.get_connection(conn_id)

    @classmethod
    async def aget_connection(cls, conn_id: str) -> Any:
        return await asyncio.to_thread(cls.get_connection, conn_id)


_cache = Cache(_MAX_ENTRIES)


def get_apps(conn_id: str, within: float) -> list[App]:
    """
    Return the apps of a connection. Blocks.

    :raises RunGenError: the service refused, or did not answer in time.
    """
    return _ask((conn_id, "apps"), conn_id, lambda: endpoints.list_apps(attempts=1), within)


def get_app(conn_id: str, app_id: str, within: float) -> App:
    """
    Return an app. Blocks.

    :raises RunGenError: the service refused, or did not answer in time.
    """
    return _ask((conn_id, "app", app_id), conn_id, lambda: endpoints.get_app(app_id, attempts=1), within)


def get_jobs(
    conn_id: str, app_id: str, job_ids: Sequence[str], within: float
) -> dict[str, Job | RunGenError]:
    """
    Return jobs, or the error in place of one. Blocks.

    :raises RunGenError: the connection cannot be read.
    """
    found: dict[str, Job | RunGenError] = {}
    for job_id in job_ids:
        if (cached := _cache.get((conn_id, "job", app_id, job_id))) is not None:
            found[job_id] = cached
    missing = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in found]
    if missing:
        for job_id, outcome in zip(missing, _fetch(conn_id, app_id, missing, within), strict=True):
            found[job_id] = outcome
            if _is_small(outcome):
                is_over = isinstance(outcome, Job) and outcome.is_terminal
                _cache.put((conn_id, "job", app_id, job_id), outcome, LASTING if is_over else FRESH)
    return found


def _fetch(conn_id: str, app_id: str, job_ids: list[str], within: float) -> list[Job | RunGenError]:
    outcomes: list[Job | RunGenError] = []

    def flow() -> Flow[None]:
        for start in range(0, len(job_ids), MAX_AT_A_TIME):
            part = job_ids[start : start + MAX_AT_A_TIME]
            flows = [endpoints.get_job(app_id, job_id, attempts=1) for job_id in part]
            outcomes.extend((yield Gather(flows)))

    hook = _hook(conn_id, within)
    if len(job_ids) == 1:  # without the import of aiohttp
        with hook:
            hook.perform(flow())
    else:
        hook.perform_concurrently(flow())
    return outcomes


def _ask(key: tuple[str, ...], conn_id: str, make_flow: Callable[[], Flow[T]], within: float) -> T:
    answer: Any = _cache.get(key)
    if answer is None:
        try:
            with _hook(conn_id, within) as hook:
                answer = hook.perform(make_flow())
        except RunGenError as error:
            answer = error
        _cache.put(key, answer, FRESH)
    if isinstance(answer, RunGenError):
        raise answer
    return answer  # type: ignore[no-any-return]  # the cache is untyped


def _hook(conn_id: str, within: float) -> PageHook:
    hook = PageHook(conn_id, LOOK_UP_EVERY)
    end = time.monotonic() + within

    def check() -> None:
        if time.monotonic() > end:
            raise RunGenConnectionError("RunGen did not answer in time", sent=True)

    hook.checkpoint = check
    return hook


def _is_small(outcome: Job | RunGenError) -> bool:
    if isinstance(outcome, RunGenError):
        return True
    try:
        return len(json.dumps([outcome.input, outcome.result])) <= _MAX_CHARS
    except (ValueError, RecursionError):
        return False


def forget_answers() -> None:
    """Remove what the service answered, so that it is asked again."""
    _cache.clear()
