"""The operator that collects what jobs made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from airflow_provider_rungen.checks import check_output_columns, set_parameters
from airflow_provider_rungen.operators.base import (
    DEFAULT_DEFERRABLE,
    JOB_LINKS,
    RunGenBaseOperator,
    find_job_sources,
    follow_job_sources,
    labels_of,
)
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.execution.collect_run import CollectRun
    from airflow_provider_rungen.parameters import (
        Destination,
        Duration,
        JobIds,
        OperatorArguments,
        OutputSource,
    )


class RunGenCollectResultsOperator(RunGenBaseOperator):
    """
    Return the results of jobs, or store their outputs. One id gives one result, a list gives a list in order.

    Without ``destination``, the result itself is returned. The result of an image model has signed URLs.
    Anyone who can read the XCom can open them for seven days. Results of more than 1 MB fail the task
    permanently.

    With ``destination``, each file whose URL is in a result is stored as
    ``{destination}/{job_id}/{n}-{name}``. ``{destination}/{job_id}/manifest.json`` describes the job: its
    input, times, result (with what was stored in place of the URLs), and of each file its size, SHA-256 and
    content type. A small manifest is returned: ``{"job_id", "manifest": uri, "outputs": [{"uri", "size",
    "sha256", "content_type"}]}``. Files that a manifest lists already are not downloaded again. If a
    list of jobs has pictures, ``{destination}/index.html`` shows them.

    With ``results``, a table with a row for each job, and its ``label`` as the first column, is written, also
    before the task fails. Its counts are returned: ``{"results": uri, "rows", "completed", "failed",
    "skipped", "reused", "jobs", "execution_seconds"}``.

    The indexes of jobs that failed are pushed under the XCom key ``failed``. For those that may fail
    (``max_failed``), ``None`` is returned.

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
    :param destination: the folder to store outputs in: a URI such as ``s3://conn_id@bucket/prefix``, an
        absolute path, or an ``ObjectStoragePath`` (templated).
    :param results: the file to write a table of the results to, instead of returning them: a URI or an
        absolute path that ends in ``.parquet``, ``.csv`` or ``.jsonl`` (templated).
    :param output_type: what every result has to be: a class that pydantic knows, such as a ``BaseModel``, or
        a JSON Schema: a dict, the path or URI of a file, or the name of a schema that comes with the package,
        such as ``flux-schnell``. If it is an object or an array, a text is parsed as JSON, also in a Markdown
        code fence. Each top-level property is a column of ``results``, with its type.
    :param max_failed: how many jobs may fail before the task does: a number, a share below 1, or ``any``.
    """

    template_fields: Sequence[str] = ("app_id", "destination", "job_id", "results", "rungen_conn_id")
    writes_tables: ClassVar[bool] = True
    operator_extra_links = JOB_LINKS

    #: The tasks that ran its jobs, as far as ``.output`` tells.
    job_sources: Sequence[str] = ()

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
        if results is not None:
            check_output_columns(output_type, ["label"])

    def _make_run(self, context: Context) -> CollectRun:
        from airflow_provider_rungen.execution.collect_run import CollectRun

        follow_job_sources(self, context)
        return CollectRun(self, context, labels_of(self, context))
