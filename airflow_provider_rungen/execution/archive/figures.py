"""Count what is stored, for the log."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_rungen.client.texts import format_bytes, format_count


@dataclass
class Figures:
    """
    How much was stored.

    :param jobs: how many jobs.
    :param files: how many files, those included that an earlier attempt had stored.
    :param existing: how many files an earlier attempt had stored.
    :param total_bytes: the size of all files.
    :param seconds: how long it took.
    """

    jobs: int = 0
    files: int = 0
    existing: int = 0
    total_bytes: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        files = f"{format_count(self.files, 'file')} ({format_bytes(self.total_bytes)})"
        return f"{files}, {self.existing} there before," if self.existing else files
