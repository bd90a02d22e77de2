"""The example DAG that waits for an approval, as it is."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[3] / "example_dags" / "rungen_approval.py"

# Airflow skips files without its name, so do not remove this comment
dag = runpy.run_path(str(EXAMPLE))["dag"]
