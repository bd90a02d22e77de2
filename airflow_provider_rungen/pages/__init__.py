"""HTML pages about tasks, jobs and apps: what they show, and how they look. No Airflow, no I/O."""
