"""RunGen.AI without Airflow: models, endpoints, waiting and transport."""
