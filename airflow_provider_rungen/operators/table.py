"""The operator that runs a job for each row of a table, and writes a table of the results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_rungen.checks import check_output_columns, set_parameters
from airflow_provider_rungen.client.money import to_limit
from airflow_provider_rungen.operators.base import (
    DEFAULT_DEFERRABLE,
    JOB_LINKS,
    LIMITS,
    RunGenBaseOperator,
    results_uri,
)
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID
from airflow_provider_rungen.rows import RowFunction

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.parameters import (
        Check,
        Destination,
        Duration,
        Limit,
        OperatorArguments,
        OutputSource,
        SchemaSource,
        Table,
        ToInput,
    )
    from airflow_provider_rungen.table.inputs import Source
    from airflow_provider_rungen.work.table_run import TableRun


class RunGenRunTableOperator(RunGenBaseOperator):
    """
    Run a job for each row of a table, store the outputs, and write a table of the results.

    **Each input is bought once.** What was bought is in the ``destination``. Every attempt reuses it: the
    first, a retry, a clear, a backfill, and those of other tasks with the same ``destination``.

    Return ``{"results": uri, "rows", "completed", "failed", "skipped", "reused", "jobs",
    "execution_seconds"}``, and with a price ``"cost"`` and ``"currency"`` of these jobs.

    The results table has one row for each row of the source, in the same order: the key columns, the
    ``columns`` of the source, ``index``, ``status`` (``completed``, ``failed``, ``refused``, ``rejected``,
    ``invalid``, ``canceled``, ``skipped``, ``given_up``), ``error``, ``job_id``, ``reused``, ``outputs``
    (stored URIs, without a connection), ``output`` (the first), ``input`` and ``result`` (JSON text, without
    signed URLs), ``seconds``, ``cost``, ``bought_at``, and the properties of ``output_type``. It is written
    atomically, also when the task fails while it works.

    When it fails after that, its ``return_value`` and the XCom ``failed`` are pushed anyway, and its
    exception has the first 1,000 rows that failed as ``failed_rows``.

    Row values are data, and are never templated.

    :param table: the rows: the URI of a CSV, Parquet or JSON Lines file, of a folder or a glob of such files;
        a query (`SqlRows`); the ``.output`` of a task that wrote a results table; a list of dicts; or a
        function that returns any of these, Arrow data or a cursor, or yields dicts. It is called on the
        worker, once an attempt, with the entries of Airflow's context that it names (a URI and a query are
        templated).
    :param key: the column that identifies a row, or several. Null or duplicate keys are refused before
        anything is sent. When left out, the number of a row names it.
    :param to_input: the function that makes the job's input of a row (a dict), or returns ``None`` to skip
        the row. It is called once a row and attempt, and must return the same for the same row. A second
        parameter ``params`` takes those of the DAG. When left out, the row is the input, or its column
        ``input`` if it is one of a results table.
    :param columns: the columns of the source to carry over to the results table.
    :param where: take only the rows of a results table with this status, or one of several, such as
        ``completed``. ``failed`` stands for all but ``completed`` and ``skipped``. All when left out.
    :param limit: take only so many rows, the first. All when ``None`` (templated).
    :param app_id: the app to run. The connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param deferrable: wait in the triggerer, without a worker slot.
    :param poll_interval: seconds between two polls.
    :param timeout: seconds that an attempt may take, submission included. After that the jobs of the run are
        canceled, and the task fails.
    :param queued_timeout: seconds that jobs may wait while the app has no worker; ``None`` for no limit.
    :param cancel_on_kill: cancel the jobs when a user marks the task, or no attempt follows that adopts them.
        A clear cancels none.
    :param input_schema: the JSON Schema that every input has to fit: a dict, the path or URI of a file, or
        the name of a schema that comes with the package, such as ``flux-schnell``. A row whose input does not
        fit is ``refused``. If more are than may fail, nothing is sent.
    :param destination: the folder of what is paid for: outputs, and records of each purchase. Tasks with the
        same one share what was bought. A URI such as ``s3://conn_id@bucket/prefix``, an absolute path, or an
        ``ObjectStoragePath`` (templated).
    :param results: the URI of the results table: ``.parquet``, ``.csv`` or ``.jsonl`` (templated). When left
        out, ``{destination}/results/{dag_id}.{task_id}/{run_id}[.{map_index}].jsonl``.
    :param version: any text (templated). Another one makes all inputs new.
    :param reuse: which purchases of other runs count: all (``True``), none (``False``), or those that were
        not older than this when the DAG run started.
    :param per_row: buy an input for each row that has it. Otherwise, equal inputs share a job.
    :param output_type: what every result has to be: a class that pydantic knows, such as a ``BaseModel``, or
        a JSON Schema as for ``input_schema``. If it is an object or an array, a text is parsed as JSON, also
        in a Markdown code fence. A row whose result does not fit is ``invalid``. Each top-level property is a
        column of the results table, with its type.
    :param check: a function that takes each new result and its stored files (``ObjectStoragePath``). It may
        raise ``RejectRow("blank image")`` of `airflow_provider_rungen.exceptions`: the row is
        ``rejected``, and its files stay. Any other exception fails the task, and a retry asks again.
    :param max_jobs: how many jobs the task run may buy, retries included. If more rows are new, nothing is
        sent, and the task fails without a retry. No limit when ``None`` (templated).
    :param max_cost: what they may cost at the declared price: an amount and its currency, such as ``20 USD``.
        The mean seconds of jobs in the ``destination`` are the estimate. No limit when ``None`` (templated).
    :param max_in_flight: how many jobs of the task are queued or running at the service at most. The rest is
        submitted as they end. No limit when ``None``.
    :param max_failed: how many rows may fail before the task does: a number, a share below 1, or ``any``.
    :param max_attempts: how often an input may fail, or its answer be lost, before it is given up. Raise it
        to try again what was given up.
    """

    template_fields: Sequence[str] = (
        "table",
        "app_id",
        "rungen_conn_id",
        "destination",
        "results",
        "version",
        *LIMITS,
    )
    operator_extra_links = JOB_LINKS

    def __init__(
        self,
        *,
        table: Table,
        key: str | Sequence[str] = (),
        to_input: ToInput | None = None,
        columns: Sequence[str] = (),
        where: str | Sequence[str] = (),
        limit: Limit | None = None,
        app_id: str | XComArg | None = None,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = DEFAULT_DEFERRABLE,
        poll_interval: Duration = 5,
        timeout: Duration = 86400,
        queued_timeout: Duration | None = 900,
        cancel_on_kill: bool = True,
        input_schema: SchemaSource | None = None,
        destination: Destination,
        results: Destination | None = None,
        version: str = "",
        reuse: bool | timedelta = True,
        per_row: bool = False,
        output_type: OutputSource | None = None,
        check: Check | None = None,
        max_jobs: Limit | None = None,
        max_cost: str | XComArg | None = None,
        max_in_flight: int | None = 1000,
        max_failed: float | Literal["any"] = 0,
        max_attempts: int = 3,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        set_parameters(self, locals())
        check_output_columns(self, [*self.key, *self.columns])

    def _row_function(self, context: Context) -> Callable[[dict[str, Any]], Any] | None:
        """Return the function that makes the input of a row; ``None`` if the row is the input."""
        to_input: ToInput | None = self.to_input
        with suppress(TypeError, ValueError):  # a function written in C may have no signature
            if to_input is not None and "params" in [*inspect.signature(to_input).parameters][1:]:
                return partial(to_input, params=context["params"])
        return to_input

    def _source(self, context: Context) -> Source:
        from airflow_provider_rungen._airflow import determine_kwargs
        from airflow_provider_rungen.schemas import Schema
        from airflow_provider_rungen.table.table_rows import TableRows

        table = self.table
        if isinstance(table, RowFunction):
            table = partial(table.function, **determine_kwargs(table.function, (), context))
        return TableRows(
            table,
            self._row_function(context),
            Schema.of(self.input_schema, "input_schema"),
            key=self.key,
            columns=self.columns,
            written=[results_uri(self, context["ti"])],
            where=self.where,
            limit=to_limit(self.limit, "limit"),
            shares_equal=not self.per_row,
            per_row=self.per_row,
        )

    def _make_run(self, context: Context) -> TableRun:
        from airflow_provider_rungen.results.sink import ResultSink
        from airflow_provider_rungen.work.table_run import TableRun

        make_sink = partial(
            ResultSink, uri=results_uri(self, context["ti"]), key=self.key, columns=self.columns
        )
        return TableRun(self, context, lambda: self._source(context), make_sink)

    def _plan(self, context: Context) -> int:
        """Return how many jobs there are to run, and push what they cost; see `RunGenPlanTableOperator`."""
        run: TableRun = self._begin(context)
        return run.plan()


class RunGenPlanTableOperator(RunGenRunTableOperator):
    """
    Return how many jobs `RunGenRunTableOperator` would run with the same parameters, and submit none.

    It reads the same rows, and decides about each in the same way. Jobs that still run are included. One
    request asks for the app's model. 0 means that no row needs a job: pass the number to `scaled_app` as
    ``only_if``, so that no GPU starts for nothing.

    The XCom ``plan`` is ``{"rows", "jobs", "reused", "skipped", "seconds", "cost", "currency"}``, and
    ``workers`` with ``finish_in``. The jobs are expected to run as long as the mean of those in the
    ``destination``. An unknown figure is 0, and without a price the currency is empty.

    The other parameters are those of `RunGenRunTableOperator`. If it would buy more than ``max_jobs`` or
    ``max_cost`` allows, this task fails in the same way, so that no GPU starts for a refused run.

    :param finish_in: seconds in which the jobs are to end, once the app is up. ``workers`` is the fewest that
        do it, counting what is queued before; 1 as long as it is unknown how long jobs run.
    """

    def __init__(self, *, finish_in: Duration | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        set_parameters(self, {"finish_in": finish_in})

    def execute(self, context: Context) -> int:
        """Read the table, and decide about each row."""
        return self.ended(lambda: self._plan(context))
