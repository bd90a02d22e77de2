"""
The XCom ``rungen_page``: what a task is about. Its page shows it, and tasks that are given its output use it.

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
``new_ledger``   the ledger, if it had to be created
``jobs``         the first jobs that the task waits for, if others submitted them; ``null`` without a job
===============  ==================================================================
"""

from __future__ import annotations

PAGE_KEY = "rungen_page"
# Of jobs that others submitted: XCom is in Airflow's database.
MAX_PAGE_JOBS = 10_000
