"""A job whose outputs are stored, as its manifest describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StoredJob:
    """
    A job whose outputs are all stored.

    :param app_id: its app.
    :param job_id: the job.
    :param manifest: the URI of its manifest.
    :param outputs: its files, each with ``uri``, ``size``, ``sha256`` and ``content_type``.
    :param result: its result, with stored URIs in place of signed URLs.
    :param execution_seconds: how long it ran, if known.
    :param created_at: when it was created (ISO 8601), if known.
    """

    app_id: str
    job_id: str
    manifest: str
    outputs: Sequence[Mapping[str, Any]]
    result: Any
    execution_seconds: float | None = None
    created_at: str | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """The small manifest that a task returns."""
        return {"job_id": self.job_id, "manifest": self.manifest, "outputs": list(self.outputs)}
