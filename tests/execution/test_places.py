"""The places of a run's log: one contract, outages, and what the log costs in each of them."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from conftest import FakeStore
from faulty_s3 import CUT, HANG, FaultyS3, S3Fault
from places import AttemptStore, announce

from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.execution.jobs.places import MemoryPlace, StoragePlace, StorePlace
from airflow_provider_rungen.runs.attempt_record import AttemptRecord, next_turn
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog, read_attempts, read_parts
from airflow_provider_rungen.runs.part_files import PART_ROWS
from airflow_provider_rungen.runs.place import DamagedLogError, Place, SupersededError
from airflow_provider_rungen.runs.rows import InputState, Writer

PLAN = "cd" * 16
TOKEN = "ab" * 16
#: Opens the same place again, as a later process does.
Opener: TypeAlias = Callable[[], Place]
OUTAGES = [
    S3Fault(400, "ExpiredToken"),
    S3Fault(403, "RequestTimeTooSkewed"),
    S3Fault(403, "InvalidAccessKeyId"),
    S3Fault(403, "AccessDenied"),
    S3Fault(404, "NoSuchBucket"),
]
# these are tried again and again
SLOW_OUTAGES = [S3Fault(503, "SlowDown"), CUT, HANG]


@pytest.fixture
def s3_uri(faulty_s3: FaultyS3, tmp_path: Path) -> str:
    return f"s3://faulty_s3@bucket/{tmp_path.name}"


@pytest.fixture
def opener(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    match kind:
        case "local":
            return lambda: StoragePlace(str(tmp_path), TOKEN)
        case "path":
            return lambda: StoragePlace(ObjectStoragePath(f"file://{tmp_path}"), TOKEN)
        case "s3":
            uri = request.getfixturevalue("s3_uri")
            return lambda: StoragePlace(uri, TOKEN)
        case "store":
            store = FakeStore()
            return lambda: StorePlace(store, 1)
    places: list[MemoryPlace] = []

    def reopen() -> MemoryPlace:
        places.append(MemoryPlace(json.loads(json.dumps(places[0].to_json())) if places else None))
        return places[-1]

    return reopen


def of_kinds(*kinds: str) -> pytest.MarkDecorator:
    marks = {"s3": pytest.mark.system}
    return pytest.mark.parametrize("kind", [pytest.param(kind, marks=marks.get(kind, ())) for kind in kinds])


every_kind = of_kinds("local", "path", "s3", "store", "memory")


# --- the contract ---


@every_kind
def test_what_was_put_is_there_for_a_later_process(opener: Opener) -> None:
    place = opener()
    files = {
        "attempts/1.json": b'{"n": 1}\n',
        "jobs/aa/0.jsonl": bytes(range(256)) * 1000,
        "jobs/aa/1.jsonl": "ü \ud800".encode("utf-8", "surrogatepass"),
        "jobs/empty": b"",
        "top": b"t",
    }
    place.put(files)
    for each in (place, opener()):
        assert set(each.list("attempts")) == {"1.json"}
        assert set(each.list("jobs/aa")) == {"0.jsonl", "1.jsonl"}
        assert set(each.list("jobs")) == {"empty"}
        assert each.get(list(files)) == each.get(list(files)) == files


def test_only_who_has_the_key_is_believed(tmp_path: Path) -> None:
    names = ["jobs/aa/0.jsonl", "jobs/aa/1.jsonl"]
    place = StoragePlace(str(tmp_path), TOKEN, b"key", b"secret")
    place.put({names[0]: b"job-0\n", names[1]: b"job-1\n"})
    first, second = sorted(tmp_path.rglob("*.jsonl"))
    known = (b"key",), (b"secret",), (b"new key", b"secret")
    for keys in (*known, (b"another",), ()):
        reader = StoragePlace(str(tmp_path), TOKEN, *keys)
        assert reader.get(names) == {names[0]: b"job-0\n", names[1]: b"job-1\n"}
        assert [reader.vouches(name) for name in names] == [keys in known] * 2
    # neither an edited file, nor one that was written for another name
    first.write_bytes(first.read_bytes().replace(b"job-0", b"job-9"))
    edited, moved = first.read_bytes(), second.read_bytes()
    for content in (edited, moved, b"job-9\n"):
        first.write_bytes(content)
        reader = StoragePlace(str(tmp_path), TOKEN, b"key")
        reader.get(names)
        assert [reader.vouches(name) for name in names] == [False, True]


@every_kind
def test_a_file_is_replaced(opener: Opener) -> None:
    place = opener()
    place.put({"a/x": b"1", "a/y": b"2", "b/z": b"3"})
    for content in (b"4", os.urandom(200_000), b"5" * 100, os.urandom(100_000), b"6"):
        place.put({"a/x": content})
        assert place.get(["a/x", "a/y"]) == {"a/x": content, "a/y": b"2"}
        assert opener().get(["b/z", "a/x"]) == {"b/z": b"3", "a/x": content}


@of_kinds("local", "path", "s3")
def test_a_file_is_removed(opener: Opener) -> None:
    place = opener()
    assert isinstance(place, StoragePlace)
    place.put({"a/x": b"1", "a/y": b"2", "b/z": b"3"})
    place.remove(["a/x", "b/z", "a/nothing", "c/nothing"])
    for each in (place, opener()):
        assert set(each.list("a")) == {"y"}
        assert list(each.list("b")) == []
        assert each.get(["a/y"]) == {"a/y": b"2"}
        assert each.get(["a/y", "a/x", "b/z"]).keys() == {"a/y"}


@every_kind
def test_what_was_never_put_is_certainly_missing(opener: Opener) -> None:
    place = opener()
    assert list(place.list("attempts")) == []
    assert place.get([]) == {}
    assert place.get(["attempts/1.json"]) == {}
    place.put({"attempts/2.json": b"2"})
    assert place.get(["attempts/2.json", "attempts/1.json"]) == {"attempts/2.json": b"2"}
    assert list(place.list("attempts")) == ["2.json"]


@every_kind
def test_many_files_are_put_listed_and_read(opener: Opener, kind: str) -> None:
    place = opener()
    count = 200 if kind == "s3" else 2_000
    files = {f"jobs/aa/{number:06d}.jsonl": b"%d\n" % number for number in range(count)}
    place.put(files)
    later = opener()
    assert {f"jobs/aa/{name}" for name in later.list("jobs/aa")} == set(files)
    assert later.get(list(files)) == files


@every_kind
def test_a_log_is_read_as_it_was_written(opener: Opener) -> None:
    log, jobs = begin(opener())
    submit(log, jobs, range(200))
    log.save(jobs)
    assert read(opener()).totals() == jobs.totals()
    handed = json.loads(json.dumps(log.handover(range(4))))
    again, after = RunLog(opener(), log.attempt, clock), Jobs(PLAN, log.attempt.writer)
    again.take(after, again.place.get(again.resume(after, handed)))
    assert after.running == jobs.running


# --- a folder of this machine ---


def test_a_folder_has_the_permissions_of_results_and_no_leftovers(tmp_path: Path) -> None:
    before = os.umask(0o027)
    place = StoragePlace(str(tmp_path), TOKEN)
    try:
        place.put({"attempts/1.json": b"1"})
    finally:
        os.umask(before)
    file = tmp_path / ".rungen" / "runs" / TOKEN / "attempts" / "1.json"
    assert [path.name for path in file.parent.iterdir()] == ["1.json"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o750
    (file.parent / ".3f5a.part").write_bytes(b"{")  # of an attempt that was killed
    assert list(place.list("attempts")) == ["1.json"]


def test_a_missing_destination_is_an_outage_and_is_not_created(tmp_path: Path) -> None:
    place = StoragePlace(str(tmp_path / "mount"), TOKEN)
    steps: list[Callable[[], object]] = [
        lambda: place.list("attempts"),
        lambda: place.get(["attempts/1.json"]),
        lambda: place.put({"attempts/1.json": b"1"}),
    ]
    for step in steps:
        with pytest.raises(RunGenOutputError):
            step()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("depth", range(5))
def test_no_link_is_followed(tmp_path: Path, depth: int) -> None:
    inside, elsewhere = tmp_path / "inside", tmp_path / "elsewhere"
    inside.mkdir()
    StoragePlace(str(inside), TOKEN).put({"jobs/aa/0.jsonl": b"0"})
    link = inside.joinpath(*(".rungen", "runs", TOKEN, "jobs", "aa")[: depth + 1])
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    place = StoragePlace(str(inside), TOKEN)
    before = sorted(elsewhere.rglob("*"))
    calls: list[Callable[[], object]] = [
        lambda: place.get(["jobs/aa/0.jsonl"]),
        lambda: place.put({"jobs/aa/0.jsonl": b"1"}),
        lambda: place.list("jobs/aa"),
        lambda: place.remove(["jobs/aa/0.jsonl"]),
    ]
    for call in calls:
        with pytest.raises(RunGenOutputError, match="symbolic link"):
            call()
    assert sorted(elsewhere.rglob("*")) == before


# --- S3 ---


def operations(faulty_s3: FaultyS3) -> Counter[str]:
    """Count what was asked. The client may send a read again, whose connection was lost on a busy machine."""
    sent, faulty_s3.requests[:] = list(faulty_s3.requests), []
    reads = {request for request in sent if request.operation == "GET"}
    return Counter(request.operation for request in [*reads, *(each for each in sent if each not in reads)])


READS = {"GET", "HEAD"}
STEPS: dict[str, tuple[set[str], str, Callable[[Place], object]]] = {
    "read": (READS, TOKEN, lambda place: place.get(["attempts/1.json"])),
    "list": ({"LIST"}, TOKEN, lambda place: place.list("attempts")),
    "read and list": (READS | {"LIST"}, TOKEN, lambda place: place.get(["attempts/1.json"])),
    "read nothing": (READS | {"LIST"}, TOKEN[::-1], lambda place: place.get(["attempts/1.json"])),
    "list nothing": ({"LIST"}, TOKEN[::-1], lambda place: place.list("attempts")),
    "write": ({"PUT"}, TOKEN, lambda place: place.put({"attempts/1.json": b"2"})),
}


@pytest.mark.parametrize(
    ("step", "fault"),
    [(step, fault) for step in STEPS for fault in OUTAGES]
    + [("list", fault) for fault in SLOW_OUTAGES]
    + [("read", CUT)],
    ids=lambda value: value if isinstance(value, str) else f"{value.code} {value.status}",
)
def test_an_outage_of_s3_is_not_an_absence(
    faulty_s3: FaultyS3, s3_uri: str, step: str, fault: S3Fault
) -> None:
    operations, token, call = STEPS[step]
    StoragePlace(s3_uri, TOKEN).put({"attempts/1.json": b"1"})
    faulty_s3.find_fault = lambda request: fault if request.operation in operations else None
    with pytest.raises(RunGenOutputError) as caught:
        call(StoragePlace(s3_uri, token))
    assert caught.value.retryable
    faulty_s3.reset()
    assert StoragePlace(s3_uri, TOKEN).get(["attempts/1.json"]) == {"attempts/1.json": b"1"}


def test_a_log_in_s3_costs_few_requests_and_never_lists_the_destination(
    faulty_s3: FaultyS3, s3_uri: str
) -> None:
    first, jobs = begin(StoragePlace(s3_uri, TOKEN))
    # that nothing is there is made certain with a file, and one more list
    assert operations(faulty_s3) == {"PUT": 2, "LIST": 3}
    assert list(read_parts(first.place, PLAN, [])) == []
    assert operations(faulty_s3) == {"LIST": 3}
    for block in range(8):
        submit(first, jobs, range(16 * block, 16 * block + 16))
        # two parts change in the first block of a part: the ids of the last block are saved with this one
        assert operations(faulty_s3) == {"PUT": 1 + (block == 4), "LIST": 1}
    for part in range(2, 100):
        jobs.load([part * PART_ROWS])
    announce(first, jobs, range(2 * PART_ROWS, 100 * PART_ROWS, PART_ROWS))
    assert operations(faulty_s3) == {"PUT": 99, "LIST": 1}
    later, _ = begin(StoragePlace(s3_uri, TOKEN), try_number=2)
    assert operations(faulty_s3) == {"LIST": 1, "GET": 1, "PUT": 1}
    after = Jobs(PLAN, later.attempt.writer)
    for _, files in read_parts(later.place, PLAN, [first.attempt.writer]):
        after.load((), *files)
    assert operations(faulty_s3) == {"LIST": 1, "GET": 100}
    assert len(after.inputs(InputState.UNKNOWN)) == 98
    assert len(after.running) == 128
    with pytest.raises(SupersededError):
        first.fence()
    assert all(TOKEN in request.key for request in faulty_s3.requests)


# --- Airflow's task state store ---


class Store(FakeStore):
    """Counts requests, and does not answer some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.fails_at: dict[str, int] = {}
        self.is_done = False

    def _ask(self, kind: str) -> None:
        self.asked[kind] += 1
        if self.asked[kind] == self.fails_at.get(kind):
            raise ConnectionError(kind)

    def get(self, key: str) -> Any:
        self._ask("get")
        return super().get(key)

    def set(self, key: str, value: Any, **kwargs: Any) -> None:
        assert len(json.dumps(value)) < 1 << 16
        if self.is_done:
            super().set(key, value)
        self._ask("set")
        super().set(key, value)

    def requests(self) -> Counter[str]:
        found, self.asked = self.asked, Counter()
        return found


def test_a_log_in_the_store_costs_few_requests() -> None:
    store = Store()
    log, jobs = begin(StorePlace(store, 1))
    # its names; its record, and its names
    assert store.requests() == {"get": 1, "set": 2}
    assert list(read_parts(log.place, PLAN, [])) == []
    assert store.requests() == {}
    for block in range(4):
        submit(log, jobs, range(16 * block, 16 * block + 16))
        # a new part has a name, too
        assert store.requests() == {"set": 1 + (block == 0)}
    for part in range(1, 100):
        jobs.load([part * PART_ROWS])
    announce(log, jobs, range(PART_ROWS, 100 * PART_ROWS, PART_ROWS))
    assert store.requests() == {"set": 100 + 1}
    later, _ = begin(StorePlace(store, 2), try_number=2)
    # as the first one, and the names and the record of that
    assert store.requests() == {"get": 1 + 2, "set": 2}
    after = Jobs(PLAN, later.attempt.writer)
    for _, files in read_parts(later.place, PLAN, [log.attempt.writer]):
        after.load((), *files)
    # each file, and their names
    assert store.requests() == {"get": 100 + 1}
    assert len(after.running) == PART_ROWS


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("then", ["goes on", "is started again", "is the next attempt"])
@pytest.mark.parametrize("nth", range(1, 12))
def test_a_write_that_fails_hides_nothing_of_what_follows(nth: int, then: str, is_done: bool) -> None:
    store = Store()
    place = StorePlace(store, 1)
    store.fails_at, store.is_done = {"set": nth}, is_done
    # some are new, some take several values, some are replaced
    contents: dict[str, bytes] = {}
    doubtful: set[str] = set()
    for number in range(12):
        name, content = f"jobs/aa/{number % 5}", os.urandom(60_000 * (number % 3))
        try:
            place.put({name: content})
        except ConnectionError:
            doubtful.add(name)
            if then != "goes on":
                place = StorePlace(store, 1 + (then == "is the next attempt"))
        else:
            contents[name] = content
            doubtful.discard(name)
    for each in (place, StorePlace(store, 2), StorePlace(store, 3)):
        names = {f"jobs/aa/{name}" for name in each.list("jobs/aa")}
        certain = contents.keys() - doubtful
        assert certain <= names
        assert each.get(sorted(certain)) == {name: contents[name] for name in certain}


def test_an_attempt_that_has_a_successor_sends_nothing_more() -> None:
    store, latest = FakeStore(), 1
    log, jobs = begin(StorePlace(AttemptStore(store, lambda: latest > 1), 1))
    submit(log, jobs, range(4))
    latest = 2  # it has begun, and left nothing yet
    with pytest.raises(SupersededError):
        submit(log, jobs, range(4, 8))
    assert len(read_attempts(StorePlace(store, 2))) == 1


def test_an_outage_of_the_store_is_not_an_absence() -> None:
    store = Store()
    begin(StorePlace(store, 1))
    for nth in (1, 2):
        store.asked.clear()
        store.fails_at = {"get": nth}
        with pytest.raises(ConnectionError):
            StorePlace(store, 2).list("attempts")


@pytest.mark.parametrize(
    "value",
    [
        *("text", 7, [], {"name": "attempts/x"}, {"names": "attempts/x"}, {"names": [1]}),
        {"name": "another", "content": "", "more": []},
        *({"name": "attempts/x", "content": content, "more": []} for content in ("%", "eJw=")),
    ],
    ids=str,
)
def test_what_somebody_else_wrote_is_named(value: Any) -> None:
    def read() -> None:
        place = StorePlace(store, 1)
        place.get([f"attempts/{name}" for name in place.list("attempts")])

    StorePlace(store := FakeStore(), 1).put({"attempts/x": b"1"})
    for key in store.kept:
        before = store.kept[key]
        store.set(key, value)
        with pytest.raises(DamagedLogError, match=key):
            read()
        store.kept[key] = before


def test_an_xcom_that_somebody_else_wrote_is_named() -> None:
    with pytest.raises(DamagedLogError, match="attempts/x"):
        MemoryPlace({"attempts/x": "?"})


# --- a log ---


def clock() -> float:
    return 1000.5


def begin(place: Place, try_number: int = 1) -> tuple[RunLog, Jobs]:
    earlier = read_attempts(place)
    turn = next_turn(earlier, try_number, 0.0)
    record = AttemptRecord(turn, f"{turn:08x}", 1, try_number, app_id="flux", plan=PLAN)
    log = RunLog(place, record, clock)
    log.note()
    return log, Jobs(PLAN, record.writer, stores=True)


def submit(log: RunLog, jobs: Jobs, numbers: range) -> None:
    jobs.load(numbers)
    announce(log, jobs, numbers)
    for number in numbers:
        assert jobs.accept(number, f"7a6e5d52-2f4a-4c1e-9d2b-{number:012d}")


def read(place: Place) -> Jobs:
    jobs = Jobs(PLAN, Writer(99, 99, "9" * 8))
    for _, files in read_parts(place, PLAN, [record.writer for record in read_attempts(place)]):
        jobs.load((), *files)
    return jobs
