"""The options of the emulator: how fast it is, and how it reads the API's documentation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def _option(default: Any, help: str, *choices: Any) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


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
    shape: str = _option("wrapped", "whether answers are wrapped in `data`", "wrapped", "flat", "mixed")
    id_field: str = _option(
        "documented",
        "the field with a job's id; documented: as the reference shows it",
        *("documented", "job_id", "id", "both"),
    )
    words: str = _option("upper", "how status words are spelled", "upper", "lower", "title", "alternate")
    failed_word: str = _option("FAILED", "the status word of a failed job (alternate says ERROR)")
    error_field: str = _option(
        "error",
        "the field with a failed job's error text",
        *("error", "error_message", "message", "result", "detail", "nested"),
    )
    time_format: str = _option("T", "what separates date and time", "T", "space")
    execution_time_as: str = _option("string", "type of execution_time", "string", "number")
    extra_fields: bool = _option(False, "add undocumented fields")
    run_status: int = _option(201, "status of the answer to run", 200, 201, 202)
    create_status: int = _option(201, "status of the answer to create", 200, 201)
    require_user_id: bool = _option(False, "refuse a cancel without X-Authenticated-User-Id")

    def __setattr__(self, name: str, value: Any) -> None:
        choices = _CHOICES.get(name)
        if choices and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")
        object.__setattr__(self, name, value)


_CHOICES: dict[str, tuple[Any, ...]] = {option.name: option.metadata["choices"] for option in fields(Options)}
