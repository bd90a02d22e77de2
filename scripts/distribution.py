"""Build the wheel and the sdist, and check their metadata and files, that both agree and are reproducible.

Arguments: the folder to write them to, and ``--tag`` with a release's tag, which has to fit the version and
the changelog.
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
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "airflow_provider_rungen"
NEEDED = (
    "py.typed",
    "pages/templates/page.js",
    "pages/templates/style.css",
    "pages/templates/task.html",
    "schemas/flux-schnell.input.json",
    "schemas/flux-schnell.result.json",
)
# The tests need these in an unpacked sdist.
IN_SDIST = ("CHANGELOG.md", "LICENSE", "Makefile", "README.md", "docs/reliability.md", "tests/conftest.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tag")
    options = parser.parse_args()
    if options.tag:
        check_tag(options.tag)
    build(options.folder)


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


def build(folder: Path) -> None:
    # this builds the wheel from the sdist; below it is built from the tree
    run("-m", "build", "--outdir", str(folder), str(ROOT))
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    run("-m", "twine", "check", "--strict", str(wheel), str(sdist))
    with tempfile.TemporaryDirectory() as other:
        run("-m", "build", "--wheel", "--sdist", "--outdir", other, str(ROOT))
        [of_tree] = Path(other).glob("*.whl")
        check_equal(contents(wheel), contents(of_tree))
        for built in (wheel, sdist):
            assert built.read_bytes() == (Path(other) / built.name).read_bytes(), (
                f"{built.name} differs each time"
            )
    files = contents(wheel)
    for name in NEEDED:
        assert f"{PACKAGE}/{name}" in files, f"the wheel has no {name}"
    others = [name for name in files if not name.startswith(PACKAGE)]
    assert not others, f"the wheel holds more than the package: {others}"
    tests = [name for name in files if Path(name).name.startswith(("test_", "conftest"))]
    assert not tests, f"the wheel holds tests: {tests}"
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in IN_SDIST if name not in held]
    assert not missing, f"the sdist has no {missing}"
    check_metadata(wheel)
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


def check_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata: Message = email.message_from_bytes(archive.read(name))
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        entry_points = archive.read(name).decode()
    for field in ("Summary", "Keywords", "License-Expression", "License-File", "Project-URL"):
        assert metadata[field], f"the metadata has no {field}"
    classifiers = metadata.get_all("Classifier") or []
    assert "Framework :: Apache Airflow :: Provider" in classifiers
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "[apache_airflow_provider]" in entry_points, "Airflow would not find it"


if __name__ == "__main__":
    main()
