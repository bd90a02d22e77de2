"""Paint one picture: run a job on the connection's app, wait for it, and collect its result."""

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_rungen.operators import RunGenCollectResultsOperator, RunGenRunJobOperator
from airflow_provider_rungen.sensors import RunGenJobSensor

with DAG("rungen_first_job", schedule=None, tags=["rungen"]) as dag:
    paint = RunGenRunJobOperator(
        task_id="paint",
        input={"prompt": "a lighthouse at dawn, oil on canvas", "width": 512, "height": 512},
    )
    wait = RunGenJobSensor(task_id="wait", job_id=paint.output, poke_interval=2)
    collect = RunGenCollectResultsOperator(task_id="collect", job_id=paint.output)
    wait >> collect
