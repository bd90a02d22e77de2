"""Requests to the service with a connection: bounded in number and in time, and cached."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.flow import Flow, Gather
from airflow_provider_rungen.client.models import App, Job
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.exceptions import RunGenConnectionError, RunGenError, RunGenNotFoundError
from airflow_provider_rungen.hooks.base import FlowHook
from airflow_provider_rungen.plugins import database
from airflow_provider_rungen.plugins.limits import CACHE, FRESH, LASTING

# How many requests are in flight at a time, for one page.
_MAX_AT_A_TIME = 12
# A larger answer is not kept.
_MAX_CHARS = 32_000
# The bytes that each answer counts as, in addition to those of its input and result.
_LEAST_BYTES = 2000
T = TypeVar("T")


class PageHook(FlowHook):
    """The hook as a page uses it: with Airflow's core, and without waiting long for the service."""

    @classmethod
    def get_connection(cls, conn_id: str) -> Any:
        return database.get_connection(conn_id)

    @classmethod
    async def aget_connection(cls, conn_id: str) -> Any:
        return await asyncio.to_thread(cls.get_connection, conn_id)

    def _open_async_sender(self, settings: Settings) -> Any:
        return super()._open_async_sender(replace(settings, connect_timeout=2, read_timeout=3))


def get_apps(conn_id: str, within: float) -> tuple[Settings, list[App]]:
    """
    Return a connection, and its apps. Blocks.

    :raises RunGenError: the service refused, or did not answer in time.
    """
    settings = PageHook(conn_id).settings
    return settings, _ask_one(conn_id, endpoints.list_apps(attempts=1), within, "apps")


def get_app(conn_id: str, app_id: str, within: float) -> App:
    """
    Return an app. Blocks.

    :raises RunGenError: the service refused, or did not answer in time.
    """
    return _ask_one(conn_id, endpoints.get_app(app_id, attempts=1), within, "app", app_id)


def find_app(conn_id: str, app_id: str, within: float) -> tuple[Settings, App | None]:
    """Return a connection, and its app, or ``None`` if there is none: see `get_app`."""
    settings = PageHook(conn_id).settings
    try:
        return settings, get_app(conn_id, app_id, within)
    except RunGenNotFoundError:
        return settings, None


def get_jobs(
    conn_id: str, app_id: str, job_ids: Sequence[str], within: float
) -> dict[str, Job | RunGenError]:
    """
    Return jobs, or the error in place of one. Blocks.

    :raises RunGenError: the connection cannot be read.
    """
    flows = {job_id: endpoints.get_job(app_id, job_id, attempts=1) for job_id in job_ids}
    return _ask(conn_id, flows, within, "job", app_id)


def _ask_one(conn_id: str, flow: Flow[T], within: float, *about: str) -> T:
    [answer] = _ask(conn_id, {"": flow}, within, *about).values()
    if isinstance(answer, RunGenError):
        raise answer
    return answer


def _ask(
    conn_id: str, flows: Mapping[str, Flow[T]], within: float, *about: str
) -> dict[str, T | RunGenError]:
    """
    Return what flows return, by name, or their errors. Recent answers come from the cache.

    :param about: what they ask for, as a part of the keys in the cache.
    """
    answers = {name: CACHE.get((conn_id, *about, name)) for name in flows}
    missing = [name for name, answer in answers.items() if answer is None]
    end = time.monotonic() + within

    def check() -> None:
        if time.monotonic() > end:
            raise RunGenConnectionError("RunGen did not answer in time", sent=True)

    def ask() -> Flow[None]:
        for start in range(0, len(missing), _MAX_AT_A_TIME):
            part = missing[start : start + _MAX_AT_A_TIME]
            answers.update(zip(part, (yield Gather([flows[name] for name in part])), strict=True))

    if missing:
        hook = PageHook(conn_id)
        hook.checkpoint = check
        hook.perform_concurrently(ask())
    for name in missing:
        _keep((conn_id, *about, name), answers[name])
    return answers


def _keep(key: tuple[str, ...], answer: Any) -> None:
    size = 0
    if isinstance(answer, Job):
        try:
            size = len(json.dumps([answer.input, answer.result]))
        except (ValueError, RecursionError):
            return
    if size <= _MAX_CHARS:
        has_ended = isinstance(answer, Job) and answer.is_terminal
        CACHE.put(key, answer, LASTING if has_ended else FRESH, _LEAST_BYTES + size)
