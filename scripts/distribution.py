"""Build the wheels and sdists of the package and the emulator, and check their metadata and files.

Wheel and sdist have to agree, and to be reproducible. Arguments: the folder to write them to, and ``--tag``
with a release's tag, which has to fit the version and the changelog.
"""

from __future__ import annotations

import argparse
import email
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, EMULATOR = "airflow_provider_rungen", "rungen_emulator"


@dataclass(frozen=True)
class Distribution:
    """What a distribution has to hold."""

    module: str
    #: The folder of its pyproject.toml.
    folder: Path
    #: Files of the module.
    files: tuple[str, ...]
    #: Files of the sdist.
    in_sdist: tuple[str, ...]
    #: Fields and classifiers of its metadata, and lines of its entry points.
    fields: tuple[str, ...]
    classifier: str
    entry_points: tuple[str, ...]


DISTRIBUTIONS = (
    Distribution(
        PACKAGE,
        ROOT,
        files=(
            "py.typed",
            "pages/static/page.html",
            "pages/static/page.js",
            "pages/static/style.css",
            "schemas/flux-schnell.input.json",
            "schemas/flux-schnell.result.json",
        ),
        # the tests need these in an unpacked sdist
        in_sdist=(
            *("CHANGELOG.md", "LICENSE", "Makefile", "README.md", "docs/reliability.md", "tests/conftest.py"),
            *("emulator/pyproject.toml", "example_dags/rungen_catalog.py"),
        ),
        fields=("Summary", "Keywords", "License-Expression", "License-File", "Project-URL"),
        classifier="Framework :: Apache Airflow :: Provider",
        # without it, Airflow would not find the provider
        entry_points=("[apache_airflow_provider]",),
    ),
    Distribution(
        EMULATOR,
        ROOT / "emulator",
        files=("py.typed", "flux-schnell.input.json", "pytest_plugin.py"),
        in_sdist=("README.md", "pyproject.toml"),
        fields=("Summary", "Keywords", "License-Expression"),
        classifier="Framework :: Pytest",
        entry_points=("[pytest11]", f"{EMULATOR}={EMULATOR}.pytest_plugin", "[console_scripts]"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tag")
    options = parser.parse_args()
    if options.tag:
        check_tag(options.tag)
    for distribution in DISTRIBUTIONS:
        build(distribution, options.folder)


def check_tag(tag: str) -> None:
    """Stop unless the tag is that of the package's version, which the changelog describes with a date."""
    version = tag.removeprefix("v")
    source = (ROOT / PACKAGE / "__init__.py").read_text()
    if f'__version__ = "{version}"' not in source:
        sys.exit(f"{PACKAGE}/__init__.py has another version than the tag {tag}")
    if not re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M
    ):
        sys.exit(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'")


def build(distribution: Distribution, folder: Path) -> None:
    module, source = distribution.module, str(distribution.folder)
    # this builds the wheel from the sdist; below it is built from the tree
    run("-m", "build", "--outdir", str(folder), source)
    [wheel], [sdist] = folder.glob(f"{module}-*.whl"), folder.glob(f"{module}-*.tar.gz")
    run("-m", "twine", "check", "--strict", str(wheel), str(sdist))
    with tempfile.TemporaryDirectory() as other:
        run("-m", "build", "--wheel", "--sdist", "--outdir", other, source)
        check_equal(contents(wheel), contents(Path(other) / wheel.name))
        for built in (wheel, sdist):
            assert built.read_bytes() == (Path(other) / built.name).read_bytes(), (
                f"{built.name} differs each time"
            )
    files = contents(wheel)
    missing = [name for name in distribution.files if f"{module}/{name}" not in files]
    assert not missing, f"{wheel.name} has no {missing}"
    others = [name for name in files if not name.startswith((f"{module}/", f"{module}-"))]
    assert not others, f"{wheel.name} holds more than {module}: {others}"
    tests = [name for name in files if Path(name).name.startswith(("test_", "conftest"))]
    assert not tests, f"{wheel.name} holds tests: {tests}"
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in distribution.in_sdist if name not in held]
    assert not missing, f"{sdist.name} has no {missing}"
    check_metadata(distribution, wheel)
    print(f"{wheel.name}: {len(files)} files, equal from tree and sdist; {sdist.name}: {len(held)} files")


def run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stdout}{done.stderr}")


def contents(wheel: Path) -> dict[str, str]:
    """Return a fingerprint of each file."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def check_equal(one: dict[str, str], other: dict[str, str]) -> None:
    differ = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    assert not differ, f"the wheels from the sdist and from the tree differ: {differ}"


def check_metadata(distribution: Distribution, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata: Message = email.message_from_bytes(archive.read(name))
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        entry_points = archive.read(name).decode()
    for field in distribution.fields:
        assert metadata[field], f"the metadata of {wheel.name} has no {field}"
    assert distribution.classifier in (metadata.get_all("Classifier") or [])
    assert metadata["Description-Content-Type"] == "text/markdown"
    for line in distribution.entry_points:
        assert line in entry_points, f"the entry points of {wheel.name} have no {line}"


if __name__ == "__main__":
    main()
