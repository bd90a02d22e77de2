"""
A `requests.Session` for one service, whose connections can be aborted from another thread.

Imported where it is used, since it imports requests.
"""

from __future__ import annotations

import functools
import socket
import ssl
from http.client import CONTINUE, OK, PROCESSING, HTTPResponse
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar

from airflow_provider_rungen.client import exchange
from airflow_provider_rungen.client.settings import Settings, environment_ca, tls_context

if TYPE_CHECKING:
    from http.client import HTTPConnection as _Base
else:
    _Base = object


class Session(requests.Session):
    """
    Sends the key, keeps no cookies, follows no redirects, and reads no ``~/.netrc``.

    :param settings: how to reach the service.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        parts = urlsplit(settings.base_url)
        proxy = settings.proxy_for(settings.base_url)
        # requests would send requests to this machine through the environment's proxy
        self.trust_env = False
        self.proxies = {f"{parts.scheme}://{parts.hostname}": proxy} if proxy else {}
        self.verify = (environment_ca() or True) if settings.verify is True else settings.verify
        self.headers.update(settings.headers())
        self.cookies = _NoCookies()
        self.mount("https://", _Adapter())
        self.mount("http://", _Adapter())

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return nothing, or requests reads the whole body to prepare a redirect."""


class _NoCookies(RequestsCookieJar):
    def set_cookie(self, cookie: Any, *args: Any, **kwargs: Any) -> None: ...


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _track(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return _track(super().proxy_manager_for(proxy, **kwargs))


def _track(manager: Any) -> Any:
    """Replace the pools of a manager by ones whose connections can be aborted."""
    manager.pool_classes_by_scheme = {
        scheme: _tracked(pool) for scheme, pool in manager.pool_classes_by_scheme.items()
    }
    return manager


@functools.cache
def _tracked(pool: Any) -> Any:
    if issubclass(pool.ConnectionCls, _TrackedConnection):
        return pool
    connection = type(pool.ConnectionCls.__name__, (_TrackedConnection, pool.ConnectionCls), {})
    return type(pool.__name__, (pool,), {"ConnectionCls": connection})


class _Response(HTTPResponse):
    def _read_status(self) -> Any:
        # an abandoned exchange must not go through the interim answers that are still in the buffer
        exchange.check_current()
        version, status, reason = super()._read_status()  # type: ignore[misc]  # private, but the only hook there is
        # http.client skips no interim answer but 100, and would take 102 or 103 for the final one
        return version, CONTINUE if PROCESSING <= status < OK else status, reason


class _TrackedConnection(_Base):
    """A connection that its thread knows, and that asks its exchange before it sends."""

    response_class = _Response
    _is_connecting = False
    # those of urllib3's HTTPS connections
    ca_certs: str | None = None
    ca_cert_dir: str | None = None
    ssl_context: ssl.SSLContext | None = None
    proxy: Any = None
    _bundle: str | None = None
    _thread: exchange.ExchangeThread | None = None

    def _new_conn(self) -> socket.socket:
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]  # urllib3's, which is not the base here
        if (current := exchange.current()) is not None:
            self._thread = current.thread
            self._thread.track(self, sock)
            try:
                current.check()
            except exchange.AbandonedError:
                sock.close()
                raise
        return sock

    def connect(self) -> None:
        self._share_tls_context()
        self._is_connecting = True
        try:
            super().connect()
        finally:
            self._is_connecting = False

    def _share_tls_context(self) -> None:
        """Use the context that is loaded once. urllib3 would load the bundle for each connection."""
        bundle = self.ca_certs or self.ca_cert_dir or self._bundle
        # urllib3 needs the bundle itself for a proxy that speaks TLS
        if bundle and getattr(self.proxy, "scheme", None) != "https":
            self._bundle, self.ca_certs, self.ca_cert_dir = bundle, None, None
            self.ssl_context = tls_context(bundle)

    def send(self, data: Any) -> None:
        if not self._is_connecting:  # what is sent while connecting is for the proxy
            if self.sock is None:
                self.connect()
            if (current := exchange.current()) is not None:
                current.begin_to_send()
        super().send(data)

    def close(self) -> None:
        super().close()
        if self._thread is not None:
            self._thread.untrack(self)
