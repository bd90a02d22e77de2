"""What a record says of a result, for those who read it."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.output_urls import redact_value
from airflow_provider_rungen.exceptions import RunGenJobError, RunGenOutputError
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.schemas import OutputType
from airflow_provider_rungen.store.records import Record


class ResultReader:
    """
    Reads the results of completed purchases, as a task uses them.

    :param storage: the destination.
    :param output: what every result has to be, if anything.
    """

    def __init__(self, storage: Storage, output: OutputType | None = None) -> None:
        self._storage, self._output = storage, output

    @property
    def checks(self) -> bool:
        """Whether a result may be of no use to the task."""
        return self._output is not None

    def read(self, record: Record) -> Any:
        """
        Return what the model returned, parsed, with the URIs of its stored files.

        An output type is about what the service returns, so a URL stands for each stored file. A result that
        does not fit like this may have fitted as it was, which the record says.

        :raises RunGenResultError: it does not fit.
        :raises RunGenOutputError: the file of a large result cannot be read.
        """
        result, files = self._load(record), self.uris(record)
        if self._output is None:
            return redact_value(result, files) if files else result
        urls = {path: f"https://stored.invalid/{path.rpartition('/')[2]}" for path in files}
        job = Job(record.job, record.app, JobStatus.COMPLETED, redact_value(result, urls))
        try:
            job = self._output.read(job)
        except RunGenJobError:
            if record.fits != self._output.digest:
                raise
            with suppress(RunGenJobError):  # a text may be no JSON any more without its signatures
                job = self._output.read(job, is_known=True)
        return redact_value(job.result, {urls[path]: uri for path, uri in files.items()})

    def fits(self, record: Record) -> bool:
        """Return whether a result fits as it is kept."""
        try:
            self.read(record)
        except RunGenJobError:
            return False
        return True

    def noted(self, record: Record) -> Record:
        """Return a record whose result fitted as the service returned it, so that this is known later."""
        if self._output is None or self.fits(record):
            return record
        return record.model_copy(update={"fits": self._output.digest})

    def uris(self, record: Record) -> dict[str, str]:
        """Return the URIs of stored files, by their paths in the destination."""
        paths = map(record.path_of, record.outputs)
        return {path: without_connection(self._storage.uri_of("", path)) for path in paths}

    def _load(self, record: Record) -> Any:
        if record.result_size is None:
            return record.result
        folder, _, name = record.result_path.rpartition("/")
        content = self._storage.read_all([(folder, name)]).get((folder, name))
        if content is None:
            raise RunGenOutputError(f"the result of job {record.job} is not in the destination any more")
        return json.loads(content)


def without_connection(uri: str) -> str:
    """Return a URI that other programs than Airflow can open."""
    return re.sub(r"^([\w.+-]+://)[^/@]*@", r"\1", uri)
