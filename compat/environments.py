"""The matrix of Airflow and Python, and a virtual environment for each pair."""

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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".compat"
CONSTRAINTS = Path(__file__).parent / "constraints"
TESTED = Path(__file__).parent / "tested"

# The Pythons that each Airflow and the package support.
AIRFLOWS = {
    "3.1": ("3.11", "3.12", "3.13"),
    "3.2": ("3.11", "3.12", "3.13"),
    "3.3": ("3.11", "3.12", "3.13"),
    "3.4": ("3.12",),
}
# The pre-releases of lines without a release. One Python is enough to see what will change.
PRE_RELEASES = {"3.4": "3.4.0b2"}
PYTHONS = ("3.11", "3.12", "3.13")
_INSTALL_TIMEOUT = 1800


def measured_at() -> str:
    """Return the day, and the commit that is checked out."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    return f"{datetime.now(UTC):%Y-%m-%d}, commit {commit}"


class CompatError(Exception):
    """An environment could not be made; the message says why."""


@dataclass(frozen=True)
class Environment:
    """
    An Airflow on a Python.

    :param airflow: the minor version, such as ``3.1``. Its newest patch or its pre-release is installed.
    :param python: the minor version, such as ``3.11``.
    :param is_oldest: install the oldest versions that the package allows, also of Airflow.
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

    def make(self) -> None:
        """
        Install Airflow, the package from this checkout, and what its tests need, unless they are there.

        :raises CompatError: pip fails.
        """
        options = self.constraints()
        project = _project()
        parts: list[Any] = [self, PRE_RELEASES, project["dependencies"], project["entry-points"]]
        parts += [project["optional-dependencies"]["test"]]
        parts += [Path(path).read_text() for path in options[1::2]]
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        stamp = self.folder / ".ready"
        if stamp.exists() and stamp.read_text() == digest:
            return
        create(self.folder, self.python)
        # pip installs a pre-release only where one is pinned, and only Airflow is
        version = PRE_RELEASES.get(self.airflow, f"{self.airflow}.{'0' if self.is_oldest else '*'}")
        pip(
            self.folder,
            "install",
            *options,
            f"apache-airflow=={version}",
            "-e",
            f"{ROOT}/emulator",
            "-e",
            f"{ROOT}[test]",
        )
        stamp.write_text(digest)

    def constraints(self) -> list[str]:
        """Return pip's options for the constraints of this environment."""
        paths = [CONSTRAINTS / f"{self.airflow}.txt"]
        if self.is_oldest:
            FOLDER.mkdir(exist_ok=True)
            paths.append(FOLDER / "oldest.txt")
            oldest = (each.replace(">=", "==") for each in _project()["dependencies"])
            paths[-1].write_text("".join(f"{each}\n" for each in oldest))
        return [option for path in paths if path.exists() for option in ("-c", str(path))]

    def freeze(self) -> str:
        """Return the installed versions as a constraints file."""
        return pip(self.folder, "freeze", "--exclude-editable")


def matrix() -> list[Environment]:
    """Return all environments, the most important first."""
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

    :raises CompatError: this Python is not installed.
    """
    if (interpreter := find_python(python)) is None:
        raise CompatError(f"Python {python} is not installed")
    shutil.rmtree(folder, ignore_errors=True)
    run([interpreter, "-m", "venv", str(folder)])


def find_python(version: str) -> str | None:
    """Return an interpreter of a version, such as ``3.11``: this one, one on the PATH, or one of pyenv."""
    name = f"python{version}"
    # this one may be of a pyenv that is not at home
    pyenvs = (
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions",
        Path(sys.base_prefix).parent,
    )
    candidates = [sys.executable, *(found for found in (shutil.which(name),) if found)]
    for pyenv in pyenvs:
        candidates += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/{name}"), reverse=True)]
    for candidate in candidates:
        # a shim of pyenv on the PATH may not work, and one of Debian may lack venv
        probe = "import ensurepip, venv, sys; print('%d.%d' % sys.version_info[:2])"
        answer = subprocess.run([candidate, "-c", probe], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip() == version:
            return candidate
    return None


def pip(folder: Path, *arguments: str) -> str:
    """
    Run the pip of an environment, and return its output.

    :raises CompatError: it fails. The message ends with its output.
    """
    quiet = ["--quiet"] if arguments[0] == "install" else []
    return run(
        [str(folder / "bin" / "python"), "-m", "pip", *arguments, *quiet, "--disable-pip-version-check"]
    )


def own_dependencies() -> list[str]:
    """Return the names of the direct dependencies of the package, without Airflow."""
    return [
        re.split("[<>=!~ ]", each)[0]
        for each in _project()["dependencies"]
        if not each.startswith("apache-airflow>")
    ]


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def run(command: Sequence[str]) -> str:
    # settings for another Airflow or Python must not affect the environment
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
            timeout=_INSTALL_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise CompatError(f"did not finish within {_INSTALL_TIMEOUT} s: {' '.join(command)}") from None
    if done.returncode:
        output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise CompatError(f"{' '.join(command)}\n{output}")
    return done.stdout
