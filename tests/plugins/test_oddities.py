"""Addresses and numbers that no page of ours has made."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from conftest import APP
from sqlalchemy.exc import OperationalError

from airflow_provider_rungen.plugins import database
from plugins.conftest import World

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("index", ["9" * 30, "9" * 5000, str(2**31), "-2", "-" + "9" * 30])
def test_a_task_has_no_such_index(world: World, index: str) -> None:
    path = world.save(xcoms={}).removesuffix("-1")
    for below in ("", "/progress", "/jobs/j", "/jobs/j/files/0"):
        assert world.get(f"{path}{index}{below}").status_code == 404


def test_a_database_out_of_order_gives_a_notice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = world.save(xcoms={})

    def fail() -> Any:
        raise OperationalError("SELECT secret", {}, Exception("gone"))

    monkeypatch.setattr(database, "create_session", fail)
    answer = world.get(path)
    assert answer.status_code == 503
    assert "SELECT" not in answer.text


@pytest.mark.parametrize("seconds", ["nan", -1, 1e30, "1" * 400, []])
def test_impossible_times_are_left_out(world: World, seconds: Any) -> None:
    record = {"connection": "rungen_default", "app": APP, "rows": seconds}
    path = world.save(
        xcoms={
            "rungen_page": record,
            "job_ids": ["j"],
            "usage": {"jobs": 1, "execution_seconds": seconds},
            "bill": {"worker_seconds": seconds, "utilization": seconds, "up_at": seconds},
        }
    )
    for each in (path, f"{path}/jobs/j"):
        assert world.get(each).status_code == 200, each


@pytest.mark.parametrize(
    "run_id", ["a%3Fb%23c", "manual__2026-01-01T00:00:00%2B00:00", "%C3%A4%20b", "a%2Fb", "100%25"]
)
def test_the_login_leads_back_to_the_same_page(world: World, run_id: str) -> None:
    path = f"/rungen/dags/d/runs/{run_id}/tasks/t/-1"
    answer = world.pages.as_user(None).get(path.removeprefix("/rungen"))
    assert answer.status_code == 302
    back = parse_qs(urlsplit(answer.headers["location"]).query)["next"][0]
    assert unquote(urlsplit(back).path) == unquote(path)


@pytest.mark.parametrize("depth", [600, 100_000])
def test_a_value_of_many_levels_is_explained(world: World, depth: int) -> None:
    path = world.save(xcoms={})
    for key in ("rungen_page", "bill"):
        world.database.write(world.ti, key, "[" * depth + "]" * depth)
    answer = world.get(path)
    assert answer.status_code == 200
    assert "The XCom rungen_page is missing: it could not be read" in answer.text
