"""A `requests.Session` for whoever wants to call the service by hand. It imports requests."""

from __future__ import annotations

from urllib.parse import urlsplit

import requests

from airflow_provider_rungen.client.settings import Settings, environment_ca


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return nothing: a redirect would take the key to another host."""


def open_session(settings: Settings) -> requests.Session:
    """Return a session that sends the key, follows no redirects, and reads no ``~/.netrc``."""
    session = _Session()
    parts, proxy = urlsplit(settings.base_url), settings.proxy_for(settings.base_url)
    # requests would send requests to this machine through the environment's proxy
    session.trust_env = False
    session.proxies = {f"{parts.scheme}://{parts.hostname}": proxy} if proxy else {}
    session.verify = (environment_ca() or True) if settings.verify is True else settings.verify
    session.headers.update(settings.headers())
    return session
