"""The rows of a query, or of a function, as a DAG names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass
class SqlRows:
    """
    The rows that a query returns: the ``table`` of `RunGenRunTableOperator`.

    They are read as a stream, by the hook of the connection: that of any provider whose hook is a
    ``DbApiHook``, such as PostgreSQL, Snowflake, BigQuery or Trino.

    :param sql: the query, a single ``SELECT`` (templated).
    :param conn_id: the Airflow connection of the database (templated).
    :param parameters: the values of placeholders in ``sql``, as the driver takes them: a list or a dict
        (templated).
    :raises ValueError: ``sql`` or ``conn_id`` is empty.
    """

    template_fields: ClassVar[Sequence[str]] = ("sql", "conn_id", "parameters")

    sql: str
    conn_id: str
    parameters: Sequence[Any] | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not (self.sql and self.conn_id):
            raise ValueError("SqlRows needs sql and conn_id")


class RowFunction:
    """
    A function that returns rows.

    It is not callable, since Airflow calls what is in a template field. Its text is the same each time that
    the DAG file is parsed.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __repr__(self) -> str:
        return str(getattr(self.function, "__qualname__", type(self.function).__name__))
