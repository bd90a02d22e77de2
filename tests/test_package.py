"""What importing the package costs those who parse DAG files all the time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from airflow_provider_rungen import operators

_HEAVY = ("aiohttp", "jsonschema", "requests")


@pytest.mark.parametrize(
    "statement",
    [
        "from airflow_provider_rungen.operators import *",
        "from airflow_provider_rungen.sensors import *",
        "import airflow_provider_rungen.hooks",
        "import airflow_provider_rungen.decorators",
    ],
)
def test_an_import_needs_nothing_heavy(statement: str) -> None:
    # what Airflow itself imports, in some of its versions, is not this package's
    script = "\n".join(
        [
            "import sys",
            "import airflow.providers.common.compat.sdk as sdk; sdk.BaseHook, sdk.BaseOperator, sdk.conf",
            "before = set(sys.modules)",
            statement,
            f"print(sorted(set({_HEAVY}) & (set(sys.modules) - before)))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_operator_is_loaded_when_it_is_asked_for() -> None:
    script = "\n".join(
        [
            "import sys",
            "from airflow_provider_rungen import operators",
            "def rooms():",
            "    return {name.rpartition('.')[2] for name in sys.modules if 'rungen.operators.' in name}",
            "before = rooms()",
            "operators.RunGenScaleAppOperator",
            "print(before, rooms())",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set() {'scale'}"


@pytest.mark.parametrize("name", operators.__all__)
def test_every_operator_that_is_named_is_there(name: str) -> None:
    assert getattr(operators, name).__name__ == name
    assert name in dir(operators)


def test_an_operator_that_is_not_there() -> None:
    name = "RunGenRunJobsOperator"
    with pytest.raises(AttributeError, match="no attribute 'RunGenRunJobsOperator'"):
        getattr(operators, name)
