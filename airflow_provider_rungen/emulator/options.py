"""The options of the emulator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(kw_only=True, eq=False)
class Options:
    """The arguments of ``Service``. Each can be changed by assignment while it runs."""

    api_key: str = _option("rungen-emulator-key", "the API key it accepts")
    teams: tuple[str, ...] | None = _option(None, "the teams that the key may use; all by default")
    app_id: str = _option("flux-schnell", "id of the default app")
    workers: int = _option(2, "active workers of the default apps at the start")
    job_seconds: float = _option(2.0, "how long a job runs")
    init_seconds: float = _option(0.0, "how long a new worker takes to start")
    url_seconds: int = _option(604_800, "how long the URL of an output is valid")
