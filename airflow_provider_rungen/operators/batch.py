"""The operator that runs many jobs in one task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow_provider_rungen.checks import set_parameters
from airflow_provider_rungen.client.money import to_limit
from airflow_provider_rungen.operators.base import (
    DEFAULT_DEFERRABLE,
    JOB_LINKS,
    LIMITS,
    RunGenBaseOperator,
    check_deferrable,
)
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.execution.jobs.runner import Runner
    from airflow_provider_rungen.execution.sinks.batch_result import Sink
    from airflow_provider_rungen.execution.sources.inputs import Source
    from airflow_provider_rungen.parameters import (
        Destination,
        Duration,
        JobInputs,
        LedgerSource,
        Limit,
        OperatorArguments,
        SchemaSource,
    )


class RunGenRunBatchOperator(RunGenBaseOperator):
    """
    Run many jobs in one task, and return their ids in the order of the inputs, or what is stored of them.

    All inputs are checked before the first is sent. The id of an input that the service refused is ``None``,
    and with ``destination`` the small manifest of one that failed.
    The ids are pushed under the XCom key ``job_ids`` when all inputs are submitted. At the end, the indexes
    of the inputs that did not complete are pushed under ``failed``. A retry submits only what failed or was
    never sent.

    :param inputs: a list of JSON objects, or a URI that ``ObjectStoragePath`` can read: of a JSON Lines, CSV
        or Parquet file, of a folder of them, or with wildcards (templated).
    :param limit: take only so many inputs, the first. All when ``None`` (templated).
    :param app_id: the app to run. The connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param wait_for_completion: wait until all jobs have ended.
    :param deferrable: wait in the triggerer, without a worker slot. Only with ``wait_for_completion``.
    :param defer_after: seconds to poll on the worker first. A deferral takes longer than that.
    :param end_from_trigger: let a success end in the triggerer, without starting a worker again, where
        Airflow can (3.3 and later; not with ``outlets``, nor when a task is mapped over the ids, nor where a
        plugin has listeners).
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
        absolute path, or an ``ObjectStoragePath`` (templated). The small manifests that
        `RunGenCollectResultsOperator` returns are returned in place of ids.
    :param contact_sheet: write ``index.html`` to ``destination``: a page with all inputs, what they made,
        and failures by reason. Its links are relative, so that it opens anywhere.
    :param ledger: remembers which inputs were paid for, so that an input that was run before is reused. A
        text is the folder of a ledger: a URI or an absolute path. Needs ``destination`` (templated).
    :param max_jobs: how many jobs the task run may buy, retries included. If more inputs are new, nothing is
        sent, and the task fails without a retry. No limit when ``None`` (templated).
    :param max_cost: what they may cost at the declared price: an amount and its currency, such as ``20 USD``.
        The seconds of jobs in the ledger are the estimate. No limit when ``None`` (templated).
    :param max_concurrency: how many submissions are in flight at most.
    :param max_in_flight: how many jobs of the task are queued or running at the service at most. The rest is
        submitted as they end. No limit when ``None``, nor without a wait.
    :param max_failed: how many inputs may fail before the task does: a number, a share below 1, or ``any``.
    :param stop_after: the task ends when so many jobs in a row have failed, with no success in between: it
        submits no more, cancels what is in flight, and keeps what completed. The same holds for refused
        inputs. Never when ``None``.
    :param max_output_bytes: bytes of a file at most, with a ``destination``.
    """

    template_fields: Sequence[str] = ("app_id", "inputs", "rungen_conn_id", "destination", "ledger", *LIMITS)
    template_fields_renderers: ClassVar[dict[str, str]] = {"inputs": "json"}
    operator_extra_links = JOB_LINKS
    # with a destination: the defaults of RunGenCollectResultsOperator
    output_type = None
    max_xcom_bytes = 0

    def __init__(
        self,
        *,
        inputs: JobInputs,
        limit: Limit | None = None,
        app_id: str | XComArg | None = None,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        wait_for_completion: bool = True,
        deferrable: bool = DEFAULT_DEFERRABLE,
        defer_after: Duration = 5,
        end_from_trigger: bool = False,
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
        max_jobs: Limit | None = None,
        max_cost: str | XComArg | None = None,
        max_concurrency: int = 16,
        max_in_flight: int | None = 1000,
        max_failed: float | Literal["any"] = 0,
        stop_after: int | None = 20,
        max_output_bytes: int = 1 << 30,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        check_deferrable(deferrable=deferrable, wait_for_completion=wait_for_completion, kwargs=kwargs)
        if destination is not None and not wait_for_completion:
            raise ValueError("destination needs wait_for_completion=True: outputs are stored after the wait")
        super().__init__(**kwargs)
        set_parameters(self, locals())

    def _make_run(self, context: Context) -> Runner:
        from airflow_provider_rungen.execution.jobs.runner import Runner
        from airflow_provider_rungen.execution.sinks.batch_result import JobIds

        make_sink: Callable[[Runner], Sink] = JobIds
        if self.destination is not None:  # here, as a kill cannot use what it interrupts the import of
            from airflow_provider_rungen.execution.sinks.result_sink import ResultSink

            make_sink = ResultSink
        return Runner(self, context, lambda: self._source_of(self.inputs), make_sink, folder=self.destination)

    def _source_of(self, inputs: Any) -> Source:
        from airflow_provider_rungen.execution.sources.inputs import ManyInputs
        from airflow_provider_rungen.schemas import Schema

        schema = Schema.of(self.input_schema, "input_schema")
        return ManyInputs(
            inputs,
            schema,
            limit=to_limit(self.limit, "limit"),
            shares_equal=self.ledger is not None,
        )
