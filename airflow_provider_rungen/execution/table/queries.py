"""Reads the rows of queries, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.execution.table.files import NumberedRow, TableContent, check_names
from airflow_provider_rungen.execution.table.values import row_to_json, size_of

if TYPE_CHECKING:
    from airflow_provider_rungen.rows import SqlRows

# So many rows are fetched at a time, or fewer when they are large.
_FETCHED_ROWS = 256
_FETCHED_BYTES = 4 << 20


@contextmanager
def open_query(query: SqlRows) -> Iterator[TableContent]:
    """
    Run a query, and return its columns and rows.

    :raises RunGenInputError: its connection is not one of a database.
    """
    with closing(_hook(query.conn_id).get_conn()) as connection, _streaming_cursor(connection) as cursor:
        # without parameters, a percent sign is one
        cursor.execute(query.sql, *([query.parameters] if query.parameters else ()))
        yield read_cursor(cursor)


def _hook(conn_id: str) -> Any:
    from airflow_provider_rungen._airflow import AirflowException, BaseHook

    try:
        hook = BaseHook.get_hook(conn_id)
    except AirflowException as error:  # a kill is one, too
        if "hook type" not in str(error):
            raise
        raise RunGenInputError(
            f"Could not read table from connection {conn_id!r}: {error}",
            hint="Install the provider of this type, such as apache-airflow-providers-postgres",
        ) from None
    if not hasattr(hook, "get_records"):
        raise RunGenInputError(
            f"Could not read table from connection {conn_id!r}: {type(hook).__name__} runs no SQL",
            hint="SqlRows needs a hook that is a DbApiHook",
        )
    return hook


def _streaming_cursor(connection: Any) -> AbstractContextManager[Any]:
    """Open a cursor that leaves the rows at the server, which some drivers only do when they are asked."""
    driver = type(connection).__module__.partition(".")[0]
    if driver in ("MySQLdb", "pymysql"):
        # not closed, which would read all rows
        return nullcontext(connection.cursor(import_module(f"{driver}.cursors").SSCursor))
    return closing(connection.cursor(*(["rungen"] if driver.startswith("psycopg") else ())))


def read_cursor(cursor: Any) -> TableContent:
    """
    Return the columns of what a cursor has executed, and its rows. Their types are those of the values.

    :raises RowError: a column has no name, or that of another.
    """
    batch = cursor.fetchmany(1)  # before, psycopg2 does not know the columns
    names = [column[0] for column in cursor.description or ()]
    check_names(names, 0)

    def rows() -> Iterator[NumberedRow]:
        number, fetched = 0, batch
        while fetched:
            size = 0
            for values in fetched:
                number += 1
                # some cursors are set up to return dicts
                row = values if isinstance(values, Mapping) else dict(zip(names, values, strict=True))
                row = row_to_json(row, number)
                size += size_of(row)
                yield number, row
            fitting = _FETCHED_BYTES * len(fetched) // max(size, 1)
            fetched = cursor.fetchmany(min(max(fitting, 1), 4 * len(fetched), _FETCHED_ROWS))

    return dict.fromkeys(names, ""), rows()
