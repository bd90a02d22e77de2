"""Perform flows: a blocking driver and an asynchronous one. `senders` has what they send with."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

from airflow_provider_rungen.client.flow import PENDING, Flow, Gather, Pending, Request, Response, Sleep, T
from airflow_provider_rungen.client.senders import CHECK_INTERVAL, MAX_IN_FLIGHT
from airflow_provider_rungen.exceptions import RunGenError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Step = Request | Sleep | Gather[Any]
#: How many submissions of a task, and how many downloads, are in flight at most.
MAX_CONCURRENCY = 16
# How many flows of a `Gather` may continue in the background.
MAX_BACKGROUND = 16


def drive(
    flow: Flow[T],
    send: Callable[[Request], Response],
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
    send: Callable[[Request], Awaitable[Response]],
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
    :param background: holds the flows that continue in the background (`Gather.wait_at_most`). What fails
        there, the next `Gather` raises. The caller cancels them in the end. Without it, none continues.
    """

    async def perform(step: Step) -> Any:
        if isinstance(step, Sleep):
            if step.seconds > 0:
                await sleep(step.seconds)
            return clock()
        if isinstance(step, Gather):
            if background:
                raise_failed(background)
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
    outcomes: list[T | RunGenError | Pending] = [PENDING] * len(flows)
    rest = iter(enumerate(flows))

    async def perform_rest() -> None:
        for index, flow in rest:
            if wait_at_most is None:
                outcomes[index] = await flow
                continue
            task = asyncio.ensure_future(flow)
            try:
                await asyncio.wait([task], timeout=wait_at_most)
            except asyncio.CancelledError:
                task.cancel()
                raise
            if task.done():
                outcomes[index] = task.result()
            elif background is None or len(background) >= MAX_BACKGROUND:
                task.cancel()
            else:
                background.add(task)
                task.add_done_callback(partial(_drop, background))
                return  # it is still one of those in flight

    slots = len(flows) if wait_at_most is None else max(1, MAX_IN_FLIGHT - len(background or ()))
    try:
        await _in_tasks(perform_rest, min(slots, len(flows)))
    finally:
        for _, flow in rest:
            flow.close()
    return outcomes


def _drop(background: set[asyncio.Task[Any]], task: asyncio.Task[Any]) -> None:
    """Drop what has ended in the background. What failed stays: somebody has to see it."""
    if task.cancelled() or task.exception() is None:
        background.discard(task)


def raise_failed(background: set[asyncio.Task[Any]]) -> None:
    """Raise what has failed in the background, if anything has."""
    for task in [each for each in background if each.done()]:
        background.discard(task)
        task.result()


async def end_background(background: set[asyncio.Task[Any]]) -> None:
    """End what continues in the background, and log what failed there unseen."""
    tasks = list(background)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    background.clear()
    for task in tasks:
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

    await _in_tasks(work_on_rest, min(at_once, len(items)))


async def _in_tasks(work: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Do the same work in some tasks. The first error ends them all."""
    tasks = [asyncio.ensure_future(work()) for _ in range(count)]
    try:
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            if not task.cancel() and not task.cancelled():
                task.exception()  # of several errors, one is raised


async def watched(
    work: Coroutine[Any, Any, T],
    check: Callable[[], None],
    background: set[asyncio.Task[Any]] | None = None,
) -> T:
    """
    Wait for work. Its first error ends it.

    :param check: called often. What it raises ends the work, too.
    :param background: see `adrive`. What fails there ends the work, too.
    """
    task, has_ended = asyncio.ensure_future(work), False
    background = set() if background is None else background
    try:
        while not has_ended:
            has_ended = bool((await asyncio.wait([task], timeout=CHECK_INTERVAL))[0])
            check()
            raise_failed(background)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return task.result()


def short_sleeps(seconds: float, check: Callable[[], None]) -> Iterator[float]:
    """Yield short times to sleep that add up to some seconds, and call ``check`` before and after each."""
    end = time.monotonic() + seconds
    check()
    while (rest := end - time.monotonic()) > 0:
        yield min(rest, CHECK_INTERVAL)
        check()
