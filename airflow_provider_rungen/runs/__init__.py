"""What one task run is: its plan, its table of jobs, and the log that keeps both. No Airflow, no clock."""
