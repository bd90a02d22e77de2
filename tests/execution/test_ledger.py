"""The ledger: which inputs are equal, what an entry may be, and what it finds in any store."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from hypothesis import given
from hypothesis import strategies as st
from object_store import ObjectStore, attach

from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.redaction import without_secret_parameters
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob, manifest_text
from airflow_provider_rungen.execution.ledger.entries import (
    MAX_ENTRY_BYTES,
    Entry,
    entry_text,
    is_manifest_uri,
    ledger_key,
    model_identity,
    parse_entry,
)
from airflow_provider_rungen.execution.ledger.store import LedgerStore
from airflow_provider_rungen.ledger import Ledger

INPUT = {"prompt": "a red fox", "width": 64}
OTHER = {"prompt": "a blue fox", "width": 64}
KEY = "a" * 64
NOW = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
MANIFEST = "s3://my_s3@bucket/photos/job-1/manifest.json"
DONE = Entry("flux", "job-1", "ab12", NOW, MANIFEST, 2.5)
PENDING = Entry("flux", "job-1", "ab12", NOW)


# --- which inputs are equal ---------------------------------------------------------------------------------


def key(job_input: Any, model: str = "m", version: str = "1", ignore: Any = ()) -> str:
    return ledger_key(job_input, model, version, ignore)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": [1, {"c": 2}]}, {"b": (1, {"c": 2}), "a": 1}),
        ({"a": 1.0, "b": [2.0], "c": -0.0}, {"a": 1, "b": [2], "c": 0}),
        ({"a": 1e20}, {"a": 10**20}),
        ({"a": 0.1}, {"a": 1e-1}),
    ],
)
def test_equal_inputs_have_one_key(one: Any, other: Any) -> None:
    assert key(one) == key(other)


def test_different_inputs_have_different_keys() -> None:
    inputs: list[Any] = [
        *({}, {"a": None}, {"a": True}, {"a": 1}, {"a": "1"}, {"a": 1.5}, {"a": [1]}, {"a": [1, 2]}),
        *({"a": [2, 1]}, {"a": {"b": 1}}, {"A": 1}, {"a": ""}, {"a": False}, {"a": 0}),
        *({"a": "é"}, {"a": "e\u0301"}, {"a": 2**53}, {"a": 2**53 + 1}),
    ]
    keys = {key(one) for one in inputs}
    assert len(keys) == len(inputs)
    assert all(len(one) == 64 and set(one) <= set("0123456789abcdef") for one in keys)


def test_only_the_fields_at_the_top_can_be_ignored() -> None:
    assert key({**INPUT, "id": 1}, ignore=["id"]) == key({**INPUT, "id": 2}, ignore=["id"]) == key(INPUT)
    assert key({"a": {"id": 1}}, ignore=["id"]) != key({"a": {"id": 2}}, ignore=["id"])


parts = st.tuples(
    st.text(max_size=4), st.text(max_size=4), st.dictionaries(st.text(max_size=2), st.text(max_size=4))
)


@given(parts, parts)
def test_no_part_of_a_key_runs_into_another(one: Any, other: Any) -> None:
    are_equal = key(one[2], one[0], one[1]) == key(other[2], other[0], other[1])
    assert are_equal == (one == other)


@pytest.mark.parametrize("bad", ["text", None, {"a": float("nan")}, {1: 2}, {"a": {1, 2}}])
def test_what_is_not_json_has_no_key(bad: Any) -> None:
    with pytest.raises(RunGenInputError):
        key(bad)


def app(app_id: str, workflow: Any) -> App:
    return App.from_json({"data": {"id": app_id, "workflow": workflow}})


def workflow(url: str = "https://models.example/flux.safetensors", weight: float = 1) -> dict[str, Any]:
    return {"model_url": url, "tools": {"loras": [{"url": "https://models.example/l", "weight": weight}]}}


def test_an_app_that_is_created_anew_is_the_same_model() -> None:
    same = model_identity(app("a", workflow(weight=1.0)))
    assert model_identity(app("b", dict(reversed(workflow().items())))) == same
    assert model_identity(app("a", workflow(weight=0.8))) != same
    assert model_identity(app("a", workflow("https://models.example/other"))) != same


@pytest.mark.parametrize("nothing", [None, {}, "flux", 7, [workflow()], {"a": float("inf")}])
def test_without_a_workflow_an_app_is_its_own_model(nothing: Any) -> None:
    assert model_identity(app("a", nothing)) == "app:a"
    assert model_identity(app("b", nothing)) == "app:b"


def test_what_signs_the_url_of_a_model_makes_no_difference() -> None:
    url = "https://models.example/flux?rev=2"
    same = model_identity(app("a", workflow(url)))
    for signed in (
        f"{url}&X-Amz-Signature=abc&X-Amz-Expires=60&X-Amz-Security-Token=def",
        "https://models.example/flux?sig=abc&rev=2&Expires=3",
        f"{url}&token=s3cret",
    ):
        assert model_identity(app("a", workflow(signed))) == same
    assert model_identity(app("a", workflow("https://models.example/flux?rev=3&token=s3cret"))) != same


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://a.example/x?sig=a", "https://a.example/x"),
        ("https://a.example/x?sig=a&b=1&token=c", "https://a.example/x?b=1"),
        ("https://a.example/x?b=1&X-Goog-Signature=a&c=2 and more", "https://a.example/x?b=1&c=2 and more"),
        ("https://a.example/x?b=1", "https://a.example/x?b=1"),
        ("https://a.example/x?signature_kind=1", "https://a.example/x?signature_kind=1"),
        ("which? all & none &", "which? all & none &"),
    ],
)
def test_secret_parameters_are_removed(text: str, expected: str) -> None:
    assert without_secret_parameters(text) == expected


def test_a_parameter_after_a_secret_one_stays_in_an_escaped_url() -> None:
    url = "https://a.example/?u=https%3A%2F%2Fb.example%2Fx%3Fsig%3Dabc%26rev%3D"
    assert without_secret_parameters(url + "2") != without_secret_parameters(url + "3")
    assert without_secret_parameters(url + "2") == without_secret_parameters(url.replace("abc", "def") + "2")


# --- what an entry may be -----------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [DONE, PENDING, replace(DONE, execution_seconds=None)])
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    assert parse_entry(KEY, entry_text(KEY, entry)) == entry


def changed(**fields: Any) -> bytes:
    entry = {**json.loads(entry_text(KEY, DONE)), **fields}
    return json.dumps({name: value for name, value in entry.items() if value is not ...}).encode()


BAD_FIELDS: dict[str, list[Any]] = {
    "key": ["", "b" * 64, 7, None],
    "version": [0, True, "1", None, 1.0],
    "state": ["failed", "", None, 1, []],
    "app_id": ["", "..", "a/b", "a?b", 7, None, "x" * 300, "a\nb"],
    "job_id": ["", "..", "a/b", "job-2", "é" * 128, 7, None],
    "run": ["", "xyz", "AB", 7, None, "a" * 200],
    "at": ["", "yesterday", "2026-01-31", "2026-01-31T12:30:00", 1769862600, None, "2" * 99],
    "execution_seconds": ["2.5", -1, float("nan"), 10**400, True, []],
    "manifest": ["", None, 7, "job-1/manifest.json"],
    "unknown": [1],
}
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "binary": b"\xff\x00",
    "cut": entry_text(KEY, DONE)[:-9],
    "list": b"[]",
    "null": b"null",
    "deep": b"[" * 60_000,
    "long number": b'{"version": ' + b"9" * 5000 + b"}",
    "too large": entry_text(KEY, DONE) + b" " * MAX_ENTRY_BYTES,
    "pending with a manifest": changed(state="pending"),
    **{
        f"{name} {str(value)[:20]}": changed(**{name: value})
        for name, values in BAD_FIELDS.items()
        for value in values
    },
    **{
        f"without {name}": changed(**{name: ...})
        for name in ("version", "key", "state", "app_id", "job_id", "run", "at", "manifest")
    },
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_entry_is_none(content: bytes) -> None:
    assert parse_entry(KEY, content) is None


@pytest.mark.parametrize(
    "place",
    [
        *("s3://bucket", "s3://conn_id@bucket/a b/c", "gs://bucket/x", "hdfs://node:8020/x", "memory://b/x"),
        *("file:///data/x", "/data/x", "/x", "abfs://container@account.example/x"),
    ],
)
def test_a_destination_may_be_anywhere(place: str) -> None:
    assert is_manifest_uri(f"{place}/job-1/manifest.json", "job-1")


@pytest.mark.parametrize(
    "place",
    [
        *(
            "",
            "photos",
            "./photos",
            "s3:/bucket",
            "//host",
            "/data/../x",
            "/data/./x",
            "/data//x",
            "/data/x/",
        ),
        *("s3://bucket/..", "s3://bucket//x", "s3://", "s3://user:password@bucket", "s3://bucket/x?sig=a"),
        *("s3://bucket/x#y", "https://host/x", "http://10.0.0.1", "file://host/x", "file://../x", "S3://b"),
        *("zip://x::s3://bucket", "simplecache::s3://bucket", "/data\\x", "s3://a/s3://b", "s3://b/a\nb"),
        *(f"/{'x' * 256}", f"s3://b{'/x' * 1024}", "s3://bucket name", "s3://ünï"),
    ],
)
def test_a_destination_has_no_secret_and_no_detour(place: str) -> None:
    assert not is_manifest_uri(f"{place}/job-1/manifest.json", "job-1")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=6,
)


@given(
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(sorted(json.loads(entry_text(KEY, DONE)))), json_values).map(
        lambda fields: changed(**fields)
    )
)
def test_an_entry_is_none_or_as_this_package_writes_it(content: bytes) -> None:
    entry = parse_entry(KEY, content)
    assert entry is None or parse_entry(KEY, entry_text(KEY, entry)) == entry


# --- what a ledger finds ------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What a ledger finds."""

    stored: dict[str, StoredJob]
    pending: dict[str, Entry]


NOTHING = Found({}, {})


def find(ledger: LedgerStore, keys: Iterable[str], destination: Any = None) -> Found:
    taken: dict[str, StoredJob] = {}
    found = ledger.find(keys, lambda job: taken.update({job.job_id: job}), destination=destination)
    return Found(
        {key: taken[entry.job_id] for key, entry in found.items() if entry.manifest},
        {key: entry for key, entry in found.items() if not entry.manifest},
    )


class Scene:
    """A ledger and destinations in a store, and what is logged."""

    def __init__(self, base: str, caplog: pytest.LogCaptureFixture, fs: ObjectStore | None = None) -> None:
        self.base, self.photos, self.caplog, self._fs = base, f"{base}/photos", caplog, fs

    @property
    def fs(self) -> ObjectStore:
        assert self._fs is not None
        return self._fs

    def ledger(self, run: str = "a1", *, began: float = 0.0, **options: Any) -> LedgerStore:
        ledger = LedgerStore(Ledger(f"{self.base}/ledger", **options), "flux", run, began=began)
        ledger.open()
        return ledger

    def store(self, job_id: str, /, *, to: str = "", size: int = 3, **fields: Any) -> StoredJob:
        """Store a job with one output as the archive does, with some fields of its manifest changed."""
        storage = Storage(to or self.photos).prepare()
        name, created_at = "0-fox.png", "2026-01-31T12:30:00+00:00"
        uri = storage.uri_of(job_id, name)
        output = {
            "uri": uri,
            "at": "result.image",
            "size": size,
            "sha256": "0" * 64,
            "content_type": "image/png",
        }
        manifest = {
            "job_id": job_id,
            "app_id": "flux",
            "complete": True,
            "status": "COMPLETED",
            "created_at": created_at,
            "execution_time": "2.5",
            "input": INPUT,
            "result": {"image": uri},
            "outputs": [output],
        }
        text = manifest_text({**manifest, **fields})
        storage.write_all({(job_id, name): b"png", (job_id, "manifest.json"): text})
        return StoredJob(
            app_id="flux",
            job_id=job_id,
            manifest=storage.uri_of(job_id, "manifest.json"),
            outputs=[output],
            result={"image": uri},
            execution_seconds=2.5,
            created_at=created_at,
            input=INPUT,
        )

    def write(self, key: str, content: Entry | bytes) -> None:
        text = entry_text(key, content) if isinstance(content, Entry) else content
        Storage(f"{self.base}/ledger").write_all({(key[:2], f"{key}.json"): text})

    def read(self, key: str) -> bytes:
        content: bytes = ObjectStoragePath(f"{self.base}/ledger/{key[:2]}/{key}.json").read_bytes()
        return content

    @property
    def warnings(self) -> list[str]:
        """All warnings but that a ledger is new."""
        records = [record for record in self.caplog.records if record.levelno >= logging.WARNING]
        messages = [record.getMessage() for record in records]
        return [message for message in messages if not message.startswith("New ledger")]


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.system)])
def scene(request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Scene:
    """A ledger in each kind of store."""
    if request.param == "s3":
        return Scene(request.getfixturevalue("s3"), caplog)
    return (
        request.getfixturevalue("remote") if request.param == "memory" else Scene(tmp_path.as_uri(), caplog)
    )


@pytest.fixture
def remote(caplog: pytest.LogCaptureFixture) -> Scene:
    """A ledger in an object store."""
    return Scene("memory://bucket/x", caplog, attach())


def numbered(ledger: LedgerStore, count: int) -> list[str]:
    """Return the keys of so many inputs."""
    return [ledger.key({"number": number}) for number in range(count)]


def test_an_input_is_pending_and_then_stored(scene: Scene) -> None:
    ledger = scene.ledger()
    fox, blue = ledger.key(INPUT), ledger.key(OTHER)
    assert find(ledger, [fox, blue, fox]) == find(ledger, []) == find(ledger, iter([fox])) == NOTHING
    ledger.add_pending("flux", {fox: "job-1", blue: "job-2"})
    other = scene.ledger("b2")
    pending = find(other, [fox, blue, fox]).pending
    jobs = {key: (entry.app_id, entry.job_id) for key, entry in pending.items()}
    assert jobs == {fox: ("flux", "job-1"), blue: ("flux", "job-2")}
    job = scene.store("job-1")
    ledger.add_done({fox: job})
    found = find(other, [fox, blue])
    assert found.stored == {fox: job}
    assert found.pending.keys() == {blue}
    assert scene.ledger("c3", version="2").key(INPUT) not in (fox, blue)
    assert scene.warnings == []


def test_an_entry_is_a_small_file_of_its_own(scene: Scene) -> None:
    ledger = scene.ledger()
    key = ledger.key(INPUT)
    ledger.add_done({key: scene.store("job-1")})
    fields = json.loads(scene.read(key))
    assert datetime.now(UTC) - datetime.fromisoformat(fields.pop("at")) < timedelta(minutes=5)
    assert fields == {
        "version": 1,
        "key": key,
        "state": "done",
        "app_id": "flux",
        "job_id": "job-1",
        "run": "a1",
        "manifest": f"{scene.photos}/job-1/manifest.json",
        "execution_seconds": 2.5,
    }


def test_many_inputs_in_several_destinations_are_found(scene: Scene) -> None:
    ledger = scene.ledger()
    keys = numbered(ledger, 40)
    jobs = {key: scene.store(f"job-{i}", to=f"{scene.photos}-{i % 3}") for i, key in enumerate(keys)}
    ledger.add_done(jobs)
    assert find(scene.ledger("b2"), keys).stored == jobs


def test_a_pending_job_that_is_stored_counts_as_stored(scene: Scene) -> None:
    ledger = scene.ledger()
    fox, blue = ledger.key(INPUT), ledger.key(OTHER)
    ledger.add_pending("flux", {fox: "job-1", blue: "job-2"})
    job = scene.store("job-1")
    scene.store("job-2", complete=False)
    assert find(ledger, [fox, blue]).pending.keys() == {fox, blue}
    assert find(ledger, [fox], f"{scene.base}/elsewhere").stored == {}
    for other, destination in ((ledger, scene.photos), (scene.ledger("b2"), None)):
        found = find(other, [fox, blue], destination)
        assert found.stored == {fox: job}
        assert found.pending.keys() == {blue}


@pytest.mark.parametrize("harm", ["file", "manifest", "size"])
def test_what_is_gone_from_storage_runs_again(scene: Scene, harm: str) -> None:
    ledger = scene.ledger()
    keys = numbered(ledger, 3)
    jobs = {key: scene.store(f"job-{i}") for i, key in enumerate(keys)}
    ledger.add_done(jobs)
    storage, name = Storage(scene.photos), "manifest.json" if harm == "manifest" else "0-fox.png"
    for number in (0, 1):
        if harm == "size":
            storage.write(f"job-{number}", name, b"half a picture")
        else:
            storage.remove([(f"job-{number}", name)])
    assert find(scene.ledger("b2"), keys).stored == {keys[2]: jobs[keys[2]]}
    [warning] = scene.warnings
    assert warning.startswith("2 of the remembered jobs are gone from storage and run again: ")
    assert "/photos/job-" in warning


@pytest.mark.parametrize(
    "fields",
    [
        *({"complete": False}, {"complete": 1}, {"status": "FAILED"}, {"job_id": "job-2"}),
        *({"app_id": "other"}, {"outputs": None}, {"outputs": [{}]}, {"size": 4}),
    ],
    ids=str,
)
def test_a_manifest_that_does_not_hold_runs_again(scene: Scene, fields: dict[str, Any]) -> None:
    ledger = scene.ledger()
    key = ledger.key(INPUT)
    ledger.add_done({key: scene.store("job-1", **fields)})
    assert find(ledger, [key], scene.photos) == NOTHING


@pytest.mark.parametrize(
    "uri",
    [
        *("{base}/other/job-1/0-fox.png", "{base}/photos/job-2/0-fox.png", "{base}/photos/0-fox.png"),
        *("{base}/photos/job-1/../job-2/0-fox.png", "{base}/photos/job-1/x/0-fox.png", "/etc/hostname"),
        *("{base}/photos/job-1/..", "{base}/photos/job-1/", "https://host.example/0-fox.png", ""),
        "{base}/photos/job-1/" + "x" * 300,
    ],
)
def test_no_output_outside_of_the_folder_of_its_job_counts(scene: Scene, uri: str) -> None:
    ledger = scene.ledger()
    key = ledger.key(INPUT)
    for place in ("other", "photos"):
        scene.store("job-2", to=f"{scene.base}/{place}")
    output = {"uri": uri.format(base=scene.base), "at": "result", "size": 3, "sha256": "0" * 64}
    ledger.add_done({key: scene.store("job-1", outputs=[{**output, "content_type": None}])})
    assert find(ledger, [key]).stored == {}


def test_a_job_without_outputs_counts(scene: Scene) -> None:
    ledger = scene.ledger()
    key = ledger.key(INPUT)
    job = replace(scene.store("job-1", outputs=[], result="a text"), outputs=[], result="a text")
    ledger.add_done({key: job})
    assert find(ledger, [key]).stored == {key: job}


def test_broken_entries_are_misses_with_one_warning(scene: Scene) -> None:
    ledger = scene.ledger()
    *keys, last = numbered(ledger, len(BROKEN) + 1)
    for key, text in zip(keys, BROKEN.values(), strict=True):
        scene.write(key, text)
    job = scene.store("job-1")
    ledger.add_done({last: job})
    assert find(ledger, [*keys, last]) == Found({last: job}, {})
    [warning] = scene.warnings
    # an empty one may be about to be written
    assert warning.startswith(
        f"Ignored {len(BROKEN) - 1} invalid entries of the ledger: {scene.base}/ledger/"
    )


def test_an_entry_of_a_later_version_is_no_miss(scene: Scene) -> None:
    ledger = scene.ledger()
    key = ledger.key(INPUT)
    scene.write(key, entry_text(key, PENDING).replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(
        RunGenInputError, match=r"has version 2, and this package reads 1. Install the version"
    ):
        find(ledger, [key])


def test_a_destination_that_cannot_be_opened_here_is_an_outage(scene: Scene) -> None:
    ledger = scene.ledger()
    key = ledger.key(INPUT)
    scene.write(key, replace(DONE, manifest="nosuch://bucket/job-1/manifest.json"))
    with pytest.raises(RunGenOutputError, match="nosuch://bucket") as outage:
        find(ledger, [key])
    assert outage.value.retryable


def test_a_remembered_job_expires(scene: Scene) -> None:
    keys = numbered(scene.ledger("b2"), 4)
    jobs = [scene.store(f"job-{number}") for number in (1, 2)]
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    done = [replace(DONE, at=hour_ago, job_id=job.job_id, manifest=job.manifest) for job in jobs]
    pending = replace(PENDING, at=hour_ago, job_id="job-3")
    for key, entry in zip(keys, [done[0], pending, replace(done[1], run="c3")], strict=False):
        scene.write(key, entry)
    for options in ({}, {"expires": 7200}):
        assert find(scene.ledger("b2", **options), keys).stored.keys() == {keys[0], keys[2]}
    found = find(scene.ledger("c3", expires=timedelta(minutes=30)), keys)
    # what the task run itself has bought does not expire between its attempts, nor what still runs
    assert found.stored.keys() == {keys[2]}
    assert found.pending.keys() == {keys[1]}
    began = (hour_ago + timedelta(minutes=20)).timestamp()
    found = find(scene.ledger("d4", expires=timedelta(minutes=30), began=began), keys)
    assert found.stored.keys() == {keys[0], keys[2]}, "it was young when the run began"


def test_a_job_that_is_reused_does_not_become_younger(scene: Scene) -> None:
    ledger = scene.ledger("b2")
    key = ledger.key(INPUT)
    job = scene.store("job-1")
    done = replace(DONE, at=datetime.now(UTC) - timedelta(hours=1), manifest=job.manifest)
    scene.write(key, done)
    ledger.add_done(find(ledger, [key]).stored)
    assert parse_entry(key, scene.read(key)) == done


def test_refresh_runs_all_anew_but_not_in_each_attempt(scene: Scene) -> None:
    first = scene.ledger()
    fox, blue = first.key(INPUT), first.key(OTHER)
    first.add_done({fox: scene.store("job-1")})
    first.add_pending("flux", {blue: "job-2"})
    refreshing = scene.ledger("b2", refresh=True)
    assert find(refreshing, [fox, blue]) == NOTHING
    refreshing.add_pending("flux", {fox: "job-3", blue: "job-4"})
    refreshing.add_done({fox: (job := scene.store("job-3"))})
    retry = find(scene.ledger("b2", refresh=True), [fox, blue])
    assert (retry.stored, retry.pending[blue].job_id) == ({fox: job}, "job-4")
    assert find(scene.ledger("c3"), [fox]).stored == {fox: job}
    assert scene.warnings == []


def test_two_runs_at_the_same_moment_are_counted(scene: Scene) -> None:
    one, other = scene.ledger("a1"), scene.ledger("b2")
    keys = numbered(one, 3)
    for ledger in (one, other):
        assert find(ledger, keys).pending == {}
    one.add_pending("flux", dict(zip(keys, ["job-1", "job-2"], strict=False)))
    other.add_pending("flux", dict(zip(keys, ["job-3", "job-4"], strict=False)))
    one.add_done({keys[0]: scene.store("job-1")})
    last = scene.store("job-3")
    other.add_done({keys[0]: last, keys[2]: scene.store("job-5")})
    twice = "Bought twice: 1 inputs, since another run submitted them at the same time"
    assert scene.warnings == [twice] * 2
    assert find(scene.ledger("c3"), keys).stored[keys[0]] == last


def test_a_job_that_another_run_left_is_not_bought_twice(scene: Scene) -> None:
    scene.ledger("a1").add_pending("flux", {(key := scene.ledger().key(INPUT)): "job-1"})
    later = scene.ledger("b2")
    # it failed, so that this run buys another one
    assert find(later, [key]).pending[key].job_id == "job-1"
    later.add_done({key: scene.store("job-2")})
    assert scene.warnings == []


def test_only_entries_that_name_the_job_are_removed(scene: Scene) -> None:
    ledger = scene.ledger()
    keys = numbered(ledger, 4)
    ledger.add_pending("flux", {key: f"job-{i}" for i, key in enumerate(keys[:3])})
    scene.ledger("b2").add_pending("flux", {keys[1]: "another"})
    ledger.remove({keys[0]: "job-0", keys[1]: "job-1", keys[3]: "job-3"})
    pending = find(ledger, keys).pending
    assert {key: entry.job_id for key, entry in pending.items()} == {keys[1]: "another", keys[2]: "job-2"}
    assert scene.warnings == []


def test_what_other_machines_change_in_s3_is_seen(
    s3: str, s3_client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(s3, caplog)
    ledger = scene.ledger()
    fox, blue = ledger.key(INPUT), ledger.key(OTHER)
    job = scene.store("job-1")
    ledger.add_pending("flux", {fox: "job-1"})
    assert find(ledger, [fox, blue], scene.photos).stored == {fox: job}
    folder = s3.removeprefix("s3://my_s3@bucket/")
    jobs = {fox: job, blue: scene.store("job-2")}
    for key, stored in jobs.items():
        entry = entry_text(key, replace(DONE, job_id=stored.job_id, manifest=stored.manifest))
        s3_client.put_object(Bucket="bucket", Key=f"{folder}/ledger/{key[:2]}/{key}.json", Body=entry)
    assert find(ledger, [fox, blue]).stored == jobs
    s3_client.put_object(Bucket="bucket", Key=f"{folder}/photos/job-1/0-fox.png", Body=b"half a picture")
    assert find(ledger, [fox, blue]).stored == {blue: jobs[blue]}


def test_no_secret_and_no_input_is_written(scene: Scene) -> None:
    signed = "https://storage.example/in.png?X-Amz-Signature=s3cret"
    model = model_identity(app("flux", workflow(signed)))
    ledger = LedgerStore(Ledger(f"{scene.base}/ledger"), model, "a1")
    ledger.open()
    fox, blue = ledger.key({"prompt": "s3cret", "like": signed}), ledger.key({"prompt": "s3cret"})
    ledger.add_pending("flux", {fox: "job-1", blue: "job-2"})
    ledger.add_done({fox: scene.store("job-1", result=signed)})
    storage = Storage(f"{scene.base}/ledger")
    contents = storage.read_all(storage.list_all({"", fox[:2], blue[:2]}))
    assert len(contents) >= 2
    for word in (b"s3cret", b"storage.example", b"Signature", b"prompt", b"models.example"):
        assert not any(word in content for content in contents.values())


def test_a_destination_with_a_password_is_not_remembered(remote: Scene) -> None:
    ledger = remote.ledger()
    key = ledger.key(INPUT)
    job = remote.store("job-1")
    for place in ("memory://user:s3cret@bucket", "memory://bucket/x?sig=s3cret", "memory://bucket//x"):
        ledger.add_done({key: replace(job, manifest=f"{place}/job-1/manifest.json")})
    assert find(ledger, [key]).stored == {}
    assert len(remote.warnings) == 3
    assert all("Not remembered: 1 stored jobs" in warning for warning in remote.warnings)
    assert "s3cret" not in remote.caplog.text
    assert not any(b"s3cret" in file.getvalue() for file in remote.fs.store.values())


# --- what can go wrong --------------------------------------------------------------------------------------

SECRET = OSError("no route to https://KEY:S3CRET@storage.example?sig=S3CRET")


@pytest.mark.parametrize("access", ["list", "read", "write", "remove"])
@pytest.mark.parametrize("error", [SECRET, PermissionError("S3CRET?sig=S3CRET")], ids=type)
def test_a_ledger_that_cannot_be_used_is_reported_before_anything_is_sent(
    remote: Scene, access: str, error: Exception
) -> None:
    remote.fs.refuse(access, error)
    with pytest.raises(RunGenInputError, match="the ledger cannot be used") as refused:
        LedgerStore(Ledger("memory://bucket/x?sig=S3CRET/ledger"), "flux", "a1").open()
    assert "KEY:S3CRET" not in str(refused.value)
    assert "sig=S3CRET" not in str(refused.value)


@pytest.mark.parametrize(
    "header", [b'{"version": 2}\n', b"", b"{", b"[1]", b"\xff", b'{"version": "1"}', b"x" * 100_000]
)
def test_a_ledger_of_another_version_is_refused_and_left_alone(scene: Scene, header: bytes) -> None:
    storage, file = Storage(f"{scene.base}/ledger").prepare(), ("", "ledger.json")
    storage.write(*file, header)
    words = "version 2" if b"2" in header else "not the header"
    with pytest.raises(RunGenInputError, match=words) as refused:
        scene.ledger()
    assert not refused.value.retryable
    assert f"{scene.base}/ledger/ledger.json" in str(refused.value)
    assert storage.read_all([file]) == {file: header}


@pytest.mark.parametrize("count", [1, 300])
def test_nothing_is_missing_from_a_ledger_whose_header_is_gone(scene: Scene, count: int) -> None:
    ledger = scene.ledger()
    keys = numbered(ledger, count)
    ledger.add_pending("flux", dict.fromkeys(keys, "job-1"))
    Storage(f"{scene.base}/ledger").remove([("", "ledger.json")])
    with pytest.raises(RunGenOutputError, match=r"ledger\.json is missing") as outage:
        find(ledger, keys)
    assert outage.value.retryable
    assert find(scene.ledger(), keys).pending.keys() == set(keys)


@pytest.mark.parametrize("uri", ["some/folder", "nosuch://bucket/x", "/proc/no", "file:///dev/null/x"])
def test_a_ledger_in_no_place_is_reported(uri: str) -> None:
    with pytest.raises(RunGenInputError, match="ledger"):
        LedgerStore(Ledger(uri), "flux", "a1").open()


@pytest.mark.parametrize("access", ["list", "read"])
def test_an_outage_is_not_mistaken_for_a_miss(remote: Scene, access: str) -> None:
    ledger = remote.ledger()
    key = ledger.key(INPUT)
    ledger.add_done({key: (job := remote.store("job-1"))})
    remote.fs.refuse(access, SECRET)
    # to read a few entries needs no listing
    calls: list[Callable[[], object]] = [lambda: find(ledger, [key, *map(str, range(256))])]
    calls += [lambda: find(ledger, [key]), lambda: ledger.add_done({key: job})] if access == "read" else []
    for call in calls:
        with pytest.raises(RunGenOutputError) as outage:
            call()
        assert outage.value.retryable
        assert "S3CRET" not in str(outage.value)
    remote.fs.refuse("", SECRET)
    assert find(ledger, [key]).stored == {key: job}


def test_an_outage_of_a_destination_is_not_mistaken_for_a_miss(remote: Scene, tmp_path: Path) -> None:
    ledger = Scene(tmp_path.as_uri(), remote.caplog).ledger()
    key = ledger.key(INPUT)
    ledger.add_done({key: (job := remote.store("job-1"))})
    remote.fs.refuse("read", SECRET)
    with pytest.raises(RunGenOutputError, match="destination memory://bucket/x/photos cannot be used"):
        find(ledger, [key])
    remote.fs.refuse("", SECRET)
    assert find(ledger, [key]).stored == {key: job}


def test_what_cannot_be_written_is_reported(remote: Scene) -> None:
    ledger = remote.ledger()
    key = ledger.key(INPUT)
    remote.fs.refuse("write", SECRET)
    with pytest.raises(RunGenOutputError) as outage:
        ledger.add_pending("flux", {key: "job-1"})
    assert outage.value.retryable
    remote.fs.refuse("", SECRET)
    assert find(ledger, [key]).pending == {}
    assert not [name for name in remote.fs.names() if name.endswith(".part")]


@pytest.mark.parametrize("access", ["read", "remove"])
def test_what_cannot_be_removed_is_logged(remote: Scene, access: str) -> None:
    ledger = remote.ledger()
    jobs = dict.fromkeys(numbered(ledger, 3), "job-1")
    ledger.add_pending("flux", jobs)
    remote.fs.refuse(access, SECRET)
    ledger.remove(jobs)
    [warning] = remote.warnings
    assert warning.startswith("Could not remove 3 entries from the ledger: ")
    assert "S3CRET" not in warning
