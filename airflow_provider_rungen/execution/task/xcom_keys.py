"""
The keys of the XComs that this package reads itself. The plugin checks what it reads in ``plugins/xcoms.py``.

==================  =========================  ======================================================
key                 pushed by                  read by
==================  =========================  ======================================================
``rungen_page``     each task                  pages, tasks with its output (``operators/base.py``),
                                               the check of shared tables (``written_tables.py``)
``rungen_label``    a job with a ``label``     tasks with its output (``operators/base.py``)
``rungen_failure``  an attempt that fails      pages
``rungen_log``      an attempt that defers     itself (``execution/jobs/deferral.py``)
``usage``           a task that runs jobs      pages, the bill (``execution/apps/block.py``)
``rungen_times``    the same, without a run    pages
                    log that pages can read
``scaled``          a task that scales an app  pages, its teardown (``execution/apps/block.py``)
``bill``            the teardown               pages
==================  =========================  ======================================================

The XCom ``rungen_page`` says what a task is about. Tasks that are given its
output use it, too.

================  ==================================================================
key               value
================  ==================================================================
``connection``    the id of the Airflow connection
``app``           the app
``destination``   the folder of the stored outputs, if there is one
``results``       the results table, if there is one
``index``         the map index, if the task is mapped
``key``           the columns that identify a row of it
``waits``         false for a task that does not wait for its jobs
``rows``          how many inputs or rows there are, if known
``skipped``       how many of them get no job
``refused``       how many of them do not fit
``reused``        how many of them an earlier run paid for
``price``         what a worker costs, if that is declared
``up``            the task that scaled the app up
``down``          the task that scales it down, if it is a ``scaled_app``
``new_ledger``    the ledger, if it had to be created
``jobs``          the first jobs that the task waits for, if others submitted them; ``null`` without a job
================  ==================================================================

The XCom ``rungen_failure``: why the last attempt failed. Each attempt passes it on to the next (Airflow 3.3).

=================  ================================================================
key                value
=================  ================================================================
``try_number``     which attempt it was
``error``          what failed, and why
``hint``           what to do
``still_billing``  the first of the jobs that may still run
``unknown``        how many inputs may have a job whose id is not known
``inputs``         how many inputs need a job; 0 if the attempt did not get that far
``retry_submits``  how many of them a retry submits
``clear_submits``  how many of them a clear submits
=================  ================================================================

The last five are missing for a task that submits no jobs.
"""

from __future__ import annotations

PAGE_KEY = "rungen_page"
FAILURE_KEY = "rungen_failure"
LABEL_KEY = "rungen_label"  #: The label of a job, by its id.
LOG_KEY = "rungen_log"
USAGE_KEY = "usage"
TIMES_KEY = "rungen_times"  #: How long jobs ran, by their ids: of no more than `MAX_PAGE_JOBS`.
BILL_KEY = "bill"
SCALED_KEY = "scaled"  #: Of a `ScaleRecord`, also in Airflow's task state store.
# Of jobs that others submitted: XCom is in Airflow's database.
MAX_PAGE_JOBS = 10_000
