"""Operators for single jobs: run one, cancel some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from airflow_provider_rungen.checks import set_parameters
from airflow_provider_rungen.operators.base import (
    DEFAULT_DEFERRABLE,
    JOB_LINKS,
    RunGenBaseOperator,
    check_deferrable,
    find_job_sources,
    follow_job_sources,
)
from airflow_provider_rungen.parameters import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.parameters import (
        Duration,
        JobIds,
        JobInput,
        OperatorArguments,
        SchemaSource,
    )
    from airflow_provider_rungen.work.known_jobs import CancelRun
    from airflow_provider_rungen.work.single import JobRun


class RunGenRunJobOperator(RunGenBaseOperator):
    """
    Run a job: submit it, push its id under the XCom key ``job_id`` at once, and return the id.

    From Airflow 3.3 on, a retry resumes the job of the last attempt. Before, it buys another one: a table
    with one row does not. A clear cancels the job, and buys another one.

    :param input: a JSON object (a dict), as the app's model expects it (templated, nested values too).
    :param app_id: the app to run. The connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param wait_for_completion: wait until the job has ended, and fail if it failed or was canceled.
    :param deferrable: wait in the triggerer, without a worker slot. Only with ``wait_for_completion``.
    :param poll_interval: seconds between two polls.
    :param timeout: seconds that the job may take. After that it is canceled, and the task fails.
    :param queued_timeout: seconds that the job may wait while the app has no worker; ``None`` for no limit.
    :param cancel_on_kill: cancel the job when the task is killed, or cleared while the job runs.
    :param input_schema: the JSON Schema that the input has to fit before it is sent: a dict, the path or URI
        of a file, or the name of a schema that comes with the package, such as ``flux-schnell``.
    :param label: a text for the job, such as ``{{ task.input.prompt }}``, that a task which collects its
        ``.output`` has beside the result (templated).
    """

    template_fields: Sequence[str] = ("app_id", "input", "rungen_conn_id", "job_label")
    template_fields_renderers: ClassVar[dict[str, str]] = {"input": "json"}
    operator_extra_links = JOB_LINKS

    def __init__(
        self,
        *,
        input: JobInput,
        app_id: str | XComArg | None = None,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        wait_for_completion: bool = False,
        deferrable: bool = DEFAULT_DEFERRABLE,
        poll_interval: Duration = 5,
        timeout: Duration = 86400,
        queued_timeout: Duration | None = 900,
        cancel_on_kill: bool = True,
        input_schema: SchemaSource | None = None,
        label: str | None = None,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        set_parameters(self, locals())
        check_deferrable(self, kwargs)

    def _make_run(self, context: Context) -> JobRun:
        from airflow_provider_rungen.work.single import JobRun

        return JobRun(self, context, lambda: self.input)


class RunGenCancelJobOperator(RunGenBaseOperator):
    """
    Cancel jobs, and return the ids of those that had not ended. One that has ended is no error.

    :param job_id: one id, a list, or the ``.output`` of a task (templated). The ``None`` that stands for an
        input without a job is skipped.
    :param app_id: the app of the jobs (templated). When left out, that of the task whose ``.output`` is
        given, or else the connection's ``app_id``.
    :param rungen_conn_id: the Airflow connection (templated). When left out, that of the task whose
        ``.output`` is given.
    """

    template_fields: Sequence[str] = ("app_id", "job_id", "rungen_conn_id")
    operator_extra_links = JOB_LINKS

    #: The tasks that ran its jobs, as far as ``.output`` tells.
    job_sources: Sequence[str] = ()

    def __init__(
        self,
        *,
        job_id: JobIds,
        app_id: str | XComArg | None = None,
        rungen_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        set_parameters(self, locals())
        self.job_sources = find_job_sources(job_id)

    def _make_run(self, context: Context) -> CancelRun:
        from airflow_provider_rungen.work.known_jobs import CancelRun

        follow_job_sources(self, context)
        return CancelRun(self, context)
