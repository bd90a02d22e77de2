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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from airflow_provider_rungen.client.codec import path_segment
from airflow_provider_rungen.client.endpoints import get_app, get_job
from airflow_provider_rungen.client.flow import (
    CUT,
    Flow,
    Gather,
    Pending,
    Sleep,
)
from airflow_provider_rungen.client.models import (
    App,
    Job,
    JobStatus,
)
from airflow_provider_rungen.client.progress import Progress
from airflow_provider_rungen.client.retry import (
    Refusals,
    is_refusal,
    is_transient,
    retry_delay,
)
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenConfigError,
    RunGenError,
    RunGenJobTimeoutError,
    RunGenNotFoundError,
    RunGenResponseError,
)

log = logging.getLogger(__name__)

# As few jobs are simply polled: asking for the counters first would cost as much.
COUNTER_THRESHOLD = 4
# Seconds within which the service has to know a job that it has just created.
VISIBILITY_GRACE = 120.0
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
MAX_CONCURRENT_POLLS = 256
# Seconds that a look may take. What does not answer is asked again apart from the others, and for longer.
LOOK_TIME = 15.0
# Seconds that a look at the deadline may take: the first at all, and any other.
FIRST_LOOK_TIME = 10.0
LAST_LOOK_TIME = 2.0
# Seconds in which all last looks have to end, and that any look may take though the time is over.
LAST_ROUND_TIME = 30.0
SHORTEST_LOOK = 0.5
# How many jobs that did not answer are asked again in a round.
APART = 8
# Seconds between two looks while it is not known whether a refusal lasts.
REFUSAL_PAUSE = 5.0
_COUNTERS = "the counters"


# Takes a log level, a line, and the job it is about, if it is about one.
Say = Callable[[int, str, str | None], None]


def identity(job: Job) -> Job:
    """Keep all of a job."""
    return job


def strip_payloads(job: Job) -> Job:
    """Keep of a job only how it ended: there may be many, and their results large."""
    return replace(job, input=None, result=None)


def log_line(level: int, line: str, job_id: str | None) -> None:
    """Say it in this module's log."""
    log.log(level, "%s", line)


@dataclass(slots=True)
class _Waiting:
    """
    A job that is waited for.

    :param looked_at: when it was last seen.
    :param known_by: when the service has to know it.
    :param job: what was seen.
    :param failures: how many looks in a row were not answered.
    :param not_before: when it may be asked for again: after what the service asked to wait, for one.
    :param is_cut: whether the last look was ended early, for too many others were slow: it comes first now.
    """

    looked_at: float
    known_by: float = 0.0
    job: Job | None = None
    failures: int = 0
    not_before: float = 0.0
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class _Time:
    """
    The time that looks have.

    :param left: seconds to the deadline, when they began.
    :param end_by: when all of them have to end (seconds since 1970).
    """

    left: float = math.inf
    end_by: float = math.inf

    @classmethod
    def until(cls, now: float, left: float) -> _Time:
        return cls(left, now + (left if left >= 1 else LAST_ROUND_TIME))

    def of_a_look(self, entry: _Waiting, now: float) -> float:
        """Return the seconds that a look may take: more after looks in vain, for a large answer."""
        at_the_end = FIRST_LOOK_TIME if entry.job is None else LAST_LOOK_TIME
        most = LOOK_TIME * 2.0 ** min(entry.failures, 8)
        return min(most, self.left if self.left >= 1 else at_the_end, max(self.end_by - now, SHORTEST_LOOK))


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
class JobPoller:
    """
    The jobs of one app that are waited for, and what is known of them.

    A job that does not answer, or asks to be left alone for a while, holds up no other: each look is noted
    when its answer comes, and what takes long goes on by itself.

    :param app_id: the app.
    :param say: where to say what happens.
    :param over: the jobs that are over, until they are forgotten.
    :param is_fresh: whether there was no round yet.
    :param take: what to keep of a job that is over, at once; what it raises is the error of that job.
    :param is_lean: whether to do without inputs and results.
    :param is_shared: whether several wait for its jobs, so that no look may hold up another.
    :param on_news: called when a job is over, or has an error that no waiting can change.
    :param app: what the service said of the app in the last round, or why it did not, if it was asked.
    """

    app_id: str
    say: Say = log_line
    over: dict[str, Job] = field(default_factory=dict)
    is_fresh: bool = True
    take: Callable[[Job], Job] = identity
    is_lean: bool = False
    is_shared: bool = False
    on_news: Callable[[], None] = lambda: None
    app: App | RunGenError | None = None
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    # the errors that no waiting can change, until they are taken
    _errors: dict[str, RunGenError] = field(default_factory=dict)
    _refusals: Refusals = field(default_factory=Refusals)
    # what was asked and has not answered yet; what did not answer when it was last asked
    _under_way: set[str] = field(default_factory=set)
    _silent: set[str] = field(default_factory=set)
    _is_silence_told: bool = False
    # rounds in a row in which no look was answered, and the last failure of the round
    _failures: int = 0
    _last_failure: RunGenError | None = None
    # seconds to leave the service alone after the last round, and until when
    _pause: float = 0.0
    _quiet_until: float = 0.0
    _app_failures: int = 0
    _app_not_before: float = 0.0
    # the time that the looks of a round have, and the seconds that it waits for a slow one
    _time: _Time = _Time()
    _patience: float | None = None
    # by how much a service that is slow for many jobs stretches that time, and whether looks were cut off
    _stretch: float = 1.0
    _was_cut: bool = False
    # how many jobs were found to be over, how many looks were answered, and when the service last answered
    _found: int = 0
    _answers: int = 0
    _answered_at: float = -math.inf
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

    @property
    def is_refused(self) -> bool:
        """Whether the service refuses to answer, and it is too early to know whether it goes on."""
        return self._refusals.is_pending

    @property
    def last_failure(self) -> RunGenError | None:
        """Why the last round was not answered in whole, if it was not."""
        return self._last_failure

    @property
    def is_answered(self) -> bool:
        """Whether any job that is waited for answered when it was last asked, or was not asked yet."""
        return any(job_id not in self._silent for job_id in self._waiting)

    def is_under_way(self, job_ids: Iterable[str]) -> bool:
        """Return whether one of these jobs was asked for and has not answered yet."""
        return not self._under_way.isdisjoint(job_ids)

    @property
    def not_before(self) -> float:
        """The time (seconds since 1970) until which the service asked to be left alone, 0 for none."""
        soonest = min((entry.not_before for entry in self._waiting.values()), default=0.0)
        return max(self._quiet_until, soonest)

    def held_back(self, now: float) -> dict[str, float]:
        """
        Return the times (seconds since 1970) before which another poller is not to ask the service.

        :return: by job; for all under an empty id. Of many jobs, only what holds for all.
        """
        times = {"": self.not_before} | {job_id: each.not_before for job_id, each in self._waiting.items()}
        later = {
            job_id: at for job_id, at in times.items() if at > (now if not job_id else max(now, times[""]))
        }
        return later if len(later) <= FEW else {key: at for key, at in later.items() if not key}

    def add(
        self,
        job_ids: Iterable[str],
        now: float,
        known_by: float = 0.0,
        held_back: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """
        Wait for these, too; order is age.

        :param known_by: the time (seconds since 1970) until which the service may not know them yet.
        :param held_back: what another poller gave as its `held_back`.
        """
        for job_id in job_ids:
            if job_id not in self._waiting and job_id not in self.over:
                not_before = max(held_back.get("", 0.0), held_back.get(job_id, 0.0))
                self._waiting[job_id] = _Waiting(now, known_by, not_before=not_before)
                self._books.add()

    def forget(self, job_ids: Iterable[str]) -> None:
        """Wait for these no longer."""
        for job_id in job_ids:
            self._waiting.pop(job_id, None)
            self.over.pop(job_id, None)
            self._errors.pop(job_id, None)
            self._silent.discard(job_id)

    def pause(self) -> float:
        """Return the seconds to leave the service alone after the last round: some if nothing answered."""
        return self._pause

    def take_errors(self) -> dict[str, RunGenError]:
        """Return the errors that no waiting can change, by job, once each."""
        errors, self._errors = self._errors, {}
        return errors

    def round(self, poll_interval: float, left: float = math.inf) -> Flow[dict[str, RunGenError]]:
        """
        Look once at what is worth a look; the jobs found to be over go to ``over``.

        :param poll_interval: seconds to the next round.
        :param left: seconds to the deadline.
        :return: the errors that no waiting can change, by job.
        """
        now = yield Sleep(0)
        if not self._is_quiet(now):
            self._begin(poll_interval, left, now)
            yield from self._round(poll_interval, now)
            yield from self._end()
        return self.take_errors()

    def look(self, job_ids: Collection[str], left: float = 0.0) -> Flow[dict[str, RunGenError]]:
        """
        Look at these jobs, whatever the counters say, as long as any answer comes.

        Those who share this may look for the last time while a round is under way.

        :param left: seconds to the deadline.
        :return: the errors that no waiting can change, by job.
        """
        now = yield Sleep(0)
        if not self._is_quiet(now):
            wanted, self.is_fresh = set(job_ids), False
            if not self.is_shared:
                self._last_failure = None
            due = [job_id for job_id in self._due(now) if job_id in wanted]
            yield from self._look(due, _Time.until(now, left))
            yield from self._end()
        return self.take_errors()

    def _is_quiet(self, now: float) -> bool:
        """Return whether the service is to be left alone; a pause is measured in fractions, too."""
        return now < self._quiet_until - 0.001

    def _begin(self, poll_interval: float, left: float, now: float) -> None:
        self._time = _Time.until(now, left)
        if self.is_shared:
            self._stretch = (
                min(self._stretch * 2, LOOK_TIME) if self._was_cut else max(self._stretch * 0.9, 1.0)
            )
            self._patience = min(min(max(poll_interval, 1.0), 10.0) * self._stretch, LOOK_TIME)
        self._was_cut = False
        self.is_fresh, self._last_failure, self.app = False, None, None

    def _end(self) -> Flow[None]:
        """Note for how long the service is to be left alone."""
        self._pause = 0.0
        if self._failures and self._last_failure is not None:
            self._pause = retry_delay(self._failures - 1, self._last_failure)
        if self._pause and self.is_refused:
            self._pause = min(self._pause, REFUSAL_PAUSE)
        self._quiet_until = (yield Sleep(0)) + self._pause if self._pause else 0.0

    def _due(self, now: float) -> list[str]:
        """Return the jobs that may be asked for, oldest first, but before them those that were cut off."""
        due = [
            job_id
            for job_id, entry in self._waiting.items()
            if job_id not in self._under_way and entry.not_before <= now + 0.001
        ]
        return sorted(due, key=lambda job_id: not self._waiting[job_id].is_cut)

    def _round(self, poll_interval: float, now: float) -> Flow[None]:
        asked = self._due(now)  # as of before the question, so that the counters know them all
        if self._failures:  # one question is enough to know whether the outage is over
            yield from self._look([asked[self._failures % len(asked)]] if asked else [])
            if self._failures:
                return
            asked = self._due((yield Sleep(0)))
        apart = [job_id for job_id in asked if job_id in self._silent]
        if len(apart) < len(asked):
            asked = [job_id for job_id in asked if job_id not in self._silent]
            yield from self._look_at_many(asked, poll_interval, now)
            yield from self._look_apart(apart)
        else:
            yield from self._look_at_many(asked, poll_interval, now)

    def _look_at_many(self, asked: list[str], poll_interval: float, now: float) -> Flow[None]:
        if len(self._waiting) <= COUNTER_THRESHOLD or not self.trusts_counters:
            yield from self._look(asked)
            return
        known, was_silent = list(self._waiting), _COUNTERS in self._silent
        counters = yield from self._counters()
        if counters is not None:
            yield from self._follow(asked, known, counters, poll_interval, now)
            return
        if _COUNTERS in self._under_way and (yield Sleep(0)) - self._answered_at < LOOK_TIME:
            yield from self._look(asked)  # the service is slow, or hangs for the counters alone
            return
        yield from self._look(asked[:1])  # the counters alone may be silent, or all of the service
        if not self._failures and (was_silent or _COUNTERS not in self._silent):
            yield from self._look(asked[1:])

    def _look_apart(self, job_ids: Sequence[str]) -> Flow[None]:
        """Look at jobs that did not answer the last time, and wait for none of them."""
        job_ids = [job_id for job_id in job_ids if job_id in self._waiting][:APART]
        if job_ids:
            looks = [self._ask(job_id) for job_id in job_ids]
            yield Gather(looks, patience=0 if self.is_shared else None)

    def _follow(
        self,
        asked: Sequence[str],
        known: Sequence[str],
        counters: tuple[int, int],
        poll_interval: float,
        now: float,
    ) -> Flow[None]:
        """Look at as many jobs as the counters, which know those given, ask for, and check the counters."""
        books, lag = self._books, max(LAG, 2 * poll_interval)
        asked = [job_id for job_id in asked if job_id in self._waiting]
        strikes = books.strikes
        missing = books.open(*counters, sum(job_id in self._waiting for job_id in known), now, lag)
        is_struck = books.strikes > strikes
        if is_struck:
            self._passed, self._check_at = 0, now
        before = self._found
        sample = self._sample(asked, max(SLOW_PACE, poll_interval), lag, now)
        yield from self._look(sample)
        if sample:
            # of many, some may have ended since the question; if not, that will be overdue before long
            is_passed = -books.owed <= len(sample) // 8
            self._passed += is_passed
            missing = missing if is_passed else len(asked)
        looked = set(sample)
        rest = [job_id for job_id in asked if job_id in self._waiting and job_id not in looked]
        looks, found, answers = 0, self._found, self._answers
        while rest and not self._failures and (left := missing - (self._found - before)) > 0:
            # as many more as were looked at in vain: few if the jobs end in order, soon all if they do not
            step = max(left, looks - (self._found - found))
            if looks and self._answers == answers:
                step = len(rest)  # a step takes long when none of its jobs answers
            yield from self._look(rest[:step])
            looks += len(rest[:step])
            rest = rest[step:]
        if self._last_failure is None:
            is_swept = not rest and not self._silent and not self._under_way
            books.close(len(self._waiting), is_swept=is_swept)
            if is_struck and is_swept:  # all were looked at: what was told of before says nothing any more
                books.owed = books.overdue = 0
        if not self.trusts_counters:
            self._say_given_up("do not add up")

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
        size = max(COUNTER_THRESHOLD, len(sample) >> share, math.ceil(len(asked) * pace / SLOWEST_PACE))
        return sample[:size]

    def _counters(self) -> Flow[tuple[int, int] | None]:
        """Ask for the counters: jobs that have ended, and jobs that are queued or running."""
        app = yield from self.look_at_app()
        if app is None or (isinstance(app, RunGenError) and _is_silence(app)):
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

    def look_at_app(self) -> Flow[App | RunGenError | None]:
        """
        Ask for the app, and keep what was said in ``app``, too.

        :return: the app, or why it was not told; ``None`` when it does not answer, or is not to be asked yet.
        """
        now = yield Sleep(0)
        self.app = None
        if _COUNTERS in self._under_way or now < self._app_not_before - 0.001:
            return None
        [app] = yield Gather([self._ask_for_app()], patience=self._patience_at(self._time, now))
        if isinstance(app, Pending):
            self._silent.add(_COUNTERS)
            return None
        self.app = app
        return self.app

    def _ask_for_app(self) -> Flow[App]:
        self._under_way.add(_COUNTERS)
        try:
            timeout = self._time.of_a_look(_Waiting(0.0), (yield Sleep(0)))
            app = yield from get_app(self.app_id, attempts=1, timeout=timeout, is_lean=True)
        except RunGenError as error:
            if _is_silence(error):
                self._app_not_before = (yield Sleep(0)) + retry_delay(self._app_failures, error)
                self._app_failures += 1
                self._note_silence(_COUNTERS, error)
            else:
                self._note_answers([_COUNTERS])
            raise
        finally:
            self._under_way.discard(_COUNTERS)
        self._app_failures, self._app_not_before = 0, 0.0
        self._answered_at = yield Sleep(0)
        self._note_answers([_COUNTERS])
        return app

    def _look(self, job_ids: Sequence[str], time: _Time | None = None) -> Flow[None]:
        """Look at these jobs, as long as any answer comes, in the time of the round or another."""
        for start in range(0, len(job_ids), MAX_CONCURRENT_POLLS):
            yield from self._look_at_once(job_ids[start : start + MAX_CONCURRENT_POLLS], time or self._time)
            if self._failures:
                break

    def _look_at_once(self, job_ids: Sequence[str], time: _Time) -> Flow[None]:
        job_ids = [job_id for job_id in job_ids if job_id in self._waiting]
        looks = [self._ask(job_id, time) for job_id in job_ids]
        if not looks:
            return
        answers, patience = self._answers, self._patience_at(time, (yield Sleep(0)))
        outcomes: list[RunGenError | Pending | None] = yield Gather(looks, patience=patience)
        for job_id, outcome in zip(job_ids, outcomes, strict=True):
            if outcome is CUT and (entry := self._waiting.get(job_id)) is not None:
                entry.is_cut = self._was_cut = True
                self._silent.add(job_id)
        if None in outcomes or self._answers > answers:
            return  # any answer ends an outage, when it comes
        if all(isinstance(outcome, Pending) for outcome in outcomes):
            now = yield Sleep(0)
            if now - self._answered_at < LOOK_TIME:
                return  # the service is slow, or hangs for these jobs alone
        self._failures += 1
        for job_id, outcome in zip(job_ids, outcomes, strict=True):
            entry = self._waiting.get(job_id)
            if entry is not None and not getattr(outcome, "retry_after", None):
                entry.not_before = 0.0  # in an outage it is the whole app that is left alone
        failures = [outcome for outcome in outcomes if isinstance(outcome, RunGenError)]
        if failures:  # one that asks for a long pause may ask for itself alone
            self._last_failure = min(failures, key=lambda error: getattr(error, "retry_after", None) or 0.0)

    def _ask(self, job_id: str, time: _Time | None = None) -> Flow[RunGenError | None]:
        """Look at a job; give the failure if it may pass."""
        outcome: Job | RunGenError
        if (entry := self._waiting.get(job_id)) is None:
            return None  # its last waiter left before it was its turn
        timeout = (time or self._time).of_a_look(entry, (yield Sleep(0)))
        self._under_way.add(job_id)
        try:
            job = yield from get_job(self.app_id, job_id, attempts=1, timeout=timeout, is_lean=self.is_lean)
            outcome = self.take(job) if job.is_terminal else job
        except RunGenError as error:
            outcome = error
        finally:
            self._under_way.discard(job_id)
        return self._note_outcome(job_id, outcome, (yield Sleep(0)))

    def _patience_at(self, time: _Time, now: float) -> float | None:
        """Return the seconds to wait for a look: many, which take turns, must not outlast the deadline."""
        if self.is_shared or math.isinf(time.end_by):
            return self._patience
        return max(time.end_by - now, SHORTEST_LOOK)

    def _note_outcome(self, job_id: str, outcome: Job | RunGenError, now: float) -> RunGenError | None:
        entry = self._waiting.get(job_id)
        if entry is not None:
            entry.is_cut = False
        if isinstance(outcome, Job):
            self._refusals.answered()
        elif self._refusals.is_transient(outcome, now):
            if entry is not None:
                entry.not_before = now + retry_delay(entry.failures, outcome)
                entry.failures += 1
                self._note_silence(job_id, outcome)
            return outcome
        self._answers += 1
        self._answered_at = now
        # after an outage, what did not answer then is no worse than the rest
        self._note_answers(self._silent.copy() if self._failures else [job_id])
        self._failures = 0
        if isinstance(outcome, Job):
            self._note(outcome, now)
        elif entry is not None:
            is_new = isinstance(outcome, RunGenNotFoundError) and self._may_be_new(job_id, now)
            if not is_new:
                # a key that is refused for good is so for every job
                self._errors |= dict.fromkeys(self._waiting if is_refusal(outcome) else [job_id], outcome)
                self.on_news()
        return None

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
            self._found += 1
            del self._waiting[job.id]
            if job.status is not JobStatus.CANCELED:  # the service does not count these
                self._books.find()
        self._say_status(before, job)
        if job.is_terminal:
            self.on_news()

    def _say_status(self, before: Job | None, job: Job) -> None:
        if before and before.raw_status == job.raw_status:
            return
        if not job.is_known_status:
            word = clean_text(job.raw_status, 50)
            line = f"RunGen job {job.id} has the unknown status {word}; it counts as still running"
            self.say(logging.WARNING, line, job.id)
        elif not before or before.status is not job.status:
            self.say(logging.INFO, f"RunGen job {job.id} is {job.status}", job.id)

    def _note_silence(self, silent: str, failure: RunGenError) -> None:
        if not self._is_silence_told:
            self.say(logging.WARNING, f"{str(failure).rstrip('.')}; waiting goes on", None)
        self._is_silence_told = True
        self._silent.add(silent)
        self._last_failure = failure

    def _note_answers(self, answered: Iterable[str]) -> None:
        for job_id in answered:
            if (entry := self._waiting.get(job_id)) is not None:
                entry.failures = 0
        self._silent.difference_update(answered)
        if self._is_silence_told and not self._silent:
            self._is_silence_told = False
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
    watch: JobPoller | None = None,
) -> Flow[list[Job]]:
    """
    Wait until every job is over, however it ended; return the jobs in the order given.

    A poll that fails but may pass does not end the waiting; it is said once per outage.

    :param poll_interval: seconds between two looks.
    :param deadline: the time (seconds since 1970) to stop waiting at; in the past, it allows one look, which
        may take as long as any.
    :param known_by: the time (seconds since 1970) until which the service may not know the jobs yet.
    :param watch: what earlier looks at the same jobs have seen, for one that is going to be followed by more.
    :raises RunGenJobTimeoutError: the deadline passed; names the first job that is not over.
    """
    job_ids = list(job_ids)
    for job_id in job_ids:
        path_segment(job_id, "job_id")
    is_wide = len(job_ids) > COUNTER_THRESHOLD
    is_last_look_full = watch is None or watch.is_fresh
    watch = watch or JobPoller(app_id, log_quietly if is_wide else log_line)
    now = yield Sleep(0)
    is_one_look = deadline is not None and now >= deadline
    progress = Progress(len(job_ids), now)
    watch.add(job_ids, now, known_by)
    while True:
        begun_at, left = now, math.inf if deadline is None else deadline - now
        is_last = left <= 0
        is_full = is_last and is_last_look_full
        jobs = yield from look_once(
            watch,
            job_ids,
            poll_interval=poll_interval,
            left=LOOK_TIME if is_one_look else left,
            is_full=is_full,
        )
        if jobs is not None:
            return jobs
        now = yield Sleep(0)
        # a single look outlasts a refusal that may be a stray one; and none follows one that hung to the end
        is_last = is_last and not (is_one_look and watch.is_refused)
        if is_last or (not is_one_look and now - begun_at >= left and not watch.is_answered):
            raise timeout_error(watch, job_ids)
        if is_wide and (line := progress.line(watch.over.values(), now)):
            log.info("%s", line)
        pause = max(begun_at + poll_interval - now, watch.pause())
        if deadline is not None and not is_one_look:
            pause = min(pause, max(deadline - now, 0))
        now = yield Sleep(pause)


def look_once(
    watch: JobPoller, job_ids: Sequence[str], *, poll_interval: float, left: float, is_full: bool
) -> Flow[list[Job] | None]:
    """
    Look once at jobs that are waited for; give them, in the order given, when all are over.

    :param poll_interval: seconds to the next look.
    :param left: seconds to the deadline.
    :param is_full: whether to look at each, whatever the counters say.
    :raises RunGenError: an error that no waiting can change.
    """
    if is_full:
        errors = yield from watch.look(job_ids, left)
    else:
        errors = yield from watch.round(poll_interval, left)
    for job_id, error in errors.items():
        if len(job_ids) == 1 or not concerns_one_job(error):
            raise error
        watch.forget([job_id])
        watch.over[job_id] = failed_by(error, watch.app_id, job_id)
    if any(job_id not in watch.over for job_id in job_ids):
        return None
    return [watch.over[job_id] for job_id in job_ids]


def _is_silence(error: RunGenError) -> bool:
    """Return whether an error says nothing of what was asked for."""
    return is_transient(error) or isinstance(error, RunGenConfigError)


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
    if is_transient(look) or not concerns_one_job(look):
        raise look
    return failed_by(look, app_id, job_id)


def failed_by(error: RunGenError, app_id: str, job_id: str) -> Job:
    """Give the job that an error makes useless: among others, it counts as failed."""
    return Job(id=job_id, app_id=app_id, status=JobStatus.FAILED, error=str(error))


def timeout_error(watch: JobPoller, job_ids: Iterable[str]) -> RunGenJobTimeoutError:
    """Return the error that says that those of the jobs that are not over were not over in time."""
    waiting = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in watch.over]
    more = f" (and {len(waiting) - 1} more)" if len(waiting) > 1 else ""
    message = f"RunGen job {waiting[0]} of app {watch.app_id}{more} was not over in time"
    if watch.last_failure is not None:
        message += f". The last time it was asked for: {str(watch.last_failure).rstrip('.')}"
    return RunGenJobTimeoutError(message, app_id=watch.app_id, job_id=waiting[0])


def log_quietly(level: int, line: str, job_id: str | None) -> None:
    """Say of single jobs only what is wrong with them, for there are many."""
    log_line(level if job_id is None or level > logging.INFO else logging.DEBUG, line, job_id)
