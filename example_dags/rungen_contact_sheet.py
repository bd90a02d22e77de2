"""
## The contact sheet

Lays out the pictures of the catalog on one page, each with its product. A run starts when `rungen_catalogue`
has written its table. Unpause this DAG first: a paused DAG misses the event. It runs no job.
"""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from html import escape
from io import StringIO
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Asset, ObjectStoragePath, get_current_context, task

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; --paper: #f6f3ee; --card: #fff; --ink: #26221d; --faint: #847b70; }}
  @media (prefers-color-scheme: dark) {{
    :root {{ --paper: #191715; --card: #24211e; --ink: #eee8df; --faint: #9a9085; }}
  }}
  body {{ margin: 0; padding: 3rem clamp(1rem, 4vw, 4rem); background: var(--paper); color: var(--ink);
    font: 1rem/1.45 Georgia, "DejaVu Serif", serif; }}
  h1 {{ margin: 0; font-size: 2.2rem; font-weight: normal; letter-spacing: -0.02em; }}
  header p {{ margin: 0.3rem 0 2.5rem; color: var(--faint); }}
  main {{ columns: 17rem; column-gap: 1.6rem; }}
  figure {{ margin: 0 0 1.6rem; break-inside: avoid; background: var(--card); border-radius: 0.5rem;
    overflow: hidden; box-shadow: 0 1px 2px #0002, 0 6px 18px #0001; }}
  img {{ display: block; width: 100%; height: auto; }}
  figcaption {{ padding: 0.9rem 1.1rem 1rem; }}
  small {{ display: block; margin-top: 0.5rem; color: var(--faint);
    font: 0.7rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }}
</style>
<header><h1>{title}</h1><p>{summary}</p></header>
<main>
{figures}
</main>
</html>
"""
FIGURE = """<figure><a href="{source}"><img src="{source}" alt="{title}"></a>
<figcaption>{title}<small>{sku} · {age} · job {job_id}</small></figcaption></figure>"""


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
        context: Any = get_current_context()
        # the second name is that of Airflow 2
        events = context.get("triggering_asset_events") or context.get("triggering_dataset_events") or {}
        # several runs may have replaced the same table
        tables = {event.extra["results"]: event.extra for of_one in events.values() for event in of_one}
        return [contact_sheet(extra) for extra in tables.values()]

    lay_out()


def contact_sheet(extra: dict[str, Any]) -> str:
    """Write the page of one event, and return its path."""
    folder = extra["results"].rpartition("/")[0]
    # read at once: with Airflow 2, an open file is not iterable
    table = StringIO(ObjectStoragePath(extra["results"]).read_text())
    rows = [row for row in csv.DictReader(table) if row["output"]]
    figures = [
        FIGURE.format(
            # relative to the page
            source=escape(row["output"].removeprefix(f"{folder}/")),
            title=escape(f"{row['title']}, {row['color']}"),
            sku=escape(row["sku"]),
            age="of an earlier night" if row["reused"] == "true" else "new",
            job_id=escape(row["job_id"]),
        )
        for row in rows
    ]
    new = sum(row["reused"] == "false" for row in rows)
    missing = f", {extra['failed_count']} failed" if extra["failed_count"] else ""
    page = ObjectStoragePath(f"{folder}/contact_sheet.html")
    page.write_text(
        PAGE.format(
            title="The catalog in pictures",
            summary=escape(f"{len(figures)} pictures by {extra['app_id']}, {new} of them new{missing}"),
            figures="\n".join(figures),
        )
    )
    return str(page)
