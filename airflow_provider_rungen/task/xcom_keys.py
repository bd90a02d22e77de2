"""
The keys of the XComs that this package reads itself. The pages check what they read in
``pages/airflow_db.py``.

==================  =========================  ======================================================
key                 pushed by                  read by
==================  =========================  ======================================================
``rungen_page``     each task                  pages, tasks with its output (``operators/base.py``)
``rungen_label``    a job with a ``label``     tasks with its output (``operators/base.py``)
``rungen_failure``  an attempt that fails      pages
``rungen_job``      a job, before Airflow 3.3  itself (``work/kept_job.py``), also the key in
                                               Airflow's task state store
``usage``           a task that runs jobs,     pages
                    the teardown of an app
``scaled``          a task that scales up      its teardown (``apps/scaling.py``)
==================  =========================  ======================================================

The XCom ``rungen_page`` says what a task is about.

================  ==================================================================
key               value
================  ==================================================================
``connection``    the id of the Airflow connection
``app``           the app
``destination``   the folder of the stored outputs, if there is one
``results``       the results table, if there is one
``view``          the view of the attempt, below the destination, if there is one
``key``           the columns that identify a row of it
``rows``          how many rows there are, if known
``price``         what a worker costs, if that is declared
``jobs``          the first jobs that the task waits for, if others submitted them
================  ==================================================================

The XCom ``rungen_failure`` says why the last attempt failed. Each attempt passes it on to the next (Airflow
3.3).

=================  ================================================================
key                value
=================  ================================================================
``try_number``     which attempt it was
``error``          what failed, and why
``hint``           what to do
``still_billing``  the first of the jobs that may still run
=================  ================================================================
"""

from __future__ import annotations

PAGE_KEY = "rungen_page"
FAILURE_KEY = "rungen_failure"
LABEL_KEY = "rungen_label"  #: The label of a job, by its id.
JOB_KEY = "rungen_job"  #: Of a `KeptJob`, also in Airflow's task state store.
USAGE_KEY = "usage"
PLAN_KEY = "plan"
SCALED_KEY = "scaled"  #: The app, its workers and when it was scaled up; also in the task state store.
# Of jobs that others submitted: XCom is in Airflow's database.
MAX_PAGE_JOBS = 10_000
