"""What an attempt needs of whatever writes its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from airflow_provider_rungen.exceptions import RunGenError
    from airflow_provider_rungen.work.rows import Rows


class Sink(Protocol):
    """Writes the results of one attempt."""

    #: How many rows were bought by other runs.
    reused: int

    def prepare(self) -> None:
        """
        Find out whether results can be kept, before anything is sent.

        :raises RunGenInputError: they cannot be kept now.
        """

    def page_details(self) -> dict[str, Any]:
        """Return what the page of the task has to know."""
        ...

    def last_rows(self, rows: Rows) -> Sequence[Any]:
        """Return the rows that ended last, for the page of a task that runs."""
        ...

    def finish(self, rows: Rows, unsent: RunGenError | None) -> dict[str, Any]:
        """
        Write the results, and return the summary.

        :param unsent: why rows were not bought, if they could not be.
        :raises RunGenError: more failed than may.
        """
        ...

    def report(self, rows: Rows, error: Exception) -> None:
        """Write what is known before an error ends the task."""
