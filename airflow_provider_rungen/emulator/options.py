"""The knobs of the emulator: its pace, and which readings of the documentation it shows."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def _knob(default: Any, help: str, *choices: Any) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(kw_only=True, eq=False)
class Options:
    """Every option may be given to ``Service`` and may be changed while it runs, by assignment."""

    api_key: str = _knob("rungen-emulator-key", "the API key it accepts")
    teams: tuple[str, ...] | None = _knob(None, "the teams the key may use; without it, any team")
    app_id: str = _knob("flux-schnell", "id of the default app")
    workers: int = _knob(2, "active workers of the default apps at the start")
    job_seconds: float = _knob(2.0, "how long a job runs")
    init_seconds: float = _knob(0.0, "how long a new worker takes to be ready")
    url_seconds: int = _knob(604_800, "how long the URL of an output works")
    shape: str = _knob("wrapped", "whether answers stand in `data`", "wrapped", "flat", "mixed")
    id_field: str = _knob(
        "documented",
        "the field with a job's id; documented: as the reference shows it",
        *("documented", "job_id", "id", "both"),
    )
    words: str = _knob("upper", "how status words are spelled", "upper", "lower", "title", "alternate")
    failed_word: str = _knob("FAILED", "the status word of a failed job (alternate says ERROR)")
    error_field: str = _knob(
        "error",
        "where a failed job's error text stands",
        *("error", "error_message", "message", "result", "detail", "nested"),
    )
    time_format: str = _knob("T", "what separates date and time", "T", "space")
    execution_time_as: str = _knob("string", "type of execution_time", "string", "number")
    extra_fields: bool = _knob(False, "add fields that no page documents")
    run_status: int = _knob(201, "status of the answer to run", 200, 201, 202)
    create_status: int = _knob(201, "status of the answer to create", 200, 201)
    require_user_id: bool = _knob(False, "refuse a cancel without X-Authenticated-User-Id")

    def __setattr__(self, name: str, value: Any) -> None:
        choices = _CHOICES.get(name)
        if choices and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")
        object.__setattr__(self, name, value)


_CHOICES: dict[str, tuple[Any, ...]] = {knob.name: knob.metadata["choices"] for knob in fields(Options)}
