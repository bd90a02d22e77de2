"""Decides which of many waiting jobs to look at, so that waiting costs close to one request a job. No I/O.

There is no list of jobs to ask for, but an app counts its jobs by state. The counters tell how many have
ended, and looks at single jobs, oldest first, find out which. The counters are a hint and never the truth:
now and then some jobs are looked at whatever they say, and all of them when that finds an end that was not
told; counters that are wrong are given up. No job is looked at twice in a round, so that the worst counters
cost one request a round more than polling each job.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from airflow_provider_rungen.api import Flow, Sleep, Together, get_app, get_job, may_pass, pause_after, seg
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenJobTimeoutError,
    RunGenNotFoundError,
    RunGenResponseError,
)
from airflow_provider_rungen.models import App, Job, JobStatus, clean_text
from airflow_provider_rungen.progress import Progress

log = logging.getLogger(__name__)

# As few jobs are simply polled: asking for the counters first would cost as much.
HANDFUL = 4
# Seconds within which the service has to know a job that it has just created.
KNOWN_WITHIN = 120.0
# Seconds between two checks of the counters, and between two looks at a job while they have failed the last.
SLOW_PACE = 60.0
# Seconds between two looks at a job at most, however often the counters have passed.
SLOWEST_PACE = 6 * 3600.0
# A check looks at 1/2**n of the jobs; n begins with this, and grows with every check that is passed.
FIRST_SHARE = 4
FEW = 64
# Seconds after which the counters must know that a job has ended.
LAG = 15.0
STRIKES = 3
# Beginning more looks in one go would hold up an event loop.
MOST_AT_ONCE = 256
_COUNTERS = "the counters"


# Takes a log level, a line, and the job it is about, if it is about one.
Say = Callable[[int, str, str | None], None]


def as_it_is(job: Job) -> Job:
    """Keep all of a job."""
    return job


def without_contents(job: Job) -> Job:
    """Keep of a job only how it ended: there may be many, and their results large."""
    return replace(job, input=None, result=None)


def log_line(level: int, line: str, job_id: str | None) -> None:
    """Say it in this module's log."""
    log.log(level, "%s", line)


@dataclass(slots=True)
class _Waiting:
    """A job that is waited for: when it was last looked at, what was seen, and when it has to be known."""

    looked_at: float
    known_by: float = 0.0
    job: Job | None = None


@dataclass(slots=True)
class _Books:
    """
    What the counters tell, held against what is found.

    :param owed: the ends told of and not found yet; below 0, those found and not told of yet.
    :param overdue: the ends found some time ago and not told of yet.
    :param others: queued and running jobs that nobody waits for here.
    :param strikes: how often in a row the counters were wrong.
    """

    owed: int = 0
    overdue: int = 0
    others: int = 0
    strikes: int = 0
    _ended: int | None = None
    _active: int = 0
    # Jobs that are not active any more, and did not end: canceled, or over before they came. Believed when
    # told twice, since a job may be on its way between two states; but at once at first.
    _gone: float = math.inf
    _explained: int = 0
    # since the last settlement: jobs that came (and before it), whether an end that was told of was found
    _came: int = 0
    _came_before: int = 0
    _has_proved: bool = False
    _is_struck: bool = False
    _settle_at: float = 0.0

    def add(self) -> None:
        """Note that a job is waited for here from now on."""
        self.others = max(0, self.others - 1)
        self._came += 1

    def find(self) -> None:
        """Note that a job has ended: one that was told of, one that is gone, or one that will be told of."""
        if self.owed <= 0 and self._explained > 0:
            self._explained -= 1
        else:
            self._has_proved |= self.owed > 0
            self.owed -= 1

    def open(self, ended: int, active: int, waiting: int, now: float, lag: float) -> int:
        """Take what the counters tell, and give how many of the waiting jobs seem to be over."""
        if self._ended is None:
            self.owed, self._settle_at = 0, now + lag
        else:
            told = ended - self._ended
            if told < 0:
                self._strike()
            self.owed += max(told, 0)
            self.overdue -= min(self.overdue, max(told, 0))
        self._ended, self._active = ended, active
        if now >= self._settle_at:
            self._settle_at = now + lag
            self._settle()
        owed = max(0, self.owed)
        self._explained = max(0, self._missing(waiting) - owed)
        return owed + int(min(self._explained, self._gone))

    def close(self, waiting: int, *, is_swept: bool) -> None:
        """
        End a round.

        :param is_swept: whether all jobs were looked at: what was not found then is not among them.
        """
        if is_swept:
            self.owed = min(self.owed, 0)  # the rest are other people's jobs
        missing = self._missing(waiting)
        if is_swept or missing <= 0:
            if missing > self.others + self._came + self._came_before:
                self._strike()  # more jobs wait here than the counters know
            self.others = max(0, self.others - missing)
        self._gone = max(0, self._missing(waiting) - max(0, self.owed))

    def _missing(self, waiting: int) -> int:
        return waiting + self.others - (self._active + min(self.owed, 0))

    def _settle(self) -> None:
        if self.overdue:
            self._strike()
            self.owed += self.overdue
        elif self._has_proved and not self._is_struck:
            self.strikes = 0
        self.overdue, self._has_proved, self._is_struck = max(0, -self.owed), False, False
        self._came, self._came_before = 0, self._came

    def _strike(self) -> None:
        self.strikes += 1
        self._is_struck = True


@dataclass
class Watch:
    """
    The jobs of one app that are waited for, and what is known of them.

    :param app_id: the app.
    :param say: where to say what happens.
    :param over: the jobs that are over, until they are forgotten.
    :param is_fresh: whether there was no round yet.
    :param take: what to keep of a job that is over, at once; what it raises is the error of that job.
    :param app: what the service said of the app in the last round, or why it did not, if it was asked.
    """

    app_id: str
    say: Say = log_line
    over: dict[str, Job] = field(default_factory=dict)
    is_fresh: bool = True
    take: Callable[[Job], Job] = as_it_is
    app: App | RunGenError | None = None
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    # what did not answer when it was last asked
    _silent: set[str] = field(default_factory=set)
    # looks in a row of which none was answered, and the last failure of the round
    _failures: int = 0
    _last_failure: RunGenError | None = None
    _books: _Books = field(default_factory=_Books)
    _absent: int = 0
    _passed: int = FIRST_SHARE
    _check_at: float | None = None
    _is_checked: bool = False
    _has_given_up: bool = False

    @property
    def trusts_counters(self) -> bool:
        """Whether the counters still decide what to look at."""
        return self._books.strikes < STRIKES

    @property
    def has_seen_all(self) -> bool:
        """Whether the service has told of every job that is waited for."""
        return all(entry.job is not None for entry in self._waiting.values())

    def add(self, job_ids: Iterable[str], now: float, known_by: float = 0.0) -> None:
        """
        Wait for these, too; order is age.

        :param known_by: the time (seconds since 1970) until which the service may not know them yet.
        """
        for job_id in job_ids:
            if job_id not in self._waiting and job_id not in self.over:
                self._waiting[job_id] = _Waiting(now, known_by)
                self._books.add()

    def forget(self, job_ids: Iterable[str]) -> None:
        """Wait for these no longer."""
        for job_id in job_ids:
            self._waiting.pop(job_id, None)
            self.over.pop(job_id, None)
            self._silent.discard(job_id)

    def pause(self) -> float:
        """Give the seconds to leave the service alone after the last round: some if it failed."""
        if self._last_failure is None:
            return 0.0
        return pause_after(max(self._failures - 1, 0), self._last_failure)

    def round(self, poll_interval: float, urgent: Collection[str] = ()) -> Flow[dict[str, RunGenError]]:
        """
        Look once at what is worth a look; the jobs found to be over go to ``over``.

        :param poll_interval: seconds to the next round.
        :param urgent: jobs to look at in any case.
        :return: the errors that no waiting can change, by job.
        """
        now = yield Sleep(0)
        self.is_fresh, self._last_failure, self.app = False, None, None
        asked = list(self._waiting)  # as of before the question, so that the counters know them all
        if self._failures and asked:  # one question is enough to know whether the outage is over
            errors = yield from self._look([asked[self._failures % len(asked)]], now)
            if self._failures or errors:
                return errors
            asked = list(self._waiting)
        if len(asked) <= HANDFUL or not self.trusts_counters:
            return (yield from self._look(asked, now))
        was_silent = _COUNTERS in self._silent
        counters = yield from self._counters()
        if counters is not None:
            return (yield from self._follow(asked, counters, poll_interval, urgent, now))
        if _COUNTERS in self._silent and not was_silent:  # that may be an outage
            return {}
        errors = yield from self._look(asked[:1], now)
        if not self._failures:
            errors |= yield from self._look(asked[1:], now)
        return errors

    def _follow(
        self,
        asked: Sequence[str],
        counters: tuple[int, int],
        poll_interval: float,
        urgent: Collection[str],
        now: float,
    ) -> Flow[dict[str, RunGenError]]:
        """Look at as many jobs as the counters ask for, and check the counters."""
        books, lag = self._books, max(LAG, 2 * poll_interval)
        asked = [job_id for job_id in asked if job_id in self._waiting]
        strikes = books.strikes
        missing = books.open(*counters, len(asked), now, lag)
        is_struck = books.strikes > strikes
        if is_struck:
            self._passed, self._check_at = 0, now
        before = len(self.over)
        sample = self._sample(asked, max(SLOW_PACE, poll_interval), lag, now)
        first = dict.fromkeys([*sample, *(job_id for job_id in asked if job_id in urgent)])
        errors = yield from self._look(list(first), now)
        if sample:
            # of many, some may have ended since the question; if not, that will be overdue before long
            is_passed = -books.owed <= len(sample) // 8
            self._passed += is_passed
            missing = missing if is_passed else len(asked)
        # what does not answer comes last, or it would be all that is looked at
        rest = sorted(
            (job_id for job_id in asked if job_id in self._waiting and job_id not in first),
            key=self._silent.__contains__,
        )
        looks, found = 0, len(self.over)
        while rest and not self._failures and (left := missing - (len(self.over) - before)) > 0:
            # as many more as were looked at in vain: few if the jobs end in order, soon all if they do not
            step = max(left, looks - (len(self.over) - found))
            errors |= yield from self._look(rest[:step], now)
            looks += len(rest[:step])
            rest = rest[step:]
        if self._last_failure is None:
            books.close(len(self._waiting), is_swept=not rest)
            if is_struck:  # all were looked at, and what was told of before says nothing any more
                books.owed = books.overdue = 0
        if not self.trusts_counters:
            self._say_given_up("do not add up")
        return errors

    def _sample(self, asked: Sequence[str], pace: float, lag: float, now: float) -> list[str]:
        """Give the jobs to look at to check the counters, if it is time to."""
        if self._check_at is None:
            self._check_at = now + pace
        if now < self._check_at:
            return []
        self._check_at = now + (pace if self._passed else lag)
        # At first nothing is proved, and all of a few are looked at. Of those that ended before the first
        # look nothing is told, and the jobs of others may hide it.
        is_thorough = not self._is_checked and (len(asked) <= FEW or self._books.others > 0)
        share = 0 if is_thorough else self._passed
        self._is_checked = True
        since = now - (pace if self._passed else lag)
        sample = [job_id for job_id in asked if self._waiting[job_id].looked_at <= since]
        sample.sort(key=lambda job_id: self._waiting[job_id].looked_at)
        size = max(HANDFUL, len(sample) >> share, math.ceil(len(asked) * pace / SLOWEST_PACE))
        return sample[:size]

    def _counters(self) -> Flow[tuple[int, int] | None]:
        """Ask for the counters: jobs that have ended, and jobs that are queued or running."""
        app = yield from self.look_at_app()
        if isinstance(app, RunGenError) and may_pass(app):
            return None
        jobs = {} if isinstance(app, RunGenError) else app.jobs
        names = ("completed", "failed", "in_progress", "in_queue")
        if all(name in jobs for name in names):
            self._absent = 0
            return jobs["completed"] + jobs["failed"], jobs["in_progress"] + jobs["in_queue"]
        self._absent += 1  # a new app has none at first
        if self._absent == STRIKES:
            self._say_given_up("are missing")
        return None

    def look_at_app(self) -> Flow[App | RunGenError]:
        """Ask for the app, and keep what was said in ``app``, too."""
        try:
            self.app = yield from get_app(self.app_id, attempts=1)
        except RunGenError as error:
            self.app = error
        if isinstance(self.app, RunGenError) and may_pass(self.app):
            self._note_silence([_COUNTERS], self.app)
        else:
            self._note_answers([_COUNTERS])
        return self.app

    def _look(self, job_ids: Sequence[str], now: float) -> Flow[dict[str, RunGenError]]:
        """Look at these jobs, as long as any answer comes; give the errors that no waiting can change."""
        errors: dict[str, RunGenError] = {}
        for start in range(0, len(job_ids), MOST_AT_ONCE):
            errors |= yield from self._look_at_once(job_ids[start : start + MOST_AT_ONCE], now)
            if self._failures:
                break
        return errors

    def _look_at_once(self, job_ids: Sequence[str], now: float) -> Flow[dict[str, RunGenError]]:
        errors: dict[str, RunGenError] = {}
        outcomes = yield Together([self._get(job_id) for job_id in job_ids])
        failure: RunGenError | None = None
        silent: list[str] = []
        for job_id, outcome in zip(job_ids, outcomes, strict=True):
            if not isinstance(outcome, RunGenError):
                self._note(outcome, now)
            elif may_pass(outcome):
                failure = outcome
                silent.append(job_id)
            elif not (isinstance(outcome, RunGenNotFoundError) and self._may_be_new(job_id, now)):
                errors[job_id] = outcome
        if len(silent) == len(job_ids):
            self._failures += 1
        else:
            # after an outage, what did not answer then is no worse than the rest
            self._note_answers(self._silent.copy() if self._failures else set(job_ids).difference(silent))
            self._failures = 0
        if failure is not None:
            self._note_silence(silent, failure)
        return errors

    def _get(self, job_id: str) -> Flow[Job]:
        job = yield from get_job(self.app_id, job_id, attempts=1)
        return self.take(job) if job.is_terminal else job

    def _may_be_new(self, job_id: str, now: float) -> bool:
        entry = self._waiting.get(job_id)
        if entry is None or entry.job is not None or now >= entry.known_by:
            return False
        self.say(logging.INFO, f"RunGen does not know job {job_id} yet; waiting goes on", job_id)
        return True

    def _note(self, job: Job, now: float) -> None:
        entry = self._waiting.get(job.id)
        if entry is None:  # its last waiter left in the meantime
            return
        before, entry.job, entry.looked_at = entry.job, replace(job, input=None), now
        if job.is_terminal:
            self.over[job.id] = job
            del self._waiting[job.id]
            if job.status is not JobStatus.CANCELED:  # the service does not count these
                self._books.find()
        if before and before.status_word == job.status_word:
            return
        if not job.is_word_known:
            word = clean_text(job.status_word, 50)
            line = f"RunGen job {job.id} has the unknown status {word}; it counts as still running"
            self.say(logging.WARNING, line, job.id)
        elif not before or before.status is not job.status:
            self.say(logging.INFO, f"RunGen job {job.id} is {job.status}", job.id)

    def _note_silence(self, silent: Iterable[str], failure: RunGenError) -> None:
        if not self._silent:
            self.say(logging.WARNING, f"{str(failure).rstrip('.')}; waiting goes on", None)
        self._silent.update(silent)
        self._last_failure = failure

    def _note_answers(self, answered: Iterable[str]) -> None:
        if self._silent:
            self._silent.difference_update(answered)
            if not self._silent:
                self.say(logging.INFO, "RunGen answers again", None)

    def _say_given_up(self, reason: str) -> None:
        if not self._has_given_up:
            self._has_given_up = True
            line = f"The job counters of RunGen app {self.app_id} {reason}: its jobs are polled one by one"
            self.say(logging.WARNING, line, None)


def wait_for_jobs(
    app_id: str,
    job_ids: Iterable[str],
    *,
    poll_interval: float,
    deadline: float | None = None,
    known_by: float = 0.0,
    watch: Watch | None = None,
) -> Flow[list[Job]]:
    """
    Wait until every job is over, however it ended; return the jobs in the order given.

    A poll that fails but may pass does not end the waiting; it is said once per outage.

    :param poll_interval: seconds between two looks.
    :param deadline: the time (seconds since 1970) to stop waiting at; in the past, it allows one look.
    :param known_by: the time (seconds since 1970) until which the service may not know the jobs yet.
    :param watch: what earlier looks at the same jobs have seen, for one that is going to be followed by more.
    :raises RunGenJobTimeoutError: the deadline passed; names the first job that is not over.
    """
    job_ids = list(job_ids)
    for job_id in job_ids:
        seg(job_id, "job_id")
    is_wide = len(job_ids) > HANDFUL
    is_last_look_full = watch is None or watch.is_fresh
    watch = watch or Watch(app_id, say_less if is_wide else log_line)
    now = yield Sleep(0)
    progress = Progress(len(job_ids), now)
    watch.add(job_ids, now, known_by)
    while True:
        is_last = deadline is not None and now >= deadline
        begun_at = now
        errors = yield from watch.round(poll_interval, job_ids if is_last and is_last_look_full else ())
        for job_id, error in errors.items():
            if len(job_ids) == 1 or not concerns_one_job(error):
                raise error
            watch.forget([job_id])
            watch.over[job_id] = failed_by(error, app_id, job_id)
        waiting = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in watch.over]
        if not waiting:
            return [watch.over[job_id] for job_id in job_ids]
        if is_last:
            raise timeout_error(app_id, waiting)
        now = yield Sleep(0)
        if is_wide and (line := progress.line(watch.over.values(), now)):
            log.info("%s", line)
        pause = max(begun_at + poll_interval - now, watch.pause())
        now = yield Sleep(pause if deadline is None else min(pause, max(deadline - now, 0)))


def concerns_one_job(error: RunGenError) -> bool:
    """Tell whether an error says nothing of the other jobs of its app."""
    return isinstance(error, RunGenNotFoundError | RunGenBadRequestError | RunGenResponseError)


def job_of(look: Job | RunGenError, app_id: str, job_id: str) -> Job:
    """
    Give the job that a look came to, or the one that an error about it alone makes useless.

    :raises RunGenError: the error says something of the other jobs, too, or may pass.
    """
    if isinstance(look, Job):
        return look
    if may_pass(look) or not concerns_one_job(look):
        raise look
    return failed_by(look, app_id, job_id)


def failed_by(error: RunGenError, app_id: str, job_id: str) -> Job:
    """Give the job that an error makes useless: among others, it counts as failed."""
    return Job(id=job_id, app_id=app_id, status=JobStatus.FAILED, error=str(error))


def timeout_error(app_id: str, waiting: Sequence[str]) -> RunGenJobTimeoutError:
    """Give the error that says that these jobs were not over in time."""
    more = f" (and {len(waiting) - 1} more)" if len(waiting) > 1 else ""
    message = f"RunGen job {waiting[0]} of app {app_id}{more} was not over in time"
    return RunGenJobTimeoutError(message, app_id=app_id, job_id=waiting[0])


def say_less(level: int, line: str, job_id: str | None) -> None:
    """Say of single jobs only what is wrong with them, for there are many."""
    log_line(level if job_id is None or level > logging.INFO else logging.DEBUG, line, job_id)
