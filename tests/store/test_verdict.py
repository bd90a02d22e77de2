"""The one rule: what is done about a row, given all that is known of its key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_world import APP, digest

from airflow_provider_rungen.store.records import (
    CLAIM_TIME,
    OPEN_TIME,
    Adopt,
    Buy,
    GivenUp,
    Policy,
    Record,
    Reuse,
    Status,
    Wait,
    normalize,
    verdict,
)

KEY = digest(1)
OWN, OTHER = {"run": "own", "by": "try-2"}, {"run": "other", "by": "try-1"}
BEFORE = {"run": "own", "by": "try-1"}
NOW = 1_700_000_000.0


def fact(status: str, n: int = 1, whose: dict[str, str] = OTHER, **more: Any) -> Record:
    given: dict[str, Any] = {"app": APP, "at": NOW - 100, **whose, **more}
    return Record(key=KEY, n=n, status=Status(status), **given)


def policy(**more: Any) -> Policy:
    return Policy(**{"run": "own", "by": "try-2", "app": APP, "run_start": NOW, **more})


def name(found: Any) -> str:
    match found:
        case Reuse(known) | Adopt(known) | Wait(known):
            return f"{type(found).__name__} {known.n}"
        case GivenUp(_, is_final):
            return "GivenUp" if is_final else "GivenUp for now"
        case Buy(n):
            return f"Buy {n}"
    raise AssertionError(found)


DAY = 86_400.0


@pytest.mark.parametrize(
    ("history", "options", "want"),
    [
        ([], {}, "Buy 1"),
        # 1: completed
        ([fact("completed")], {}, "Reuse 1"),
        ([fact("completed", 1), fact("failed", 2), fact("completed", 3)], {}, "Reuse 3"),
        ([fact("completed", 1, BEFORE), fact("completed", 2)], {}, "Reuse 1"),
        ([fact("completed"), fact("open", 2)], {}, "Reuse 1"),
        ([fact("completed")], {"reuse": False}, "Buy 2"),
        ([fact("completed", 1, BEFORE)], {"reuse": False}, "Reuse 1"),
        ([fact("completed", app="another app of this model")], {}, "Reuse 1"),
        ([fact("completed", at=NOW - DAY)], {"reuse": DAY}, "Reuse 1"),
        ([fact("completed", at=NOW - DAY - 1)], {"reuse": DAY}, "Buy 2"),
        ([fact("gone")], {}, "Buy 2"),
        # 2: open
        ([fact("open", 2), fact("open", 3)], {}, "Adopt 2"),
        ([fact("open", 2), fact("open", 3, BEFORE)], {}, "Adopt 3"),
        ([fact("open", app="another app of this model")], {}, "Buy 2"),
        ([fact("open")], {"reuse": False}, "Buy 2"),
        ([fact("open", age=OPEN_TIME)], {}, "Buy 2"),
        ([fact("open"), fact("claimed")], {}, "Adopt 1"),
        # 3: claimed
        ([fact("claimed")], {}, "Wait 1"),
        ([fact("claimed")], {"reuse": False}, "Buy 2"),
        ([fact("claimed", 1, {}, app="")], {"reuse": False}, "Wait 1"),
        ([fact("claimed", 1, {}, app="", age=CLAIM_TIME)], {"reuse": False}, "Buy 2"),
        ([fact("claimed", 1, BEFORE, age=CLAIM_TIME - 1)], {}, "Wait 1"),
        ([fact("claimed", 1, BEFORE, age=CLAIM_TIME)], {}, "Buy 2"),
        # 4: an attempt buys a key at most once
        *(
            ([fact(each, 1, OWN)], {}, "GivenUp for now")
            for each in ("failed", "invalid", "rejected", "lost")
        ),
        ([fact("canceled", 1, OWN)], {}, "GivenUp for now"),
        ([fact("failed", 1, BEFORE)], {}, "Buy 2"),
        # 5: failures that count
        ([fact("failed", 1), fact("lost", 2), fact("rejected", 3)], {}, "GivenUp"),
        ([fact("failed", 1), fact("lost", 2), fact("rejected", 3)], {"max_attempts": 4}, "Buy 4"),
        ([fact("failed", 1), fact("lost", 2), fact("canceled", 3)], {}, "Buy 4"),
        ([fact("failed", n) for n in (1, 2, 3)], {"reuse": False}, "Buy 4"),
        # the strongest fact of a purchase
        ([fact("lost"), fact("open"), fact("failed")], {}, "Adopt 1"),
        ([fact("canceled"), fact("completed")], {}, "Reuse 1"),
    ],
)
def test_the_first_line_that_fits_decides(history: list[Record], options: Any, want: str) -> None:
    assert name(verdict(history, policy(**options))) == want
    assert name(verdict(history[::-1], policy(**options))) == want, "in any order"


FACTS = st.builds(
    fact,
    st.sampled_from([*Status]),
    st.integers(1, 4),
    st.sampled_from([OWN, OTHER, BEFORE, {"run": "other", "by": "try-2"}]),
    app=st.sampled_from([APP, "another", ""]),
    age=st.sampled_from([0.0, CLAIM_TIME, OPEN_TIME]),
)
POLICIES = st.builds(
    policy, reuse=st.sampled_from([True, False, 50.0, 150.0]), max_attempts=st.integers(1, 4)
)


@given(st.lists(FACTS, max_size=8), POLICIES)
def test_any_history_has_a_verdict_and_none_pays_for_what_is_there(history: list[Record], of: Policy) -> None:
    found, facts = verdict(history, of), normalize(history)
    counting = [each for each in facts if of.counts(each)]
    is_there = {Status.COMPLETED, Status.OPEN, Status.CLAIMED} & {each.status for each in counting}
    if isinstance(found, Buy):
        assert not is_there
        assert all(found.n > each.n for each in facts)
    elif isinstance(found, GivenUp):
        assert not is_there
        assert found.failures or not found.is_final
    else:
        assert found.fact in counting


@given(FACTS)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert Record.of_line(record.to_line(), "done/x") == record.model_copy(update={"age": 0.0})
