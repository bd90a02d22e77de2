"""What a task has done, as Airflow's asset events and OpenLineage are told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.generated.base import OutputDataset

# Of more jobs or files, an event does not name each.
MOST_JOBS = 100
MOST_FILES = 100


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """
    What a task has done.

    :param app_id: the app.
    :param job_ids: its jobs that were run or collected.
    :param failed_count: how many inputs failed, and were allowed to.
    :param destination: the folder where files were stored.
    :param manifests: of each job the ``outputs`` that were stored there, with ``uri`` and ``size``.
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
        """Give the extra of an asset event: always small, and without a URL that is signed."""
        extra = {
            "app_id": self.app_id,
            "job_ids": list(self.job_ids[:MOST_JOBS]),
            "job_count": len(self.job_ids),
            "failed_count": self.failed_count,
        }
        if self.destination is not None:
            extra |= {"destination": self.destination, "file_count": len(self.files)}
        return extra


def lineage_of(done: TaskOutcome, base_url: str) -> OperatorLineage[Any, Any] | None:
    """
    Give OpenLineage's words for it: the app was read, the files were written.

    Of more than `MOST_FILES` files, the folder they are in stands for them.

    :param base_url: the address of the API.
    :return: nothing, where OpenLineage's provider is not installed.
    """
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
        from openlineage.client.generated.base import Dataset
    except ImportError:
        return None
    files = done.files
    if len(files) > MOST_FILES and done.destination is not None:
        files = [{"uri": done.destination, "size": sum(file["size"] for file in files)}]
    return OperatorLineage(
        inputs=[Dataset(namespace=base_url, name=f"app/{done.app_id}")],
        outputs=[_stored(file) for file in files],
    )


def _stored(file: Mapping[str, Any]) -> OutputDataset:
    """Name a file or folder as OpenLineage does: the bucket is its namespace, the key its name."""
    from openlineage.client.generated.base import OutputDataset
    from openlineage.client.generated.output_statistics_output_dataset import (
        OutputStatisticsOutputDatasetFacet,
    )

    parts = urlsplit(file["uri"])
    namespace, name = "file", parts.path
    if parts.scheme not in ("", "file"):
        # what stands before an @ is the Airflow connection
        namespace, name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.strip("/")
    return OutputDataset(
        namespace=namespace,
        name=name.rstrip("/") or "/",
        outputFacets={"outputStatistics": OutputStatisticsOutputDatasetFacet(size=file["size"])},
    )
