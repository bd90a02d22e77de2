"""Register with Airflow's masker the secrets that it does not know: the passwords of proxies."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from airflow.sdk import log as airflow_log

log = logging.getLogger(__name__)


def proxy_passwords(proxy: str | None) -> list[str]:
    """
    Return the passwords of the connection's proxy and of the environment's, percent-encoded and decoded.

    :param proxy: the URL of the connection's proxy.
    """
    found: list[str] = []
    for url in (proxy, *getproxies().values()):
        if password := _password(url or ""):
            found += [password, unquote(password)]
    return list(dict.fromkeys(found))


def _password(url: str) -> str | None:
    try:
        return urlsplit(url if "://" in url else f"http://{url}").password
    except ValueError:
        return None


def mask(secrets: Iterable[str]) -> None:
    """Mask secrets in the logs of this process and of its supervisor, which writes the task's log."""
    for secret in secrets:
        try:
            airflow_log.mask_secret(secret)
        except Exception as error:  # a task must not fail because of its logs
            log.debug("Could not mask the password of a proxy: %s", type(error).__name__)


async def amask(secrets: Iterable[str]) -> None:
    """Mask secrets in an event loop, where a blocking message to the supervisor can deadlock; see `mask`."""
    secrets = list(secrets)
    if not secrets:
        return
    amask_secret = getattr(airflow_log, "amask_secret", None)  # since a patch release of 3.3
    if amask_secret is None:
        from asgiref.sync import sync_to_async

        # not asyncio.to_thread: Airflow 3.1 uses this loop, which only asgiref finds in a thread
        await sync_to_async(partial(mask, secrets), thread_sensitive=False)()
        return
    for secret in secrets:
        await amask_secret(secret)
