"""Calls to Airflow or to a store that may fail: retried for a while."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.daemon_threads import LOOK_EVERY
from airflow_provider_rungen.client.texts import clean_text

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds in which a store may fail, or not answer, before the attempt ends. Nothing is sent meanwhile.
STORE_RETRY_BUDGET = 60.0
# Seconds between two tries, at most.
_MAX_PAUSE = 5.0


def reason_of(error: Exception) -> str:
    """Return why a store failed, for the log."""
    return clean_text(f"{type(error).__name__}: {error}", 300)


def call_patiently(
    purpose: str,
    call: Callable[[], T],
    gives_up: Callable[[], bool],
    kind: type[Exception] = Exception,
) -> T:
    """
    Call Airflow or a store, and block, until it works.

    :param purpose: what the call is for, as an infinitive for log and errors.
    :param call: makes one try.
    :param gives_up: returns whether to make no other try.
    :param kind: the errors that may pass. By default all, since that of an XCom backend may be any.
    :raises Exception: it failed for too long, or will always fail.
    """
    pause, give_up_at = retry.BACKOFF, math.inf
    while True:
        try:
            return call()
        except kind as error:
            failure = error
        # not while it is handled: another error may be, which says that the time is up
        if not getattr(failure, "retryable", True) or gives_up():
            raise failure
        if give_up_at == math.inf:
            give_up_at = time.monotonic() + STORE_RETRY_BUDGET
            log.warning("Could not %s: %s; retrying", purpose, reason_of(failure))
        wake_at, pause = time.monotonic() + pause, min(2 * pause, _MAX_PAUSE)
        if wake_at > give_up_at:
            raise failure
        while time.monotonic() < wake_at:
            time.sleep(LOOK_EVERY)  # a signal that is deferred interrupts no sleep
            if gives_up():
                raise failure
