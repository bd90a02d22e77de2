"""Reads an Airflow connection into settings; every mistake in it gets an error that names the field."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from airflow_provider_rungen.client.address_policy import is_loopback
from airflow_provider_rungen.client.settings import Settings, tls_context
from airflow_provider_rungen.exceptions import RunGenConfigError

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Connection

DEFAULT_HOST = "https://api.rungen.ai"


def read_connection(conn: Connection, conn_id: str) -> tuple[Settings, str | None]:
    """
    Read the settings, and the default app, from an Airflow connection.

    :raises RunGenConfigError: a field is missing, unknown or mistyped; the message names it.
    """

    def wrong(name: str, reason: str) -> RunGenConfigError:
        return RunGenConfigError(f"Airflow connection {conn_id!r}: {name} {reason}")

    extra = _extra(conn, wrong)
    key = (conn.password or "").strip()
    if not key:
        also = "; login is set, but RunGen knows no login" if conn.login else ""
        raise wrong("password", f"is empty; it must hold the RunGen API key{also}")
    if not key.isascii() or not key.isprintable():
        raise wrong("password", "holds characters that no API key has")
    for name in ("app_url", "job_url"):
        if key in unquote(extra.get(name, "")):
            raise wrong(f"extra field {name!r}", "holds the API key, and would show it to everybody")
    connect_timeout, read_timeout = extra.pop("timeout", (10.0, 60.0))
    allow_http = extra.pop("allow_http", False)
    app_id = extra.pop("app_id", None)
    settings = Settings(
        base_url=_base_url(conn, wrong, allow_http=allow_http),
        api_key=key,
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        **extra,
    )
    return settings, app_id


def _extra(conn: Connection, wrong: Callable[[str, str], RunGenConfigError]) -> dict[str, Any]:
    # not conn.extra_dejson: it speaks to the supervisor, which a trigger or a dying task must not do
    try:
        raw = json.loads(conn.extra or "{}")
    except ValueError:
        raise wrong("extra", "is not JSON") from None
    if not isinstance(raw, dict):
        raise wrong("extra", "must be a JSON object")
    extra: dict[str, Any] = {}
    for prefixed, given in raw.items():
        # what is pasted into the form often ends in a space
        value = given.strip() if isinstance(given, str) else given
        name = prefixed.removeprefix("extra__rungen__")
        if name not in _EXTRAS:
            raise wrong(f"extra field {name!r}", f"is unknown; known are {', '.join(sorted(_EXTRAS))}")
        if value is None or value == "":
            continue  # an empty field of the form
        try:
            extra[name] = _EXTRAS[name](value)
        except (ValueError, TypeError) as error:
            raise wrong(f"extra field {name!r}", str(error)) from None
    return extra


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {type(value).__name__}")
    if not value.isascii() or not value.isprintable():
        raise ValueError("holds characters that cannot be sent")
    return value


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false", "y"):
        return value.lower() != "false"  # y is what a checked box of Airflow 2's form sends to the test
    raise ValueError("must be true or false")


def _verify(value: Any) -> bool | str:
    try:
        return _flag(value)
    except ValueError:
        pass
    try:
        tls_context(_string(value))
        return str(value)
    except (RunGenConfigError, ValueError):
        raise ValueError("must be true, false or the path of a CA bundle that can be read") from None


def _duration(value: Any) -> float:
    try:
        return seconds(value if isinstance(value, (int, float)) else float(value), "")
    except (ValueError, TypeError):
        raise ValueError("must be seconds (a positive number), or an object with connect and read") from None


def _timeout(value: Any) -> tuple[float, float]:
    if isinstance(value, str) and value.startswith("{"):
        # Airflow 2's form shows, and sends, an object as Python writes it
        with contextlib.suppress(ValueError):
            value = json.loads(value.replace("'", '"'))
    if isinstance(value, dict):
        if unknown := set(value) - {"connect", "read"}:
            raise ValueError(f"has the unknown part {sorted(unknown)[0]!r}; known are connect and read")
        return _duration(value.get("connect", 10.0)), _duration(value.get("read", 60.0))
    read = _duration(value)
    return min(read, 10.0), read


def _size(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[1-9]\d{0,12}", str(value)):
        raise ValueError("must be a positive whole number of bytes")
    return int(value)


def _rate(value: Any) -> float:
    try:
        return seconds(value if isinstance(value, (int, float)) else float(value), "")
    except (ValueError, TypeError):
        raise ValueError("must be a positive number") from None


def _proxy(value: Any) -> str:
    url = _string(value)
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        is_cut = "@" in f"{parts.path}{parts.query}{parts.fragment}"  # by a / ? or # of the password
    except ValueError:  # its text may hold a piece of the password
        is_address = is_cut = False
    if not is_address or is_cut:
        raise ValueError("must be the URL of an http or https proxy, in its password %23 for #, and so on")
    return url


def _link(value: Any, *places: str) -> str:
    """Check the pattern of a link, which everybody who sees a task may see."""
    pattern = _string(value)
    names = set(re.findall(r"\{([^{}]*)\}", pattern))
    if names - set(places) or re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", pattern)):
        raise ValueError(f"may hold no braces but {' and '.join(f'{{{place}}}' for place in places)}")
    if places[-1] not in names:
        raise ValueError(f"must hold {{{places[-1]}}}")
    try:
        parts = urlsplit(pattern)
        is_address = parts.scheme in ("http", "https") and parts.hostname and "{" not in parts.netloc
    except ValueError:
        is_address = False
    if not is_address or re.search(r"[\s<>\"]", pattern):
        raise ValueError("must be an address such as https://console.example.com/apps/{app_id}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("may hold no user and no password")
    for name, _ in parse_qsl(f"{parts.query}&{parts.fragment}", keep_blank_values=True):
        if re.search(r"(?i)key|token|secret|passw|pwd|\bpass\b|signature|credential|auth|\bsig\b", name):
            raise ValueError(f"may hold no secret, but has the parameter {name!r}")
    return pattern


_EXTRAS: dict[str, Callable[[Any], Any]] = {
    "team_id": _string,
    "app_id": _string,
    "user_id": _string,
    "timeout": _timeout,
    "verify": _verify,
    "proxy": _proxy,
    "allow_http": _flag,
    "max_response_bytes": _size,
    "max_requests_per_second": _rate,
    "app_url": lambda value: _link(value, "app_id"),
    "job_url": lambda value: _link(value, "app_id", "job_id"),
}


def _base_url(conn: Connection, wrong: Callable[[str, str], RunGenConfigError], *, allow_http: bool) -> str:
    host = (conn.host or "").strip()
    prefix = (conn.schema or "").strip()
    scheme = ""
    if prefix in ("http", "https"):  # where Airflow's HTTP connections keep the scheme
        scheme, prefix = prefix, ""
    if not host:
        host = DEFAULT_HOST
    elif "://" not in host:
        host = f"{scheme or 'https'}://{_bracketed(host)}"
    try:
        parts = urlsplit(host)
        port = conn.port or parts.port  # 0 is what Airflow's UI sends for none
    except ValueError:
        raise wrong("host", "is not an address; it must look like https://api.rungen.ai") from None
    if port is not None and not 0 < port < 65536:
        raise wrong("port", "is no port number")
    name = parts.hostname or ""
    labels = name.removesuffix(".").split(".")
    is_name = re.fullmatch(r"[A-Za-z0-9._:-]+", name) and all(0 < len(label) < 64 for label in labels)
    if parts.scheme not in ("http", "https") or not is_name:
        raise wrong("host", "is not an address; it must look like https://api.rungen.ai")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise wrong("host", "may hold a scheme, a name, a port and a path, and nothing else")
    if parts.scheme == "http" and not allow_http and not is_loopback(name):
        raise wrong(
            "host", "is plain http, which would show the API key to the network; use https, or set allow_http"
        )
    path = "/".join(piece.strip("/") for piece in (parts.path, prefix) if piece.strip("/"))
    if not re.fullmatch(r"[A-Za-z0-9._~/%-]*", path) or ".." in path.split("/"):
        raise wrong("host", "has a path that cannot be used")
    netloc = _bracketed(name) + (f":{port}" if port else "")
    return f"{parts.scheme}://{netloc}" + (f"/{path}" if path else "")


def _bracketed(name: str) -> str:
    try:
        return f"[{ipaddress.IPv6Address(name)}]"
    except ValueError:
        return name


def seconds(value: float | timedelta, name: str, *, or_none: bool = False) -> float:
    """
    Give a duration in seconds.

    :param or_none: whether it may be 0.
    :raises ValueError: it is not a positive number; the message names the parameter.
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not is_number or not 0 <= number < float("inf") or (number == 0 and not or_none):
        raise ValueError(f"{name} must be a positive number of seconds or a timedelta, not {value!r}")
    return float(number)
