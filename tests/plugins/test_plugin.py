"""What every component of Airflow loads: little, quickly, and nothing where there are no pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any

from airflow_provider_rungen import get_provider_info, operators, sensors
from airflow_provider_rungen._airflow import TABS_HAVE_SCOPES
from airflow_provider_rungen.operators.base import RunGenBaseOperator
from airflow_provider_rungen.plugins import OPERATORS

LOAD = """
import json, sys, time
import airflow.configuration
import airflow.plugins_manager
import airflow.sdk.bases.operatorlink
known, started = set(sys.modules), time.process_time()
from airflow_provider_rungen.plugins import RunGenPlugin
milliseconds = 1000 * (time.process_time() - started)
apps = [app["url_prefix"] for app in RunGenPlugin.fastapi_apps]
print(json.dumps([milliseconds, sorted(set(sys.modules) - known), apps, RunGenPlugin.external_views]))
"""


def load(**environment: str) -> Any:
    """Load the plugin in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_the_plugin_has_pages_and_is_cheap_to_load() -> None:
    # the first load compiles; of the others, the machine may disturb some
    loads = [load() for _ in range(3)]
    assert min(milliseconds for milliseconds, *_ in loads) < 20
    _, names, apps, views = loads[-1]
    packages = {name.partition(".")[0] for name in names}
    assert packages <= {"airflow", "airflow_provider_rungen", "__future__", "pydantic"}
    assert not [name for name in names if "fastapi" in name or "models" in name]
    assert apps == ["/rungen"]
    assert views[0]["href"] == "/rungen/"
    assert (len(views) == 2) == TABS_HAVE_SCOPES


def test_pages_can_be_turned_off() -> None:
    _, _, apps, views = load(AIRFLOW__RUNGEN__PAGES="False")
    assert (apps, views) == ([], [])


def test_the_provider_names_the_plugin_that_the_entry_point_loads() -> None:
    [plugin] = get_provider_info()["plugins"]
    [entry_point] = entry_points(group="airflow.plugins", name=plugin["name"])
    assert entry_point.value.replace(":", ".") == plugin["plugin-class"]
    assert entry_point.load().name == plugin["name"]


def test_the_tab_is_shown_for_each_operator() -> None:
    modules = [import_module("airflow_provider_rungen.decorators")]
    for package in (operators, sensors):
        found = iter_modules(package.__path__, f"{package.__name__}.")
        modules += [import_module(module.name) for module in found]
    classes = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    names = {each.__name__ for each in classes if issubclass(each, RunGenBaseOperator)}
    assert sorted(names - {"RunGenBaseOperator", "RunGenBaseSensor"}) == sorted(OPERATORS)
