"""Performs flows: a blocking driver and an asynchronous one; the senders are in `senders`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, TypeVar

from airflow_provider_rungen.client.flow import (
    CUT,
    PENDING,
    Flow,
    Gather,
    Pending,
    Request,
    Response,
    Sleep,
    T,
)
from airflow_provider_rungen.client.senders import MAX_IN_FLIGHT
from airflow_provider_rungen.exceptions import RunGenError

log = logging.getLogger(__name__)

Send = Callable[[Request], Response]
AsyncSend = Callable[[Request], Awaitable[Response]]
Item = TypeVar("Item")
# How many of those in flight may be slow ones that nobody waits for any more.
MAX_STRAGGLERS = 16


def drive(
    flow: Flow[T],
    send: Send,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> T:
    """Perform a flow, blocking."""
    step: Callable[[Any], Request | Sleep | Gather[Any]] = flow.send
    value: Any = None
    try:
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
                elif isinstance(action, Gather):
                    value = [_outcome(each, send, sleep, clock) for each in action.flows]
                else:
                    value = send(action)
                step = flow.send
            except RunGenError as error:
                step, value = flow.throw, error
    finally:
        flow.close()  # not when the garbage is collected: it may have state to reset


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
    stragglers: set[asyncio.Task[Any]] | None = None,
) -> T:
    """
    Perform a flow in an event loop.

    :param stragglers: takes the flows that go on by themselves (`Gather.patience`), for the caller to
        cancel in the end; without it none goes on.
    """
    step: Callable[[Any], Request | Sleep | Gather[Any]] = flow.send
    value: Any = None
    try:
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
                elif isinstance(action, Gather):
                    each = [_aoutcome(flow, send, sleep, clock) for flow in action.flows]
                    value = await _gather(each, action.patience, stragglers)
                else:
                    value = await send(action)
                step = flow.send
            except RunGenError as error:
                step, value = flow.throw, error
    finally:
        flow.close()  # not when the garbage is collected: it may have state to reset


async def _aoutcome(
    flow: Flow[T], send: AsyncSend, sleep: Callable[[float], Awaitable[None]], clock: Callable[[], float]
) -> T | RunGenError:
    try:
        return await adrive(flow, send, sleep, clock)
    except RunGenError as error:
        return error


async def _gather(
    flows: Sequence[Coroutine[Any, Any, T | RunGenError]],
    patience: float | None,
    stragglers: set[asyncio.Task[Any]] | None,
) -> list[T | RunGenError | Pending]:
    """Perform flows side by side; see `Gather`. With ``patience``, no more begin than may be in flight."""
    loop = asyncio.get_running_loop()
    outcomes: list[T | RunGenError | Pending] = [CUT] * len(flows)
    rest = deque(enumerate(flows))
    begun: dict[asyncio.Task[T | RunGenError], tuple[int, float]] = {}  # in the order of their ends
    try:
        while rest or begun:
            room = len(flows) if patience is None else max(1, MAX_IN_FLIGHT - len(stragglers or ()))
            while rest and len(begun) < room:
                index, flow = rest.popleft()
                begun[asyncio.ensure_future(flow)] = index, loop.time() + (patience or 0.0)
            if patience is None:
                await asyncio.wait(begun)
            else:
                [(_, end), *_] = begun.values()
                left = max(end - loop.time(), 0.0)
                await asyncio.wait(begun, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in begun if task.done()]:
                outcomes[begun[task][0]] = task.result()
                del begun[task]
            now = loop.time()
            for task in [task for task, (_, end) in begun.items() if end <= now]:
                index, _ = begun[task]
                del begun[task]
                if stragglers is None or len(stragglers) >= MAX_STRAGGLERS:
                    task.cancel()
                    continue
                outcomes[index] = PENDING
                stragglers.add(task)
                task.add_done_callback(stragglers.discard)
                task.add_done_callback(_log_failure)
    finally:
        for task in begun:
            if not task.cancel() and not task.cancelled():
                task.exception()  # of several, one is raised
        for _, flow in rest:
            flow.close()
    return outcomes


def _log_failure(straggler: asyncio.Task[Any]) -> None:
    if not straggler.cancelled() and (error := straggler.exception()):
        log.error("A request that took long ended with an error", exc_info=error)


async def gather_limited(
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
