"""The operator that collects what jobs made."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from airflow_provider_rungen.checks import check_output_columns, set_parameters
from airflow_provider_rungen.operators.base import (
    DEFAULT_DEFERRABLE,
    JOB_LINKS,
    RunGenBaseOperator,
    find_job_sources,
    follow_job_sources,
    labels_of,
    results_uri,
)
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.parameters import (
        Destination,
        Duration,
        JobIds,
        OperatorArguments,
        OutputSource,
    )
    from airflow_provider_rungen.table.inputs import Source
    from airflow_provider_rungen.work.collect_values import ValuesRun
    from airflow_provider_rungen.work.table_run import TableRun


class RunGenCollectResultsOperator(RunGenBaseOperator):
    """
    Collect the results of jobs that other tasks have submitted.

    With ``destination``, it is a table whose rows already have jobs: each file whose URL is in a result is
    stored, and a table of the results is written, with a row for each job, and its ``label`` as the first
    column; see `RunGenRunTableOperator` for what it holds, what is returned, and what a retry does. What is
    stored is not downloaded again.

    Without, the results are returned: one id gives one result, a list gives a list in order. The result of
    an image model has signed URLs. Anyone who can read the XCom can open them for seven days. Results of more
    than 1 MB fail the task permanently. The indexes of jobs that failed are pushed under the XCom key
    ``failed``, and ``None`` is returned for those that may fail (``max_failed``).

    :param job_id: one id, a list, or the ``.output`` of a task (templated). The ``None`` that stands for an
        input without a job counts as failed.
    :param app_id: the app of the jobs (templated). When left out, that of the task whose ``.output`` is
        given, or else the connection's ``app_id``.
    :param rungen_conn_id: the Airflow connection (templated). When left out, that of the task whose
        ``.output`` is given.
    :param wait_for_completion: wait until the jobs have ended. Otherwise, one that has not is an error.
    :param deferrable: wait in the triggerer, without a worker slot.
    :param poll_interval: seconds between two polls.
    :param timeout: seconds to wait at most.
    :param queued_timeout: seconds that jobs may wait while the app has no worker; ``None`` for no limit.
    :param cancel_on_kill: cancel the jobs when the task is killed. Off by default, since a task that runs
        again would find them canceled.
    :param destination: the folder of what is paid for: outputs, and records of jobs. Tasks with the same one
        share what was stored. A URI such as ``s3://conn_id@bucket/prefix``, an absolute path, or an
        ``ObjectStoragePath`` (templated).
    :param results: the URI of the results table: ``.parquet``, ``.csv`` or ``.jsonl`` (templated). When left
        out, ``{destination}/results/{dag_id}.{task_id}/{run_id}[.{map_index}].jsonl``.
    :param output_type: what every result has to be: a class that pydantic knows, such as a ``BaseModel``, or
        a JSON Schema: a dict, the path or URI of a file, or the name of a schema that comes with the package,
        such as ``flux-schnell``. If it is an object or an array, a text is parsed as JSON, also in a Markdown
        code fence. Each top-level property is a column of ``results``, with its type.
    :param max_failed: how many jobs may fail before the task does: a number, a share below 1, or ``any``.
    """

    template_fields: Sequence[str] = ("app_id", "destination", "job_id", "results", "rungen_conn_id")
    operator_extra_links = JOB_LINKS

    #: The tasks that ran its jobs, as far as ``.output`` tells.
    job_sources: Sequence[str] = ()
    #: Each attempt looks again at a job that failed: it buys nothing, so that there is nothing to give up.
    max_attempts = sys.maxsize

    def __init__(
        self,
        *,
        job_id: JobIds,
        app_id: str | XComArg | None = None,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        wait_for_completion: bool = True,
        deferrable: bool = DEFAULT_DEFERRABLE,
        poll_interval: Duration = 5,
        timeout: Duration = 86400,
        queued_timeout: Duration | None = 900,
        cancel_on_kill: bool = False,
        destination: Destination | None = None,
        results: Destination | None = None,
        output_type: OutputSource | None = None,
        max_failed: float | Literal["any"] = 0,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        set_parameters(self, locals())
        self.job_sources = find_job_sources(job_id)
        if destination is not None:
            check_output_columns(self, ["label"])
        elif results is not None:
            raise ValueError("results needs a destination, in which outputs and records of the jobs are kept")

    def _make_run(self, context: Context) -> TableRun | ValuesRun:
        from airflow_provider_rungen.results.sink import ResultSink
        from airflow_provider_rungen.work.collect_values import ValuesRun, known_ids
        from airflow_provider_rungen.work.table_run import TableRun

        follow_job_sources(self, context)
        if self.destination is None:
            return ValuesRun(self, context)
        labels = labels_of(self, context)
        make_sink = partial(
            ResultSink, uri=results_uri(self, context["ti"]), columns=["label"] if labels else ()
        )

        def make_source() -> Source:
            from airflow_provider_rungen.table.known_jobs import KnownJobs

            return KnownJobs(run.app_id, known_ids(self.job_id, self.max_failed), labels)

        run = TableRun(self, context, make_source, make_sink, collects=True)
        return run
