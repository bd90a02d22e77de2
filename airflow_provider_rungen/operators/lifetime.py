"""``scaled_app``: an app has workers while the tasks of a ``with`` block need them, and no longer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

from airflow_provider_rungen._airflow import (
    HAS_RETRY_POLICY,
    TEARDOWNS_WAIT_FOR_ALL,
    BaseOperator,
    DuplicateTaskIdFound,
    TaskGroup,
    TriggerRule,
    XComArg,
)
from airflow_provider_rungen.checks import check_names, parameter_names
from airflow_provider_rungen.operators.app import RunGenScaleAppOperator, RunGenScaleDownOperator
from airflow_provider_rungen.operators.base import class_of, is_job_consumer, is_of_provider, job_sources_of

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Unpack

    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.parameters import Duration, ScaleUpArguments

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

_CHOSEN_DOC = """\
The branch before it skips this task, and not `{down}`: that has to run.
"""


class RunGenNoOpOperator(BaseOperator):
    """Do nothing: the scheduler lets it succeed by itself, without a worker."""

    inherits_from_empty_operator = True
    ui_color = "#f4f2ff"

    def execute(self, context: Context) -> None: ...


# With these, a task need not wait for all before it.
_WAITING_FOR_SOME = (
    TriggerRule.ONE_SUCCESS,
    TriggerRule.ONE_FAILED,
    TriggerRule.ONE_DONE,
    TriggerRule.ALWAYS,
)
# Tasks of this provider that have no jobs.
_WITHOUT_JOBS = (RunGenScaleAppOperator, RunGenScaleDownOperator)


class _BlockGroup(TaskGroup):
    """The group of a block."""


class scaled_app:  # noqa: N801 - used as `with scaled_app(…):`
    """
    Scale an app up for the tasks of a ``with`` block, and down to zero **whatever happens**.

    It puts the tasks of the block into a group ``{name}_is_up``, which does not change their ids. The group
    begins with a setup, ``{name}_up`` (*billing starts*). After it comes the teardown, ``{name}_down``
    (*billing ends*), and ``{name}_end``, which fails the run if one of the two failed. Within a task group of
    yours, no group is added. Tasks of the block wait for the app to be ``RUNNING``. The app is scaled up
    after the tasks that the first tasks of the block wait for.

    ``with scaled_app(…) as app:`` has the two operators as ``app.up`` and ``app.down``.

    :param app_id: the app. When left out, that of the DAG's ``default_args``, then of the connection
        (templated, or a task's ``.output``).
    :param active_workers: the number of workers to have (templated).
    :param only_if: how much there is to run: a number of rows, or a boolean. With 0, ``False`` or ``None``
        the app stays down, and the tasks of the block run anyway (templated, or a task's ``.output``).
    :param name: the prefix of its task ids. A second one in a DAG gets a number.
    :param rungen_conn_id: the Airflow connection. When left out, that of the ``default_args``, then
        ``rungen_default`` (templated).
    :param price: what one worker costs, for the ``bill`` that ``{name}_down`` pushes to XCom: ``1.20 USD/h``,
        ``/min`` or ``/s``. The connection's ``price`` when left out (templated, or the ``.output`` of a task,
        which the app waits for).
    :param poll_interval: seconds between two polls.
    :param pool: the Airflow pool of the two tasks. With one slot, no other run can scale up between the check
        and the scaling of this run's teardown.
    :param options: parameters of `RunGenScaleAppOperator` for scaling up: ``timeout``, ``deferrable``,
        ``retries``, …. Those that say where a task runs count for both: ``queue``, ``executor``, ….
    :raises TypeError: one of ``options`` is unknown.
    :raises ValueError: ``price`` is no price; the DAG has a ``dagrun_timeout``, at which Airflow skips
        teardowns, too; or a task that `down` waits for has ``depends_on_past``, and may wait forever.
    """

    # The blocks that are not left yet, the outer ones first.
    _open: ClassVar[list[scaled_app]] = []

    def __init__(
        self,
        app_id: str | XComArg | None = None,
        active_workers: int | str | XComArg = 1,
        *,
        only_if: bool | int | str | XComArg | None = True,
        name: str = "app",
        rungen_conn_id: str = "",
        price: str | XComArg | None = None,
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
        workers = {"active_workers": active_workers, "only_if": only_if}
        self._up: dict[str, Any] = {**given, **both, **workers, **options}
        both["default_args"] = options.get("default_args")
        self._down: dict[str, Any] = {**_OWN_POLICY, **both, "price": price}

    def __enter__(self) -> Self:
        name = self._add_end()
        if self.dag.dagrun_timeout is not None:
            raise ValueError(
                f"{self.dag.dag_id}: with dagrun_timeout, Airflow skips what is not finished, scaled_app's "
                "scaling down, too, and the app is billed on. Limit the tasks instead (execution_timeout)"
            )
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._make_group(name))
            texts = {"task_display_name": f"{name} billing starts", "doc_md": _UP_DOC.format(name=name)}
            #: The setup that scales up.
            self.up = RunGenScaleAppOperator(task_id=f"{name}_up", **(texts | self._up))
            texts = {"task_display_name": f"{name} billing ends", "doc_md": _DOWN_DOC}
            #: The teardown that scales down.
            self.down = RunGenScaleDownOperator(
                task_id=f"{name}_down",
                scale_up_task_id=self.up.task_id,
                task_group=self.end.task_group,
                **{name: getattr(self.up, name) for name in _OF_SETUP},
                **(texts | self._down),
            )
            self._group = stack.pop_all()
        # a results table in the block needs the price, too
        XComArg.apply_upstream_relationship(self.up, self._down["price"])
        self.down.as_teardown(setups=[self.up])
        # also when the setup has failed: it may have scaled up before
        self.down.trigger_rule = TriggerRule.ALL_DONE
        # If `down` failed the run by itself, Airflow would ignore the tasks before it, and a run whose tasks
        # failed would succeed. `end` is a teardown, so that it is not skipped in a run marked failed.
        self.end.as_teardown(on_failure_fail_dagrun=True)
        self.end.trigger_rule = TriggerRule.NONE_FAILED
        self.end.set_upstream([self.up, self.down])
        self._before = set(self.dag.task_dict)
        self._open.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._group.close()
        outermost = next(each for each in self._open if each.dag is self.dag)
        self._open.remove(self)
        if kind is not None:
            return
        tasks = self.dag.task_dict
        inside = {task_id: task for task_id, task in tasks.items() if task_id not in self._before}
        for task in inside.values():
            if not task.upstream_task_ids & inside.keys():
                for before in task.upstream_list:
                    # what waits for a task of the block, or for its setup, cannot come before the block
                    waits_for = before.get_flat_relative_ids(upstream=True)
                    if before is not self.up and not waits_for & {self.up.task_id, *inside}:
                        self.up.set_upstream(before)
                self.up.set_downstream(task)
            is_last = not task.downstream_task_ids & inside.keys()
            if _may_skip(task):
                if is_last:
                    self.down.set_upstream(self._add_after(task))
            # before 3.3, Airflow only lets a teardown wait for the tasks right before it
            elif is_last or not TEARDOWNS_WAIT_FOR_ALL:
                self.down.set_upstream(task)
        self._check_waits()
        # a task that was made before all blocks may be between two of this one
        after_up = self.up.get_flat_relative_ids(upstream=False) & outermost._before
        between = after_up & self.down.get_flat_relative_ids(upstream=True)
        self._bill_jobs_of(inside | {task_id: tasks[task_id] for task_id in between})

    def _check_waits(self) -> None:
        """Check that nothing which the teardown waits for, once the app is up, waits for another run."""
        seen, rest, waiting = {self.up.task_id, *_ended_before(self.up)}, [self.down.task_id], []
        while rest:
            task = self.dag.get_task(rest.pop())
            if task.depends_on_past or task.wait_for_downstream:
                waiting.append(task.task_id)
            rest += (found := task.upstream_task_ids - seen)
            seen |= found
        if waiting:
            raise ValueError(
                f"{self.dag.dag_id}: with depends_on_past, a task waits forever after a run in which it "
                "failed, and the app is billed meanwhile. Set it only for tasks that have ended before "
                f"{self.up.task_id}, and not for {', '.join(sorted(waiting))}"
            )

    def _bill_jobs_of(self, inside: Mapping[str, Any]) -> None:
        """Pass the tasks to the bill. Those of an inner block, or of one further up, are on its bill."""
        downs = [task for task in self.dag.tasks if isinstance(task, RunGenScaleDownOperator)]
        elsewhere = {task_id for down in downs for task_id in down.jobs_of}
        tasks = {
            task_id: task
            for task_id, task in sorted(inside.items())
            if task_id not in elsewhere and is_of_provider(task) and not isinstance(task, _WITHOUT_JOBS)
        }
        runners = {task_id for task_id, task in tasks.items() if not is_job_consumer(task)}
        jobs_of = {task_id: _runners_of(task, runners) for task_id, task in tasks.items()}
        self.down.jobs_of = {task_id: of for task_id, of in jobs_of.items() if elsewhere.isdisjoint(of)}

    def _add_end(self) -> str:
        """Add the last task, and return a prefix that is free in the DAG, or in the task group."""
        taken: list[str] = []
        for number in range(1, 100):
            name = self._name if number == 1 else f"{self._name}_{number}"
            try:
                self.end = RunGenNoOpOperator(
                    task_id=f"{name}_end",
                    task_display_name=f"{name} billing checked",
                    doc_md=_END_DOC.format(name=name),
                    **_NO_WORKER,
                )
                break
            except DuplicateTaskIdFound:
                taken.append(f"{name}_end")
        group: Any = self.end.task_group
        self.dag = self.end.dag
        for task_id in map(group.child_id, taken):
            # Airflow leaves in the group what the DAG refuses
            if group.children.get(task_id) is not self.dag.task_dict.get(task_id):
                del group.children[task_id]
        if (around := _around_blocks(group)) is not group:  # a user may mark the group of a block
            del group.children[self.end.task_id]
            self.end.task_group = None
            around.add(self.end)
        return name

    def _add_after(self, branch: Any) -> Any:
        """Add a task between a branch and the teardown, which the branch would skip otherwise."""
        after = RunGenNoOpOperator(
            task_id=f"{branch.label}_chosen",
            doc_md=_CHOSEN_DOC.format(down=self.down.task_id),
            dag=self.dag,
            task_group=branch.task_group,
            **_NO_WORKER,
        )
        after.set_upstream(branch)
        # a teardown is no leaf of a task group: what follows that still follows the branch
        after.as_teardown()
        after.trigger_rule = TriggerRule.ALL_SUCCESS
        return after

    def _make_group(self, name: str) -> AbstractContextManager[Any]:
        """Return the group of the block, or a null context within a group of the user."""
        outer: Any = self.end.task_group
        if outer is not None and outer.group_id and outer.prefix_group_id:
            return contextlib.nullcontext()
        tooltip = "The app is billed while these run."
        return _BlockGroup(f"{name}_is_up", prefix_group_id=False, tooltip=tooltip)


def _ended_before(task: Any) -> set[str]:
    """Return the ids of the tasks that have ended when a task runs, as far as that is certain."""
    ended, get = set[str](), task.dag.get_task
    # the tasks that have ended, and whether they have run: they may have been skipped instead
    rest = [(task.task_id, True)]
    while rest:
        task_id, has_run = rest.pop()
        rule, before = get(task_id).trigger_rule, get(task_id).upstream_task_ids
        waits_for_all = has_run and rule not in _WAITING_FOR_SOME
        if waits_for_all or (len(before) == 1 and rule != TriggerRule.ALWAYS):
            rest += [(each, has_run and rule == TriggerRule.ALL_SUCCESS) for each in before - ended]
            ended |= before
    return ended


def _may_skip(task: Any) -> bool:
    """Return whether a task may skip those right after it, teardowns, too: a branch does."""
    # Airflow has several classes of that name; a sensor that is no branch skips itself only
    bases = {base.__name__ for base in class_of(task).__mro__}
    return "BranchMixIn" in bases or ("SkipMixin" in bases and "BaseSensorOperator" not in bases)


def _around_blocks(group: Any) -> Any:
    """Return the group around a block and those around it that no mapped group, or one with a prefix, has."""
    found = group
    while group.__class__ in (TaskGroup, _BlockGroup) and group.group_id and not group.prefix_group_id:
        group, is_of_block = group.parent_group, isinstance(group, _BlockGroup)
        found = group if is_of_block else found
    return found


def _runners_of(task: Any, runners: set[str]) -> Sequence[str]:
    """Return the tasks that run the jobs of a task: by its ``.output``, or else all runners before it."""
    if task.task_id in runners:
        return [task.task_id]
    before = sorted(task.get_flat_relative_ids(upstream=True) & runners)
    return job_sources_of(task) or before or [task.task_id]
