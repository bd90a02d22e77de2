"""Read an Airflow connection into settings, and draw its form. An error in it names the field."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from airflow_provider_rungen import get_provider_info
from airflow_provider_rungen._airflow import AirflowNotFoundException
from airflow_provider_rungen.client.address_policy import is_loopback
from airflow_provider_rungen.client.money import parse_price
from airflow_provider_rungen.client.settings import Settings, tls_context
from airflow_provider_rungen.client.texts import to_seconds
from airflow_provider_rungen.exceptions import RunGenConfigError

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Connection

DEFAULT_HOST = "https://api.rungen.ai"


class _FieldError(Exception):
    """A field is missing, unknown or invalid. The text begins with its name."""


def read_connection(conn: Connection, conn_id: str) -> Settings:
    """
    Return the settings of an Airflow connection.

    :param conn: the connection.
    :param conn_id: its id, for the error.
    :raises RunGenConfigError: a field is missing, unknown or invalid; the message names it.
    """
    try:
        extra = _read_extra(conn.extra)
        key = _read_key(conn)
        for name in ("app_url", "job_url"):
            if key in unquote(extra.get(name, "")):
                raise _FieldError(f"{_label(name)} holds the API key, and everybody could see it")
        base_url = _read_base_url(conn, allow_http=extra.pop("allow_http", False))
    except _FieldError as error:
        raise RunGenConfigError(f"Airflow connection {conn_id!r}: {error}") from None
    connect_timeout, read_timeout = extra.pop("timeout", (10.0, 60.0))
    timeouts = {"connect_timeout": connect_timeout, "read_timeout": read_timeout}
    return Settings(base_url=base_url, api_key=key, **timeouts, **extra)


@contextlib.contextmanager
def explaining(conn_id: str) -> Iterator[None]:
    """Name the connection if Airflow does not find it, or cannot be asked. Both may be transient."""
    try:
        yield
    except RunGenConfigError:
        raise
    except Exception as error:
        problem, hint = f"could not be read ({type(error).__name__})", ""
        if isinstance(error, AirflowNotFoundException):
            problem = "does not exist"
            hint = (
                "Add one of type RunGen.AI under Admin → Connections, or set the environment variable "
                f"AIRFLOW_CONN_{conn_id.upper()}, or correct rungen_conn_id"
            )
        failure = RunGenConfigError(f"Airflow connection {conn_id!r} {problem}", hint=hint, retryable=True)
    else:
        return
    raise failure


def _read_key(conn: Connection) -> str:
    key = (conn.password or "").strip()
    if not key:
        login = "; login is set, but RunGen has no login" if conn.login else ""
        raise _FieldError(f"API key (password) is empty{login}")
    if not key.isascii() or not key.isprintable():
        raise _FieldError("API key (password) has characters that no key has")
    return key


# --- host ---------------------------------------------------------------------------------------------------


def _read_base_url(conn: Connection, *, allow_http: bool) -> str:
    invalid = _FieldError("Base URL (host) is not an address; it must look like https://api.rungen.ai")
    host, prefix, scheme = (conn.host or "").strip() or DEFAULT_HOST, (conn.schema or "").strip(), "https"
    if prefix in ("http", "https"):  # Airflow's HTTP connections keep the scheme here
        scheme, prefix = prefix, ""
    try:
        parts = urlsplit(host if "://" in host else f"{scheme}://{_bracketed(host)}")
        port = conn.port or parts.port  # Airflow's UI sends 0 for none
    except ValueError:
        raise invalid from None
    if port is not None and not 0 < port < 65536:
        raise _FieldError("Port is not a port number")
    name = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[A-Za-z0-9._:-]+", name):
        raise invalid
    if parts.username or parts.password or parts.query or parts.fragment:
        raise _FieldError("Base URL (host) may have a scheme, a name, a port and a path, and nothing else")
    if parts.scheme == "http" and not allow_http and not is_loopback(name):
        raise _FieldError(
            "Base URL (host) is plain http, which would show the API key to the network; use https, or set "
            "Allow plain http (allow_http)"
        )
    path = "/".join(piece.strip("/") for piece in (parts.path, prefix) if piece.strip("/"))
    if not re.fullmatch(r"[A-Za-z0-9._~/%-]*", path) or ".." in path.split("/"):
        raise _FieldError("Base URL (host) has an invalid path")
    netloc = _bracketed(name) + (f":{port}" if port else "")
    return f"{parts.scheme}://{netloc}" + (f"/{path}" if path else "")


def _bracketed(name: str) -> str:
    try:
        return f"[{ipaddress.IPv6Address(name)}]"
    except ValueError:
        return name


# --- extra --------------------------------------------------------------------------------------------------


def _read_extra(text: str | None) -> dict[str, Any]:
    # not conn.extra_dejson: it talks to the supervisor, which a trigger or a killed task must not do
    try:
        raw = json.loads(text or "{}")
    except ValueError:
        raise _FieldError("extra is not JSON") from None
    if not isinstance(raw, dict):
        raise _FieldError("extra must be a JSON object")
    extra: dict[str, Any] = {}
    for name, given in raw.items():
        value = given.strip() if isinstance(given, str) else given  # pasted text often ends with a space
        if name not in _EXTRAS:
            raise _FieldError(f"extra field {name!r} is unknown; known are {', '.join(sorted(_EXTRAS))}")
        if value is None or value == "":
            continue  # an empty field of the form
        try:
            extra[name] = _EXTRAS[name](value)
        except ValueError as error:
            raise _FieldError(f"{_label(name)} {error}") from None
    return extra


def _label(name: str) -> str:
    """Return what a field is called in the form of the connection, and in its JSON."""
    label = get_provider_info()["connection-types"][0]["conn-fields"][name]["label"]
    return f"{label} (extra field {name!r})"


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {type(value).__name__}")
    if not value.isascii() or not value.isprintable():
        raise ValueError("has characters that cannot be sent")
    return value


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() != "false"
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


def _number(value: Any, expected: str = "a positive number") -> float:
    try:
        return to_seconds(float(value) if isinstance(value, str) else value, "")
    except ValueError:
        raise ValueError(f"must be {expected}") from None


def _timeout(value: Any) -> tuple[float, float]:
    expected = "seconds (a positive number), or an object with connect and read"
    if isinstance(value, str) and value.startswith("{"):  # a text field of the form
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, dict):
        if unknown := set(value) - {"connect", "read"}:
            raise ValueError(f"has the unknown part {min(unknown)!r}; known are connect and read")
        return _number(value.get("connect", 10.0), expected), _number(value.get("read", 60.0), expected)
    read = _number(value, expected)
    return min(read, 10.0), read


def _size(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[1-9]\d{0,12}", str(value)):
        raise ValueError("must be a positive whole number of bytes")
    return int(value)


# the name or address of a host, and a port
_HOST = r"(\[[0-9A-Fa-f:.]+\]|[^][\s/?#@:{}<>\"\\]+)(:[1-9]\d{0,4})?"


def _proxy(value: Any) -> str:
    url = _string(value)
    # a / ? # or [ in a password that is not encoded would split it
    if not re.fullmatch(rf"(?i:https?)://([^][\s/?#@]*@)?{_HOST}/?", url):
        raise ValueError("must be the URL of an http or https proxy, with its password percent-encoded")
    return url


def _link(value: Any, *names: str) -> str:
    pattern = _string(value)
    known = [f"{{{name}}}" for name in names]
    if re.search("[{}]", re.sub("|".join(map(re.escape, known)), "", pattern)):
        raise ValueError(f"may have no braces but {' and '.join(known)}")
    if known[-1] not in pattern:
        raise ValueError(f"must have {known[-1]}")
    if not re.fullmatch(rf"(?i:https?)://{_HOST}([/?#][^\s<>\"]*)?", pattern):
        raise ValueError("must be an address without a user, such as https://console.example.com/{app_id}")
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
    "max_requests_per_second": _number,
    "app_url": lambda value: _link(value, "app_id"),
    "job_url": lambda value: _link(value, "app_id", "job_id"),
    "price": parse_price,
}


# --- tests of DAGs reach only the emulator, whatever connections this Airflow has ----

# The test kit sets it to the URLs of its emulators, separated by spaces. Then no other service may be used.
# If it is empty, only a service on this machine may be used, in a connection of the environment.
EMULATORS = "RUNGEN_EMULATOR"


def is_allowed(settings: Settings, *, is_of_environment: bool) -> bool:
    """
    Return whether requests may be sent: anywhere, or in a test to its emulators.

    :param is_of_environment: whether `find_connection` found the connection.
    """
    emulators = os.environ.get(EMULATORS)
    if emulators is None:
        return True
    if not emulators:
        return is_of_environment and is_loopback(urlsplit(settings.base_url).hostname or "")
    return any(f"{settings.base_url}/".startswith(f"{url.rstrip('/')}/") for url in emulators.split())


def find_connection(conn_id: str) -> Connection | None:
    """
    Return the connection of a test, if there is one.

    It is in the environment, which Airflow asks only after a configured secrets backend.
    """
    if EMULATORS not in os.environ:
        return None
    from airflow.secrets.environment_variables import EnvironmentVariablesBackend

    found: Connection | None = EnvironmentVariablesBackend().get_connection(conn_id)
    return found


# --- the form of Airflow 3.1. Later versions read provider.toml ----


def form_widgets() -> dict[str, Any]:
    """Return the fields of the form."""
    from wtforms import BooleanField, PasswordField, StringField  # Airflow's stand-ins

    widgets: dict[str, Any] = {}
    for name, spec in get_provider_info()["connection-types"][0]["conn-fields"].items():
        label, text = spec["label"], spec["description"]
        if "boolean" in spec["schema"]["type"]:
            widgets[name] = BooleanField(label, description=text, default=spec["schema"].get("default"))
        elif spec["schema"].get("format") == "password":
            widgets[name] = PasswordField(label, description=text)
        else:
            widgets[name] = StringField(label, description=text)
    return widgets


def ui_field_behaviour() -> dict[str, Any]:
    """Return the labels, placeholders and hidden fields of the form."""
    behaviour = get_provider_info()["connection-types"][0]["ui-field-behaviour"]
    return {name.replace("-", "_"): value for name, value in behaviour.items()}
