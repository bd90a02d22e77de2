"""Change the tasks of a run in the database as if workers had deferred them.

It needs the settings of the Airflow to change. Its input is the run and the ids of the jobs, by map index.
Workers would need hours to defer thousands of tasks, and that is not measured.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from typing import Any

from airflow._shared.timezones import timezone
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select

from airflow_provider_rungen.triggers import RunGenJobTrigger


def main(run: dict[str, Any], ids: list[str], poll_interval: float) -> None:
    now = timezone.utcnow()
    with create_session() as session:
        chosen = (TaskInstance.dag_id == run["dag_id"], TaskInstance.run_id == run["run_id"])
        for ti in session.scalars(select(TaskInstance).where(*chosen)):
            trigger = Trigger.from_object(
                RunGenJobTrigger(
                    rungen_conn_id="rungen_default",
                    app_id="flux-schnell",
                    job_id=[ids[ti.map_index]],
                    poll_interval=poll_interval,
                    deadline=time.time() + 86400,
                    deferred_at=time.time(),
                    cancel_on_kill=True,
                )
            )
            session.add(trigger)
            session.flush()
            ti.try_number, ti.start_date, ti.state = 1, now, TaskInstanceState.DEFERRED
            ti.trigger_id, ti.next_method, ti.next_kwargs = trigger.id, "execute_complete", {}
            ti.trigger_timeout = now + timedelta(days=1)


if __name__ == "__main__":
    main(**json.load(sys.stdin))
