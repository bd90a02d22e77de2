"""DAGs to try, which `rungen-demo` and the tests run."""
