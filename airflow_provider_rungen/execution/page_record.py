"""
The XCom ``rungen_page``: what the page of a task has to know early, and finds in no other XCom.

===============  ==================================================================
key              value
===============  ==================================================================
``connection``   the id of the Airflow connection
``app``          the app
``destination``  the folder of the stored outputs, if there is one
``results``      the results table, if there is one
``key``          the columns that identify a row of it
``waits``        false for a task that does not wait for its jobs
``rows``         how many inputs or rows there are, if known
``skipped``      how many of them get no job
``refused``      how many of them do not fit
``reused``       how many of them an earlier run paid for
``jobs``         the first jobs that the task waits for, if others submitted them
===============  ==================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from airflow_provider_rungen.links.pages import are_pages_enabled

log = logging.getLogger(__name__)

PAGE_KEY = "rungen_page"
# Of jobs that others submitted: XCom is in Airflow's database.
MAX_PAGE_JOBS = 1000


def push_page(ti: Any, details: Mapping[str, Any]) -> None:
    """Push it, where there are pages."""
    if not are_pages_enabled():
        return
    value = {name: each for name, each in details.items() if each is not None}
    try:
        ti.xcom_push(key=PAGE_KEY, value=value)
    except Exception as error:  # a task is not to fail for its page
        log.warning("Could not save what the page of the task shows: %s", type(error).__name__)
