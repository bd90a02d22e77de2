"""A local stand-in for the RunGen.AI REST API, for tests and for trials without a key.

Its names are imported on first use, because pytest loads this package in every run for its fixture.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rungen_emulator.faults import Fault
    from rungen_emulator.messages import Reply
    from rungen_emulator.server import Emulator
    from rungen_emulator.service import Service

__version__ = "1.0.0"

__all__ = ["Emulator", "Fault", "Reply", "Service"]

_LAZY_EXPORTS = {"Emulator": "server", "Fault": "faults", "Reply": "messages", "Service": "service"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY_EXPORTS[name]}"), name)
