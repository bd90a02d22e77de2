"""Perform flows: a blocking driver and an asynchronous one. `senders` has what they send with."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import closing
from functools import partial
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
from airflow_provider_rungen.client.senders import CHECK_INTERVAL, MAX_IN_FLIGHT
from airflow_provider_rungen.exceptions import RunGenError

log = logging.getLogger(__name__)

Send = Callable[[Request], Response]
AsyncSend = Callable[[Request], Awaitable[Response]]
Item = TypeVar("Item")
Step = Request | Sleep | Gather[Any]
# How many flows of a `Gather` may continue in the background.
MAX_BACKGROUND = 16


def drive(
    flow: Flow[T],
    send: Send,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> T:
    """
    Perform a flow, blocking, and return what it returns.

    :param flow: the flow.
    :param send: sends a request.
    :param sleep: sleeps.
    :param clock: returns the time, in seconds since 1970.
    """

    async def perform(step: Step) -> Any:
        if isinstance(step, Sleep):
            if step.seconds > 0:
                sleep(step.seconds)
            return clock()
        if isinstance(step, Gather):
            return [drive(_caught(each), send, sleep, clock) for each in step.flows]
        return send(step)

    try:
        _perform_steps(flow, perform).send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # typed by the coroutine's own annotation
    raise AssertionError("a blocking step does not suspend")


async def adrive(
    flow: Flow[T],
    send: AsyncSend,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.time,
    background: set[asyncio.Task[Any]] | None = None,
) -> T:
    """
    Perform a flow in an event loop, and return what it returns.

    :param flow: the flow.
    :param send: sends a request.
    :param sleep: sleeps.
    :param clock: returns the time, in seconds since 1970.
    :param background: holds the flows that continue in the background (`Gather.wait_at_most`). The caller
        cancels them in the end. Without it, none continues.
    """

    async def perform(step: Step) -> Any:
        if isinstance(step, Sleep):
            if step.seconds > 0:
                await sleep(step.seconds)
            return clock()
        if isinstance(step, Gather):
            flows = [adrive(_caught(each), send, sleep, clock) for each in step.flows]
            return await _gather(flows, step.wait_at_most, background)
        return await send(step)

    return await _perform_steps(flow, perform)


async def _perform_steps(flow: Flow[T], perform: Callable[[Step], Awaitable[Any]]) -> T:
    # an error that somebody holds keeps this frame, and so the flow, which may have state to reset
    with closing(flow):
        resume: Callable[[], Step] = partial(next, flow)
        while True:
            try:
                step = resume()
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]  # typed by the generator's own annotation
            try:
                resume = partial(flow.send, await perform(step))
            except RunGenError as error:
                resume = partial(flow.throw, error)


def _caught(flow: Flow[T]) -> Flow[T | RunGenError]:
    try:
        return (yield from flow)
    except RunGenError as error:
        return error


async def _gather(
    flows: Sequence[Coroutine[Any, Any, T | RunGenError]],
    wait_at_most: float | None,
    background: set[asyncio.Task[Any]] | None,
) -> list[T | RunGenError | Pending]:
    """Perform flows concurrently; see `Gather`. With a limit of time, no more start than may be in flight."""
    loop = asyncio.get_running_loop()
    outcomes: list[T | RunGenError | Pending] = [CUT] * len(flows)
    queue = deque(enumerate(flows))
    running: dict[asyncio.Task[T | RunGenError], tuple[int, float]] = {}  # in the order of their ends
    try:
        while queue or running:
            slots = len(flows) if wait_at_most is None else max(1, MAX_IN_FLIGHT - len(background or ()))
            while queue and len(running) < slots:
                index, flow = queue.popleft()
                running[asyncio.ensure_future(flow)] = index, loop.time() + (wait_at_most or 0.0)
            if wait_at_most is None:
                await asyncio.wait(running)
            else:
                [(_, end), *_] = running.values()
                timeout = max(end - loop.time(), 0.0)
                await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in running if task.done()]:
                index, _ = running.pop(task)
                outcomes[index] = task.result()
            now = loop.time()
            for task in [task for task, (_, end) in running.items() if end <= now]:
                index, _ = running.pop(task)
                if background is None or len(background) >= MAX_BACKGROUND:
                    task.cancel()
                    continue
                outcomes[index] = PENDING
                background.add(task)
                task.add_done_callback(background.discard)
                task.add_done_callback(_log_failure)
    finally:
        for task in running:
            if not task.cancel() and not task.cancelled():
                task.exception()  # of several errors, one is raised
        for _, flow in queue:
            flow.close()
    return outcomes


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("A request in the background failed", exc_info=error)


async def gather_limited(
    work: Callable[[Item], Awaitable[None]], items: Collection[Item], at_once: int = MAX_IN_FLIGHT
) -> None:
    """
    Perform work on items concurrently.

    :param work: performs the work on one item. Its first error ends the others.
    :param items: the items.
    :param at_once: how many to work on at a time. To start thousands at once would block the event loop.
    """
    rest = iter(items)

    async def work_on_rest() -> None:
        for item in rest:
            await work(item)

    workers = [asyncio.ensure_future(work_on_rest()) for _ in range(min(at_once, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()


def short_sleeps(seconds: float, check: Callable[[], None]) -> Iterator[float]:
    """Yield short times to sleep that add up to some seconds, and call ``check`` before and after each."""
    end = time.monotonic() + seconds
    check()
    while (rest := end - time.monotonic()) > 0:
        yield min(rest, CHECK_INTERVAL)
        check()
