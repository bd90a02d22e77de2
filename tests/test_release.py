"""The files around the package that a release and its first readers need."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from airflow_provider_rungen import __version__, get_provider_info, hooks, operators, sensors, triggers
from compat.environments import AIRFLOWS, PRE_RELEASES

ROOT = Path(__file__).parents[1]
# What is no task, hook or trigger, but a value of one.
VALUES = {"Answer", "SqlRows", "Transport"}


def test_the_registry_lists_all_that_is_public() -> None:
    listed = yaml.safe_load((ROOT / ".airflow-registry.yaml").read_text())
    names = [each["module"] for part in listed.values() if isinstance(part, list) for each in part]
    public = {
        f"{module.__name__}.{name}"
        for module in (operators, sensors, hooks, triggers)
        for name in module.__all__
        if name not in VALUES
    }
    decorators = {each["class-name"] for each in get_provider_info()["task-decorators"]}
    assert sorted(names) == sorted(public | decorators)


def test_a_tag_of_another_version_is_no_release(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "distribution.py"), str(tmp_path), "--tag", "v9.9.9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "another version than the tag v9.9.9" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    [first, *_] = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first in ("Unreleased", __version__)
    assert f"airflow_provider_rungen-{__version__}-py3-none-any.whl" in (ROOT / "README.md").read_text()


def test_the_badges_are_true() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 120  # the first screens decide
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert f"![Python {pythons[0]} to {pythons[-1]}]" in readme
    airflows = [version for version in AIRFLOWS if version not in PRE_RELEASES]
    assert f"![Airflow {airflows[0]} to {airflows[-1]}]" in readme
    assert project["license"] == "Apache-2.0"
