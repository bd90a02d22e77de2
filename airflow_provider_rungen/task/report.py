"""Report what a task did and what its jobs used: to Airflow's metrics, asset events and OpenLineage."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.texts import format_count, format_duration

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.generated.base import OutputDataset, OutputDatasetFacet, RunFacet

log = logging.getLogger(__name__)

# An event lists no more jobs, and no more files.
MAX_LISTED_JOBS = 100
MAX_LISTED_FILES = 100


@dataclass
class Usage:
    """
    What is known of the jobs that a task ran or collected.

    :param ends: whether each job completed; ``None`` while its end is not known.
    :param times: how many seconds each job ran, as far as that is known.
    :param unrun: those that were canceled before they ran.
    """

    ends: dict[str, bool | None] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    unrun: set[str] = field(default_factory=set)

    def note_submitted(self, job_ids: Iterable[str]) -> None:
        """Note jobs, before anything else is known of them."""
        for job_id in job_ids:
            self.ends.setdefault(job_id, None)

    def note(self, job: Job) -> None:
        """Note a job that has ended."""
        self.ends[job.id] = job.is_usable
        if job.status is JobStatus.CANCELED:
            self.note_canceled(job.id, job.execution_time)
        elif job.execution_time is not None:
            self.times[job.id] = job.execution_time

    def note_canceled(self, job_id: str, seconds: float | None) -> None:
        """Note that a job was canceled, and how long it ran, if that is known."""
        self.ends[job_id] = False
        if seconds is not None:
            self.times[job_id] = seconds
        if seconds == 0:
            self.unrun.add(job_id)

    def to_json(self, bought: int = 0) -> dict[str, Any]:
        """
        Return the value to push. Nothing is reused: whoever submitted the jobs knows that.

        :param bought: how many of the jobs this attempt has bought.
        """
        seconds = sum(self.times.values()) if self.times or not self.ends else None
        ended = list(self.ends.values())
        return {
            "jobs": len(ended),
            "bought": bought,
            "completed": ended.count(True),
            "failed": ended.count(False),
            "ran": sum(time > 0 for time in self.times.values()),
            "canceled_before_run": len(self.unrun),
            "reused": 0,
            "execution_seconds": None if seconds is None else round(seconds, 3),
        }


def report_usage(used: Mapping[str, Any], *, is_said: bool = True) -> None:
    """Log what `Usage.to_json` returned, and count it in Airflow's metrics."""
    if is_said and (used["jobs"] or used["reused"]):
        log.info("Used %s", format_usage(used))
    for name, value in used.items():
        metrics.incr(f"usage.{name}", round(value or 0))


def format_usage(used: Mapping[str, Any]) -> str:
    """Return what `Usage.to_json` returned as a line for people."""
    unfinished = used["jobs"] - used["completed"] - used["failed"]
    counts = {"completed": used["completed"], "failed": used["failed"], "unfinished": unfinished}
    ends = format_unrun(used) or ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    parts = [format_count(used["jobs"], "job") + (f" ({ends})" if ends else "")]
    parts += [f"{used['bought']} bought by this attempt"] * (used["bought"] != used["jobs"])
    parts += [f"{used['reused']} reused"] * bool(used["reused"])
    if seconds := used["execution_seconds"]:
        parts.append(f"{format_duration(seconds)} of execution")
    return ", ".join(parts)


def format_unrun(used: Mapping[str, Any]) -> str:
    """Return how many jobs were canceled before they ran, and how many were not; nothing if none was."""
    if not (canceled := used.get("canceled_before_run")):
        return ""
    return f"{used.get('jobs', 0)} submitted, {used.get('ran', 0)} ran, {canceled} canceled before they ran"


# --- asset events and lineage ---


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """
    What a task has done.

    :param app_id: the app.
    :param job_ids: the jobs that it ran or collected.
    :param failed_count: how many inputs or jobs failed, as ``max_failed`` allows.
    :param destination: the folder where files were stored.
    :param files: the files that were stored there, each with ``uri`` and ``size``.
    :param file_count: how many files were stored, when ``files`` does not list them.
    :param results: the URI of the results table.
    :param sources: the URIs of the tables that were read.
    :param usage: what its jobs used.
    :param bill: what the workers of the app cost, if the task makes their bill.
    """

    app_id: str
    job_ids: Sequence[str]
    failed_count: int = 0
    destination: str | None = None
    files: Sequence[Mapping[str, Any]] = ()
    file_count: int | None = None
    results: str | None = None
    sources: Sequence[str] = ()
    usage: Mapping[str, Any] | None = None
    bill: Mapping[str, Any] | None = None

    def extra(self) -> dict[str, Any]:
        """Return the extra of an asset event. It is always small, and holds no signed URL."""
        if self.bill is not None:
            return {"app_id": self.app_id, "bill": dict(self.bill)}
        extra = {
            "app_id": self.app_id,
            "job_ids": list(self.job_ids[:MAX_LISTED_JOBS]),
            "job_count": len(self.job_ids),
            "failed_count": self.failed_count,
        }
        if self.destination is not None:
            file_count = len(self.files) if self.file_count is None else self.file_count
            extra |= {"destination": self.destination, "file_count": file_count}
        if self.results is not None:
            extra["results"] = self.results
        if self.usage is not None:
            extra["usage"] = dict(self.usage)
        return extra


def lineage_of(outcome: TaskOutcome | None, base_url: str) -> OperatorLineage[Any, Any] | None:
    """
    Return the lineage of a task: the app and the source tables are its inputs, the stored files its outputs.

    If there are more than `MAX_LISTED_FILES` files, their folder is the output. A results table is the only
    output, because it lists the files. What was used and the bill are facets of the run.

    :param outcome: ``None`` if nothing is known.
    :param base_url: the address of the API.
    :return: ``None`` if the OpenLineage provider is not installed.
    """
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
        from openlineage.client.generated.base import Dataset
    except ImportError:
        return None
    if outcome is None:
        return OperatorLineage()
    files: Sequence[Mapping[str, Any]] = outcome.files
    if outcome.results is not None:
        files = [{"uri": outcome.results}]
    elif len(files) > MAX_LISTED_FILES and outcome.destination is not None:
        files = [{"uri": outcome.destination, "size": sum(file["size"] for file in files)}]
    return OperatorLineage(
        inputs=[
            Dataset(namespace=base_url, name=f"app/{outcome.app_id}"),
            *(Dataset(*_dataset_name(uri)) for uri in outcome.sources[:MAX_LISTED_FILES]),
        ],
        outputs=[_output_dataset(file) for file in files],
        run_facets={
            f"rungen_{name}": _run_facet(name.title(), fields)
            for name, fields in (("usage", outcome.usage), ("bill", outcome.bill))
            if fields is not None
        },
    )


def _run_facet(name: str, fields: Mapping[str, Any]) -> RunFacet:
    """Return a facet of a run with these fields."""
    import attr
    from openlineage.client.generated.base import RunFacet

    kind: Any = attr.make_class(f"RunGen{name}RunFacet", list(fields), bases=(RunFacet,), kw_only=True)
    facet: RunFacet = kind(**fields)
    return facet


def _output_dataset(file: Mapping[str, Any]) -> OutputDataset:
    """Return the dataset of a file or folder."""
    from openlineage.client.generated.base import OutputDataset
    from openlineage.client.generated.output_statistics_output_dataset import (
        OutputStatisticsOutputDatasetFacet,
    )

    namespace, name = _dataset_name(file["uri"])
    facets: dict[str, OutputDatasetFacet] = {}
    if "size" in file:
        facets["outputStatistics"] = OutputStatisticsOutputDatasetFacet(size=file["size"])
    return OutputDataset(namespace=namespace, name=name, outputFacets=facets)


def _dataset_name(uri: str) -> tuple[str, str]:
    """Return the namespace and the name of a dataset: OpenLineage's are the bucket and the key."""
    parts = urlsplit(uri)
    namespace, name = "file", parts.path
    if parts.scheme not in ("", "file"):
        # the Airflow connection precedes the @
        namespace, name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.strip("/")
    return namespace, name.rstrip("/") or "/"
