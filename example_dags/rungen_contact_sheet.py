"""
## The contact sheet

Lays out the pictures of the catalog on one page, each with its product. A run starts when `rungen_catalogue`
has written its table. Unpause this DAG first: a paused DAG misses the event. It runs no job.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from airflow.sdk import DAG, Asset, ObjectStoragePath, get_current_context, task

from airflow_provider_rungen.pages.models import ContactSheet, JobView, OutputFile, Progress
from airflow_provider_rungen.pages.output_kinds import guess
from airflow_provider_rungen.pages.render import render
from airflow_provider_rungen.results import read_results

with DAG(
    "rungen_contact_sheet",
    description="Lay out the pictures of the catalog on one page, each with its product",
    schedule=[Asset("rungen_catalogue_pictures")],
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:

    @task
    def lay_out() -> list[str]:
        """Write a page beside each new table of pictures, and return the paths of the pages."""
        events: Any = get_current_context()["triggering_asset_events"] or {}
        # several runs may have replaced the same table
        tables = {event.extra["results"]: event.extra for of_one in events.values() for event in of_one}
        return [contact_sheet(extra) for extra in tables.values()]

    lay_out()


def contact_sheet(extra: dict[str, Any]) -> str:
    """Write the page of one event, and return its path."""
    folder = extra["results"].rpartition("/")[0]
    jobs = [product(row, folder) for row in read_results(extra).rows(status="completed")]
    reused = sum(job.reused for job in jobs)
    sheet = ContactSheet(
        title="The catalog in pictures",
        facts=[("painted by", extra["app_id"])],
        progress=Progress(
            total=len(jobs) + extra["failed_count"],
            completed=len(jobs),
            failed=extra["failed_count"],
            reused=reused,
        ),
        jobs=jobs,
    )
    page = ObjectStoragePath(f"{folder}/contact_sheet.html")
    page.write_text(render(sheet))
    return str(page)


def product(row: dict[str, Any], folder: str) -> JobView:
    """Return what the page shows of a row."""
    name = row["output"].rpartition("/")[2]
    picture = OutputFile(
        name=name,
        # relative to the page
        href=quote(row["output"].removeprefix(f"{folder}/")),
        kind=guess(name),
    )
    return JobView(
        index=row["index"],
        status=row["status"],
        key=f"{row['title']}, {row['color']}",
        facts=[("SKU", row["sku"])],
        outputs=[picture],
        reused=row["reused"],
    )
