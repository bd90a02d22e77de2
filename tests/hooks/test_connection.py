"""The Airflow connection: every field is read, and every mistake names its field and never the key."""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import certifi
import jsonschema
import pytest
from conftest import APP
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen import __version__, get_provider_info
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.exceptions import RunGenConfigError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.hooks.connection import read_connection

SECRET = "sk-very-secret-key"
FIELDS: dict[str, Any] = get_provider_info()["connection-types"][0]["conn-fields"]
CONN = "AIRFLOW_CONN_RUNGEN_DEFAULT"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Read a connection given as JSON fields, or as a URI."""

    def reading(uri: str | None = None, **fields: Any) -> Settings:
        text = uri or json.dumps({"conn_type": "rungen", "password": SECRET, **fields})
        monkeypatch.setenv(CONN, text)
        return RunGenHook().settings

    return reading


def refused(read: Any, *words: str, uri: str | None = None, **fields: Any) -> str:
    with pytest.raises(RunGenConfigError) as caught:
        read(uri, **fields)
    message = str(caught.value)
    assert "'rungen_default'" in message
    assert SECRET not in message
    for word in words:
        assert word in message
    return message


# --- what is read -------------------------------------------------------------------------------------------


def test_a_key_is_enough(read: Any) -> None:
    settings = read()
    assert settings == Settings(base_url="https://api.rungen.ai", api_key=SECRET)
    assert (settings.connect_timeout, settings.read_timeout) == (10.0, 60.0)
    assert (settings.verify, settings.proxy, settings.team_id, settings.user_id) == (True, None, None, None)
    assert settings.max_response_bytes == 32 * 1024 * 1024


EVERY = Settings(
    "https://rungen.example:8443/v1", SECRET, team_id="t", app_id="a", user_id="u", max_response_bytes=1000
)


def test_every_field_is_read_from_json(read: Any) -> None:
    bundle, proxy = certifi.where(), "http://me:pw@proxy.example:3128"
    extra = {"timeout": {"connect": 3, "read": 120.5}, "verify": bundle, "proxy": proxy, "allow_http": True}
    extra |= {"team_id": "t", "app_id": "a", "user_id": "u", "max_response_bytes": 1000}
    settings = read(host="https://rungen.example/", schema="v1", port=8443, extra=extra)
    assert settings == replace(EVERY, connect_timeout=3.0, read_timeout=120.5, verify=bundle, proxy=proxy)


def test_every_field_is_read_from_a_uri(read: Any) -> None:
    query = "team_id=t&app_id=a&user_id=u&timeout=30&verify=false&max_response_bytes=1000&allow_http=True"
    key = "k/e y+%:@"
    settings = read(f"rungen://:{quote(key, safe='')}@rungen.example:8443/v1?{query}")
    assert settings == replace(EVERY, api_key=key, connect_timeout=10.0, read_timeout=30.0, verify=False)


def test_empty_fields_of_the_form_are_no_fields(read: Any) -> None:
    for nothing in ("", None):
        settings = read(host=nothing, schema="", login="", extra=dict.fromkeys(FIELDS, nothing))
        assert settings == Settings(base_url="https://api.rungen.ai", api_key=SECRET)


@pytest.mark.parametrize("name", FIELDS)
def test_spaces_around_what_was_pasted_are_no_part_of_it(read: Any, name: str) -> None:
    values = {
        "proxy": "http://proxy.example:3128",
        "app_url": "https://console.example/{app_id}",
        "job_url": "https://console.example/{app_id}/{job_id}",
        "price": "1.20 USD/h",
    }
    value = "false" if name in ("verify", "allow_http") else values.get(name, "30")
    assert read(password=f" {SECRET}\n", extra={name: f" {value}\n"}) == read(extra={name: value})
    assert read(extra={name: " \t"}) == read()


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "rungen.example"}, "https://rungen.example"),
        ({"host": "rungen.example", "port": 8443}, "https://rungen.example:8443"),
        ({"host": "rungen.example:8443", "port": 0}, "https://rungen.example:8443"),
        ({"port": 0}, "https://api.rungen.ai"),
        ({"host": " HTTPS://RunGen.Example/API/ "}, "https://rungen.example/API"),
        ({"host": "https://rungen.example/api", "schema": "/v1/"}, "https://rungen.example/api/v1"),
        ({"host": "rungen.example/api", "schema": "https"}, "https://rungen.example/api"),
        ({"host": "a.example", "schema": "http", "extra": {"allow_http": True}}, "http://a.example"),
        ({"host": "127.0.0.1", "schema": "http", "port": 80}, "http://127.0.0.1:80"),
        ({"host": "http://localhost:5000/x"}, "http://localhost:5000/x"),
        ({"host": "http://rungen.localhost"}, "http://rungen.localhost"),
        ({"host": "http://[::1]:5000"}, "http://[::1]:5000"),
        ({"host": "https://[2001:db8::1]/x"}, "https://[2001:db8::1]/x"),
        ({"host": "[2001:db8::1]:8443"}, "https://[2001:db8::1]:8443"),
        ({"host": "::1", "schema": "http", "port": 5000}, "http://[::1]:5000"),
        ({"uri": f"rungen://:{SECRET}@[::1]:5000/http"}, "http://[::1]:5000"),
        ({"host": "http://127.8.9.1"}, "http://127.8.9.1"),
    ],
)
def test_forms_of_the_host(read: Any, fields: dict[str, Any], url: str) -> None:
    assert read(**fields).base_url == url


@pytest.mark.parametrize(
    ("value", "want"),
    [(5, (5.0, 5.0)), ("90", (10.0, 90.0)), ("2.5", (2.5, 2.5)), ({"read": 5}, (10.0, 5.0)),
     ({"connect": "1"}, (1.0, 60.0)), ('{"connect": 1, "read": 2}', (1.0, 2.0)), ({}, (10.0, 60.0)),
     ('{"connect": 3, "read": 9}', (3.0, 9.0))],
)  # fmt: skip
def test_forms_of_the_timeout(read: Any, value: Any, want: tuple[float, float]) -> None:
    settings = read(extra={"timeout": value})
    assert (settings.connect_timeout, settings.read_timeout) == want


@pytest.mark.parametrize("value", [True, "true", "True", " TRUE "])
def test_forms_of_true(read: Any, value: Any) -> None:
    assert read(extra={"verify": value}).verify is True
    assert read(host="http://rungen.example", extra={"allow_http": value}).base_url


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "", "  ", "\n"])
def test_a_missing_key(read: Any, key: str | None) -> None:
    assert "login is set" not in refused(read, "password", "API key", password=key)
    refused(read, "password", "login is set", password=key, login=SECRET)


@pytest.mark.parametrize("key", ["kéy-kéy-kéy", "key\nkey", "key\x00key", "key\r\nx-evil: 1"])
def test_a_key_that_cannot_be_sent(read: Any, key: str) -> None:
    assert key not in refused(read, "password", password=key)


@pytest.mark.parametrize(
    "fields",
    [
        *({"host": f"http://{host}"} for host in ("rungen.example", "10.0.0.1", "[2001:db8::1]", "0.0.0.0")),  # noqa: S104
        *({"host": f"http://{host}"} for host in ("localhost.a.example", "evil-localhost", "127.0.0.1.a.bc")),
        {"host": "rungen.example", "schema": "http"},
        *({"host": "http://rungen.example", "extra": {"allow_http": value}} for value in (False, "false")),
    ],
)
def test_plain_http_to_another_machine(read: Any, fields: dict[str, Any]) -> None:
    refused(read, "host", "plain http", "allow_http", **fields)


@pytest.mark.parametrize(
    "host",
    [
        *("ftp://rungen.example", "https://", "https:///x", "file:///etc/passwd", "https://[::1"),
        *("https://rungen.example:port", "https://rungen.example:99999", "https://bücher.example"),
        *("https://user:pw@rungen.example", "https://rungen.example?x=1", "https://rungen.example#x"),
        *("https://rungen.example/../x", "https://rungen.example/a b", "https://a b"),
        *("https://rungen.example\\@evil.example", "javascript:alert(1)"),
    ],
)
def test_an_invalid_host(read: Any, host: str) -> None:
    message = refused(read, "host", host=host)
    assert "pw" not in message


@pytest.mark.parametrize("port", [99999, 65536, -1])
def test_an_invalid_port(read: Any, port: int) -> None:
    message = refused(read, host="rungen.example", port=port)
    assert "port" in message or "host" in message


UNKNOWN = ("team", "Team_id", "api_key", "extra__http__team_id", "", " app_id")


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_extra_field(read: Any, name: str) -> None:
    refused(read, repr(name), "unknown", "team_id", extra={name: SECRET})


MISTYPED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("team_id", "app_id", "user_id"), (7, True, [], {}, "ü", "a\nb")),
    "timeout": (0, -1, True, "soon", [], "nan", "inf", {"connect": 0}, {"reed": 5}, "{", {"read": []}),
    "verify": (1, "yes", [], "/no/such/bundle.pem", {}),
    "proxy": (
        7,
        "proxy.example:3128",
        "socks5://x.example",
        "http://",
        "http://[x",
        "http://x:y",
        "http://x:0",
    ),
    "allow_http": (1, "yes", [], "0"),
    "max_response_bytes": (0, -1, True, 1.5, "10 MB", [], "1e6"),
    "price": ("1.20 $/h", 1.2, {}, True),
}


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name in MISTYPED for bad in MISTYPED[name]])
def test_a_mistyped_extra_field(read: Any, name: str, bad: Any) -> None:
    refused(read, repr(name), "extra field", extra={name: bad})
    refused(read, repr(name), "extra field", extra={name: bad})


@pytest.mark.parametrize("extra", ["[]", "7", '"x"', "null x", "{", "nonsense " + SECRET])
def test_an_extra_that_is_not_an_object(extra: str) -> None:
    # Airflow's own class does not take all of these, but its database may hold them
    empty = {"host": "", "schema": "", "port": None, "login": "", "conn_type": "rungen"}
    conn: Any = SimpleNamespace(password=SECRET, extra=extra, **empty)
    with pytest.raises(RunGenConfigError, match=r"'c': extra (is not JSON|must be a JSON object)") as caught:
        read_connection(conn, "c")
    assert SECRET not in str(caught.value)


def test_neither_key_nor_proxy_password_is_in_the_repr(read: Any) -> None:
    settings = read(extra={"proxy": "http://me:hidden@proxy.example"})
    assert SECRET not in repr(settings)
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize("password", ["[hush]", "hu[sh", "hush/1", "12/hush", "hush#1", "12?hush"])
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(read: Any, password: str) -> None:
    with pytest.raises(RunGenConfigError, match=r"Proxy \(extra field 'proxy'\) must be the URL") as caught:
        read(extra={"proxy": f"http://me:{password}@proxy.example:3128"})
    assert "hush" not in str(caught.value)


ADDRESS = "https://console.example.com"


@pytest.mark.parametrize(
    ("field", "pattern", "reason"),
    [
        ("app_url", f"{ADDRESS}/apps", "must have {app_id}"),
        ("job_url", f"{ADDRESS}/{{app_id}}", "must have {job_id}"),
        ("app_url", f"{ADDRESS}/{{app_id}}/{{job_id}}", "no braces but {app_id}"),
        ("job_url", f"{ADDRESS}/{{job_id}}/{{0.__class__}}", "no braces but {app_id} and {job_id}"),
        ("job_url", f"{ADDRESS}/{{job_id", "no braces but"),
        ("job_url", "console.example.com/{job_id}", "must be an address"),
        ("job_url", "javascript:alert('{job_id}')", "must be an address"),
        ("job_url", "https://{job_id}.example.com/", "must be an address"),
        ("job_url", "https://[half/{job_id}", "must be an address"),
        ("job_url", f'{ADDRESS}/"><script>{{job_id}}', "must be an address"),
        ("job_url", "https://me:pw@console.example.com/{job_id}", "must be an address without a user"),
        ("job_url", f"{ADDRESS}/{{job_id}}?k={SECRET}", "the API key"),
        ("app_url", f"{ADDRESS}/{SECRET.replace('-', '%2D')}/{{app_id}}", "the API key"),
        ("job_url", 7, "must be text"),
    ],
)
def test_a_link_pattern_is_an_address_without_the_key(
    read: Any, field: str, pattern: Any, reason: str
) -> None:
    refused(read, field, reason, extra={field: pattern})


def test_the_patterns_of_links_are_read(read: Any) -> None:
    patterns = {
        "app_url": "https://console.example.com/apps/{app_id}?tab=jobs",
        "job_url": "http://[::1]:8080/#/{app_id}/{job_id}",
    }
    settings = read(extra=patterns)
    assert {name: getattr(settings, name) for name in patterns} == patterns


# --- what Airflow shows of it -------------------------------------------------------------------------------


def test_the_provider_info_is_valid() -> None:
    import airflow

    schema = json.loads((Path(airflow.__path__[0]) / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_the_provider_info_names_what_exists() -> None:
    info = get_provider_info()
    for room in ("hooks", "operators", "sensors", "triggers"):
        for module in (module for entry in info[room] for module in entry["python-modules"]):
            assert importlib.import_module(module)
    for path in [*info["extra-links"], *(entry["class-name"] for entry in info["task-decorators"])]:
        module, name = path.rsplit(".", 1)
        assert callable(getattr(importlib.import_module(module), name))
    [kind] = info["connection-types"]
    module, name = kind["hook-class-name"].rsplit(".", 1)
    assert getattr(importlib.import_module(module), name) is RunGenHook
    assert (kind["connection-type"], kind["hook-name"]) == (RunGenHook.conn_type, RunGenHook.hook_name)
    assert json.loads(json.dumps(info)) == info


def test_the_row_of_the_provider_has_a_link_to_documentation() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Documentation"] == get_provider_info()["integrations"][0]["external-doc-url"]


def test_airflow_finds_the_provider_and_its_connection_form() -> None:
    from airflow import providers_manager

    manager: Any = providers_manager.ProvidersManager()  # type: ignore[no-untyped-call]
    assert manager.providers["airflow-provider-rungen"].version == __version__
    with contextlib.suppress(ImportError):  # on Airflow 3.1 the first one does
        from airflow.sdk import providers_manager_runtime

        manager = providers_manager_runtime.ProvidersManagerTaskRuntime()  # type: ignore[no-untyped-call]
    hook = manager.hooks["rungen"]
    assert (hook.hook_name, hook.connection_id_attribute_name) == ("RunGen.AI", "rungen_conn_id")
    assert hook.connection_testable


def test_the_form_has_every_field_that_is_read_and_hides_what_does_not_apply() -> None:
    from airflow_provider_rungen.hooks.connection import _EXTRAS

    behaviour = get_provider_info()["connection-types"][0]["ui-field-behaviour"]
    assert behaviour["hidden-fields"] == ["login", "schema", "extra"]
    assert behaviour["relabeling"] == {"password": "API key", "host": "Base URL"}
    assert RunGenHook.get_ui_field_behaviour() == {
        name.replace("-", "_"): value for name, value in behaviour.items()
    }
    assert set(behaviour["placeholders"]) < {"host", "password", "port"} | set(FIELDS)
    assert set(FIELDS) == set(_EXTRAS)
    for field in FIELDS.values():
        assert field["label"]
        assert field["description"].endswith(".")
        assert "null" in field["schema"]["type"]  # or Airflow's form would demand it


@pytest.fixture(scope="module")
def form() -> dict[str, Any]:
    """Return the parts of Airflow's form, from another process, since some Airflows leave mocks behind."""
    command = [sys.executable, str(Path(__file__).parents[1] / "dags" / "form.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    [found] = [line for line in done.stdout.splitlines() if line.startswith("FORM ")]
    form: dict[str, Any] = json.loads(found.removeprefix("FORM "))
    return form


@pytest.mark.contract
@pytest.mark.feature("form")
def test_airflow_draws_a_form_that_names_the_key_hides_what_does_not_apply_and_explains_every_extra(
    form: dict[str, Any],
) -> None:
    assert form["labels"] == {"password": "API key", "host": "Base URL"}
    # to Airflow the extra is none of the standard fields that a form may hide
    assert set(form["hidden"]) - {"extra"} == {"login", "schema"}
    assert form["fields"] == {name: [field["label"], field["description"]] for name, field in FIELDS.items()}


# --- testing it ---------------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.feature("test")
def test_the_connection_test_reports_what_it_reached(rungen_emulator: Emulator) -> None:
    apps = "FLUX Schnell (flux-schnell), Llama (llama-text)"
    message = f"Connected to {rungen_emulator.url}: 2 apps: {apps}"
    assert RunGenHook().test_connection() == (True, message)
    for number in range(30):
        rungen_emulator.service.add_app(f"app-{number}")
    ok, message = RunGenHook().test_connection()
    assert ok
    assert message.endswith(", and 12 more")


@pytest.fixture
def failure(read: Any) -> Any:
    """Read a connection, and return why its test fails."""

    def failing(**fields: Any) -> str:
        with contextlib.suppress(RunGenConfigError):
            read(**fields)
        ok, message = RunGenHook().test_connection()
        assert not ok
        assert SECRET not in message
        return message

    return failing


def test_the_connection_test_fails_when_the_default_app_is_not_there(
    rungen_emulator: Emulator, read: Any, failure: Any
) -> None:
    conn = json.loads(rungen_emulator.airflow_connection())
    beginning = "Default app ID 'flux-shnell' is not among the 2 apps: FLUX Schnell (flux-schnell)"
    assert failure(**conn | {"extra": {"app_id": "flux-shnell"}}).startswith(beginning)
    read(**conn | {"extra": {}})
    assert RunGenHook().test_connection()[0]


@pytest.mark.contract
def test_a_connection_that_does_not_exist_is_explained() -> None:
    with pytest.raises(RunGenConfigError) as caught:
        _ = RunGenHook("rungen_of_nobody").settings
    assert str(caught.value) == (
        "Airflow connection 'rungen_of_nobody' does not exist. Add one of type RunGen.AI under Admin → "
        "Connections, or set the environment variable AIRFLOW_CONN_RUNGEN_OF_NOBODY, or correct "
        "rungen_conn_id."
    )


def test_the_connection_test_reports_what_is_wrong(
    rungen_emulator: Emulator, failure: Any, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNGEN_EMULATOR")
    fields = json.loads(rungen_emulator.airflow_connection())
    # no message names the connection: the UI tests a copy of it, with an id that nobody knows
    message = failure(**fields | {"password": SECRET})
    assert message.endswith(f"Check the password of this connection. The Base URL is {rungen_emulator.url}")
    message = failure(host=f"http://127.0.0.1:{free_port}")
    assert "could not be reached" in message
    assert "Check Base URL and Proxy of this connection" in message
    assert message.endswith(f". The Base URL is http://127.0.0.1:{free_port}")
    proxy = f"http://me:{SECRET}@127.0.0.1:{free_port}"
    message = failure(host="https://rungen.example", extra={"proxy": proxy})
    assert f"the proxy 127.0.0.1:{free_port} could not be reached" in message
    assert failure(extra={"verify": 3}).startswith("Verify TLS (extra field 'verify') must be")


@pytest.mark.contract
def test_the_connection_test_asks_once_and_keeps_nobody_waiting(rungen_emulator: Emulator) -> None:
    rungen_emulator.service.inject(Fault(on="list_apps", status=503, times=9))
    ok, message = RunGenHook().test_connection()
    assert not ok
    assert "503" in message
    assert rungen_emulator.service.count("list_apps") == 1


def test_the_app_of_the_connection_is_the_default(read: Any) -> None:
    read(extra={"app_id": APP})
    assert RunGenHook().resolve_app_id() == APP
    assert RunGenHook().resolve_app_id("other") == "other"
    read()
    for nothing in (None, ""):
        with pytest.raises(RunGenConfigError, match=r"app_id.*'rungen_default'"):
            RunGenHook().resolve_app_id(nothing)
