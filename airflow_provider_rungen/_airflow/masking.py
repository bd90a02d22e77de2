"""Registers the secrets that Airflow does not know of with its masker: the passwords of proxies."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from importlib import import_module
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from airflow_provider_rungen._airflow import place_of

log = logging.getLogger(__name__)


def proxy_passwords(proxy: str | None) -> list[str]:
    """
    Return the passwords of a proxy and of those in the environment, as they stand in the URL and decoded.

    :param proxy: the URL of the connection's own proxy.
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
    """Mask secrets in the logs of this process, and of the supervisor that writes them."""
    from airflow_provider_rungen._airflow import mask_secret

    for secret in secrets:
        try:
            mask_secret(secret)
        except Exception as error:  # a task is not to fail for its logs
            log.debug("A proxy's password is not masked: %s", type(error).__name__)


async def amask(secrets: Iterable[str]) -> None:
    """Do the same in an event loop, where a blocking message to the supervisor can deadlock."""
    secrets = list(secrets)
    if not secrets:
        return
    module, _ = place_of("mask_secret") or ("", "")
    amask_secret = getattr(import_module(module), "amask_secret", None)  # came with a patch of 3.3
    if amask_secret is None:
        from asgiref.sync import sync_to_async

        # not asyncio.to_thread: Airflow 3.0 and 3.1 ask on this loop, which only asgiref finds there
        await sync_to_async(partial(mask, secrets), thread_sensitive=False)()
        return
    for secret in secrets:
        await amask_secret(secret)
