"""Decide which URLs are downloaded, and which redirects are followed. No I/O."""

from __future__ import annotations

from yarl import URL

from airflow_provider_rungen.client.address_policy import is_loopback, literal
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenOutputError


def parse_url(url: str) -> URL:
    """
    Return a URL that may be downloaded, as far as the URL alone shows it.

    :raises RunGenOutputError: it is invalid, not http or https, or names no host.
    """
    try:
        target = URL(url, encoded=True)
        _ = target.port
    except ValueError:
        raise rejection("its URL cannot be parsed") from None
    if target.scheme not in ("http", "https"):
        raise rejection(f"its URL is {clean_text(target.scheme, 20)}, not http or https")
    host = target.raw_host or ""
    # libraries disagree about hosts that look like an address and are not
    is_ambiguous = literal(host) is None and (":" in host or host.replace(".", "").isdigit())
    if not host or not host.isascii() or is_ambiguous:
        raise rejection("its URL has no valid host")
    return target


def redirect_target(source: URL, location: str) -> URL:
    """
    Return the URL that a redirect leads to.

    :param location: the ``Location`` header.
    :raises RunGenOutputError: the redirect must not be followed.
    """
    host = host_of(source)
    if not location:
        raise rejection(f"{host} redirected it without a Location header")
    try:
        target = parse_url(str(source.join(URL(location, encoded=True))))
    except ValueError:
        raise rejection(f"{host} redirected it to a URL that cannot be parsed") from None
    if target.scheme != "https" and not is_loopback(target.raw_host or ""):
        raise rejection(f"{host} redirected it to {host_of(target)} over plain http, which is not followed")
    return target


def host_of(target: URL) -> str:
    """Return the host of a URL, for a message."""
    return clean_text(target.raw_host or "", 100)


def rejection(reason: str) -> RunGenOutputError:
    """Return the error of an output that cannot be downloaded, however often it is tried."""
    return RunGenOutputError(reason, retryable=False)
