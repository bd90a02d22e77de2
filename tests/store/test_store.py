"""The store in a folder, and in S3."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from store_world import APP, digest

from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.outputs.store_folder import StoreFolder
from airflow_provider_rungen.store.ended import MERGE_FILES
from airflow_provider_rungen.store.records import (
    CLAIM_TIME,
    Adopt,
    Buy,
    Output,
    Policy,
    Record,
    Reuse,
    Status,
    Wait,
    verdict,
)
from airflow_provider_rungen.store.store import Store

KEYS = [digest(number) for number in range(3)]
DONE, CLAIM = ".rungen/done/x.jsonl.gz", f".rungen/open/{KEYS[0]}.1"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.system)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoreFolder:
    uri = tmp_path.as_uri() if request.param == "local" else request.getfixturevalue("s3")
    return StoreFolder(Storage(uri))


def policy(run: str = "run", by: str = "try-1", **more: Any) -> Policy:
    return Policy(run, by, APP, **more)


def opened(place: StoreFolder, of: Policy | None = None) -> Store:
    return Store(place, of or policy())


async def bought(store: Store, key: str, n: int = 1, job: str = "job 1/x", **ended: Any) -> None:
    assert await store.claim({key: n}) == {key}
    record = await store.add_job(key, n, job)
    store.end(record.model_copy(update={"status": Status.COMPLETED, **ended}))


def test_what_was_bought_is_known_to_the_next_run(place: StoreFolder) -> None:
    async def scene() -> None:
        first = opened(place)
        assert await first.open()
        assert first.is_exclusive
        await bought(
            first, KEYS[0], result={"text": "née\u2028"}, outputs=(Output(number=0, name="a b.png", size=3),)
        )
        await first.flush()
        second = opened(place, policy("other", "try-2"))
        assert not await second.open()
        await second.look()
        [record] = second.history(KEYS[0])
        assert verdict([record], policy("other", "try-2")) == Reuse(record)
        assert (record.job, record.run, record.result) == ("job 1/x", "run", {"text": "née\u2028"})
        assert record.path_of(record.outputs[0]) == f"files/00/{KEYS[0]}.1.job%201%2Fx.0-a b.png"
        assert await place.list(".rungen/open") == {}

    asyncio.run(scene())


def test_of_two_that_claim_one_wins(place: StoreFolder) -> None:
    async def scene() -> None:
        stores = [opened(place, policy(f"run {n}", f"try {n}")) for n in range(2)]
        for store in stores:
            await store.open()
        won = await asyncio.gather(*(store.claim(dict.fromkeys(KEYS, 1)) for store in stores))
        assert sorted([*won[0], *won[1]]) == KEYS
        # a lost answer to the own request
        assert await stores[0].claim(dict.fromkeys(won[0], 1)) == won[0]

    asyncio.run(scene())


def test_what_is_open_is_adopted_and_a_claim_is_waited_for_and_then_lost(place: StoreFolder) -> None:
    async def scene() -> None:
        first = opened(place)
        await first.open()
        await first.claim({KEYS[0]: 1, KEYS[1]: 1})
        await first.add_job(KEYS[0], 1, "a job")
        await first.claim({KEYS[1]: 1})
        of_others = policy("other", "try-2")
        second = Store(place, of_others, KEYS.__contains__, lambda: time.time() - 3000)
        await second.open()
        await second.look()
        found = [verdict(second.history(key), of_others) for key in KEYS]
        assert [type(each) for each in found] == [Adopt, Wait, Buy], "whatever this worker's clock says"
        ahead = [0.0]
        late = Store(place, of_others, KEYS.__contains__, lambda: time.time() + ahead[0])
        await late.look()
        ahead[0] = CLAIM_TIME + 5
        assert verdict(late.history(KEYS[1]), of_others) == Buy(2)

    asyncio.run(scene())


def test_many_files_are_merged_and_nothing_is_lost(place: StoreFolder) -> None:
    async def scene() -> None:
        store = opened(place)
        await store.open()
        for number in range(MERGE_FILES + 1):
            await bought(store, digest(number), job=f"job-{number}")
            await store.flush()
        early = opened(place, policy("early", "try"))
        await early.look()
        assert await store.merge() == MERGE_FILES
        late = opened(place, policy("late", "try"))
        for reader in (early, late):
            await reader.look()
            known = [reader.history(digest(number)) for number in range(MERGE_FILES + 1)]
            assert [len(each) for each in known] == [1] * (MERGE_FILES + 1)
        assert len(await place.list(".rungen/done")) == 2

    asyncio.run(scene())


@pytest.mark.parametrize("looks", [0, 64])
def test_a_file_that_is_gone_leaves_only_the_number_of_its_purchase(
    place: StoreFolder, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.store.ended._MOST_LOOKS", looks)

    async def scene() -> None:
        store = opened(place)
        await store.open()
        outputs = tuple(Output(number=number, name="a b.png", size=3) for number in range(2))
        for key in KEYS[:2]:
            await bought(store, key, outputs=outputs)
        records = [store.history(key)[0] for key in KEYS[:2]]
        for path in (*records[0].paths, records[1].paths[1]):
            await place.write(path, b"png")
        assert await store.mark_gone() == 1
        assert [type(verdict(store.history(key), policy())) for key in KEYS[:2]] == [Reuse, Buy]
        assert verdict(store.history(KEYS[1]), policy()) == Buy(2)

    asyncio.run(scene())


def test_what_was_forgotten_is_found(place: StoreFolder) -> None:
    async def scene() -> None:
        first = opened(place)
        await first.open()
        await first.claim(dict.fromkeys(KEYS, 1))
        await first.add_job(KEYS[0], 1, "a job")
        await first.add_job(KEYS[1], 1, "another/one")
        await first.add_job(KEYS[1], 1, "a second")
        ahead = [0.0]
        other = Store(place, policy("other", "try-2"), lambda _: False, lambda: time.time() + ahead[0])
        await other.look()
        assert await other.stale() == []
        ahead[0] = 90_000
        found = {(each.key, each.status, each.job) for each in await other.stale()}
        lost, jobs = (KEYS[2], Status.LOST, ""), ["another/one", "a second"]
        assert found == {
            (KEYS[0], Status.OPEN, "a job"),
            *((KEYS[1], Status.OPEN, job) for job in jobs),
            lost,
        }

    asyncio.run(scene())


@pytest.mark.parametrize("older", ["claim", "job"])
def test_the_newest_file_of_a_purchase_tells_its_age(tmp_path: Path, older: str) -> None:
    async def scene() -> None:
        store = opened(StoreFolder(Storage(tmp_path.as_uri())))
        await store.claim({KEYS[0]: 1})
        await store.add_job(KEYS[0], 1, "job")
        paths = {"claim": tmp_path / CLAIM, "job": tmp_path / f"{CLAIM}.job"}
        os.utime(paths[older], (time.time() - 90_000,) * 2)
        await store.look()
        assert await store.stale() == []

    asyncio.run(scene())


def write(place: StoreFolder, path: str, content: bytes) -> None:
    asyncio.run(place.write(path, content))


@pytest.mark.parametrize(
    ("path", "content", "told"),
    [
        (DONE, b"no gzip", f"{DONE} is damaged"),
        (DONE, gzip.compress(b"{}\n", mtime=0), f"a record of {DONE} is not valid (key: "),
        (CLAIM, b"{}\n", f"a record of {CLAIM} is not valid"),
    ],
)
def test_what_cannot_be_read_is_named(place: StoreFolder, path: str, content: bytes, told: str) -> None:
    write(place, path, content)
    with pytest.raises(RunGenOutputError) as caught:
        asyncio.run(opened(place).look())
    assert told in str(caught.value)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("header", "told"),
    [(b'{"version": 2}', "version 2"), (b"[]", "not the header"), (b"", "not the header")],
)
def test_a_store_of_another_version_is_left_alone(place: StoreFolder, header: bytes, told: str) -> None:
    write(place, ".rungen/store.json", header)
    with pytest.raises(RunGenInputError, match=told):
        asyncio.run(opened(place).open())
    assert asyncio.run(place.read([".rungen/store.json"])) == {".rungen/store.json": header}


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "", "x" * 201, "a\nb"])
def test_an_output_names_no_file_elsewhere(name: str) -> None:
    line = Record(key=KEYS[0], n=1).model_dump(mode="json") | {
        "outputs": [{"number": 0, "name": name, "size": 1}]
    }
    with pytest.raises(RunGenOutputError, match=r"outputs\.0\.name"):
        Record.of_line(json.dumps(line).encode(), "done/x")
