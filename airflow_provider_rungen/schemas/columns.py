"""The columns of a results table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError

#: The columns that every table has, in this order, with their types: see `write_parquet`.
FIXED_COLUMNS = {
    "index": "integer",
    "status": "text",
    "error": "text",
    "job_id": "text",
    "reused": "boolean",
    "outputs": "texts",
    "output": "text",
    "sha256": "text",
    "result": "text",
    "execution_seconds": "number",
    "cost": "decimal",
    "created_at": "time",
}
#: The columns of a table of the rows that failed.
FAILED_COLUMNS = {"index": "integer", "status": "text", "error": "text", "job_id": "text", "input": "text"}


def check_columns(names: Iterable[str], source: str) -> None:
    """
    Check the names of the columns that a table has beside those of every table.

    :param source: where the last of them are from, for the error.
    :raises RunGenInputError: two columns would have the same name.
    """
    names = [*names]
    # readers such as DuckDB do not distinguish capital letters
    counts = Counter(name.casefold() for name in (*FIXED_COLUMNS, *names))
    if twice := next((name for name in reversed(names) if counts[name.casefold()] > 1), None):
        raise RunGenInputError(
            f"results: there would be two columns {clean_text(repr(twice), 100)}",
            hint=f"Rename that {source}: a results table has the columns {', '.join(FIXED_COLUMNS)}",
        )
