"""What Airflow knows of one attempt of a task: its state, and what it pushed. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, Field, StrictFloat, StrictInt, StrictStr

# The states in which a task has not ended.
_MOVING = frozenset(
    {"scheduled", "queued", "running", "deferred", "restarting", "up_for_retry", "up_for_reschedule"}
)
# The operators that submit no jobs.
_SUBMITS_NOTHING = frozenset(
    {
        "RunGenAppSensor",
        "RunGenCancelJobOperator",
        "RunGenCollectResultsOperator",
        "RunGenCreateAppOperator",
        "RunGenDeleteAppOperator",
        "RunGenJobSensor",
        "RunGenNoOpOperator",
        "RunGenPlanTableOperator",
        "RunGenScaleAppOperator",
        "RunGenScaleDownOperator",
    }
)

Count = Annotated[StrictInt, Field(ge=0)]
# JSON may hold half a character, which no page and no URL can
PlainText = Annotated[StrictStr, AfterValidator(lambda text: text.encode(errors="replace").decode())]
Ids: TypeAlias = list[PlainText | None]
#: The figures of a bill, or of what jobs used, by name.
Figures: TypeAlias = dict[PlainText, PlainText | StrictInt | StrictFloat | None]
#: The XCom ``rungen_times``: see `xcom_keys`.
Times: TypeAlias = dict[PlainText, StrictInt | StrictFloat]


class PageXCom(BaseModel):
    """The XCom ``rungen_page``: see `xcom_keys`."""

    connection: PlainText = ""
    app: PlainText = ""
    destination: PlainText = ""
    results: PlainText = ""
    key: list[PlainText] = []
    waits: bool = True
    rows: Count = 0
    skipped: Count = 0
    refused: Count = 0
    new_ledger: PlainText = ""
    jobs: Ids | None = None
    price: PlainText = ""
    up: PlainText = ""
    down: PlainText = ""


class FailureXCom(BaseModel):
    """The XCom ``rungen_failure``: see `xcom_keys`."""

    try_number: Count
    error: PlainText
    hint: PlainText = ""
    still_billing: list[PlainText] = []
    inputs: Count | None = None
    unknown: Count = 0
    retry_submits: Count = 0
    clear_submits: Count = 0


class Failure(BaseModel):
    """An entry of the XCom ``failed``."""

    index: Count
    job_id: PlainText | None = None
    error: PlainText = ""


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """
    One attempt of a task.

    :param name: what Airflow calls the task.
    :param token: the token of the task run, which names its log.
    :param dag_conn_id: the connection that it names in its DAG. XComs may name another one.
    :param page: the XCom ``rungen_page``. This and what follows is what the task has pushed.
    :param job_link: the link to a job.
    :param scaled: what it has done to its app: see `ScaleRecord`.
    :param notices: which XComs are missing, and why.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    state: str = ""
    try_number: int = 1
    operator: str = ""
    name: str = ""
    token: str = ""
    dag_conn_id: str = ""
    page: PageXCom = field(default_factory=PageXCom)
    job_id: str = ""
    failed: Sequence[Failure] | None = None
    usage: Figures = field(default_factory=dict)
    times: Times = field(default_factory=dict)
    bill: Figures = field(default_factory=dict)
    job_link: str = ""
    failure: FailureXCom | None = None
    scaled: Mapping[str, Any] = field(default_factory=dict)
    notices: Sequence[str] = ()

    @property
    def is_of_rungen(self) -> bool:
        """Whether it runs anything at RunGen. A class of a user's own may have any name."""
        return bool(self.page.connection or self.failure or "RunGen" in self.operator)

    @property
    def label(self) -> str:
        """The name of the task, with its map index."""
        name = self.name or self.task_id
        return f"{name} [{self.map_index}]" if self.map_index >= 0 else name

    @property
    def is_moving(self) -> bool:
        """Whether the task has not ended."""
        return self.state in _MOVING

    @property
    def is_successful(self) -> bool:
        return self.state == "success"

    @property
    def runs_jobs(self) -> bool:
        """Whether it is about jobs, and not only about an app."""
        return not any(word in self.operator for word in ("App", "Scale", "NoOp"))

    @property
    def submits_nothing(self) -> bool:
        """Whether it is known to run no jobs of its own. A class of a user's may have any name."""
        return self.page.jobs is not None or self.operator in _SUBMITS_NOTHING

    @property
    def log(self) -> str:
        """The folder that has the run log, if the task runs jobs of its own, and has one in storage."""
        page = self.page
        return "" if self.submits_nothing else page.destination or page.results.rpartition("/")[0]

    @property
    def known_job_ids(self) -> Sequence[str | None]:
        """The job of each input, or ``None``, as far as the task has pushed them."""
        return [self.job_id] if self.job_id else self.page.jobs or ()

    def has_pushed(self, job_id: str) -> bool:
        """Return whether a task has pushed a job, or a link to it."""
        linked = unquote(self.job_link.rstrip("/").rpartition("/")[2])
        return job_id == linked or job_id in self.known_job_ids

    @property
    def has_reported(self) -> bool:
        """Whether the task has reported which inputs failed."""
        return self.failed is not None or self.is_successful
