"""What every component of Airflow loads: little, quickly, and nothing where there are no pages."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import import_module, reload
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

from airflow_provider_rungen import get_provider_info, operators, sensors
from airflow_provider_rungen._airflow import TABS_HAVE_SCOPES
from airflow_provider_rungen.operators.base import RunGenBaseOperator
from airflow_provider_rungen.pages import plugin
from pages.world import SERVER_WARNINGS, World, given

pytestmark = SERVER_WARNINGS

ROOT = Path(__file__).parents[2]
LOAD = """
import json, sys
import airflow.configuration
import airflow.plugins_manager
import airflow.sdk.bases.operatorlink
known = set(sys.modules)
from airflow_provider_rungen.pages.plugin import RunGenPlugin
apps = [app["url_prefix"] for app in RunGenPlugin.fastapi_apps]
print(json.dumps([sorted(set(sys.modules) - known), apps, RunGenPlugin.external_views]))
"""


def test_the_plugin_has_pages_and_loads_little() -> None:
    command = [sys.executable, "-W", "ignore", "-c", LOAD]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    names, apps, views = json.loads(done.stdout.splitlines()[-1])
    packages = {name.partition(".")[0] for name in names}
    assert packages <= {"airflow", "airflow_provider_rungen", "__future__", "pydantic"}
    assert not [name for name in names if "fastapi" in name or "models" in name]
    assert apps == ["/rungen"]
    assert views[0]["href"] == "/rungen/"
    assert (len(views) == 2) == TABS_HAVE_SCOPES


def test_pages_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AIRFLOW__RUNGEN__PAGES", "False")
        off: Any = reload(plugin).RunGenPlugin
    on: Any = reload(plugin).RunGenPlugin
    assert (off.fastapi_apps, off.external_views) == ([], [])
    assert on.fastapi_apps


def test_the_provider_names_the_plugin_that_the_entry_point_loads() -> None:
    [named] = get_provider_info()["plugins"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["airflow.plugins"] == {named["name"]: f"{plugin.__name__}:RunGenPlugin"}
    assert named["plugin-class"] == f"{plugin.__name__}.RunGenPlugin"


def test_the_tab_is_shown_for_each_operator() -> None:
    modules = [import_module("airflow_provider_rungen.decorators")]
    for package in (operators, sensors):
        found = iter_modules(package.__path__, f"{package.__name__}.")
        modules += [import_module(module.name) for module in found]
    classes = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    names = {each.__name__ for each in classes if issubclass(each, RunGenBaseOperator)}
    assert sorted(names - {"RunGenBaseOperator", "RunGenBaseSensor"}) == sorted(plugin.OPERATORS)


def test_a_tab_shows_a_task_without_an_index(world: World) -> None:
    page = world.table(given("one"))
    assert world.data(page, map_index="{MAP_INDEX}")["about"]["map_index"] == -1


@pytest.mark.parametrize(("name", "kind"), [("page.js", "text/javascript"), ("style.css", "text/css")])
def test_what_the_page_loads_is_served(world: World, name: str, kind: str) -> None:
    page = world.pages.get("/")
    assert f'"/rungen/static/{name}"' in page.text
    answer = world.pages.as_user(None).get(f"/static/{name}")
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)


@pytest.mark.parametrize("name", ["page.html", "..%2Froutes.py", "x", "%2Fetc%2Fpasswd"])
def test_no_other_file_is_served(world: World, name: str) -> None:
    assert world.pages.get(f"/static/{name}").status_code == 404


def test_airflow_may_be_below_a_path(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    page = world.table(given("one"))
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", 'https://airflow.example/a"b')
    assert 'data-root="/a&quot;b/rungen"' in world.pages.get(page).text
    assert world.data(page)["rows"][0]["outputs"][0]["url"].startswith('/a"b/rungen/api/file/dag/')
