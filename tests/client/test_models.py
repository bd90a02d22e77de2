"""The models: all documented shapes are read, and no answer breaks them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pendulum
import pytest
from conftest import FakeTime, wait_for_jobs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.flow import Flow, Response
from airflow_provider_rungen.client.models import App, Job, JobStatus
from airflow_provider_rungen.client.texts import clean_text, error_text
from airflow_provider_rungen.client.transport import drive
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenResponseError,
)

JOB: dict[str, Any] = {"id": "j", "status": "RUNNING"}


def job(**fields: Any) -> Job:
    return Job.from_json({"data": {**JOB, **fields}}, app_id="a")


# --- jobs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"job_id": "j", "status": "QUEUED", "app_id": "a", "created_at": "2025-01-11T16:45:34", "input": {}},
        *({"id": "j", "status": "IN_QUEUE"}, {"data": {"id": "j"}}, {"data": {"job_id": "j"}}),
        *({"data": {"job_id": "j", "id": "j", "status": None}}, {"data": {"id": " j\n"}, "id": "other"}),
        *({"data": None, "id": "j"}, {"data": [], "job_id": "j"}),
    ],
)
def test_the_answer_to_a_run_is_read_in_every_form(body: Any) -> None:
    got = Job.from_json(body, app_id="a", status=JobStatus.QUEUED)
    assert (got.id, got.app_id, got.status) == ("j", "a", JobStatus.QUEUED)


@pytest.mark.parametrize("body", [None, 1, "x", [JOB]])
def test_what_is_not_an_object_is_not_a_job(body: Any) -> None:
    with pytest.raises(RunGenResponseError):
        Job.from_json(body, app_id="a", job_id="j")


@pytest.mark.parametrize("bad", [None, "", "  ", True, [], {}, ["j"]])
def test_a_job_without_an_id_or_a_status_is_refused(bad: Any) -> None:
    with pytest.raises(RunGenResponseError, match=r"job id.*out of paper"):
        Job.from_json({"data": {"id": bad, "status": "QUEUED"}, "error": "out of paper"}, app_id="a")
    with pytest.raises(RunGenResponseError, match="status"):
        job(status=bad)


def test_an_id_may_be_a_number() -> None:
    assert Job.from_json({"id": 17, "status": "QUEUED"}, app_id="a").id == "17"
    assert App.from_json({"id": 17}).id == "17"


WORDS = {
    JobStatus.QUEUED: ("QUEUED", "IN_QUEUE", "in_queue", "In-Queue", "queued"),
    JobStatus.RUNNING: ("RUNNING", "in_progress", "IN PROGRESS", " running "),
    JobStatus.COMPLETED: ("COMPLETED", "completed", "Completed", "\tcompleted\n"),
    JobStatus.CANCELED: ("CANCELED", "CANCELLED", "canceled", "Cancelled"),
    JobStatus.FAILED: ("FAILED", "failed", "ERROR", "Failure", "TIMED_OUT"),
}
UNKNOWN = ("SUCCEEDED", "DONE", "COMPLETE", "SUCCESS", "FINISHED", "completed!", "WARMING_UP", "?", "完了")


def test_an_unknown_status_word_means_that_a_job_runs_and_is_known_to_be_unknown() -> None:
    for status, words in WORDS.items():
        for word in words:
            assert (job(status=word).status, job(status=word).is_known_status) == (status, True), word
    for word in UNKNOWN:
        assert (job(status=word).status, job(status=word).is_known_status) == (JobStatus.RUNNING, False), word
    assert Job(id="j", app_id="a").is_known_status


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("2025-01-11T16:45:34", "2025-01-11T16:45:34"),
        (" 2025-01-22 15:22:28.123456 ", "2025-01-22T15:22:28.123456"),
        ("2025-01-22T15:22:28Z", "2025-01-22T15:22:28"),
        ("2025-01-22T15:22:28+02:00", "2025-01-22T13:22:28"),
    ],
)
def test_times_are_utc(value: str, want: str) -> None:
    got = job(created_at=value).created_at
    assert isinstance(got, pendulum.DateTime)
    assert got == pendulum.parse(want)
    assert got.utcoffset() == pendulum.duration(0)


NO_TIMES: list[Any] = [
    *(None, "", "yesterday", 0, 1.5, [], {}, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59")
]


@pytest.mark.parametrize("value", NO_TIMES)
def test_a_strange_time_is_no_time(value: Any) -> None:
    assert job(created_at=value).created_at is None


@pytest.mark.parametrize(
    ("want", "values"),
    [
        *((100.0, ["100.0", 100, " 100 ", "1e2"]), (0.0, ["0"]), (2.5, [2.5])),
        (None, [None, "", "soon", "NaN", "inf", "-1", -1, True, [], {}, 10**400, "9" * 5000, float("nan")]),
        (None, ["1764302000000", 100_000_000_000.4, 1e300]),
    ],
)
def test_the_execution_time_is_seconds_or_none(want: float | None, values: list[Any]) -> None:
    for value in values:
        assert job(execution_time=value).execution_time == want, value


@pytest.mark.parametrize(
    "result", [None, "text", "", 0, False, [], {"images": []}, {"data": {"status": "FAILED"}}]
)
def test_the_result_is_returned_unchanged(result: Any) -> None:
    assert job(status="COMPLETED", result=result).result == result
    assert "result" not in repr(job(status="COMPLETED", result=result))  # it may hold signed URLs


@pytest.mark.parametrize(
    "where",
    [
        *({name: "why"} for name in ("error", "error_message", "message", "detail", "result")),
        *({"error": {"message": "why"}}, {"error": {"code": 7, "detail": {"reason": "why"}}}),
        *({"error": ["why"]}, {"errors": [{"msg": "why"}]}, {"result": {"error": "why"}}),
        {"error": None, "error_message": "", "reason": "why"},
    ],
)
def test_the_reason_of_a_failure_is_found(where: dict[str, Any]) -> None:
    failed = job(status="FAILED", **where)
    assert failed.error == "why"
    with pytest.raises(RunGenJobFailedError, match=r"^Failed: why \(job j, app a\)"):
        failed.raise_for_status()


def test_a_failure_without_a_reason_is_reported_as_such() -> None:
    message = r"^Failed: the service gave no reason \(status ERRORED\) \(job j, app a\)"
    with pytest.raises(RunGenJobFailedError, match=message) as caught:
        job(status="ERRORED").raise_for_status()
    assert (caught.value.app_id, caught.value.job_id) == ("a", "j")


def test_only_a_failed_job_has_an_error_which_may_stand_beside_the_data() -> None:
    assert job(status="COMPLETED", message="all is well").error == ""
    assert Job.from_json({"data": {**JOB, "status": "failed"}, "error": "why"}, app_id="a").error == "why"


def test_the_end_of_a_job_is_an_error_unless_it_completed() -> None:
    job(status="COMPLETED").raise_for_status()
    with pytest.raises(RunGenJobCanceledError, match=r"^Canceled \(job j, app a\)"):
        job(status="CANCELLED").raise_for_status()
    with pytest.raises(RunGenJobError, match=r"^Not over yet: QUEUED \(job j, app a\)"):
        job(status="QUEUED").raise_for_status()
    assert [job(status=word).is_terminal for word in ("QUEUED", "RUNNING", "NEW")] == [False] * 3
    assert [job(status=word).is_terminal for word in ("COMPLETED", "FAILED", "CANCELED")] == [True] * 3


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        *(({name: {"prompt": "x"}}, {"prompt": "x"}) for name in ("input", "request")),
        ({"request": {"input": {"prompt": "x"}}}, {"prompt": "x"}),
        *(({"request": {"input": None}}, None), ({"request": "x"}, "x"), ({}, None)),
    ],
)
def test_the_input_is_found(fields: dict[str, Any], want: Any) -> None:
    assert job(**fields).input == want
    assert "prompt" not in repr(job(**fields))


# --- apps ---------------------------------------------------------------------------------------------------


def test_an_app_is_read_whole() -> None:
    body = {
        "id": "a",
        "name": "FLUX",
        "description": "pictures",
        "status": "running",
        "configuration": {"active_workers": 2, "gpu_tier": "BASIC"},
        "workflow": {"model_url": "https://x/y", "tools": {}},
        "jobs": {"completed": 1, "failed": 0, "in_progress": True, "in_queue": "3", "retried": -1},
        "workers": {"idle": 1, "ready": 2.5},
        "created_at": "2025-01-11 16:45:34",
    }
    counts = {"completed": 1, "failed": 0, "in_queue": 3}
    for answer in (body, {"data": body}):
        app = App.from_json(answer)
        assert (app.id, app.name, app.description, app.status) == ("a", "FLUX", "pictures", "RUNNING")
        assert (app.active_workers, app.jobs, app.workers) == (2, counts, {"idle": 1})
        assert app.created_at == pendulum.datetime(2025, 1, 11, 16, 45, 34)


NO_COUNTS: list[Any] = [
    *(None, "two", True, 1.5, "1.5", -1, -1.0, "-1", [], math.nan, math.inf, "nan", "1e3", "9" * 5000)
]


@pytest.mark.parametrize(("want", "counts"), [(2, (2, "2", 2.0, "2.0", "2.00")), (None, NO_COUNTS)])
def test_a_count_may_be_text_or_a_whole_float(want: int | None, counts: Any) -> None:
    for count in counts:
        inside = {"active_workers": count}
        for body in ({"configuration": inside}, inside, {**inside, "configuration": inside}):
            app = App.from_json({"id": "a", "jobs": {"in_queue": count}, **body})
            assert (app.active_workers, app.pending_jobs) == (want, want), count
            assert type(app.active_workers) is type(want)
    assert App.from_json({"id": "a", "active_workers": 7, "configuration": {}}).active_workers == 7


def test_an_app_without_an_id_is_refused_unless_it_was_asked_for() -> None:
    with pytest.raises(RunGenResponseError, match="app id"):
        App.from_json({"data": {"name": "x"}})
    assert App.from_json({"data": {"name": "x"}}, app_id="a").id == "a"


@pytest.mark.parametrize("body", [None, {}, {"data": {}}, {"data": None}, "x", 1, {"apps": []}])
def test_what_is_not_a_list_is_not_a_list_of_apps(body: Any) -> None:
    with pytest.raises(RunGenResponseError, match="did not return a list"):
        App.list_from_json(body)
    for answer in ([{"id": "a"}, {"id": "b"}], {"data": [{"id": "a"}, {"id": "b"}]}):
        assert [app.id for app in App.list_from_json(answer)] == ["a", "b"]


# --- whatever the service sends -----------------------------------------------------------------------------

_words = st.sampled_from(["QUEUED", "COMPLETED", "completed", "FAILED", "error", "CANCELLED", "", "running"])
_texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=30) | _words
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts
    | st.datetimes().map(lambda when: when.isoformat())
    | st.datetimes(timezones=st.timezones()).map(lambda when: when.isoformat())
    | st.sampled_from(["2025-01-11T16:45:34", "2025-01-22 15:22:28", "100.0", "-0", "1e999", "9" * 400])
)
_keys = st.sampled_from(
    [
        *("data", "id", "job_id", "status", "result", "created_at", "execution_time", "error", "message"),
        *("detail", "errors", "code", "name", "description", "configuration", "active_workers", "workflow"),
        *("jobs", "workers", "app_id"),
    ]
)
_json = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys | _texts, inner, max_size=8),
    max_leaves=25,
)
_objects = st.dictionaries(_keys, _json, max_size=10)
_answers = (
    _json
    | _objects
    | _objects.map(lambda inner: {"data": inner})
    | st.lists(_objects).map(lambda inner: {"data": inner})
)

FLOWS: dict[str, Callable[[], Flow[Any]]] = {
    "run": lambda: endpoints.run_job("a", {}),
    "get": lambda: endpoints.get_job("a", "j"),
    "cancel": lambda: endpoints.cancel_job("a", "j"),
    "wait": lambda: wait_for_jobs("a", ["j"], poll_interval=1, deadline=0),
    "list": endpoints.list_apps,
    "app": lambda: endpoints.get_app("a"),
    "create": lambda: endpoints.create_app({}),
    "update": lambda: endpoints.update_app("a", {}),
    "delete": lambda: endpoints.delete_app("a"),
}


def _perform(flow: str, response: Response) -> Any:
    message, clock = None, FakeTime()
    try:
        return drive(FLOWS[flow](), lambda _: response, clock.sleep, clock.time)
    except RunGenError as error:
        message = str(error)
    assert message
    assert message.isprintable(), "a message may go to a log as it is"
    assert len(message) < 8000
    return None


def _says_completed(value: Any) -> bool:
    inner = value.get("data") if isinstance(value, dict) and isinstance(value.get("data"), dict) else value
    word = inner.get("status") if isinstance(inner, dict) else None
    return isinstance(word, str) and word.strip().upper() == "COMPLETED"


@pytest.mark.parametrize("flow", FLOWS)
@given(answer=_answers, status=st.sampled_from([200, 200, 200, 201, 204, 302, 400, 409, 500]))
@example(answer={"data": {"id": "\ud800", "status": "\ud800"}}, status=200)
@example(answer={"data": {"status": "FAILED", "error": {"error": {"error": {"error": "\x1b"}}}}}, status=200)
@settings(max_examples=60)
def test_any_json_is_a_model_or_an_error_of_ours(flow: str, answer: Any, status: int) -> None:
    value = _perform(flow, Response(status, {}, json.dumps(answer).encode()))
    jobs = value if flow == "wait" and value else [value]
    for one in jobs:
        if isinstance(one, Job):
            assert one.id
            assert one.error.isprintable()
            assert one.status is not JobStatus.COMPLETED or _says_completed(answer)
            assert one.execution_time is None or math.isfinite(one.execution_time)
            assert one.created_at is None or one.created_at.utcoffset() == pendulum.duration(0)
            assert repr(one)


@pytest.mark.parametrize("flow", FLOWS)
@given(
    body=st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-16", "surrogatepass")),
    status=st.integers(100, 999),
    headers=st.dictionaries(
        st.sampled_from(["retry-after", "date", "location", "content-type"]),
        st.text(max_size=40) | st.sampled_from(["3", "http://[", "//x", "Wed, 21 Oct 2015 07:28:00 GMT"]),
    ),
)
@example(body=b"[" * 200_000, status=200, headers={})
@example(body=b"[" * 200_000, status=400, headers={})
@example(body=b'{"id": ' + b"9" * 5000 + b"}", status=201, headers={})
@example(body=b'\xef\xbb\xbf{"id": "j", "status": "COMPLETED"}', status=200, headers={})
@example(body=b'{"id": "j", "status": "COMPLETED", "result": NaN}', status=200, headers={})
@example(body=b"{}", status=302, headers={"location": "http://[bad"})
@example(body=b"{}", status=429, headers={"retry-after": "Mon, 01 Jan 0001 00:00:00 -2359", "date": "x"})
@settings(max_examples=60)
def test_any_bytes_are_a_model_or_an_error_of_ours(
    flow: str, body: bytes, status: int, headers: dict[str, str]
) -> None:
    value = _perform(flow, Response(status, headers, body))
    if value is not None:
        assert 200 <= status < 300


def test_a_result_with_nan_or_with_more_digits_than_python_converts_is_not_lost() -> None:
    digits = "7" * 5000
    body = '{"id": "j", "status": "COMPLETED", "execution_time": %s, "result": [NaN, "x", 7, %s]}'
    job = _perform("get", Response(200, {}, (body % (digits, digits)).encode()))
    assert (job.result, job.execution_time) == ([None, "x", 7, digits], None)


# --- text for logs ------------------------------------------------------------------------------------------


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=3000))
def test_clean_text_is_one_printable_line_of_some_length(text: str) -> None:
    cleaned = clean_text(text)
    assert cleaned.isprintable()
    assert len(cleaned) <= 10 * 500 + 1


@pytest.mark.parametrize("padding", [400, 470, 495, 500, 505, 9_970, 9_999, 10_001])
def test_cutting_a_text_does_not_lay_its_query_bare(padding: int) -> None:
    text = "x" * padding + " https://h.example/p?X-Amz-Signature=SECRETSECRET&b=SECRET"
    assert "SECRET" not in clean_text(text)


def test_clean_text_keeps_plain_words() -> None:
    assert clean_text("The width, 3 px, is too small? Yes: #1.") == "The width, 3 px, is too small? Yes: #1."
    assert clean_text("a\tb\nc\x00\u202e") == r"a\tb\nc\x00\u202e"
    assert len(clean_text("x" * 10_000)) == 501


@given(_json)
def test_error_text_takes_any_json(value: Any) -> None:
    assert error_text(value).isprintable()


@pytest.mark.parametrize(
    "body",
    [
        *({"id": "job-b"}, {"data": {"job_id": "job-b"}}, {"id": 7}),
        {"data": {"id": "job-a", "app_id": "another-app"}},
    ],
)
def test_an_answer_about_another_job_or_app_is_refused(body: Any) -> None:
    message = r"^The answer is about .* instead \((job job-a, )?app app\)"
    with pytest.raises(RunGenResponseError, match=message):
        Job.from_json({"status": "COMPLETED", **body}, app_id="app", job_id="job-a")


@pytest.mark.parametrize(
    "body",
    [{"created_at": "2025-01-11"}, {"id": "row 17", "job_id": "job-a"}, {"id": " JOB-A ", "app_id": "App"}],
)
def test_an_answer_that_names_the_job_or_none_is_ours(body: Any) -> None:
    assert Job.from_json({"status": "COMPLETED", **body}, app_id="app", job_id="job-a").id == "job-a"


def test_an_answer_about_another_app_is_refused() -> None:
    with pytest.raises(RunGenResponseError, match="another-app"):
        App.from_json({"data": {"id": "another-app", "status": "RUNNING"}}, app_id="app")
    assert App.from_json({"data": {"workers": {}}}, app_id="app").id == "app"
    assert App.from_json({}, app_id="app", is_change=True).id == "app"


@pytest.mark.parametrize(
    "body",
    [
        {"status": "error", "message": "upstream unavailable"},
        *({"status": "COMPLETED"}, {"status": "ok"}, {"error": "maintenance", "status": "FAILED"}),
        *({}, {"data": {}}, {"data": None}, {"message": "no Route matched"}),
    ],
)
def test_an_answer_without_a_field_of_ours_is_that_of_a_gateway(body: Any) -> None:
    with pytest.raises(RunGenResponseError, match="no field of a job"):
        Job.from_json(body, app_id="app", job_id="job-a")
    with pytest.raises(RunGenResponseError, match="no field of an app"):
        App.from_json(body, app_id="app")
