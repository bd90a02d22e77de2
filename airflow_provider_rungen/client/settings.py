"""How to reach the service: address, key, limits, proxy and TLS."""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_provider_rungen import __version__
from airflow_provider_rungen.client.address_policy import is_loopback
from airflow_provider_rungen.client.flow import Request, Response
from airflow_provider_rungen.client.money import Price
from airflow_provider_rungen.client.redaction import mask_key, mask_key_in_text
from airflow_provider_rungen.exceptions import RunGenConfigError, RunGenResponseError

if TYPE_CHECKING:
    import requests


@dataclass(frozen=True, slots=True)
class Settings:
    """
    How to reach the service.

    :param base_url: scheme, host, port and path prefix, without a slash at the end.
    :param api_key: sent as ``x-api-key``.
    :param team_id: sent as ``x-team-id``, if given.
    :param user_id: sent as ``X-Authenticated-User-Id`` when a job is canceled, if given.
    :param connect_timeout: seconds to make a connection.
    :param read_timeout: seconds to wait for more of an answer. Together with ``connect_timeout``, it limits
        the whole exchange.
    :param verify: whether to verify TLS, or the path of a CA bundle.
    :param proxy: the URL of a proxy; without it, the environment's proxy is used.
    :param max_response_bytes: the size from which an answer is refused.
    :param max_requests_per_second: how many requests a sender begins in a second at most.
    :param app_url: the address of an app for people, with ``{app_id}`` in it. Default: its API address.
    :param job_url: the address of a job for people, with ``{app_id}`` and ``{job_id}``. Default: likewise.
    :param price: what one worker of an app costs, as declared.
    :param app_id: the app to use by default.
    """

    base_url: str
    api_key: str = field(repr=False)
    team_id: str | None = None
    user_id: str | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)
    max_response_bytes: int = 32 * 1024 * 1024
    max_requests_per_second: float | None = None
    app_url: str | None = None
    job_url: str | None = None
    price: Price | None = None
    app_id: str | None = None

    def headers(self, request: Request | None = None) -> dict[str, str]:
        """
        Return the headers of a request.

        :param request: the request; without it, what all have in common.
        """
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "gzip",  # no more than `bodies` can decode
            "User-Agent": f"airflow-provider-rungen/{__version__}",
            "x-api-key": self.api_key,
        }
        if self.team_id:
            headers["x-team-id"] = self.team_id
        if request is not None and request.body is not None:
            headers["Content-Type"] = "application/json"
        if request is not None and request.as_user and self.user_id:
            headers["X-Authenticated-User-Id"] = self.user_id
        return headers

    def proxy_for(self, url: str) -> str | None:
        """
        Return the proxy for a URL, if there is one.

        A URL on this machine has none: the proxy would only see the key.
        """
        # aiohttp's trust_env would send ~/.netrc, too
        return None if is_loopback(urlsplit(url).hostname or "") else self.proxy or proxy_of_environment(url)

    def session(self) -> requests.Session:
        """Return a session that sends the key, follows no redirects, and reads no ``~/.netrc``."""
        import requests

        session, proxy, parts = requests.Session(), self.proxy_for(self.base_url), urlsplit(self.base_url)
        # requests would send requests to this machine through the environment's proxy
        session.trust_env = False
        session.proxies = {f"{parts.scheme}://{parts.hostname}": proxy} if proxy else {}
        session.verify = self.trusted()
        session.headers.update(self.headers())
        # a redirect would take the key to another host
        session.get_redirect_target = lambda resp: None  # type: ignore[method-assign]
        return session

    def trusted(self) -> bool | str:
        """Return whether to verify TLS, or the path of a CA bundle: the environment's one by default."""
        return (environment_ca() or True) if self.verify is True else self.verify

    def response(self, status: int, headers: Mapping[str, str], chunks: list[bytes]) -> Response:
        """Return an answer with the key masked in it, so that a service that repeats it leaks nothing."""
        key = self.api_key
        masked = {name.lower(): mask_key_in_text(value, key) for name, value in headers.items()}
        return Response(status, masked, mask_key(_to_utf8(b"".join(chunks)), key))

    def time_limit(self, request: Request) -> float:
        """Return the most seconds that the exchange of a request may take."""
        limit = self.connect_timeout + self.read_timeout
        return limit if request.timeout is None else max(0.0, min(limit, request.timeout))

    def check_size(self, size: int, request: Request) -> None:
        """
        Check the size of an answer.

        :param size: its size so far, in bytes.
        :param request: what it answers.
        :raises RunGenResponseError: it is larger than ``max_response_bytes``.
        """
        if size > self.max_response_bytes:
            raise RunGenResponseError(
                request.failure(f"the answer is larger than {self.max_response_bytes} bytes"),
                hint="If that is expected, raise Largest answer (max_response_bytes) in the connection",
                is_too_large=True,
                retryable=False,
            )


def _to_utf8(body: bytes) -> bytes:
    """Return a body in UTF-8. Python reads JSON in UTF-16 and UTF-32, too, where no key would be found."""
    encoding = json.detect_encoding(body)
    return body if encoding.startswith("utf-8") else body.decode(encoding, "replace").encode()


def proxy_of_environment(url: str) -> str | None:
    """Return the environment's proxy for a URL, as `requests` would, but without importing it."""
    from urllib.request import getproxies, proxy_bypass

    parts, proxies = urlsplit(url), getproxies()
    host = parts.hostname or ""
    if proxy_bypass(host) or proxy_bypass(parts.netloc):
        return None
    if any(_is_in(host, each.strip()) for each in proxies.get("no", "").split(",") if "/" in each):
        return None
    proxy = (proxies.get(parts.scheme) or proxies.get("all") or "").strip()
    # requests takes a proxy without a scheme for an http one, aiohttp refuses it
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy or None


def _is_in(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def environment_ca() -> str | None:
    """Return the path of the environment's CA bundle, as requests does."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")


def tls_context(path: str, *, with_default_cas: bool = False) -> ssl.SSLContext:
    """
    Return a TLS context that trusts a CA bundle. It is shared: do not change it.

    :param path: the bundle, or a folder of CAs. It is loaded again once it has changed.
    :param with_default_cas: whether to trust the CAs of this machine, too.
    :raises RunGenConfigError: it cannot be read.
    """
    try:
        status = os.stat(path)
        return _load_tls_context(path, (status.st_mtime_ns, status.st_size, status.st_ino), with_default_cas)
    except OSError:
        raise RunGenConfigError(f"verify: {path} is not a CA bundle that can be read") from None


@functools.lru_cache(maxsize=8)  # a bundle of the usual CAs takes 6 ms
def _load_tls_context(path: str, version: tuple[int, ...], with_default_cas: bool) -> ssl.SSLContext:
    file, folder = (None, path) if os.path.isdir(path) else (path, None)
    context = ssl.create_default_context(cafile=file, capath=folder)
    if with_default_cas:
        context.load_default_certs()
    return context
