"""Which connections the pages use, and how."""

from __future__ import annotations

import re
import sys
import time
import traceback
from typing import Any

import pytest
from airflow.sdk import DAG
from conftest import APP, SOON
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen.operators import RunGenRunJobOperator
from airflow_provider_rungen.plugins import database
from plugins.conftest import SERVER_WARNINGS, World, submit, words_of

pytestmark = [pytest.mark.usefixtures("unsettled"), SERVER_WARNINGS]


@pytest.fixture
def add_connection(world: World) -> Any:
    """Adds a connection to Airflow's database, like the default one but for some fields."""
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    added = []

    def add(conn_id: str, **fields: Any) -> None:
        known = database.get_connection("rungen_default")
        names = ("conn_type", "host", "port", "schema", "password", "extra")
        same = {name: getattr(known, name) for name in names}
        added.append(conn_id)
        with create_session() as session:
            session.add(Connection(conn_id=conn_id, **same | fields))

    yield add
    with create_session() as session:
        session.execute(delete(Connection).where(Connection.conn_id.in_(added)))


def notices(page: str) -> list[str]:
    return re.findall(r'class="notice"[^>]*>([^<]*)', page)


def test_the_password_of_another_kind_of_connection_is_never_sent(world: World, add_connection: Any) -> None:
    add_connection("my_aws", conn_type="aws", password="AWSSECRET")
    before = world.emulator.service.stats()
    of_task = world.save(xcoms={"rungen_page": {"connection": "my_aws", "app": APP}, "jobs": ["a", "b"]})
    for path in (f"/connections/my_aws/apps/{APP}", of_task, f"{of_task}/jobs/a", f"{of_task}/apps/{APP}"):
        page = world.get(path)
        assert page.status_code == 200
        assert "my_aws" in " ".join(notices(page.text))
    assert world.emulator.service.stats()["requests"] == before["requests"]
    assert "my_aws" not in world.get("/").text


def test_a_connection_in_the_database_is_found(
    world: World, submitted: dict[str, Any], add_connection: Any
) -> None:
    add_connection("in_database")
    assert "in_database" in world.get("/").text
    submitted["rungen_page"]["connection"] = "in_database"
    assert "a fox" in world.get(world.save(xcoms=submitted)).text


def test_a_service_that_hangs_does_not_hold_a_thread(world: World) -> None:
    world.emulator.service.job_seconds = 3600
    ids = submit(*({"prompt": f"{number}"} for number in range(6)))
    record = {"connection": "rungen_default", "app": APP, "jobs": ids}
    path = world.save("deferred", xcoms={"rungen_page": record})
    world.emulator.service.inject(Fault(on="any", kind="hang", times=None))
    started = time.monotonic()
    assert world.get(f"{path}/progress").status_code == 200
    while threads_of_pages():
        assert time.monotonic() - started < SOON
        time.sleep(0.05)


@pytest.fixture
def submitted(world: World) -> dict[str, Any]:
    """What a task pushed whose job only the service knows."""
    return {
        "rungen_page": {"connection": "rungen_default", "app": APP},
        "jobs": submit({"prompt": "a fox"}),
    }


def test_an_app_that_two_connections_list_is_one_row(world: World, add_connection: Any) -> None:
    add_connection("another_with_the_same_key", extra='{"app_id": "flux-schnell", "price": "1.50 USD/h"}')
    service = world.emulator.service
    service.scale(APP, 3)
    service.scale("llama-text", 0)
    submit({"prompt": "one", "emulator": {"seconds": 60}})
    page = world.get("/").text
    cards = [words_of(card) for card in page.split("<article")[1:]]
    assert len(cards) == len({*re.findall(r"<code>([^<]*)", page)})
    text = words_of(page)
    assert f"1 of {len(cards)} apps billed now: 3 workers, 4.50 USD an hour at the prices of" in text
    # billed first, with workers that add up
    assert "another_with_the_same_key, rungen_default" in cards[0]
    assert "Billed now : 3 workers, 4.50 USD an hour" in cards[0]
    assert ("1 running" in cards[0], "2 idle" in cards[0], "ready" in cards[0]) == (True, True, False)


def test_a_price_is_that_of_the_workers_that_have_one(world: World) -> None:
    with (
        Emulator() as unpriced,
        unpriced.connection("unpriced"),
        world.emulator.connection("priced", price="1 USD/h"),
    ):
        world.emulator.service.scale(APP, 3)
        unpriced.service.scale(APP, 4)
        text = words_of(world.get("/").text)
        of_app = words_of(world.get(f"/connections/priced/apps/{APP}").text)
        page = {"connection": "priced", "app": APP, "price": "2 USD/h"}
        of_task = words_of(world.get(f"{world.save(xcoms={'rungen_page': page})}/apps/{APP}").text)
    assert "Billed now : 3 workers, 3.00 USD an hour" in of_app
    assert "Billed now : 3 workers, 6.00 USD an hour" in of_task
    assert "11 workers, 5.00 USD an hour for the 5 with a declared price at the prices of" in text


def test_what_nobody_answers_is_unknown(world: World) -> None:
    world.emulator.service.inject(Fault(on="list_apps", status=503, times=None))
    text = words_of(world.get("/").text)
    assert "Unknown what is billed of 1 connection" in text
    assert "0 of 0" not in text


def pages_of(world: World, path: str, xcoms: dict[str, Any]) -> list[Any]:
    """Return all pages of a task, as they are for who may not read connections."""
    below = ("", "/progress", f"/jobs/{xcoms['jobs'][0]}", f"/apps/{APP}")
    answers = [world.pages.as_user("viewer").get(f"{path}{each}") for each in below]
    assert [answer.status_code for answer in answers] == [200] * 4
    return answers


@pytest.mark.parametrize("state", ["success", "running"])
@pytest.mark.parametrize("named", [None, "", "another"])
def test_a_connection_that_only_an_xcom_names_is_not_used_for_who_may_not_read_it(
    world: World, submitted: dict[str, Any], named: str | None, state: str
) -> None:
    path = world.save(state, xcoms=submitted)
    if named is not None:
        world.database.render(world.ti, rungen_conn_id=named)
    before = world.emulator.service.stats()["requests"]
    page, _, job, app = pages_of(world, path, submitted)
    assert world.emulator.service.stats()["requests"] == before
    for answer in (page, job, app):
        assert "does not name connection rungen_default" in " ".join(notices(answer.text))
    # who may read it sees more
    assert "a fox" in world.get(path).text


def test_a_connection_that_the_task_names_is_used_for_all_who_may_see_it(
    world: World, submitted: dict[str, Any]
) -> None:
    path = world.save(xcoms=submitted)
    world.database.render(world.ti, rungen_conn_id="rungen_default")
    page, _, job, app = pages_of(world, path, submitted)
    assert "a fox" in page.text
    assert "a fox" in job.text
    assert "FLUX Schnell" in app.text


@pytest.mark.parametrize("is_mapped", [False, True])
@pytest.mark.parametrize(("named", "is_used"), [("rungen_default", True), ("{{ params.other }}", False)])
def test_the_dag_tells_what_a_task_names_once_nothing_rendered_is_kept(
    world: World, submitted: dict[str, Any], named: str, is_used: bool, is_mapped: bool
) -> None:
    path = world.save(xcoms=submitted)
    with DAG(world.ti.dag_id, schedule=None) as dag:
        same: dict[str, Any] = {"task_id": world.ti.task_id, "rungen_conn_id": named}
        if is_mapped:
            RunGenRunJobOperator.partial(**same).expand(input=[{}])
        else:
            RunGenRunJobOperator(**same, input={})
    world.database.write_dag(world.ti, dag)
    assert ("a fox" in pages_of(world, path, submitted)[0].text) is is_used


def threads_of_pages() -> int:
    """Return how many threads ask the service for a page."""
    frames = sys._current_frames().values()
    return sum(
        any("plugins/live.py" in each.filename for each in traceback.extract_stack(frame)) for frame in frames
    )
