"""One attempt of a table: reads rows, buys what is missing, waits, stores what ends, writes results."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow_provider_rungen.client.endpoints import get_app
from airflow_provider_rungen.client.job_poller import strip_payloads
from airflow_provider_rungen.client.models import App, Job
from airflow_provider_rungen.client.progress import OtherInputs, WaitGoal
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.transport import watched
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobTimeoutError
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.outputs.store_folder import StoreFolder
from airflow_provider_rungen.results.values import ResultReader
from airflow_provider_rungen.schemas import OutputType
from airflow_provider_rungen.store.files import view_path
from airflow_provider_rungen.store.keys import input_key, model_identity
from airflow_provider_rungen.store.records import Policy
from airflow_provider_rungen.store.spool import KeyFilter
from airflow_provider_rungen.store.store import Store
from airflow_provider_rungen.task import attempts
from airflow_provider_rungen.task.options import JobOptions
from airflow_provider_rungen.task.outcomes import event_error
from airflow_provider_rungen.task.run import TaskRun
from airflow_provider_rungen.task.xcom_keys import PLAN_KEY
from airflow_provider_rungen.work.buying import Buying
from airflow_provider_rungen.work.collect import Collector
from airflow_provider_rungen.work.ending import Ending
from airflow_provider_rungen.work.limits import Limits, Quote, plan_workers
from airflow_provider_rungen.work.plan import Plan, PlanFolder
from airflow_provider_rungen.work.rows import Counts, Rows
from airflow_provider_rungen.work.view import bill, first_line, view_of
from airflow_provider_rungen.work.wait import JobWait

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.table.inputs import Source
    from airflow_provider_rungen.work.sink import Sink

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between polls of what others are buying: while own jobs run, and while none does.
LOOK_INTERVAL, WAIT_INTERVAL = 30.0, 2.0
# Seconds between two writes of what has ended.
_FLUSH_INTERVAL = 60.0


class TableRun(TaskRun[JobOptions]):
    """
    One attempt of a table.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param make_source: returns the rows; it is called once an attempt.
    :param make_sink: makes what writes the results, given this attempt.
    :param collects: whether somebody else has submitted the jobs of the rows.
    """

    def __init__(
        self,
        task: Any,
        context: Context,
        make_source: Callable[[], Source],
        make_sink: Callable[[TableRun], Sink],
        *,
        collects: bool = False,
    ) -> None:
        super().__init__(task, context, options := JobOptions.of(task))
        self._make_source = make_source
        self.collects = collects  #: Whether somebody else has submitted the jobs of the rows.
        self.storage = Storage(options.destination)
        self.output = OutputType.of(task.output_type)
        self.reader = ResultReader(self.storage, self.output)
        self.sink = make_sink(self)
        self.wait = JobWait(self, task.defer_for_jobs, are_known=not collects)
        self.wait.others = self._others
        self.end_at = 0.0
        self._viewed_at = 0.0  # of the monotonic clock
        self._bill: Mapping[str, Any] | None = None
        # whether a trigger has seen jobs end, so that a look at some of them is not enough
        self._is_resumed = False

    source: Source
    rows: Rows
    says_usage = False  # the last line of the sink does
    store: Store
    policy: Policy
    _model: App
    _limits: Limits
    without_job: Mapping[str, int] = MappingProxyType({})

    # --- the attempt ---

    def execute(self) -> Any:
        """Do what is left, and return the summary."""
        return self._perform(None)

    def complete(self, event: Mapping[str, Any]) -> Any:
        """Go on after a wait in the triggerer: read what the store has, and do what is left."""
        self._is_resumed = True
        return self._perform(event)

    def plan(self) -> int:
        """
        Return how many jobs there are to run, and push what these cost. It buys and writes nothing.

        :raises RunGenLimitError: it would buy more than a limit.
        """
        with self.attempt(), self.opened():
            try:
                self._open()
                self.link_to(self.app_id)
                plan = self._read()
                self.in_loop(self.store.open(create=False))
                counts = self._decide(plan)
                return self._quote(counts)
            finally:
                if hasattr(self, "store"):
                    self.store.close()

    def _quote(self, counts: Counts) -> int:
        # what others are buying may come back to this task
        price, jobs = self.find_price(), counts.new + counts.running + counts.waiting
        seconds_per_job = self.store.seconds_per_job()
        quote, finish_in = Quote(jobs, seconds_per_job, price), self.task.finish_in
        # no None, which XComArg takes for a value that was not pushed
        value: dict[str, Any] = {
            "rows": counts.rows,
            "jobs": jobs,
            "reused": counts.known,
            "skipped": self.without_job["skipped"],
            "seconds": quote.seconds,
            "cost": float(quote.cost),
            "currency": price.currency if price else "",
        }
        self._say_what_is_done(is_new=False)
        if finish_in is not None:
            new = Quote(counts.new, seconds_per_job, price)
            value["workers"], text = plan_workers(new, self._model, jobs - counts.new, finish_in)
            log.info("%s", text)
        self.ti.xcom_push(key=PLAN_KEY, value=value)
        bought = sum(1 for _ in self.store.bought())
        self._limits.check(counts.rows, counts.new, bought, seconds_per_job)
        return jobs

    def fail_deferral(self, reason: str) -> NoReturn:
        """
        Fail, as Airflow ended the deferral without an event. The next attempt finds the jobs in the store.

        :raises RunGenError: always.
        """
        raise RunGenError(f"Airflow ended the wait in the triggerer: {reason}")

    def _perform(self, event: Mapping[str, Any] | None) -> Any:
        self.used = self._usage
        try:
            with self.attempt(), self.opened():
                self._open(writes=event is None)
                self._begin(event)
                with self._ending():
                    self._work(event)
                    if self.rows.is_refused:
                        self.ending.stop()
                return self.sink.finish(self.rows, self.buying.error)
        finally:
            if hasattr(self, "store"):  # lineage asks for the bill once more
                self._settle()
                self.store.close()

    def _open(self, *, writes: bool = False) -> None:
        """
        Open the store, before anything is sent.

        :param writes: whether to find out if it can be written, too.
        """
        options: Any = self.task
        app_id = self.app_id
        self._limits = Limits(self.options.max_jobs, self.options.max_cost, self.find_price())
        self.storage.check()
        if writes:
            self.sink.prepare()
        start = getattr(self.context.get("dag_run"), "start_date", None)
        reuse = getattr(options, "reuse", True)
        self.policy = Policy(
            run=self.run_token,
            by=self.attempt_id,
            app=app_id,
            reuse=reuse if isinstance(reuse, bool) else reuse.total_seconds(),
            run_start=time.time() if start is None else start.timestamp(),
            max_attempts=getattr(options, "max_attempts", 3),
        )
        self._keys = KeyFilter()
        self.store = Store(StoreFolder(self.storage), self.policy, self._keys.__contains__)
        self.buying = Buying(self, self._limits, self._note_bought)
        self.collector = Collector(self, self.store)
        self.ending = Ending(self)

    @property
    def run_token(self) -> str:
        """What tells this run of this task from all others, in any deployment."""
        from airflow_provider_rungen._airflow import conf

        ti = self.ti
        index = -1 if ti.map_index is None else ti.map_index
        deployment = conf.get("api", "base_url", fallback="")
        parts = [deployment, ti.dag_id, ti.run_id, ti.task_id, index, *attempts.loop_position(ti)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _begin(self, event: Mapping[str, Any] | None) -> None:
        """Read the rows, decide about each, and say what that means."""
        options, app_id = self.options, self.app_id
        self._plans = PlanFolder(self.storage, self.policy.run)
        if event is None:
            self.link_to(app_id)
            plan = self._read()
            self.end_at = self.deadline(time.time() + options.timeout)
        else:
            self.note_app(app_id)
            plan = Plan.saved(self._plans, str(event.get("plan")))
            self.end_at = float(event.get("deadline") or 0)
            self.wait.queued_since = float(event.get("queued_since") or 0)
        is_new = self.in_loop(self.store.open())
        self._decide(plan)
        self.note_app(app_id, list(self.rows.open))
        self.rows.check_gone(has_limit=self._limits.has_any)
        if event is None:
            self._say_what_is_done(is_new=is_new)
            self.push_page(app_id)
            for job_id in list(self.rows.open)[:1]:
                self.link_to_job(app_id, job_id)
        self.buying.begin()

    def _note_bought(self, jobs: list[str], is_first: bool) -> None:
        """Name the jobs of the attempt, and link to the first."""
        self.note_app(self.known_app_id, jobs)
        if is_first:
            self.link_to_job(self.known_app_id, jobs[0])
            self._flush()  # so that the page shows something

    def _read(self) -> Plan:
        """Read the rows. After a deferral, their plan has the keys, and no model is asked for."""
        # whoever only collects needs no model, and no request
        model = ""
        if not self.collects:
            self._model = self.hook.perform(get_app(self.app_id))
            model = model_identity(self._model)
        self.source = source = self._make_source()
        version = str(getattr(self.task, "version", ""))  # it may be rendered as another type
        plan = Plan.read(self.app_id, source, partial(input_key, model=model, version=version))
        self.without_job = source.without_job
        return plan

    def _decide(self, plan: Plan) -> Counts:
        """Read what the store has of the rows, and decide about each."""
        for row in plan.rows():
            if row.digest:
                self._keys.add(row.digest)
        fits = self.reader.fits if self.reader.checks else None
        self.rows = Rows(plan, self.store, self.policy, fits=fits, collects=self.collects)
        self.in_loop(self.store.look())
        return self.in_loop(self.rows.decide())

    def _say_what_is_done(self, *, is_new: bool) -> None:
        counts = self.rows.counts
        quote = Quote(counts.new, self.store.seconds_per_job(), self.find_price())
        where = f" A new store: {redact(str(self.options.destination))}." if is_new else ""
        weak = "" if self.store.is_exclusive else " Two runs at once may both buy: it creates no file once."
        log.info("%s%s%s", first_line(counts, quote, self.without_job), where, weak)

    # --- the work ---

    def _work(self, event: Mapping[str, Any] | None) -> None:
        """Buy, wait and store in turns, until nothing is left."""
        if event is None:
            self.source.check(self.options.max_failed)
        error = None if event is None else event_error(event)
        if error is not None and not isinstance(error, RunGenJobTimeoutError):
            raise error
        rows = self.rows
        if not self.options.wait_for_completion:
            self.collector.look(list(rows.open))
            return
        while not rows.is_over:
            self.guard.check()
            if self.buying.may_go_on:
                self.buying.buy_some()
            if rows.is_failing:
                self.ending.stop()
                return
            if not rows.waiting:
                if not rows.claimed:
                    if not self.buying.may_go_on:
                        return
                    continue
                if time.time() >= self.end_at:
                    raise RunGenJobTimeoutError("Others are still buying rows of this table")
                self.hook.sleep(WAIT_INTERVAL)
                self._look_again()
                continue
            self._wait_for_some()

    def _wait_for_some(self) -> None:
        """Wait until more may be bought or stored, and store what has ended."""
        rows, options = self.rows, self.options
        is_full = self.buying.may_go_on and options.max_in_flight is not None
        half = (options.max_in_flight or 0) // 2 if is_full else 0
        shared = frozenset(job for job, each in rows.open.items() if each.by != self.policy.by)
        waiting = rows.waiting
        # each round in the triggerer costs the start of a worker
        part = len(waiting) // (2 if options.deferrable else 4)
        left = max(half, len(waiting) - max(part, 1))
        goal = WaitGoal(left, rows.failures, rows.has_success, shared)
        now, stop_at = time.time(), math.inf
        if rows.claimed:
            stop_at = now + LOOK_INTERVAL
        elif self.store.has_unflushed:
            stop_at = now + _FLUSH_INTERVAL
        each, self._is_resumed = waiting if self._is_resumed else (), False
        ended: list[Job] = []
        try:
            ended = self.wait.wait(
                self.known_app_id,
                waiting,
                deadline=self.end_at,
                on_finished=strip_payloads,
                goal=goal,
                may_defer=not rows.claimed,
                stop_at=stop_at,
                before_defer=self._before_defer,
                ended=each,
            )
        finally:
            self.collector.note_ended([*ended, *self.wait.take_ended()])
        self.collector.store_some()
        self._flush(only_if_due=True)
        if rows.claimed:
            self._look_again()

    def _look_again(self) -> None:
        self.in_loop(self.store.look())
        self.rows.decide_again(dict(self.rows.claimed))

    def _before_defer(self, ended: list[Job]) -> Mapping[str, Any]:
        """Write what the next process has to know: the plan, and what has ended."""
        self.collector.note_ended(ended)
        self.collector.store_some()
        self._flush()
        # a wait that begins now would end so much later
        waited = self.deadline(time.time() + self.options.timeout) - self.end_at
        return {"plan": self.rows.plan.save(self._plans), "survives_clear": True, "waited": waited}

    def _flush(self, *, only_if_due: bool = False) -> None:
        """Write what has ended, and the view of this attempt."""
        if only_if_due and not self.store.is_flush_due:
            return
        self.in_loop(self.store.flush())
        # the bill in it reads all that the run has bought
        if not only_if_due or time.monotonic() - self._viewed_at >= _FLUSH_INTERVAL:
            self._viewed_at = time.monotonic()
            self.in_loop(self.store.write_view(self._view()))

    def _view(self) -> dict[str, Any]:
        """Return what the page shows while the task runs: counts, and what ended last."""
        ended = self.sink.last_rows(self.rows)
        return view_of(self.rows, self._usage(), self.find_price(), self.without_job, ended)

    # --- the end ---

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Decide about the jobs when the work ends, and keep what has ended."""
        try:
            yield
        except RunGenError as error:
            if self.guard.is_killed:
                raise
            if not self.ending.end(error):
                self._end(error)
                raise
        except Exception as error:
            from airflow_provider_rungen._airflow import TaskDeferred

            if not isinstance(error, TaskDeferred) and not self.guard.is_killed:
                self._end(error)
            raise
        self.collector.store_some()
        self._flush()
        self.ending.tidy()
        self._settle()

    def _end(self, error: Exception) -> None:
        """Write what is known before an error ends the task."""
        try:
            self._flush()
            self._settle()
            self.sink.report(self.rows, error)
        except RunGenError as failure:
            log.warning("%s", failure.message)

    def cleanup(self) -> str:
        """Cancel the jobs if no attempt follows that adopts them, and show that on the page."""
        if not hasattr(self, "rows"):
            return ""
        before = set(self.wait.canceled)
        last_words = self.ending.kill()
        if canceled := self.wait.canceled - before:
            self.rows.note_canceled(canceled)
            self._settle()
            bill = self._bill or {}
            self._bill = {**bill, "failed": bill["failed"] + len(canceled)}
            # an event loop that the kill has interrupted may still run in this thread
            write = partial(self.store.write_view, self._view())
            attempts.call_briefly(lambda: asyncio.run(write()), self.guard.time_left())
        return last_words

    # --- what is reported ---

    @property
    def job_ids(self) -> Sequence[str]:
        """The jobs that are waited for, or else the first that failed."""
        return list(self.rows.open) or self._known_job_ids if hasattr(self, "rows") else []

    def _others(self) -> OtherInputs:
        counts = self.rows.counts
        return OtherInputs(done=counts.known, unsent=len(self.rows.new))

    def _usage(self) -> Mapping[str, Any]:
        """Return the bill of this run, from all of its attempts."""
        if not hasattr(self, "rows"):
            return {}
        return {**(self._bill or self._count()), "reused": self.sink.reused}

    def _count(self) -> Mapping[str, Any]:
        # those of others that are being collected have no claim
        others = self.rows.open.values() if self.collects else ()
        return bill(chain(others, self.store.bought()), None if self.collects else self.policy.by)

    def _settle(self) -> None:
        """Keep the bill once nothing more is bought: counting it reads all that was."""
        if self._bill is None and hasattr(self, "rows"):
            self._bill = self._count()

    def page_details(self) -> dict[str, Any]:
        details = {"destination": redact(str(self.options.destination)), **self.sink.page_details()}
        if hasattr(self, "rows"):
            details |= {"rows": self.rows.counts.rows, "view": view_path(self.policy)}
        return details

    def in_loop(self, work: Coroutine[Any, Any, T], *, ends_itself: bool = False) -> T:
        """
        Perform I/O in an event loop of its own.

        :param ends_itself: whether the work ends by itself when the attempt has to. Other work is cut off.
        """

        def look() -> None:
            if self.guard.is_interrupted() and not ends_itself:
                self.guard.check()

        async def perform() -> T:
            try:
                return await watched(work, look)
            finally:
                await self.hook.aclose()

        # an event loop swallows what a signal handler raises in one of its callbacks
        with self.guard.defer_signals():
            return asyncio.run(perform())
