"""Run RunGen.AI jobs from Apache Airflow."""

from __future__ import annotations

from typing import Any

__version__ = "1.0.0"


def get_provider_info() -> dict[str, Any]:
    """Describe the provider to Airflow."""
    import tomllib
    from importlib import resources

    return tomllib.loads(resources.files(__name__).joinpath("provider.toml").read_text("utf-8"))
