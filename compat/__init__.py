"""``make test-compat``: the tests on each Airflow and Python that the package says it works with."""
