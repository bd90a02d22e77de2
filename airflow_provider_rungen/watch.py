"""Decides which of many waiting jobs to look at, so that waiting costs close to one request a job. No I/O.

There is no list of jobs to ask for, but an app counts its jobs by state. The counters tell how many have
ended, and looks at single jobs, oldest first, find out which. The counters are a hint and never the truth:
whatever they say, each job is also looked at by itself now and then, and counters that do not add up are
given up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from airflow_provider_rungen.api import Flow, Sleep, Together, get_app, get_job, may_pass, pause_after, seg
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobTimeoutError
from airflow_provider_rungen.models import Job, JobStatus, clean_text

log = logging.getLogger(__name__)

# As few jobs are simply polled: asking for the counters first would cost as much.
HANDFUL = 4
# Seconds between two looks at a job of which the counters say nothing.
SLOW_PACE = 60.0
SLOWEST_PACE = 1800.0
STRIKES = 3
PROGRESS_EVERY = 30.0


# Takes a log level, a line, and the job it is about, if it is about one.
Say = Callable[[int, str, str | None], None]


def log_line(level: int, line: str, job_id: str | None) -> None:
    """Say it in this module's log."""
    log.log(level, "%s", line)


@dataclass(slots=True)
class _Waiting:
    """A job that is waited for: when it was last looked at, and what was seen."""

    looked_at: float
    job: Job | None = None


@dataclass
class Watch:
    """
    The jobs of one app that are waited for, and what is known of them.

    :param app_id: the app.
    :param say: where to say what happens.
    :param over: the jobs that are over, until they are forgotten.
    """

    app_id: str
    say: Say = log_line
    over: dict[str, Job] = field(default_factory=dict)
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    _failures: int = 0
    _last_failure: RunGenError | None = None
    # ended jobs by the counters at the start, and those found since
    _baseline: int | None = None
    _found: int = 0
    _strikes: int = 0
    _pace: float = SLOW_PACE
    _paced_at: float = 0.0

    @property
    def trusts_counters(self) -> bool:
        """Whether the counters still decide what to look at."""
        return self._strikes < STRIKES

    def add(self, job_ids: Iterable[str], now: float) -> None:
        """Wait for these, too; order is age."""
        for job_id in job_ids:
            if job_id not in self._waiting and job_id not in self.over:
                self._waiting[job_id] = _Waiting(now)

    def forget(self, job_ids: Iterable[str]) -> None:
        """Wait for these no longer."""
        for job_id in job_ids:
            self._waiting.pop(job_id, None)
            self.over.pop(job_id, None)

    def pause(self, poll_interval: float) -> float:
        """Give the seconds to the next round: more during an outage."""
        if self._last_failure is None:
            return poll_interval
        return max(poll_interval, pause_after(self._failures - 1, self._last_failure))

    def round(self, poll_interval: float) -> Flow[dict[str, RunGenError]]:
        """
        Look once at what is worth a look; the jobs found to be over go to ``over``.

        :param poll_interval: seconds to the next round.
        :return: the errors that no waiting can change, by job.
        """
        if self._failures:  # one question is enough to know whether the outage is over
            errors = yield from self._look(list(self._waiting)[:1])
            if self._failures or errors:
                return errors
        if len(self._waiting) <= HANDFUL or not self.trusts_counters:
            return (yield from self._look(list(self._waiting)))
        now = yield Sleep(0)
        asked = list(self._waiting)  # as of before the question, so that the counters know them all
        counters = yield from self._counters()
        if self._failures:
            return {}
        if counters is None:
            return (yield from self._look(asked))
        return (yield from self._round(asked, *counters, max(self._pace, poll_interval), now))

    def _round(
        self, asked: list[str], ended: int, active: int, pace: float, now: float
    ) -> Flow[dict[str, RunGenError]]:
        if self._baseline is None:
            self._baseline = ended
        owed = ended - self._baseline - self._found
        if owed < 0:
            # jobs were found to be over that the counters do not know, or the counters were reset
            self._strike()
            self._baseline += owed
            owed = 0
        surplus = len(asked) - active
        due = [job_id for job_id in asked if now - self._waiting[job_id].looked_at >= pace]
        errors = yield from self._look(due, now)
        missing = max(owed, surplus)
        found_before = len(self.over)
        rest = [job_id for job_id in asked if job_id in self._waiting and job_id not in set(due)]
        step = missing
        while rest and not self._failures and (left := missing - (len(self.over) - found_before)) > 0:
            step = max(left, step)
            errors |= yield from self._look(rest[:step], now)
            rest, step = rest[step:], step * 2
        if self._failures:
            return errors
        self._learn(ended, missing - (len(self.over) - found_before), is_surplus=surplus > owed, now=now)
        return errors

    def _learn(self, ended: int, unfound: int, *, is_surplus: bool, now: float) -> None:
        assert self._baseline is not None  # noqa: S101 - for the type checker
        if unfound > 0 and is_surplus:
            self._strike()  # so many of these jobs had to be over, and are not
        elif unfound > 0:
            self._baseline = max(self._baseline, ended - self._found)  # other people's jobs
        elif ended - self._baseline >= self._found:
            self._strikes = 0
            if now - self._paced_at >= self._pace:
                self._pace, self._paced_at = min(self._pace * 2, SLOWEST_PACE), now

    def _strike(self) -> None:
        self._strikes += 1
        self._pace = SLOW_PACE
        if not self.trusts_counters:
            self.say(
                logging.WARNING,
                f"The job counters of RunGen app {self.app_id} do not add up: its jobs are polled one by one "
                "from now on",
                None,
            )

    def _counters(self) -> Flow[tuple[int, int] | None]:
        """Ask for the counters: jobs that have ended, and jobs that are queued or running."""
        try:
            jobs = (yield from get_app(self.app_id, attempts=1)).jobs
        except RunGenError as error:
            if may_pass(error):
                self._note_failure(error)
            else:
                self._strike()
            return None
        names = ("completed", "failed", "in_progress", "in_queue")
        if any(name not in jobs for name in names):
            self._strike()
            return None
        return jobs["completed"] + jobs["failed"], jobs["in_progress"] + jobs["in_queue"]

    def _look(self, job_ids: Sequence[str], now: float | None = None) -> Flow[dict[str, RunGenError]]:
        errors: dict[str, RunGenError] = {}
        if not job_ids:
            return errors
        if now is None:
            now = yield Sleep(0)
        outcomes = yield Together([get_job(self.app_id, job_id, attempts=1) for job_id in job_ids])
        failure: RunGenError | None = None
        for job_id, outcome in zip(job_ids, outcomes, strict=True):
            if not isinstance(outcome, RunGenError):
                self._note(outcome, now)
            elif may_pass(outcome):
                failure = outcome
            else:
                errors[job_id] = outcome
        if failure is not None:
            self._note_failure(failure)
        elif self._failures:
            self.say(logging.INFO, "RunGen answers again", None)
            self._failures, self._last_failure = 0, None
        return errors

    def _note(self, job: Job, now: float) -> None:
        entry = self._waiting.get(job.id)
        if entry is None:  # its last waiter left in the meantime
            return
        before, entry.job, entry.looked_at = entry.job, job, now
        if job.is_terminal:
            self.over[job.id] = job
            del self._waiting[job.id]
            self._found += job.status is not JobStatus.CANCELED  # the service counts no canceled jobs
        if before and before.status_word == job.status_word:
            return
        if not job.is_word_known:
            word = clean_text(job.status_word, 50)
            line = f"RunGen job {job.id} has the unknown status {word}; it counts as still running"
            self.say(logging.WARNING, line, job.id)
        elif not before or before.status is not job.status:
            self.say(logging.INFO, f"RunGen job {job.id} is {job.status}", job.id)

    def _note_failure(self, error: RunGenError) -> None:
        if not self._failures:
            self.say(logging.WARNING, f"{str(error).rstrip('.')}; waiting goes on", None)
        self._failures += 1
        self._last_failure = error


def wait_for_jobs(
    app_id: str,
    job_ids: Iterable[str],
    *,
    poll_interval: float,
    deadline: float | None = None,
    watch: Watch | None = None,
) -> Flow[list[Job]]:
    """
    Wait until every job is over, however it ended; return the jobs in the order given.

    A poll that fails but may pass does not end the waiting; it is said once per outage.

    :param poll_interval: seconds between two looks.
    :param deadline: the time (seconds since 1970) to stop waiting at; in the past, it allows one look.
    :param watch: what an earlier wait for the same jobs has seen.
    :raises RunGenJobTimeoutError: the deadline passed; names the first job that is not over.
    """
    job_ids = list(job_ids)
    for job_id in job_ids:
        seg(job_id, "job_id")
    is_wide = len(job_ids) > HANDFUL
    watch = watch or Watch(app_id, _say_less if is_wide else log_line)
    said_at = now = yield Sleep(0)
    watch.add(job_ids, now)
    while True:
        errors = yield from watch.round(poll_interval)
        for error in errors.values():
            raise error
        waiting = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in watch.over]
        if not waiting:
            return [watch.over[job_id] for job_id in job_ids]
        now = yield Sleep(0)
        if is_wide and now - said_at >= PROGRESS_EVERY:
            said_at = now
            log.info("%d of %d RunGen jobs are over", len(job_ids) - len(waiting), len(job_ids))
        if deadline is not None and now >= deadline:
            more = f" (and {len(waiting) - 1} more)" if len(waiting) > 1 else ""
            message = f"RunGen job {waiting[0]} of app {app_id}{more} was not over in time"
            raise RunGenJobTimeoutError(message, app_id=app_id, job_id=waiting[0])
        pause = watch.pause(poll_interval)
        yield Sleep(pause if deadline is None else min(pause, deadline - now))


def _say_less(level: int, line: str, job_id: str | None) -> None:
    log_line(level if job_id is None or level > logging.INFO else logging.DEBUG, line, job_id)
