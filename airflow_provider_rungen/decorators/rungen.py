"""The decorator ``@task.rungen``: a function returns the input, the task returns the result."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow_provider_rungen._airflow import (
    SET_DURING_EXECUTION,
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)
from airflow_provider_rungen.literals import check_literals
from airflow_provider_rungen.operators.base import (
    DEFAULT_DEFERRABLE,
    JOB_LINKS,
    RunGenBaseOperator,
    deferral_error,
)
from airflow_provider_rungen.parameters import (
    DEFAULT_CONN_ID,
    check_choice,
    check_contact_sheet,
    check_count,
    check_format,
    check_ledger,
    check_limit,
    check_max_failed,
    check_schema,
    default_arg_names,
    to_optional_seconds,
    to_seconds,
)

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, TaskDecorator, XComArg
    from airflow_provider_rungen.execution.jobs.runner import Runner
    from airflow_provider_rungen.execution.sinks.job_sinks import Sink
    from airflow_provider_rungen.execution.sources.inputs import Source
    from airflow_provider_rungen.parameters import (
        DecoratorArguments,
        Destination,
        Duration,
        LedgerSource,
        SchemaSource,
        TableFormat,
        TaskArguments,
    )


class RunGenDecoratedOperator(DecoratedOperator, RunGenBaseOperator):
    """
    Run the job, or the jobs, whose input a function returns, and return the result, or the list of them.

    Results are returned or stored as `RunGenCollectResultsOperator` does.

    The function is called once an attempt. Its arguments are templated. Its return value is not, because
    prompts may be untrusted. A dict is the input of one job, whose id is pushed under the XCom key
    ``job_id``, and which may not fail (``max_failed`` is for batches). What else `RunGenRunBatchOperator`
    takes as ``inputs`` is a batch, as is an object with ``__arrow_c_stream__``, such as a data frame.

    :param python_callable: the function.
    :param op_args: its arguments (templated).
    :param op_kwargs: its keyword arguments (templated).
    :param format: ``jsonl``, ``csv`` or ``parquet``, if the function returns the URI of files. Each file's
        suffix decides when left out.
    :param app_id: the app to run. The connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param deferrable: wait in the triggerer, without a worker slot.
    :param defer_after: seconds to poll on the worker first. A deferral takes longer than that.
    :param poll_interval: seconds between two polls.
    :param timeout: seconds that the jobs may take together, submission included. After that they are
        canceled, and the task fails. A retry that submits any of them has the whole time.
    :param queued_timeout: seconds that jobs may stay queued while none starts. No limit when left out.
    :param cancel_on_kill: cancel the jobs when the task is killed, or cleared while they run.
    :param durable: save the ids in Airflow's task state store (Airflow 3.3 and later) as they come.
    :param on_unknown_submission: what a retry does with inputs for which it is unknown whether a job was
        created: ``resubmit`` them, with a warning, or ``fail``.
    :param on_clear: what the attempt after a clear does: run ``new`` jobs for all inputs, or ``resume`` the
        earlier ones if inputs and app are the same. Failed jobs run again. Needs ``durable``. A ``ledger``
        always resumes, except with ``refresh``.
    :param input_schema: the JSON Schema that every input has to fit before the first is sent: a dict, the
        path or URI of a file, or the name of a schema that comes with the package, such as ``flux-schnell``.
    :param destination: the folder to store outputs in: a URI such as ``s3://conn_id@bucket/prefix``, an
        absolute path, or an ``ObjectStoragePath`` (templated).
    :param contact_sheet: write ``index.html`` to ``destination``: a page with all inputs, what they made,
        and failures by reason. Its links are relative, so that it opens anywhere.
    :param ledger: remembers which inputs were paid for, so that an input that was run before is reused. A
        text is the folder of a ledger: a URI or an absolute path. Needs ``destination`` (templated).
    :param result_schema: the JSON Schema that every result has to fit.
    :param max_concurrency: how many submissions, and how many downloads, are in flight at most.
    :param max_in_flight: how many jobs of the task are queued or running at the service at most. The rest is
        submitted as they end. No limit when ``None``.
    :param max_failed: how many inputs of a batch may fail without failing the task: a number, or a share
        below 1.
    :param stop_after: the task ends when so many jobs in a row have failed, with no success in between: it
        submits no more, cancels what is in flight, and keeps what completed. The same holds for refused
        inputs. Never when ``None``.
    :param max_output_bytes: bytes of a file at most.
    :param max_xcom_bytes: bytes at most that are returned without ``destination``.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        "app_id",
        "inputs",
        "rungen_conn_id",
        "destination",
        "ledger",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        "inputs": "json",
    }
    operator_extra_links = JOB_LINKS
    custom_operator_name = "@task.rungen"
    # so that the UI shows the inputs
    overwrite_rtif_after_execution = True
    # the result is what ends the task, so it needs a worker, and there is always a wait
    wait_for_completion = True
    end_from_trigger = False

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        format: TableFormat | None = None,
        app_id: str | XComArg | None = None,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = DEFAULT_DEFERRABLE,
        defer_after: Duration = 5,
        poll_interval: Duration = 5,
        timeout: Duration = 86400,
        queued_timeout: Duration | None = None,
        cancel_on_kill: bool = True,
        durable: bool = True,
        on_unknown_submission: Literal["resubmit", "fail"] = "resubmit",
        on_clear: Literal["new", "resume"] = "new",
        input_schema: SchemaSource | None = None,
        destination: Destination | None = None,
        contact_sheet: bool = False,
        ledger: LedgerSource | None = None,
        result_schema: SchemaSource | None = None,
        max_concurrency: int = 16,
        max_in_flight: int | None = 1000,
        max_failed: float = 0,
        stop_after: int | None = 20,
        max_output_bytes: int = 1 << 30,
        max_xcom_bytes: int = 1_000_000,
        **kwargs: Unpack[TaskArguments],
    ) -> None:
        check_format(format)
        check_choice(on_unknown_submission, ("resubmit", "fail"), "on_unknown_submission")
        check_choice(on_clear, ("new", "resume"), "on_clear")
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            **_without_inherited(kwargs),
        )
        self.inputs: Any = SET_DURING_EXECUTION
        self.format = format
        self.app_id = app_id
        self.rungen_conn_id = rungen_conn_id
        self.deferrable = deferrable
        self.defer_after = to_seconds(defer_after, "defer_after", allow_zero=True)
        self.poll_interval = to_seconds(poll_interval, "poll_interval")
        self.timeout = to_seconds(timeout, "timeout")
        self.queued_timeout = to_optional_seconds(queued_timeout, "queued_timeout")
        self.cancel_on_kill = cancel_on_kill
        self.durable = durable
        self.on_unknown_submission = on_unknown_submission
        self.on_clear = on_clear
        self.input_schema = check_schema(input_schema, "input_schema")
        self.destination = destination
        self.contact_sheet = check_contact_sheet(contact_sheet, destination)
        self.ledger = check_ledger(ledger, destination)
        self.result_schema = check_schema(result_schema, "result_schema")
        self.max_concurrency = check_count(max_concurrency, "max_concurrency")
        self.max_in_flight = check_limit(max_in_flight, "max_in_flight")
        self.max_failed = check_max_failed(max_failed)
        self.stop_after = check_limit(stop_after, "stop_after")
        self.max_output_bytes = check_count(max_output_bytes, "max_output_bytes")
        self.max_xcom_bytes = check_count(max_xcom_bytes, "max_xcom_bytes")
        check_literals(self)

    def execute(self, context: Context) -> Any:
        """
        Call the function, run what it returns, and wait for it.

        :return: the result, or the list of results in the order of the inputs.
        """
        # not DecoratedOperator's: that of Airflow 3.0 pushes by a method that operators no longer have
        return self._runner(context).execute(lambda: self._source(self._call(context)))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """
        Go on after the wait in the triggerer.

        :return: the result, or the list of results in the order of the inputs.
        """
        return self._runner(context).complete(event)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after a deferral. When Airflow ended it without an event, no job is left behind."""
        if (reason := deferral_error(next_method, next_kwargs)) is not None:
            self._runner(context).fail_deferral(reason)
        return super().resume_execution(next_method, next_kwargs, context)

    def _call(self, context: Context) -> Any:
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        given = self.python_callable(*self.op_args, **kwargs)
        self.inputs = _shown(given)
        return given

    def _source(self, given: Any) -> Source:
        from airflow_provider_rungen.execution.sources.inputs import ManyInputs, OneInput
        from airflow_provider_rungen.schemas import Schema

        if isinstance(given, Mapping):
            return OneInput(given, lambda: Schema.of(self.input_schema, "input_schema"))
        schema = Schema.of(self.input_schema, "input_schema")
        return ManyInputs(given, schema, format=self.format, shares_equal=self.ledger is not None)

    def _sink(self, run: Runner) -> Sink:
        from airflow_provider_rungen.execution.sinks.returned import Results
        from airflow_provider_rungen.execution.task.options import CollectOptions

        return Results(
            run,
            CollectOptions.of(self),
            refetch=run.wait.refetch,
            is_single=run.is_single,
            pushes_keys=self.multiple_outputs and self.destination is None,
            advice=run,
        )

    def _runner(self, context: Context) -> Runner:
        return self._runner_of(
            context,
            self._sink,
            folder=self.destination,
            # the function is called once an attempt, and may return something else the next time
            can_read_again=self.destination is not None,
        )


def _shown(given: Any) -> Any:
    """Return what the UI shows of the inputs."""
    if isinstance(given, Mapping):
        return [given]
    if hasattr(given, "__arrow_c_stream__"):
        # neither its text nor its length: with DuckDB, each runs the query
        return f"a table: {type(given).__name__}"
    return given


def _without_inherited(kwargs: TaskArguments) -> dict[str, Any]:
    """
    Return the arguments without those of ``default_args`` that are for other tasks, which Airflow 2 gives a
    mapped task, too.

    :raises TypeError: one of them was given to this task.
    """
    arguments = dict(kwargs)
    for name in ("inputs", "wait_for_completion", "end_from_trigger"):
        if arguments.pop(name, None) is not None and name not in default_arg_names(kwargs):
            raise TypeError(
                f"@task.rungen takes no {name}: the function returns the input, and the task the result"
            )
    return arguments


def rungen_task(
    python_callable: Callable[..., Any] | None = None,
    multiple_outputs: bool | None = None,
    **kwargs: Unpack[DecoratorArguments],
) -> TaskDecorator:
    """
    Make a function a task that runs jobs: ``@task.rungen(app_id=…)``.

    :param python_callable: the function. It returns the input of a job (a dict), or the inputs of a batch.
    :param multiple_outputs: push each key of a result as an XCom of its own, too.
    :param kwargs: the parameters of `RunGenDecoratedOperator`, and of every task.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        # not inferred from the function's annotation: what it returns is not what the task returns
        multiple_outputs=bool(multiple_outputs),
        decorated_operator_class=RunGenDecoratedOperator,
        **kwargs,
    )
