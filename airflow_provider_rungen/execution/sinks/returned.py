"""Returns the results of jobs, or small manifests of what is stored of them."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.sinks.collector import Collector, Refetch
from airflow_provider_rungen.execution.sinks.failures import (
    check_collected,
    check_inputs,
    error_text,
    push_failed,
)
from airflow_provider_rungen.execution.sinks.job_sinks import raise_for_single
from airflow_provider_rungen.execution.sinks.xcom_values import XComValues
from airflow_provider_rungen.execution.task.job_ids import format_jobs
from airflow_provider_rungen.execution.task.lineage import TaskOutcome

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.sinks.batch_result import BatchResult
    from airflow_provider_rungen.execution.sinks.failures import Advice
    from airflow_provider_rungen.execution.sinks.job_sinks import SinkPlan
    from airflow_provider_rungen.execution.task.options import CollectOptions
    from airflow_provider_rungen.execution.task.run import TaskRun

log = logging.getLogger(__name__)


class Results(Collector):
    """
    Return the results of jobs, or small manifests of what is stored of them.

    :param run: the attempt.
    :param options: what to do with results.
    :param refetch: see `Collector`.
    :param is_single: whether there is one job, whose error and value are those of the task.
    :param pushes_keys: whether each key of a result becomes an XCom of its own, too.
    :param advice: see `Collector`.
    :raises RunGenInputError: the schema or the destination cannot be used.
    """

    def __init__(
        self,
        run: TaskRun[Any],
        options: CollectOptions,
        *,
        refetch: Refetch,
        is_single: bool = False,
        pushes_keys: bool = False,
        advice: Advice | None = None,
    ) -> None:
        self._values = XComValues(options.max_xcom_bytes, pushes_keys=pushes_keys)
        super().__init__(run, options, refetch=refetch, values=self._values, advice=advice)
        self._is_single = is_single

    def finish(self, result: BatchResult, plan: SinkPlan) -> Any:
        errors = self._gather_rest(result)
        self._write_sheet(result, plan)
        if self._advice is None:
            check_collected(self._run.ti, result, errors, self._options.max_failed)
        elif self._is_single:
            push_failed(self._run.ti, result.ids, errors)
            raise_for_single(self._run.known_app_id, errors)
        else:
            check_inputs(self._run.ti, self._advice, result, errors, self._options.max_failed)
        done = self._done(result)
        values = self._values.of(result.ids)
        value = values[0] if self._is_single else values
        if not self.stores:
            self._values.check_size(len(json.dumps(value)))
        self._run.record_outcome(
            TaskOutcome(
                self._run.known_app_id,
                done,
                len(errors),
                self._shown_destination,
                manifests=self._values.of(done) if self.stores else (),
            )
        )
        log.info("Collected the results of %s", format_jobs(done))
        return value

    def report(self, result: BatchResult, plan: SinkPlan, error: BaseException) -> None:
        if self._sheet is None or self._is_written or not result.ids:
            return
        try:
            self.gather_known(self._run.known_app_id, result.ids, result.jobs)
            self._write_sheet(result, plan, error_text(error))
        except RunGenError as failure:
            log.warning("Could not write the contact sheet: %s", failure.message)
