"""The operator that runs a job for each row of a table, and writes a table of the results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow_provider_rungen.checks import check_output_columns, set_parameters
from airflow_provider_rungen.client.money import to_limit
from airflow_provider_rungen.operators.base import (
    DEFAULT_DEFERRABLE,
    JOB_LINKS,
    LIMITS,
    RunGenBaseOperator,
)
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID
from airflow_provider_rungen.rows import RowFunction

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.execution.jobs.runner import Runner
    from airflow_provider_rungen.execution.sources.inputs import Source
    from airflow_provider_rungen.parameters import (
        Check,
        Destination,
        Duration,
        LedgerSource,
        Limit,
        OperatorArguments,
        OutputSource,
        SchemaSource,
        Table,
        ToInput,
    )


class RunGenRunTableOperator(RunGenBaseOperator):
    """
    Run a job for each row of a table, store the outputs, and write a table of the results.

    Return ``{"results": uri, "rows", "completed", "failed", "skipped", "reused", "jobs",
    "execution_seconds"}``, and with a price ``"cost"`` and ``"currency"`` of these jobs.

    The results table has one row for each row of the source, in the same order: the key columns, the
    ``columns`` of the source, ``index``, ``status`` (``completed``, ``failed``, ``canceled``, ``refused``,
    ``invalid``, ``rejected``, ``given_up``, ``skipped``), ``error``, ``job_id``, ``reused``, ``outputs``
    (stored URIs, without a connection), ``output`` (the first), ``sha256`` (of the first), ``input`` and
    ``result`` (JSON text, without signed URLs), ``execution_seconds``, ``cost``, ``created_at``, and the
    properties of ``output_type``. It is written atomically, also when the task fails, unless no row got a job
    or was refused by the service.

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
    :param timeout: seconds that the jobs may take together, submission included. After that they are
        canceled, and the task fails. A retry that submits any of them has the whole time.
    :param queued_timeout: seconds that jobs may wait while the app has no worker; ``None`` for no limit.
    :param cancel_on_kill: cancel the jobs when a user marks the task, or no attempt follows to resume them.
    :param input_schema: the JSON Schema that every input has to fit: a dict, the path or URI of a file, or
        the name of a schema that comes with the package, such as ``flux-schnell``. A row whose input does not
        fit is ``refused``. If more are than may fail, nothing is sent.
    :param destination: the folder to store outputs and manifests in: a URI such as
        ``s3://conn_id@bucket/prefix``, an absolute path, or an ``ObjectStoragePath`` (templated). Without it,
        only the results table is written, for models whose result is text.
    :param results: the URI of the results table: ``.parquet``, ``.csv`` or ``.jsonl`` (templated).
        ``results.jsonl`` in ``destination`` when left out, of a mapped task ``results-{map_index}.jsonl``.
        Each of the mapped tasks needs one of its own.
    :param ledger: remembers which inputs were paid for, so that a row whose input was run before is reused. A
        text is the folder of a ledger: a URI or an absolute path. Needs ``destination`` (templated).
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
        The seconds of jobs in the ledger are the estimate. No limit when ``None`` (templated).
    :param max_in_flight: how many jobs of the task are queued or running at the service at most. The rest is
        submitted as they end. No limit when ``None``.
    :param max_failed: how many rows may fail before the task does: a number, a share below 1, or ``any``.
    """

    template_fields: Sequence[str] = (
        "table",
        "app_id",
        "rungen_conn_id",
        "destination",
        "results",
        "ledger",
        *LIMITS,
    )
    operator_extra_links = JOB_LINKS
    writes_tables: ClassVar[bool] = True

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
        destination: Destination | None = None,
        results: Destination | None = None,
        ledger: LedgerSource | None = None,
        output_type: OutputSource | None = None,
        check: Check | None = None,
        max_jobs: Limit | None = None,
        max_cost: str | XComArg | None = None,
        max_in_flight: int | None = 1000,
        max_failed: float | Literal["any"] = 0,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        if destination is None and results is None:
            raise ValueError("destination or results must be given: the results table is written there")
        super().__init__(**kwargs)
        set_parameters(self, locals())
        check_output_columns(output_type, [*self.key, *self.columns])

    def _row_function(self, context: Context) -> Callable[[dict[str, Any]], Any] | None:
        """Return the function that makes the input of a row; ``None`` if the row is the input."""
        to_input: ToInput | None = self.to_input
        with suppress(TypeError, ValueError):  # a function written in C may have no signature
            if to_input is not None and "params" in [*inspect.signature(to_input).parameters][1:]:
                return partial(to_input, params=context["params"])
        return to_input

    def _source(self, context: Context) -> Source:
        from airflow_provider_rungen._airflow import determine_kwargs
        from airflow_provider_rungen.execution.sources.table_rows import TableRows
        from airflow_provider_rungen.schemas import Schema

        table = self.table
        if isinstance(table, RowFunction):
            table = partial(table.function, **determine_kwargs(table.function, (), context))
        return TableRows(
            table,
            self._row_function(context),
            Schema.of(self.input_schema, "input_schema"),
            key=self.key,
            columns=self.columns,
            written=[self._results_uri(context["ti"])],
            where=self.where,
            limit=to_limit(self.limit, "limit"),
            shares_equal=self.ledger is not None,
        )

    def _results_uri(self, ti: Any) -> str:
        if self.results is not None:
            return str(self.results)
        # mapped tasks may have one destination
        name = "results" if ti.map_index in (None, -1) else f"results-{ti.map_index}"
        return f"{str(self.destination).removesuffix('/')}/{name}.jsonl"

    def _make_run(self, context: Context) -> Runner:
        from airflow_provider_rungen.client.redaction import redact
        from airflow_provider_rungen.execution.jobs.runner import Runner
        from airflow_provider_rungen.execution.sinks.result_sink import ResultSink

        uri = self._results_uri(context["ti"])
        return Runner(
            self,
            context,
            lambda: self._source(context),
            partial(ResultSink, table=uri, key=self.key),
            survives_clear=True,
            folder=uri.rpartition("/")[0] if self.destination is None else self.destination,
            page={
                "results": redact(uri),
                "key": list(self.key),
            },
        )

    def _plan(self, context: Context) -> int:
        """Return how many jobs there are to run, and push what they cost; see `RunGenPlanTableOperator`."""
        from airflow_provider_rungen.execution.jobs.quote import plan_jobs

        return plan_jobs(self._begin(context))


class RunGenPlanTableOperator(RunGenRunTableOperator):
    """
    Return how many jobs `RunGenRunTableOperator` would run with the same parameters, and submit none.

    Jobs of a killed attempt that may still run are included. With a ``ledger``, one request asks for the
    app's model. 0 means that every row is stored, skipped or refused: pass the number to `scaled_app` as
    ``only_if``, so that no GPU starts for nothing.

    The XCom ``plan`` is ``{"rows", "jobs", "reused", "skipped", "seconds", "cost", "currency"}``. The jobs
    are expected to run as long as the mean of the rows that are stored, or else of up to 100 other jobs of
    the app in the ledger. An unknown figure is 0, and without a price the currency is empty.

    The parameters are those of `RunGenRunTableOperator`. If it would buy more than ``max_jobs`` or
    ``max_cost`` allows, this task fails in the same way, so that no GPU starts for a refused run.
    """

    writes_tables = False

    def execute(self, context: Context) -> int:
        """Read the table, and look its inputs up in the ledger."""
        return self.ended(lambda: self._plan(context))
