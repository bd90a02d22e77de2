"""The endpoints: every shape, refusal and accident, in two ways to perform a flow."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from bad_answers import Fault
from client_mistakes import early_retries
from conftest import APP, KEY, VIAS, Via, pairwise, wait_for_jobs
from odd_answers import Style
from rungen_emulator import Emulator

from airflow_provider_rungen import exceptions as errors
from airflow_provider_rungen.client import codec, endpoints, retry
from airflow_provider_rungen.client.flow import Flow, Response
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.transport import drive
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenConnectionError,
    RunGenInputError,
    RunGenJobTimeoutError,
)

INPUT: dict[str, Any] = {"prompt": "a red fox", "width": 64, "height": 64}


def wait(job_ids: list[str], *, every: float = 5, deadline: float | None = None) -> Flow[list[Job]]:
    return wait_for_jobs(APP, job_ids, poll_interval=every, deadline=deadline)


# --- every reading of the documentation ---------------------------------------------------------------------


AXES: dict[str, tuple[Any, ...]] = {
    "shape": ("wrapped", "flat", "mixed"),
    "id_field": ("documented", "job_id", "id", "both"),
    "words": ("upper", "lower", "title", "alternate"),
    "time_format": ("T", "space"),
    "execution_time_as": ("string", "number"),
    "extra_fields": (False, True),
    "run_status": (200, 201, 202),
}
STYLES = [dict(zip(AXES, row, strict=True)) for row in pairwise(*AXES.values())]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: " ".join(map(str, style.values())))
def test_a_job_goes_its_way_in_every_shape(direct: Via, style: dict[str, Any]) -> None:
    direct.service.style = Style(**style)
    direct.service.scale(APP, 1)
    first, second, third = (
        direct(endpoints.run_job(APP, {**INPUT, "prompt": prompt})) for prompt in ("x", "fail: no foxes", "y")
    )
    assert [job["id"] for job in direct.service.jobs()] == [first.id, second.id, third.id]
    assert (first.status, first.app_id) == (JobStatus.QUEUED, APP)
    assert first.created_at is not None
    assert abs(first.created_at.timestamp() - direct.clock.now) < 2
    assert direct(endpoints.get_job(APP, first.id)).status is JobStatus.RUNNING
    assert direct(endpoints.get_job(APP, third.id)).status is JobStatus.QUEUED
    canceled = direct(endpoints.cancel_job(APP, third.id))
    assert (canceled.id, canceled.status) == (third.id, JobStatus.CANCELED)
    done, failed, gone = direct(wait([first.id, second.id, third.id]))
    assert (done.status, done.execution_time) == (JobStatus.COMPLETED, 2.0)
    assert done.result["images"][0]["image"].startswith("http")
    assert (failed.status, failed.error, failed.result) == (JobStatus.FAILED, "no foxes", None)
    assert gone.status is JobStatus.CANCELED


@pytest.mark.parametrize(("shape", "create_status"), [("wrapped", 201), ("flat", 200)])
def test_an_app_goes_its_way_in_every_shape(direct: Via, shape: Any, create_status: int) -> None:
    direct.service.style = Style(shape=shape, create_status=create_status)
    direct.service.init_seconds = 60.0
    configuration = {"gpu_tier": "BASIC", "active_workers": 1}
    workflow = {"model_url": "https://models.example/flux"}
    body = {"name": "A", "description": "what for", "configuration": configuration, "workflow": workflow}
    app = direct(endpoints.create_app(body))
    assert (app.name, app.description, app.status) == ("A", "what for", "INITIALIZING")
    assert (app.active_workers, dict(app.jobs), dict(app.workers)) == (1, {}, {})
    direct.clock.now += 61
    running = direct(endpoints.get_app(app.id))
    assert (running.id, running.status, running.workers["ready"]) == (app.id, "RUNNING", 1)
    assert app.id in [each.id for each in direct(endpoints.list_apps())]
    with pytest.raises(errors.RunGenConflictError, match="scale to 0 workers first"):
        direct(endpoints.delete_app(app.id))
    stopped = direct(endpoints.update_app(app.id, {"configuration": {"active_workers": 0}, "name": "Mine"}))
    assert (stopped.status, stopped.active_workers, stopped.name) == ("STOPPED", 0, "Mine")
    direct(endpoints.delete_app(app.id))
    with pytest.raises(errors.RunGenNotFoundError, match=app.id):
        direct(endpoints.get_app(app.id))


def test_what_is_sent(direct: Via) -> None:
    direct.overrides = {"team_id": "team-1", "user_id": "user-1"}
    direct.service.add_app("teams-app", owner_team_id="team-1", workers=1)
    given: dict[str, Any] = {
        "prompt": "ä 狐 😀\x00\u2028",
        "b": [2**70, 2.5, None, True],
        "a": {"z": 1, "y": ()},
    }
    job = direct(endpoints.run_job("teams-app", given))
    direct(endpoints.get_job("teams-app", job.id))
    direct(endpoints.cancel_job("teams-app", job.id))
    direct(endpoints.list_apps())
    run, get, cancel, apps = direct.service.records()
    for record in (run, get, cancel, apps):
        assert (record.headers["x-api-key"], record.headers["x-team-id"]) == (KEY, "team-1")
        assert record.headers["user-agent"].startswith("airflow-provider-rungen/")
        assert record.headers["accept"] == "application/json"
        assert record.headers.get("x-authenticated-user-id") == ("user-1" if record is cancel else None)
    assert (run.method, run.path) == ("POST", "/app/teams-app/run_async")
    assert run.headers["content-type"] == "application/json"
    assert json.loads(run.body) == {"input": {**given, "a": {"z": 1, "y": []}}}
    assert (get.method, get.path, get.body) == ("GET", f"/app/teams-app/job/{job.id}", b"")
    assert (cancel.method, cancel.path, cancel.body) == ("PUT", f"/app/teams-app/job/{job.id}", b"")


def test_equal_inputs_give_equal_bytes() -> None:
    one = codec.encode_input({"b": {"d": 1, "c": (1, 2)}, "a": "ü"})
    assert one == codec.encode_input({"a": "ü", "b": {"c": [1, 2], "d": 1}})


# --- refusals -----------------------------------------------------------------------------------------------
# For a run, a poll and a cancel, tests/emulator/test_faults.py has what each status and accident means.

VERDICTS: dict[int, type[RunGenAPIError]] = {
    **dict.fromkeys((400, 413, 422), errors.RunGenBadRequestError),
    **dict.fromkeys((404, 410), errors.RunGenNotFoundError),
}
TROUBLES: dict[int, type[RunGenAPIError]] = {
    **dict.fromkeys((402, 405, 408, 415), RunGenAPIError),
    409: errors.RunGenConflictError,
    429: errors.RunGenRateLimitedError,
    **dict.fromkeys((500, 501, 502, 503, 504), errors.RunGenServerError),
}
CALLS: dict[str, Callable[[], Flow[Any]]] = {
    "run": lambda: endpoints.run_job(APP, INPUT),
    "get": lambda: endpoints.get_job(APP, "00000000-0000-4000-8000-00000000dead"),
    "list_apps": endpoints.list_apps,
    "get_app": lambda: endpoints.get_app(APP),
    "create_app": lambda: endpoints.create_app({"name": "x"}),
    "update_app": lambda: endpoints.update_app(APP, {"name": "x"}),
    "delete_app": lambda: endpoints.delete_app("no-app"),
}
CHANGES = ("update_app", "delete_app")


@pytest.mark.parametrize(("operation", "status"), pairwise(CALLS, VERDICTS))
def test_a_verdict_of_the_service_is_final(direct: Via, operation: str, status: int) -> None:
    direct.service.inject(Fault(on=operation, status=status, body={"error": "because"}, times=None))
    with pytest.raises(VERDICTS[status], match=rf"\({status}\): because") as caught:
        direct(CALLS[operation]())
    assert type(caught.value) is VERDICTS[status]
    assert (caught.value.status_code, caught.value.retryable) == (status, False)
    assert (direct.service.count(operation), direct.slept) == (1, [])


CREATED = ("run", "create_app")
ASKED = ("run", "create_app", "get", "list_apps", "get_app")


@pytest.mark.parametrize(("operation", "status"), pairwise(ASKED, (402, 405, 409, 418, 451)))
def test_any_refusal_of_the_service_is_final_unless_something_is_to_be_changed(
    direct: Via, operation: str, status: int
) -> None:
    direct.service.inject(Fault(on=operation, status=status, times=None))
    with pytest.raises(RunGenAPIError) as caught:
        direct(CALLS[operation]())
    assert (caught.value.status_code, caught.value.retryable) == (status, False)
    assert (direct.service.count(operation), direct.slept) == (1, [])


# a POST is sent again only if it was certainly not performed
LASTING = [
    *pairwise(CHANGES, TROUBLES),
    *pairwise(("get", "list_apps", "get_app"), (408, 429, 500, 503)),
    *pairwise(CREATED, (429, 503)),
]


@pytest.mark.parametrize(("operation", "status"), LASTING)
def test_trouble_is_outlasted_within_bounds(direct: Via, operation: str, status: int) -> None:
    direct.service.inject(Fault(on=operation, status=status, times=None))
    with pytest.raises(TROUBLES[status]) as caught:
        direct(CALLS[operation]())
    assert type(caught.value) is TROUBLES[status]
    assert (caught.value.status_code, caught.value.retryable) == (status, True)
    assert direct.service.count(operation) == retry.ATTEMPTS == len(direct.slept) + 1
    for number, seconds in enumerate(direct.slept):
        assert 0.75 * retry.BACKOFF * 2**number <= seconds <= 1.25 * retry.BACKOFF * 2**number


NOT_OWN: list[Any] = ["<html>Log in</html>", "", "null", ["Not Found"], '"no"']


@pytest.mark.parametrize(("status", "body"), pairwise([302, 400, 402, 404, 407, 410, 422, 451], NOT_OWN))
def test_a_verdict_of_somebody_in_between_is_outlasted(direct: Via, status: int, body: Any) -> None:
    answer: dict[str, Any] = {"body": body, "headers": {"Location": "/login"}}
    direct.service.inject(Fault(on="get_app", status=status, times=2, **answer))
    assert direct(endpoints.get_app(APP)).id == APP
    direct.service.inject(Fault(on="get_app", status=status, times=None, **answer))
    with pytest.raises(RunGenAPIError) as caught:
        direct(endpoints.get_app(APP))
    assert (caught.value.retryable, caught.value.status_code) == (True, status)


@pytest.mark.parametrize("body", NOT_OWN)
def test_a_post_is_repeated_after_an_answer_that_proves_that_it_was_not_performed(
    direct: Via, body: Any
) -> None:
    for status in (400, 402, 404):
        direct.service.inject(Fault(on="run", status=status, body=body))
    direct(endpoints.run_job(APP, INPUT))
    assert direct.posts() == 4
    direct.service.inject(Fault(on="run", status=429, body=body))
    with pytest.raises(errors.RunGenSubmissionUnknownError):
        direct(endpoints.run_job(APP, INPUT))


def test_an_account_that_cannot_pay_is_named(direct: Via) -> None:
    direct.service.inject(Fault(on="run", status=402, times=None))
    with pytest.raises(RunGenAPIError, match="Check that the account"):
        direct(endpoints.run_job(APP, INPUT))


@pytest.mark.parametrize("fault", [{"kind": "reset_after"}, *({"status": code} for code in (501, 520, 599))])
def test_a_post_of_unknown_fate_is_sent_once_and_says_what_it_may_cost(
    direct: Via, fault: dict[str, Any]
) -> None:
    direct.service.inject(Fault(on="run", times=None, **fault))
    match = rf"^Fate unknown: .*{APP}.*{fault.get('status', '')}.*billed twice"
    with pytest.raises(errors.RunGenSubmissionUnknownError, match=match):
        direct(endpoints.run_job(APP, INPUT))
    assert (direct.posts(), direct.slept) == (1, [])


def test_a_page_in_place_of_json_is_reported_in_plain_words(direct: Via) -> None:
    page = "<!DOCTYPE html><html><head><style>p {}</style></head><body><p>nginx</p></body></html>"
    direct.service.inject(Fault(on="get_app", status=400, body=page, times=None))
    with pytest.raises(RunGenAPIError, match=rf": nginx \(app {APP}\)") as caught:
        direct(endpoints.get_app(APP))
    assert "<" not in str(caught.value)


@pytest.mark.parametrize(
    "body", ["", "null", "[]", "{}", '{"error": null}', '{"error": {}}', '"' + "x" * 9999]
)
def test_a_refusal_without_words_is_still_an_error_of_some_length(direct: Via, body: str) -> None:
    direct.service.inject(Fault(on="get_app", status=400, body=body, times=None))
    with pytest.raises(RunGenAPIError) as caught:
        direct(endpoints.get_app(APP))
    assert APP in str(caught.value)
    assert len(str(caught.value)) < 1500


# --- Retry-After --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [61, 61.5, 119, 3600])
def test_nobody_comes_back_before_the_service_asked(direct: Via, asked: float) -> None:
    direct.service.inject(Fault(on="get_app", status=429, headers={"Retry-After": str(asked)}))
    with contextlib.suppress(errors.RunGenRateLimitedError):
        direct(endpoints.get_app(APP))
    job = direct(endpoints.run_job(APP, INPUT))
    direct.service.inject(Fault(on="get", status=429, headers={"Retry-After": str(asked)}, times=3))
    [done] = direct(wait([job.id]))
    assert done.status is JobStatus.COMPLETED
    assert early_retries(direct.service) == 0


@pytest.mark.parametrize(
    "value", ["-1", "0", "soon", "1e9", "NaN", "9" * 400, "Fri, 99 Foo 2026 00:00:00 GMT", "١٢", "1, 2", ""]
)
def test_a_strange_retry_after_does_no_harm(direct: Via, value: str) -> None:
    assert 0 < _slept_after(direct, {"retry-after": value}) <= 61


@pytest.mark.parametrize("slow", [None, 7200.0])
def test_an_http_date_is_read_by_the_services_own_clock(direct: Via, slow: float | None) -> None:
    theirs = direct.clock.now - (slow or 0.0)
    headers = {"retry-after": email.utils.formatdate(theirs + 20, usegmt=True)}
    headers |= {} if slow is None else {"date": email.utils.formatdate(theirs, usegmt=True)}
    assert 19 <= _slept_after(direct, headers) <= 22


def _slept_after(direct: Via, headers: dict[str, str]) -> float:
    answers = [Response(503, headers, b"{}"), Response(200, {}, f'{{"id": "{APP}"}}'.encode())]
    drive(endpoints.get_app(APP), lambda _: answers.pop(0), direct.clock.sleep, direct.clock.time)
    return sum(direct.slept)


# --- accidents ----------------------------------------------------------------------------------------------


def test_a_question_that_meets_accidents_only_ends_in_an_error(direct: Via) -> None:
    direct.service.inject(Fault(on="get_app", kind="reset_after", times=None))
    with pytest.raises(RunGenConnectionError, match=rf"^Could not get the app: .* \(app {APP}\)") as caught:
        direct(endpoints.get_app(APP))
    assert (caught.value.sent, caught.value.retryable) == (True, True)
    assert direct.service.count("get_app") == retry.ATTEMPTS == len(direct.slept) + 1


@pytest.fixture
def running(direct: Via) -> str:
    return direct(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 900}})).id


@pytest.mark.parametrize("fault", [{"status": 404, "times": 3}, {"status": 409, "times": 2}])
def test_a_job_that_cannot_be_canceled_yet_is_canceled_later(
    direct: Via, running: str, fault: dict[str, Any]
) -> None:
    direct.service.inject(Fault(on="cancel", **fault))
    assert direct(endpoints.cancel_job(APP, running, is_known=True)).status is JobStatus.CANCELED
    assert [each["status"] for each in direct.service.jobs()] == ["CANCELED"]


@pytest.mark.parametrize("status", [403, 404])
def test_a_job_of_somebody_else_is_not_asked_for_again_when_it_is_refused(
    direct: Via, running: str, status: int
) -> None:
    direct.service.inject(Fault(on="cancel", status=status, times=None))
    with pytest.raises(RunGenAPIError):
        direct(endpoints.cancel_job(APP, running))
    assert (direct.service.count("cancel"), direct.slept) == (1, [])


@pytest.mark.parametrize(
    "body", [{}, {"data": {"status": "RUNNING"}}, {"status": "COMPLETED"}, {"error": "cannot cancel"}, ""]
)
@pytest.mark.parametrize("is_canceled", [False, True])
def test_a_job_is_canceled_when_the_service_says_so(
    direct: Via, running: str, body: Any, is_canceled: bool
) -> None:
    direct.service.inject(Fault(on="cancel", status=200, body=body, taken=is_canceled))
    assert direct(endpoints.cancel_job(APP, running)).status is JobStatus.CANCELED
    assert [each["status"] for each in direct.service.jobs()] == ["CANCELED"]
    assert direct.service.count("cancel") == (1 if is_canceled else 2)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, errors.RunGenNotFoundError), (409, RunGenAPIError), (503, errors.RunGenServerError)],
)
def test_a_cancel_is_repeated_within_bounds(
    direct: Via, running: str, status: int, kind: type[RunGenAPIError]
) -> None:
    direct.service.inject(Fault(on="cancel", status=status, times=None))
    for budget, sent in ((0.0, 1), (900.0, 1 + retry.ATTEMPTS)):
        with pytest.raises(kind, match=str(status)):
            direct(endpoints.cancel_job(APP, running, retry_budget=budget, is_known=True))
        assert direct.service.count("cancel") == sent


def test_all_of_the_time_is_used(direct: Via, running: str) -> None:
    """As at a kill, which leaves no time for the next pause in full."""
    direct.service.inject(Fault(on="cancel", status=503, times=retry.ATTEMPTS - 1))
    # the pauses would be 0.05, 0.1, 0.2 and 0.4
    assert direct(endpoints.cancel_job(APP, running, retry_budget=0.5)).status is JobStatus.CANCELED
    assert sum(direct.slept) == pytest.approx(0.5)
    direct.service.inject(Fault(on="cancel", status=503, headers={"Retry-After": "2"}))
    with pytest.raises(errors.RunGenServerError):
        direct(endpoints.cancel_job(APP, running, retry_budget=1.5))
    assert direct.service.count("cancel") == retry.ATTEMPTS + 1, "unless the service asks for more"


def test_a_job_that_is_over_or_forgotten_cannot_be_canceled(direct: Via) -> None:
    job = direct(endpoints.run_job(APP, INPUT))
    direct.clock.now += 3
    with pytest.raises(errors.RunGenConflictError, match=job.id):
        direct(endpoints.cancel_job(APP, job.id))
    direct.service.inject(Fault(on="get", status=404))
    with pytest.raises(errors.RunGenConflictError):
        direct(endpoints.cancel_job(APP, job.id))


def test_a_job_is_not_over_because_a_gateway_does_not_know_it(direct: Via, running: str) -> None:
    direct.service.inject(Fault(on="cancel", status=409))
    direct.service.inject(Fault(on="get", status=404, body="<html>no such service</html>"))
    assert direct(endpoints.cancel_job(APP, running)).status is JobStatus.CANCELED


@pytest.mark.parametrize(("asked", "why"), [(0, "it is RUNNING"), (None, "its status is unknown")])
def test_a_job_that_runs_is_not_over_though_the_service_says_so(
    direct: Via, running: str, asked: int | None, why: str
) -> None:
    direct.clock.now += 1
    direct.service.inject(Fault(on="cancel", status=409, times=None))
    direct.service.inject(Fault(on="get", status=503, times=asked))
    message = rf"\(409\): .*, but {why} \(job {running}, app {APP}\)$"
    with pytest.raises(RunGenAPIError, match=message) as caught:
        direct(endpoints.cancel_job(APP, running))
    assert not isinstance(caught.value, errors.RunGenConflictError)
    assert caught.value.retryable


@pytest.mark.parametrize(
    "fault",
    [
        *({"kind": "reset_after"}, {"kind": "truncate"}, {"kind": "html", "status": 200}),
        *({"status": status} for status in (402, 409, 503)),
        *({"status": status, "body": "<html></html>"} for status in (400, 404, 409)),
        *[{"status": 200, "body": "", "taken": True}, {"status": 200, "body": {"data": {}}, "taken": True}],
    ],
    ids=str,
)
def test_an_app_is_deleted_whatever_becomes_of_the_answer(direct: Via, fault: dict[str, Any]) -> None:
    direct.service.add_app("doomed", workers=0)
    direct.service.inject(Fault(on="delete_app", **fault))
    direct(endpoints.delete_app("doomed"))
    assert "doomed" not in [app.id for app in direct(endpoints.list_apps())]


def test_an_app_is_not_deleted_because_a_gateway_does_not_know_it(direct: Via) -> None:
    direct.service.add_app("doomed", workers=0)
    direct.service.inject(Fault(on="delete_app", status=503))
    direct.service.inject(Fault(on="delete_app", status=404, body="<html></html>"))
    direct(endpoints.delete_app("doomed"))
    assert direct.service.count("delete_app") == 3


def test_a_post_is_repeated_until_the_service_is_there(direct: Via, free_port: int) -> None:
    direct.overrides = {"base_url": f"http://127.0.0.1:{free_port}"}
    with pytest.raises(RunGenConnectionError, match="run a job") as caught:
        direct(endpoints.run_job(APP, INPUT))
    assert not caught.value.sent
    assert len(direct.sent) == retry.ATTEMPTS
    direct.clock.on_sleep = lambda _: direct.overrides.clear()
    job = direct(endpoints.run_job(APP, INPUT))
    assert [each["id"] for each in direct.service.jobs()] == [job.id]


@pytest.mark.parametrize(
    ("operation", "status", "via"), pairwise(CALLS, [300, 301, 302, 303, 307, 308], VIAS), indirect=["via"]
)
def test_a_redirect_is_refused_and_the_key_goes_nowhere(via: Via, operation: str, status: int) -> None:
    with Emulator() as elsewhere:
        headers = {"Location": f"{elsewhere.url}/app?token=s3cret"}
        via.service.inject(Fault(on=operation, kind="redirect", status=status, headers=headers, times=None))
        # the request may have been performed before
        is_unknown = operation == "run" and status in (300, 302, 303)
        kind = errors.RunGenSubmissionUnknownError if is_unknown else RunGenAPIError
        with pytest.raises(kind, match=r"redirects to 127\.0\.0\.1") as caught:
            via(CALLS[operation]())
        assert elsewhere.service.records() == []
    is_repeated = operation not in CREATED or status in (301, 307, 308)
    assert via.service.count(operation) == (retry.ATTEMPTS if is_repeated else 1)
    assert "s3cret" not in str(caught.value)


# --- ids ----------------------------------------------------------------------------------------------------

BAD_IDS: list[Any] = [
    *("", ".", "..", "a/b", "../apps", "a\\b", "a?b", "a#b", "a%2Fb", "a b", "a\n", "a\x00", "a\u2028b"),
    *("\u202ea", "\ud800", "a\u00a0b", "x" * 257, None, 0, True, b"abc", ["a"], {"id": "a"}),
]


@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
def test_an_invalid_id_is_refused_before_anything_is_sent(direct: Via, bad: Any) -> None:
    of_apps: list[Callable[[], Flow[Any]]] = [
        *(lambda: endpoints.run_job(bad, INPUT), lambda: endpoints.get_job(bad, "job")),
        *(lambda: endpoints.get_app(bad), lambda: endpoints.update_app(bad, {})),
        lambda: endpoints.delete_app(bad),
    ]
    of_jobs: list[Callable[[], Flow[Any]]] = [
        *(lambda: endpoints.get_job(APP, bad), lambda: endpoints.cancel_job(APP, bad), lambda: wait([bad]))
    ]
    for make in of_apps + of_jobs:
        name = "app_id" if make in of_apps else "job_id"
        with pytest.raises(RunGenInputError, match=name) as caught:
            direct(make())
        assert not caught.value.retryable
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    assert direct.sent == []


@pytest.mark.parametrize("app_id", ["ä-ö狐", "a:b@c;d=e,f", "a+b&c", "~a.b_c-d", "a'(b)*!$"])
def test_unusual_ids_arrive_as_they_are(via: Via, app_id: str) -> None:
    via.service.add_app(app_id, workers=1)
    job = via(endpoints.run_job(app_id, INPUT))
    assert via(endpoints.get_job(app_id, job.id)).app_id == app_id
    assert via.service.jobs()[0]["app_id"] == app_id


# --- inputs -------------------------------------------------------------------------------------------------


def _self_containing() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["me"] = {"again": loop, "and": [loop]}
    return loop


def _nested(levels: int) -> Any:
    deep: Any = "bottom"
    for _ in range(levels):
        deep = [deep]
    return deep


BAD_INPUTS: list[tuple[Any, str]] = [
    *((None, "input"), ([], "input"), ("{}", "input")),
    ({"a": float("nan")}, "input.a"),
    ({"a": [1, {"b": float("inf")}]}, r"input\.a\[1\]\.b"),
    ({"a": b"bytes"}, "input.a is of type bytes"),
    ({"a": {"when": datetime.datetime(2025, 1, 1)}}, r"input\.a\.when is of type datetime"),
    ({"a": {1: 2}}, "input.a has the key 1"),
    ({None: 2}, "input has the key None"),
    ({"a": "\ud800"}, "input.a holds half a surrogate"),
    ({"\udfff": 1}, "a key of input holds half a surrogate"),
    (_self_containing(), "input.me"),
    ({"a": 10**5000}, "input"),
    *(({"a\nb": inner}, "input") for inner in ({"c": float("nan")}, {1: 2})),
    ({"a": _nested(5000)}, "nested deeper"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_INPUTS, ids=range(len(BAD_INPUTS)))
def test_an_input_that_is_not_json_is_refused_and_not_sent(direct: Via, bad: Any, reason: str) -> None:
    with pytest.raises(RunGenInputError, match=reason) as caught:
        direct(endpoints.run_job(APP, bad))
    assert "nothing was sent" in str(caught.value)
    assert not caught.value.retryable
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    assert direct.sent == []


def test_a_change_of_an_app_is_checked_as_well(direct: Via) -> None:
    with pytest.raises(RunGenInputError, match=r"app\.configuration\.active_workers"):
        direct(endpoints.update_app(APP, {"configuration": {"active_workers": float("nan")}}))
    assert direct.sent == []


# --- waiting ------------------------------------------------------------------------------------------------


def test_an_unknown_status_counts_as_running_and_is_logged_once(
    direct: Via, caplog: pytest.LogCaptureFixture
) -> None:
    direct.service.style = Style(failed_word="WARMING_UP")
    job = direct(endpoints.run_job(APP, {"prompt": "fail: x"}))
    direct.clock.now += 10
    with caplog.at_level(logging.INFO), pytest.raises(RunGenJobTimeoutError, match=job.id) as caught:
        direct(wait([job.id], deadline=direct.clock.now + 60))
    assert (caught.value.app_id, caught.value.job_id) == (APP, job.id)
    assert len([record for record in caplog.records if "WARMING_UP" in record.getMessage()]) == 1
    assert direct.service.count("get") > 5


def test_the_deadline_ends_the_waiting_and_leaves_the_job(direct: Via) -> None:
    jobs = [direct(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": s}})).id for s in (1, 500, 500)]
    deadline = direct.clock.now + 32
    with pytest.raises(RunGenJobTimeoutError, match=rf"{jobs[1]}.*and 1 more") as caught:
        direct(wait(jobs, deadline=deadline))
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.job_id == jobs[1]
    assert sum(direct.slept) == pytest.approx(32, abs=0.1)
    assert direct.service.stats()["jobs_cancelled"] == 0


def test_the_deadline_holds_in_an_outage(direct: Via, running: str) -> None:
    direct.service.inject(Fault(on="get", status=503, times=None, headers={"Retry-After": "50"}))
    with pytest.raises(RunGenJobTimeoutError):
        direct(wait([running], deadline=direct.clock.now + 70))
    assert sum(direct.slept) <= 70.1
