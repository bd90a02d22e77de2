"""Report what a task has done, to Airflow's asset events and to OpenLineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.generated.base import OutputDataset

# An event lists no more jobs, and no more files.
MAX_LISTED_JOBS = 100
MAX_LISTED_FILES = 100


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """
    What a task has done.

    :param app_id: the app.
    :param job_ids: the jobs that it ran or collected.
    :param failed_count: how many inputs or jobs failed, as ``max_failed`` allows.
    :param destination: the folder where files were stored.
    :param manifests: of each job, the ``outputs`` that were stored there, with ``uri`` and ``size``.
    """

    app_id: str
    job_ids: Sequence[str]
    failed_count: int = 0
    destination: str | None = None
    manifests: Sequence[Mapping[str, Any]] = ()

    @property
    def files(self) -> list[Mapping[str, Any]]:
        """The files that were stored."""
        return [file for manifest in self.manifests for file in manifest["outputs"]]

    def extra(self) -> dict[str, Any]:
        """Return the extra of an asset event. It is always small, and holds no signed URL."""
        extra = {
            "app_id": self.app_id,
            "job_ids": list(self.job_ids[:MAX_LISTED_JOBS]),
            "job_count": len(self.job_ids),
            "failed_count": self.failed_count,
        }
        if self.destination is not None:
            extra |= {"destination": self.destination, "file_count": len(self.files)}
        return extra


def lineage_of(outcome: TaskOutcome, base_url: str) -> OperatorLineage[Any, Any] | None:
    """
    Return the lineage of a task: the app is its input, the stored files are its outputs.

    If there are more than `MAX_LISTED_FILES` files, their folder is the output.

    :param base_url: the address of the API.
    :return: ``None`` if the OpenLineage provider is not installed.
    """
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
        from openlineage.client.generated.base import Dataset
    except ImportError:
        return None
    files = outcome.files
    if len(files) > MAX_LISTED_FILES and outcome.destination is not None:
        files = [{"uri": outcome.destination, "size": sum(file["size"] for file in files)}]
    return OperatorLineage(
        inputs=[Dataset(namespace=base_url, name=f"app/{outcome.app_id}")],
        outputs=[_output_dataset(file) for file in files],
    )


def _output_dataset(file: Mapping[str, Any]) -> OutputDataset:
    """Return the dataset of a file or folder. OpenLineage's namespace is the bucket, its name the key."""
    from openlineage.client.generated.base import OutputDataset
    from openlineage.client.generated.output_statistics_output_dataset import (
        OutputStatisticsOutputDatasetFacet,
    )

    parts = urlsplit(file["uri"])
    namespace, name = "file", parts.path
    if parts.scheme not in ("", "file"):
        # the Airflow connection precedes the @
        namespace, name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.strip("/")
    return OutputDataset(
        namespace=namespace,
        name=name.rstrip("/") or "/",
        outputFacets={"outputStatistics": OutputStatisticsOutputDatasetFacet(size=file["size"])},
    )
