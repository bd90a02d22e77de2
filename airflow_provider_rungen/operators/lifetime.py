"""``scaled_app``: an app has workers while the tasks of a ``with`` block need them, and no longer."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_rungen._airflow import (
    HAS_RETRY_POLICY,
    TEARDOWNS_WAIT_FOR_ALL,
    BaseOperator,
    TriggerRule,
)
from airflow_provider_rungen.checks import check_names, parameter_names, set_parameters
from airflow_provider_rungen.operators.app import RunGenScaleAppOperator
from airflow_provider_rungen.operators.base import RunGenBaseOperator, class_of

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context, XComArg
    from airflow_provider_rungen.apps.scaling import ScaleDownRun
    from airflow_provider_rungen.parameters import Duration, OperatorArguments, ScaleUpArguments

# The DAG's default_args must not decide whether, when and how often an app is scaled down.
_OWN_POLICY: dict[str, Any] = {
    "retries": 10,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": False,
    **({"retry_policy": None} if HAS_RETRY_POLICY else {}),
    "pool_slots": 1,
    "execution_timeout": None,
    "depends_on_past": False,
    "wait_for_downstream": False,
    "max_active_tis_per_dag": None,
    "max_active_tis_per_dagrun": None,
    "priority_weight": 1000,
}
# What the teardown takes from the setup, wherever that has it from.
_OF_SETUP = ("app_id", "rungen_conn_id", "queue", "executor", "executor_config", "run_as_user")
# Airflow ends a task without a worker only if it has none of these.
_NO_WORKER: dict[str, Any] = {
    "on_execute_callback": None,
    "on_success_callback": None,
    "inlets": None,
    "outlets": None,
    "depends_on_past": False,
    "wait_for_downstream": False,
}

_UP_DOC = """\
**Billing starts.** Gives the app its workers, and waits until it is `RUNNING`. The tasks of the block
wait for it. `{name}_down` scales the app down, whatever happens.
"""
_DOWN_DOC = """\
**Billing ends.** Scales the app to zero when the tasks of the block have ended, in whatever state. The log
ends with the bill. If this task fails, the app may still be billed. The log says so, and the run fails.
"""
_END_DOC = """\
Succeeds when `{name}_up` and `{name}_down` did. Otherwise it fails the run: the app may still be billed. The
scheduler ends this task by itself, without a worker. That is why **its log is empty**.
"""


class RunGenScaleDownOperator(RunGenBaseOperator):
    """
    Set the app of a block to zero workers, see that it says so, and push what it cost: the XCom ``usage``.

    It does nothing if its setup never began, and leaves the app to another running run of the DAG that uses
    it. Outside of a block, `RunGenScaleAppOperator` with 0 workers stops an app.

    :param app_id: the app (templated).
    :param scale_up_task_id: the setup.
    :param rungen_conn_id: the Airflow connection (templated).
    :param poll_interval: seconds between two tries.
    """

    def __init__(
        self,
        *,
        app_id: str | XComArg | None = None,
        scale_up_task_id: str,
        rungen_conn_id: str,
        poll_interval: Duration,
        **kwargs: Unpack[OperatorArguments],
    ) -> None:
        super().__init__(**kwargs)
        set_parameters(self, locals())

    def _make_run(self, context: Context) -> ScaleDownRun:
        from airflow_provider_rungen.apps.scaling import ScaleDownRun

        return ScaleDownRun(self, context)


class RunGenNoOpOperator(BaseOperator):
    """Do nothing: the scheduler lets it succeed by itself, without a worker."""

    inherits_from_empty_operator = True
    ui_color = "#f4f2ff"

    def execute(self, context: Context) -> None: ...


class scaled_app:  # noqa: N801 - used as `with scaled_app(…):`
    """
    Scale an app up for the tasks of a ``with`` block, and down to zero **whatever happens**.

    Before the tasks of the block comes a setup, ``{name}_up`` (*billing starts*), and after them its
    teardown, ``{name}_down`` (*billing ends*). ``{name}_end`` fails the run if one of the two failed. The app
    is scaled up after the tasks that the first tasks of the block wait for.

    ``with scaled_app(…) as app:`` has the two operators as ``app.up`` and ``app.down``.

    :param app_id: the app. When left out, that of the DAG's ``default_args``, then of the connection
        (templated, or a task's ``.output``).
    :param active_workers: the number of workers to have (templated).
    :param max_workers: the most workers to have, whatever ``active_workers`` says. No limit when ``None``.
    :param only_if: how much there is to run: a number of rows, or a boolean. With 0, ``False`` or ``None``
        the app stays down, and the tasks of the block run anyway (templated, or a task's ``.output``).
    :param name: the prefix of its task ids. Another block of the DAG needs another one.
    :param rungen_conn_id: the Airflow connection. When left out, that of the ``default_args``, then
        ``rungen_default`` (templated).
    :param poll_interval: seconds between two polls.
    :param pool: the Airflow pool of the two tasks.
    :param options: parameters of `RunGenScaleAppOperator` for scaling up: ``timeout``, ``deferrable``,
        ``retries``, …. Those that say where a task runs count for both: ``queue``, ``executor``, ….
    :raises TypeError: one of ``options`` is unknown.
    :raises ValueError: the DAG has a ``dagrun_timeout``, at which Airflow skips teardowns, too; or a task of
        the block has ``depends_on_past``, and may wait forever.
    """

    def __init__(
        self,
        app_id: str | XComArg | None = None,
        active_workers: int | str | XComArg = 1,
        *,
        max_workers: int | None = None,
        only_if: bool | int | str | XComArg | None = True,
        name: str = "app",
        rungen_conn_id: str = "",
        poll_interval: Duration = 5,
        pool: str | None = None,
        **options: Unpack[ScaleUpArguments],
    ) -> None:
        known = parameter_names(scaled_app) | parameter_names(RunGenScaleAppOperator)
        check_names(options, known, "scaled_app")
        self._name = name
        # what is left out may be in the `default_args`, as for the tasks of the block
        named = {"app_id": app_id, "rungen_conn_id": rungen_conn_id}
        given = {name: value for name, value in named.items() if value not in (None, "")}
        both: dict[str, Any] = {"poll_interval": poll_interval, "pool": pool}
        workers = {"active_workers": active_workers, "max_workers": max_workers, "only_if": only_if}
        self._up: dict[str, Any] = {**given, **both, **workers, **options}
        self._down = {**_OWN_POLICY, **both, "default_args": options.get("default_args")}

    def __enter__(self) -> Self:
        name = self._name
        texts = {"task_display_name": f"{name} billing starts", "doc_md": _UP_DOC.format(name=name)}
        #: The setup that scales up.
        self.up = RunGenScaleAppOperator(task_id=f"{name}_up", **(texts | self._up))
        self._dag: Any = self.up.dag
        if self._dag.dagrun_timeout is not None:
            raise ValueError(
                f"{self._dag.dag_id}: with dagrun_timeout, Airflow skips what is not finished, scaled_app's "
                "scaling down, too, and the app is billed on. Limit the tasks instead (execution_timeout)"
            )
        texts = {"task_display_name": f"{name} billing ends", "doc_md": _DOWN_DOC}
        #: The teardown that scales down.
        self.down = RunGenScaleDownOperator(
            task_id=f"{name}_down",
            scale_up_task_id=self.up.task_id,
            **{name: getattr(self.up, name) for name in _OF_SETUP},
            **(texts | self._down),
        )
        self.down.as_teardown(setups=[self.up])
        # also when the setup has failed: it may have scaled up before
        self.down.trigger_rule = TriggerRule.ALL_DONE
        # If `down` failed the run by itself, Airflow would ignore the tasks before it, and a run whose tasks
        # failed would succeed. `end` is a teardown, so that it is not skipped in a run marked failed.
        end = RunGenNoOpOperator(
            task_id=f"{name}_end",
            task_display_name=f"{name} billing checked",
            doc_md=_END_DOC.format(name=name),
            **_NO_WORKER,
        )
        end.as_teardown(on_failure_fail_dagrun=True)
        end.trigger_rule = TriggerRule.NONE_FAILED
        end.set_upstream([self.up, self.down])
        self._before = set(self._dag.task_dict)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        tasks = self._dag.task_dict
        inside = {task_id: task for task_id, task in tasks.items() if task_id not in self._before}
        # a branch would skip a teardown right after it
        waited_for = {task_id: task for task_id, task in inside.items() if not _may_skip(task)}
        for task in inside.values():
            if task.depends_on_past or task.wait_for_downstream:
                raise ValueError(
                    f"{self._dag.dag_id}: with depends_on_past, {task.task_id} waits forever after a run in "
                    "which it failed, and the app is billed meanwhile. Set it only for tasks before the block"
                )
            if not task.upstream_task_ids & inside.keys():
                self._bring_up_before(task, inside.keys())
        for task in waited_for.values():
            # before 3.3, Airflow only lets a teardown wait for the tasks right before it
            if not (task.downstream_task_ids & waited_for.keys() and TEARDOWNS_WAIT_FOR_ALL):
                self.down.set_upstream(task)

    def _bring_up_before(self, task: Any, inside: Any) -> None:
        """Put a first task of the block behind the app, and the app behind what that task waits for."""
        for before in task.upstream_list:
            # what waits for a task of the block, or for its setup, cannot come before the block
            waits_for = before.get_flat_relative_ids(upstream=True)
            if before is not self.up and not waits_for & {self.up.task_id, *inside}:
                self.up.set_upstream(before)
        self.up.set_downstream(task)


def _may_skip(task: Any) -> bool:
    """Return whether a task may skip those right after it, teardowns, too: a branch does."""
    # Airflow has several classes of that name; a sensor that is no branch skips itself only
    bases = {base.__name__ for base in class_of(task).__mro__}
    return "BranchMixIn" in bases or ("SkipMixin" in bases and "BaseSensorOperator" not in bases)
