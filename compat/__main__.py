"""``python -m compat``: make the environments, run the tests in each, and record the outcome."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from compat import page
from compat.environments import FOLDER, ROOT, TESTED, CompatError, Environment, matrix

_TIMEOUT = 1800


def report(text: str) -> None:
    print(text, flush=True)


def run_tests(environment: Environment) -> dict[str, Any]:
    """
    Run the test suite in an environment, and return its record.

    :raises CompatError: it did not finish.
    """
    record, log = environment.folder / "record.json", environment.folder / "pytest.log"
    record.unlink(missing_ok=True)
    options = ["-q", "-n", "auto", "-p", "compat.recorder", "--record", str(record)]
    # a separate folder, since pytest keeps only the last few in a shared one
    options += ["--basetemp", str(environment.folder / "tmp")]
    if environment.is_oldest:
        options += ["-W", "default"]  # old libraries warn about each other
    command = [str(environment.executable), "-m", "pytest", *options]
    with log.open("w") as output:
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False, timeout=_TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise CompatError(f"the tests did not finish within {_TIMEOUT} s; see {log}") from None
    end = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
    if not record.exists():
        raise CompatError(f"the tests ended with code {done.returncode}; the end of {log}:\n{end}")
    outcome: dict[str, Any] = json.loads(record.read_text())
    if done.returncode and not outcome["failed"]:
        raise CompatError(f"pytest ended with code {done.returncode}; the end of {log}:\n{end}")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m compat", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=[],
        help="run those whose names begin with this: 3.1, 3.3-py3.13, oldest …",
    )
    parser.add_argument("--no-page", action="store_true", help="do not renew the page and its figures")
    options = parser.parse_args()

    wanted = tuple(options.only) or ("",)
    environments = [each for each in matrix() if each.name.startswith(wanted)]
    if not environments:
        parser.error(f"there are only {', '.join(each.name for each in matrix())}")
    FOLDER.mkdir(exist_ok=True)
    failures = []
    for environment in environments:
        began = time.monotonic()
        try:
            environment.make()
            record = run_tests(environment)
        except CompatError as error:
            report(f"{environment.name}: {error}")
            failures.append(environment.name)
            continue
        report(
            f"{environment.name}: Airflow {record['airflow']}, Python {record['python']}: "
            f"{record['passed']} passed, {record['failed']} failed, {record['skipped']} skipped, "
            f"{time.monotonic() - began:.0f} s"
        )
        if record["failed"]:
            failures.append(environment.name)
            report("\n".join(f"  {test}" for test in record["failures"][:20]))
        if options.no_page:
            continue
        results = page.load()  # read late, since another process may run other environments meanwhile
        results["runs"][environment.name] = record
        TESTED.mkdir(exist_ok=True)
        environment.tested.write_text(environment.freeze())
        page.write(results)
    if failures:
        report(f"Failed: {', '.join(failures)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
