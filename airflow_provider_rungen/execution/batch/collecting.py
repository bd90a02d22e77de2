"""Runs a batch, or one job, and collects the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.batch.result import BatchResult
from airflow_provider_rungen.execution.batch.run import BatchRun
from airflow_provider_rungen.execution.collector import Collector
from airflow_provider_rungen.execution.outcomes import raise_for_jobs

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob
    from airflow_provider_rungen.execution.options import BatchOptions, CollectOptions
    from airflow_provider_rungen.execution.waiting import Defer


class CollectingRun(BatchRun):
    """
    An attempt that runs a batch, or one job, and returns or stores the results.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param options: how to run the jobs.
    :param defer: see `WaitingRun`.
    :param collect: what to do with the results.
    :param pushes_keys: whether each key of a result becomes an XCom of its own, too.
    """

    def __init__(
        self,
        task: BaseOperator,
        context: Context,
        options: BatchOptions,
        defer: Defer,
        *,
        collect: CollectOptions,
        pushes_keys: bool = False,
    ) -> None:
        super().__init__(task, context, options, defer)
        self._collect_options = collect
        self._pushes_keys = pushes_keys
        self._is_single = False
        self._opened_collector: Collector | None = None
        self._is_collecting = False

    def execute(self, call: Callable[[], Any]) -> Any:
        """
        Run the inputs, and wait for them.

        :param call: returns the inputs: a dict for one job.
        :return: the result, or the list of results in the order of the inputs.
        """

        def read_inputs() -> Any:
            # what would keep it from collecting is found before anything is sent
            self._collector()
            given = call()
            self._is_single = isinstance(given, Mapping)
            return [given] if self._is_single else given

        with self._storing_what_completed(), self.executing():
            return self._collect(self.submit_and_wait(read_inputs))

    def complete(self, event: Mapping[str, Any]) -> Any:
        """
        Go on after the wait in the triggerer.

        :return: the result, or the list of results in the order of the inputs.
        """
        self._is_single = self.xcom_pull("job_id") is not None
        with self._storing_what_completed(), self.completing(event) as result:
            return self._collect(result)

    def prepare_storage(self) -> None:
        self._collector().prepare()

    @property
    def can_read_again(self) -> bool:
        # the function is called once an attempt, and may return something else the next time
        return self._collect_options.destination is not None

    def push_submitted(self, ids: list[str | None], refused: Mapping[int, RunGenError]) -> None:
        super().push_submitted(ids, refused)
        if self._is_single and ids[0] is not None:
            self.ti.xcom_push(key="job_id", value=ids[0])

    def accepts(self, stored: StoredJob) -> bool:
        return self._collector().accepts(stored)

    def add_reused(self, stored: StoredJob) -> None:
        super().add_reused(stored)
        self._collector().add_stored(stored, is_reused=True)

    def _collector(self) -> Collector:
        if self._opened_collector is None:
            self._opened_collector = Collector(self, self._collect_options, pushes_keys=self._pushes_keys)
        return self._opened_collector

    @contextmanager
    def _storing_what_completed(self) -> Iterator[None]:
        """Store what is paid for, though the task fails before it collects."""
        try:
            yield
        except Exception as error:
            has_destination = self._collect_options.destination is not None
            if has_destination and not self._is_collecting and self.has_to_store(error):
                self.store_completed(self.result(self.batch), self._gather)
            raise

    def _gather(self, job_ids: Sequence[str]) -> None:
        collector = self._collector()
        with self.reuse.remembering(collector):
            collector.gather(self.jobs.app_id, job_ids)

    def _collect(self, result: BatchResult) -> Any:
        """Return the results in place of the ids. One job fails with its own error."""
        self._is_collecting = True
        self.jobs.finished = set(result.job_ids)  # they are not to be canceled any more
        max_failed = 0.0 if self._is_single else self._collect_options.max_failed
        for error in result.refused.values() if self._is_single else ():
            raise error
        collector = self._collector()
        with self.reuse.remembering(collector):
            if self._collect_options.destination is not None:
                # what is paid for is stored, also if the task fails
                collector.gather(self.jobs.app_id, result.ids, result.jobs)
                collector.write_sheet(self.jobs.app_id, result.ids, result.refused)
            if self._is_single and result.job_ids:
                raise_for_jobs(result.jobs)
            else:
                self.finish(result, max_failed)
            return collector.collect(
                self.jobs.app_id,
                result.ids,
                max_failed=max_failed,
                single=self._is_single,
                logged_failures=self.outcome.failed_count if self.outcome else 0,
                locate=self.locate,
            )
