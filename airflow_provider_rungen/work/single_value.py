"""What a task returns of its one job: its id, its result, or what is stored of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_rungen.client.job_poller import identity, strip_payloads
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.outputs.output_store import OutputStore
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.results.values import ResultReader
from airflow_provider_rungen.results.xcom import XComValues
from airflow_provider_rungen.schemas import OutputType
from airflow_provider_rungen.store.keys import job_key
from airflow_provider_rungen.store.records import Record
from airflow_provider_rungen.task.report import TaskOutcome

if TYPE_CHECKING:
    from airflow_provider_rungen.task.options import JobOptions
    from airflow_provider_rungen.task.run import TaskRun


class JobId:
    """The value is the id of the job."""

    hold = staticmethod(strip_payloads)

    def __init__(self, run: TaskRun[JobOptions]) -> None:
        """Need nothing of the attempt."""

    def prepare(self) -> None:
        """Do nothing: there is always an id."""

    def take(self, job: Job) -> tuple[Any, TaskOutcome]:
        """Return the value, and what to report."""
        return job.id, TaskOutcome(job.app_id, [job.id])


class JobResult:
    """
    The value is the result of the job, or with a ``destination`` what is stored of it.

    :param run: the attempt.
    :param pushes_keys: whether each key of a result becomes an XCom of its own, too.
    :raises RunGenInputError: the schema or the destination cannot be used.
    """

    def __init__(self, run: TaskRun[JobOptions], *, pushes_keys: bool) -> None:
        self._output = OutputType.of(run.task.output_type)
        self._label = run.options.job_label
        self._pushes_keys = pushes_keys
        self._stored: list[Record] = []
        self._outputs: OutputStore | None = None
        self.hold = identity
        if (destination := run.options.destination) is not None:
            self._where = redact(str(destination))
            self.hold = strip_payloads  # it is asked for again, since its URLs may be old
            self._storage = Storage(destination)
            self._reader = ResultReader(self._storage, self._output)
            self._outputs = OutputStore(
                run,
                self._storage,
                self._reader,
                self._on_stored,
                output=self._output,
            )

    async def _on_stored(self, record: Record, _: RunGenError | None) -> None:
        self._stored.append(record)

    def prepare(self) -> None:
        """
        Find out whether the value can be made, before anything is sent.

        :raises RunGenInputError: it cannot.
        """
        if self._outputs is not None:
            self._storage.prepare()

    def take(self, job: Job) -> tuple[Any, TaskOutcome]:
        """
        Return the value, and what to report.

        :raises RunGenError: the result cannot be used.
        """
        if self._outputs is not None:
            return self._store(self._outputs, job)
        if self._output is not None:
            job = self._output.read(job)
        values = XComValues(pushes_keys=self._pushes_keys)
        if (problem := values.add_job(job) or values.find_excess()) is not None:
            raise problem
        return job.result, TaskOutcome(job.app_id, [job.id])

    def _store(self, outputs: OutputStore, job: Job) -> tuple[Any, TaskOutcome]:
        record = Record(key=job_key(job.app_id, job.id), n=1, app=job.app_id, job=job.id)
        for error in outputs.store(job.app_id, {job.id: record}).values():
            raise error
        outputs.log_total()
        [record] = self._stored
        storage = self._storage
        files = [
            {
                "uri": storage.uri_of("", record.path_of(each)),
                "size": each.size,
                "sha256": each.sha256,
                "content_type": each.type or None,
            }
            for each in record.outputs
        ]
        value: dict[str, Any] = {"job_id": job.id, "outputs": files}
        if record.result_size is None:
            value["result"] = self._reader.read(record)
        else:
            value["result_uri"] = storage.uri_of("", record.result_path)
        if self._label is not None:
            value["label"] = str(self._label)
        return value, TaskOutcome(job.app_id, [job.id], destination=self._where, files=files)


#: Turns a completed job into the value of its task. ``hold`` returns what to keep of a job that has ended.
JobValue: TypeAlias = JobId | JobResult
