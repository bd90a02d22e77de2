"""Performs flows: a blocking driver and an asynchronous one; the senders are in `senders`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

from airflow_provider_rungen.api import Flow, Request, Response, Sleep, T, Together
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.senders import MAX_IN_FLIGHT, AsyncSender, Sender, reason_of
from airflow_provider_rungen.settings import Settings, environment_ca, proxy_of_environment, tls_context

__all__ = [
    "MAX_IN_FLIGHT",
    "AsyncSender",
    "Sender",
    "Settings",
    "adrive",
    "drive",
    "environment_ca",
    "proxy_of_environment",
    "reason_of",
    "side_by_side",
    "tls_context",
]

Send = Callable[[Request], Response]
AsyncSend = Callable[[Request], Awaitable[Response]]
Item = TypeVar("Item")


def drive(
    flow: Flow[T],
    send: Send,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> T:
    """Perform a flow, blocking."""
    step: Callable[[Any], Request | Sleep | Together[Any]] = flow.send
    value: Any = None
    while True:
        try:
            action = step(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # a generator's value is typed by its own annotation
        try:
            if isinstance(action, Sleep):
                if action.seconds > 0:
                    sleep(action.seconds)
                value = clock()
            elif isinstance(action, Together):
                value = [_outcome(each, send, sleep, clock) for each in action.flows]
            else:
                value = send(action)
            step = flow.send
        except RunGenError as error:
            step, value = flow.throw, error


def _outcome(
    flow: Flow[T], send: Send, sleep: Callable[[float], None], clock: Callable[[], float]
) -> T | RunGenError:
    try:
        return drive(flow, send, sleep, clock)
    except RunGenError as error:
        return error


async def adrive(
    flow: Flow[T],
    send: AsyncSend,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.time,
) -> T:
    """Perform a flow in an event loop."""
    step: Callable[[Any], Request | Sleep | Together[Any]] = flow.send
    value: Any = None
    while True:
        try:
            action = step(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # a generator's value is typed by its own annotation
        try:
            if isinstance(action, Sleep):
                if action.seconds > 0:
                    await sleep(action.seconds)
                value = clock()
            elif isinstance(action, Together):
                value = await asyncio.gather(*(_aoutcome(each, send, sleep, clock) for each in action.flows))
            else:
                value = await send(action)
            step = flow.send
        except RunGenError as error:
            step, value = flow.throw, error


async def _aoutcome(
    flow: Flow[T], send: AsyncSend, sleep: Callable[[float], Awaitable[None]], clock: Callable[[], float]
) -> T | RunGenError:
    try:
        return await adrive(flow, send, sleep, clock)
    except RunGenError as error:
        return error


async def side_by_side(
    work: Callable[[Item], Awaitable[None]], items: Collection[Item], at_once: int = MAX_IN_FLIGHT
) -> None:
    """Do so many at a time as may be in flight; to begin thousands at once would hold up the event loop."""
    rest = iter(items)

    async def go_on() -> None:
        for item in rest:
            await work(item)

    workers = [asyncio.ensure_future(go_on()) for _ in range(min(at_once, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
