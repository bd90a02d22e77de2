"""The triggers of the provider."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_rungen.triggers.app import RunGenAppTrigger
    from airflow_provider_rungen.triggers.idle_app import RunGenIdleAppTrigger
    from airflow_provider_rungen.triggers.job import RunGenJobTrigger

__all__ = ["RunGenAppTrigger", "RunGenIdleAppTrigger", "RunGenJobTrigger"]

_LAZY_EXPORTS = {"RunGenAppTrigger": "app", "RunGenIdleAppTrigger": "idle_app", "RunGenJobTrigger": "job"}


if not TYPE_CHECKING:  # to a type checker, a name that is not there would be there

    def __getattr__(name: str) -> Any:
        # DAG files that watch idle apps need nothing of the other triggers
        if name not in _LAZY_EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_LAZY_EXPORTS[name]}"), name)
        return value
