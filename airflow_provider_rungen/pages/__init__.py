"""The page of a task and the overview of apps in Airflow's UI: a static page, and an API that only reads."""
