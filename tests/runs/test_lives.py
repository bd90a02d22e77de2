"""Whole lives of task runs on bad days, judged by what the service created and what storage holds."""

from __future__ import annotations

import os
from dataclasses import replace

from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from lives import BLOCK, Event, Life, Script, StoreLife, durable_ids, load
from places import Trouble

from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import read_attempts
from airflow_provider_rungen.runs.rows import JobState, Writer

#: How many lives to try. With it set, they are other ones each time.
EXAMPLES = os.environ.get("BAD_DAYS_EXAMPLES")

lives = settings(
    max_examples=int(EXAMPLES or 100),
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)

#: A number that no attempt reaches.
LAST = 99
TROUBLES = ("forbidden", "lost", "unanswered", "late", "half")
ANSWERS = ("lost", "nothing", "busy", "refuse", "other")
FAILURES = (JobState.FAILED, JobState.CANCELED, JobState.INVALID, JobState.LOST)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    count = draw(st.sampled_from([3, 12, 30, 30, 70, 140]))
    kinds = draw(st.sampled_from([count, count, max(count // 2, 1)]))
    kinds_of_events = ["kill", "kill", "freeze", "freeze", "forge", "clear"]
    attempts, steps = st.sampled_from([1, 1, 1, 2, 2, 3, 4]), st.integers(1, 40) | st.integers(1, 6 * count)
    events = st.builds(Event, st.sampled_from(kinds_of_events), attempts, steps)
    deferrals = st.builds(Event, st.just("defer"), attempts, st.integers(1, 3 + count // 7))
    troubles = st.builds(
        Trouble,
        st.sampled_from(["put", "put", "put", "list", "get"]),
        st.integers(1, 10 + count // 2),
        st.sampled_from(TROUBLES),
        st.sampled_from([1, 1, 2, 5]),
    )
    nth = st.integers(1, 2 * count + 2)
    changes = st.tuples(st.integers(2, 4), st.sampled_from(["shuffle", "shuffle", "drop", "add"]))
    return Script(
        seed=draw(st.integers(0, 2**32)),
        inputs=tuple(f"input {number % kinds}" for number in range(count)),
        events=tuple(
            draw(st.lists(events, min_size=draw(st.integers(0, 3)), max_size=5))
            + draw(st.lists(deferrals, max_size=4))
        ),
        troubles=tuple(draw(st.lists(troubles, max_size=3))),
        answers=tuple(draw(st.lists(st.tuples(nth, st.sampled_from(ANSWERS)), max_size=4))),
        ends=tuple(draw(st.lists(st.tuples(nth, st.sampled_from(FAILURES)), max_size=4))),
        changes=tuple(draw(st.lists(changes, max_size=2))),
        resubmits=draw(st.sampled_from([True, True, False])),
        resumes_clears=draw(st.booleans()),
        shows_input=draw(st.sampled_from([True, True, False])),
    )


@lives
@given(script=scripts())
@example(  # the fourth attempt has the plan of the first, and the second repeated what failed there
    Script(
        seed=1866160,
        inputs=("input 0", "input 1", "input 2"),
        answers=((1, "lost"), (7, "lost")),
        ends=((1, JobState.FAILED), (2, JobState.FAILED), (3, JobState.FAILED)),
        changes=((2, "shuffle"), (4, "shuffle")),
    )
)
@example(  # the second attempt was deferred when it got an id again that was not its own, for an equal input
    Script(
        seed=0,
        inputs=tuple(f"input {number % 6}" for number in range(12)),
        events=(Event("freeze", 1, 11), Event("defer", 2, 1)),
        answers=((5, "other"), (13, "other")),
    )
)
def test_no_life_buys_more_than_its_blocks_twice(script: Script) -> None:
    judge(Life(script).lead())


@lives
@given(script=scripts())
@example(  # the fourth attempt thaws before the first one does, and has not begun
    Script(
        seed=106,
        inputs=tuple(f"input {number}" for number in range(30)),
        events=(Event("freeze", 1, 10), Event("freeze", 4, 1)),
        changes=((3, "shuffle"),),
        resubmits=False,
    )
)
def test_no_life_in_the_task_state_store_buys_more_than_its_blocks_twice(script: Script) -> None:
    # only Airflow writes there
    events = tuple(event for event in script.events if event.what != "forge")
    judge(StoreLife(replace(script, events=events)).lead())


def judge(life: Life) -> None:
    judge_posts(life)
    judge_doubles(life)
    judge_cut_off(life)
    judge_results(life)
    judge_bill(life)


@lives
@given(script=scripts(), wakes=st.lists(st.integers(1, 40), max_size=8))
def test_waves_end_as_one_wait_does(script: Script, wakes: list[int]) -> None:
    """However often a wave is woken, for whatever reason, or whenever it finds nothing new."""
    # an id of a part that was let go is not recognized if the service gives it to another input
    answers = tuple(pair for pair in script.answers if pair[1] != "other")
    calm = replace(script, events=(), troubles=(), answers=answers, attempts=2)
    one_wait = Life(calm).lead()
    deferrals = tuple(Event("defer", attempt, step) for step in wakes for attempt in (1, 2))
    waves = Life(replace(calm, events=deferrals)).lead()
    posts = [[(post.number, post.input) for post in life.posts] for life in (waves, one_wait)]
    assert posts[0] == posts[1]
    assert waves.results == one_wait.results
    assert [str(error) for error in waves.errors] == [str(error) for error in one_wait.errors]


def judge_posts(life: Life) -> None:
    for post in life.posts if not life.forged else ():
        assert post.is_intent_durable, f"{post} had no durable intent"


def judge_doubles(life: Life) -> None:
    """Only what a kill, a lost answer or a cut-off attempt hid was bought twice, and one block each."""
    script = life.script
    unanswered = sum(not job.is_answered for job in life.jobs.values())
    freezes = sum(event.what == "freeze" for event in script.events)
    ends = life.kills + freezes + len(script.troubles)
    assert life.bought_twice <= unanswered + BLOCK * ends
    if life.is_plain:
        for job in life.jobs.values():
            if job.writer is None or not job.is_double:
                continue
            hidden = [each for each in job.rivals if each not in life.known_at_begin[job.writer]]
            assert hidden, f"{job} was bought though {job.rivals} were saved"


def judge_cut_off(life: Life) -> None:
    """An attempt that was cut off sends one block at most, which its successor saw."""
    for writer, began in life.began.items():
        late = [post for post in life.posts if post.writer < writer and post.time > began]
        for other in {post.writer for post in late}:
            posts = [post for post in late if post.writer == other]
            assert len(posts) <= BLOCK
            assert all((other, post.input) in life.intents_at_begin[writer] for post in posts)


def judge_results(life: Life) -> None:
    """What succeeded has a completed job of its own for each input."""
    if not (life.is_honest or life.script.shows_input):
        return  # then nobody can tell whose a job is
    assert all(life.jobs[job_id].writer is not None for job_id in life.canceled)
    if life.results is None:
        return
    used = list(life.results.values())
    has_equal = len(set(life.source)) < len(life.source)
    # nor if two inputs are equal, and the service gives the job of the one to the other
    lies = [what for _, what in life.script.answers if what == "other"] if has_equal else []
    assert len(used) == len(set(used))
    assert len(life.source) - len(lies) <= len(used) <= len(life.source)
    for name, job_id in life.results.items():
        made = life.jobs[job_id]
        assert made.state is JobState.COMPLETED
        assert made.writer is not None
        assert made.input == name.partition(" ")[2]
        assert life.since[made.writer] == life.since[max(life.since)]


def judge_bill(life: Life) -> None:
    """Each id that was saved is billed once."""
    attempts = read_attempts(life.place_of(LAST))
    seen: set[str] = set()
    for plan in {attempt.plan for attempt in attempts}:
        jobs = Jobs(plan, Writer(10**6, 1, "0" * 8))
        load(jobs, life.place_of(LAST), [attempt.writer for attempt in attempts])
        ids = [job.id for row in jobs.table.rows.values() for job in row.jobs]
        assert len(ids) == len(set(ids)) == jobs.totals().submitted
        seen |= set(ids)
    assert seen == durable_ids(life.files)
