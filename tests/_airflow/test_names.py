"""This Airflow has the names that the package needs, including those that it does not document."""

from __future__ import annotations

import subprocess
import sys

import airflow
import pytest

from airflow_provider_rungen._airflow import parse_version
from compat.private_names import look_up, names_used_on


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Airflow's web server and its libraries
@pytest.mark.parametrize("name", names_used_on(parse_version(airflow.__version__)))
def test_a_private_name_is_where_it_was_seen(name: str) -> None:
    assert look_up(name) is not None


def test_a_private_name_that_moved_is_found_out() -> None:
    for path in ("airflow.no_such_module:Name", "airflow.exceptions:NoSuchName", "airflow.no:Name"):
        with pytest.raises((ImportError, AttributeError)):
            look_up(path)


def test_a_pre_release_counts_as_its_release() -> None:
    versions = ("3.1.0", "3.4.0b2", "3.10.1.dev0", "4.0")
    assert [*map(parse_version, versions)] == [(3, 1), (3, 4), (3, 10), (4, 0)]


def test_no_module_needs_common_compat() -> None:
    script = """
import pkgutil, sys, warnings
warnings.simplefilter("ignore")

class Absent:
    def find_spec(self, name, path=None, target=None):
        # Airflow itself may read the description of that provider
        if name.startswith("airflow.providers.common.compat.") and not name.endswith("get_provider_info"):
            raise ModuleNotFoundError(name)

import airflow.triggers.base, airflow.models
for name in [name for name in sys.modules if name.startswith("airflow.providers")]:
    del sys.modules[name]
sys.meta_path.insert(0, Absent())
import airflow_provider_rungen as package
from airflow import __version__
names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
names = [name for name in names if not name.endswith("__main__")]
# the web server of 3.1 itself needs common.compat
if __version__.startswith("3.1."):
    names = [name for name in names if not name.startswith("airflow_provider_rungen.pages.")]
for name in names:
    __import__(name)
print(len(names), [name for name in sys.modules if name.startswith("airflow.providers.common.compat.sdk")])
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    count, _, found = done.stdout.splitlines()[-1].partition(" ")
    assert int(count) > 30
    assert found == "[]"
