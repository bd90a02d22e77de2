"""What there is to run on: the matrix, the interpreters of this machine, and an environment for each pair."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".compat"
CONSTRAINTS = Path(__file__).parent / "constraints"
TESTED = Path(__file__).parent / "tested"

# The Pythons that each Airflow supports, of those that the package does.
AIRFLOWS = {
    "2.11": ("3.11", "3.12"),
    "3.0": ("3.11", "3.12"),
    "3.1": ("3.11", "3.12", "3.13"),
    "3.2": ("3.11", "3.12", "3.13"),
    "3.3": ("3.11", "3.12", "3.13"),
    "3.4": ("3.12",),
}
# Lines without a release yet, and what is tested of them. One Python is enough to see what is to come.
PRE_RELEASES = {"3.4": "3.4.0b2"}
PYTHONS = ("3.11", "3.12", "3.13")
_INSTALL_PATIENCE = 1800


class CompatError(Exception):
    """An environment could not be made; the message says why."""


@dataclass(frozen=True)
class Environment:
    """
    An Airflow on a Python.

    :param airflow: the Airflow's line, such as ``3.0``; its newest patch is installed, or its pre-release.
    :param python: the Python's, such as ``3.11``.
    :param is_oldest: install the oldest versions that the package says it works with, Airflow's among them.
    """

    airflow: str
    python: str
    is_oldest: bool = False

    @property
    def name(self) -> str:
        return ("oldest-" if self.is_oldest else "") + f"{self.airflow}-py{self.python}"

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def executable(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def tested(self) -> Path:
        """The exact versions of the last run."""
        return TESTED / f"{self.name}.txt"

    def make(self, *, anew: bool) -> None:
        """
        Install Airflow, the package as it lies here, and what its tests need.

        :param anew: even if it was made before.
        :raises CompatError: pip cannot.
        """
        options = self.constraints()
        project = _project()
        parts: list[Any] = [self, PRE_RELEASES, project["dependencies"], project["entry-points"]]
        parts += [project["optional-dependencies"]["test"]]
        parts += [Path(path).read_text() for path in options[1::2]]
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        stamp = self.folder / ".ready"
        if not anew and stamp.exists() and stamp.read_text() == digest:
            return
        create(self.folder, self.python)
        # pip takes a pre-release only of what is pinned to one: of Airflow, and of nothing else
        version = PRE_RELEASES.get(self.airflow, f"{self.airflow}.{'0' if self.is_oldest else '*'}")
        pip(self.folder, "install", *options, f"apache-airflow=={version}", "-e", f"{ROOT}[test]")
        stamp.write_text(digest)

    def constraints(self) -> list[str]:
        """Give pip's options for the bounds of this environment."""
        paths = [CONSTRAINTS / f"{self.airflow}.txt"]
        if self.is_oldest:
            FOLDER.mkdir(exist_ok=True)
            paths.append(FOLDER / "oldest.txt")
            oldest = (each.replace(">=", "==") for each in _project()["dependencies"])
            paths[-1].write_text("".join(f"{each}\n" for each in oldest))
        return [option for path in paths if path.exists() for option in ("-c", str(path))]

    def freeze(self) -> str:
        """Give what is installed, as a constraints file."""
        return pip(self.folder, "freeze", "--exclude-editable")


def matrix() -> list[Environment]:
    """Give every environment that there should be; what matters most comes first."""
    newest = [
        Environment(airflow, python)
        for python in PYTHONS
        for airflow in AIRFLOWS
        if python in AIRFLOWS[airflow]
    ]
    return [*newest, Environment(min(AIRFLOWS), min(PYTHONS), is_oldest=True)]


def create(folder: Path, python: str) -> None:
    """
    Make an empty environment.

    :raises CompatError: there is no such Python here.
    """
    if (interpreter := find_python(python)) is None:
        raise CompatError(f"there is no Python {python} here")
    shutil.rmtree(folder, ignore_errors=True)
    run([interpreter, "-m", "venv", str(folder)])


def find_python(version: str) -> str | None:
    """Find an interpreter of a version, such as ``3.11``: this one, one on the PATH, or one of pyenv's."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [sys.executable, *(found for found in (shutil.which(name),) if found)]
    candidates += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/{name}"), reverse=True)]
    for candidate in candidates:
        # a shim of pyenv may be on the PATH for a version that is not chosen, a Debian's may lack venv
        asked = "import ensurepip, venv, sys; print('%d.%d' % sys.version_info[:2])"
        told = subprocess.run([candidate, "-c", asked], capture_output=True, text=True, check=False)
        if told.returncode == 0 and told.stdout.strip() == version:
            return candidate
    return None


def pip(folder: Path, *arguments: str) -> str:
    """
    Let the pip of an environment do something, and give what it printed.

    :raises CompatError: it cannot; the message ends with its words.
    """
    quiet = ["--quiet"] if arguments[0] == "install" else []
    return run(
        [str(folder / "bin" / "python"), "-m", "pip", *arguments, *quiet, "--disable-pip-version-check"]
    )


def own_dependencies() -> list[str]:
    """Give the names of what the package itself depends on, without Airflow."""
    return [
        re.split("[<>=!~ ]", each)[0]
        for each in _project()["dependencies"]
        if not each.startswith("apache-airflow>")
    ]


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def run(command: Sequence[str]) -> str:
    # what a user's settings say about Airflow or Python paths must not reach into the environment
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AIRFLOW") and name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=_INSTALL_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise CompatError(f"not done in {_INSTALL_PATIENCE} s: {' '.join(command)}") from None
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise CompatError(f"{' '.join(command)}\n{said}")
    return done.stdout
