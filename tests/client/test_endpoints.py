"""The endpoints: every shape, refusal and accident, in two ways to perform a flow."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from bad_answers import Fault
from client_mistakes import early_retries
from conftest import APP, KEY, SOON, VIAS, Via, pairwise, wait_for_jobs
from odd_answers import Style

from airflow_provider_rungen.client import codec, endpoints, retry
from airflow_provider_rungen.client.flow import Flow, Request, Response
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.transport import drive
from airflow_provider_rungen.emulator import Emulator, Service
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenBadRequestError,
    RunGenConflictError,
    RunGenConnectionError,
    RunGenError,
    RunGenForbiddenError,
    RunGenInputError,
    RunGenJobTimeoutError,
    RunGenNotFoundError,
    RunGenRateLimitedError,
    RunGenResponseError,
    RunGenServerError,
    RunGenSubmissionUnknownError,
)

INPUT: dict[str, Any] = {"prompt": "a red fox", "width": 64, "height": 64}
NO_JOB = "00000000-0000-4000-8000-00000000dead"


def wait(job_ids: list[str], *, every: float = 5, deadline: float | None = None) -> Flow[list[Job]]:
    return wait_for_jobs(APP, job_ids, poll_interval=every, deadline=deadline)


# --- every reading of the documentation ---------------------------------------------------------------------


@pytest.mark.parametrize("time_format", ["T", "space"])
@pytest.mark.parametrize("words", ["upper", "lower", "title", "alternate"])
@pytest.mark.parametrize("id_field", ["documented", "job_id", "id", "both"])
@pytest.mark.parametrize("shape", ["wrapped", "flat", "mixed"])
@pytest.mark.parametrize("via", ["direct"], indirect=True)  # what carries an answer does not change it
def test_a_job_goes_its_way_in_every_shape(
    via: Via, shape: Any, id_field: Any, words: Any, time_format: Any
) -> None:
    via.service.style = Style(shape=shape, id_field=id_field, words=words, time_format=time_format)
    via.service.scale(APP, 1)

    first = via(endpoints.run_job(APP, INPUT))
    second = via(endpoints.run_job(APP, {**INPUT, "prompt": "fail: no foxes here"}))
    third = via(endpoints.run_job(APP, INPUT))

    assert [job["id"] for job in via.service.jobs()] == [first.id, second.id, third.id]
    assert first.status is JobStatus.QUEUED
    assert first.app_id == APP
    assert first.created_at is not None
    assert abs(first.created_at.timestamp() - via.clock.now) < 2
    assert via(endpoints.get_job(APP, first.id)).status is JobStatus.RUNNING
    assert via(endpoints.get_job(APP, third.id)).status is JobStatus.QUEUED
    canceled = via(endpoints.cancel_job(APP, third.id))
    assert (canceled.id, canceled.status) == (third.id, JobStatus.CANCELED)

    done, failed, gone = via(wait([first.id, second.id, third.id]))

    assert done.status is JobStatus.COMPLETED
    assert done.execution_time == 2.0
    assert done.result["images"][0]["image"].startswith("http")
    assert (failed.status, failed.error, failed.result) == (JobStatus.FAILED, "no foxes here", None)
    assert gone.status is JobStatus.CANCELED
    assert via.service.stats()["jobs_created"] == 3


@pytest.mark.parametrize("execution_time_as", ["string", "number"])
@pytest.mark.parametrize("run_status", [200, 201, 202])
def test_small_print_does_not_matter(via: Via, run_status: int, execution_time_as: Any) -> None:
    via.service.style = Style(run_status=run_status, execution_time_as=execution_time_as, extra_fields=True)
    job = via(endpoints.run_job(APP, INPUT))
    [done] = via(wait([job.id]))
    assert (done.status, done.execution_time) == (JobStatus.COMPLETED, 2.0)


@pytest.mark.parametrize("shape", ["wrapped", "flat"])
@pytest.mark.parametrize("create_status", [200, 201])
def test_an_app_goes_its_way_in_every_shape(via: Via, shape: Any, create_status: int) -> None:
    via.service.style = Style(shape=shape, create_status=create_status)
    via.service.init_seconds = 60.0
    body: dict[str, Any] = {
        "name": "My app",
        "description": "what for",
        "configuration": {"gpu_tier": "BASIC", "active_workers": 1},
        "workflow": {"model_url": "https://models.example/flux"},
    }

    app = via(endpoints.create_app(body))

    assert (app.name, app.description, app.status) == ("My app", "what for", "INITIALIZING")
    assert app.active_workers == 1
    assert (dict(app.jobs), dict(app.workers)) == ({}, {})
    via.clock.now += 61
    running = via(endpoints.get_app(app.id))
    assert (running.id, running.status, running.workers["ready"]) == (app.id, "RUNNING", 1)
    assert app.id in [each.id for each in via(endpoints.list_apps())]
    with pytest.raises(RunGenConflictError, match="scale to 0 workers first"):
        via(endpoints.delete_app(app.id))
    stopped = via(endpoints.update_app(app.id, {"configuration": {"active_workers": 0}, "name": "Mine"}))
    assert (stopped.status, stopped.active_workers, stopped.name) == ("STOPPED", 0, "Mine")
    via(endpoints.delete_app(app.id))
    with pytest.raises(RunGenNotFoundError, match=app.id):
        via(endpoints.get_app(app.id))


def test_what_is_sent(via: Via) -> None:
    via.overrides = {"team_id": "team-1", "user_id": "user-1"}
    via.service.add_app("teams-app", owner_team_id="team-1", workers=1)
    given: dict[str, Any] = {"prompt": "ä 狐", "b": [1, 2.5, None, True], "a": {"z": 1, "y": ()}}
    job = via(endpoints.run_job("teams-app", given))
    via(endpoints.get_job("teams-app", job.id))
    via(endpoints.cancel_job("teams-app", job.id))
    via(endpoints.list_apps())

    run, get, cancel, apps = via.service.records()

    for record in (run, get, cancel, apps):
        assert record.headers["x-api-key"] == KEY
        assert record.headers["x-team-id"] == "team-1"
        assert record.headers["user-agent"].startswith("airflow-provider-rungen/")
        assert record.headers["accept"] == "application/json"
    assert (run.method, run.path) == ("POST", "/app/teams-app/run_async")
    assert run.headers["content-type"] == "application/json"
    assert json.loads(run.body) == {
        "input": {"a": {"y": [], "z": 1}, "b": [1, 2.5, None, True], "prompt": "ä 狐"}
    }
    assert (get.method, get.path, get.body) == ("GET", f"/app/teams-app/job/{job.id}", b"")
    assert (cancel.method, cancel.path, cancel.body) == ("PUT", f"/app/teams-app/job/{job.id}", b"")
    assert cancel.headers["x-authenticated-user-id"] == "user-1"
    for record in (run, get, apps):
        assert "x-authenticated-user-id" not in record.headers


def test_equal_inputs_give_equal_bytes() -> None:
    one = codec.encode_input({"b": {"d": 1, "c": (1, 2)}, "a": "ü"})
    assert one == codec.encode_input({"a": "ü", "b": {"c": [1, 2], "d": 1}})


# --- refusals -----------------------------------------------------------------------------------------------

REFUSALS: list[tuple[int, type[RunGenAPIError]]] = [
    (400, RunGenBadRequestError),
    (401, RunGenForbiddenError),
    (402, RunGenAPIError),
    (403, RunGenForbiddenError),
    (404, RunGenNotFoundError),
    (405, RunGenAPIError),
    (409, RunGenConflictError),
    (410, RunGenAPIError),
    (413, RunGenBadRequestError),
    (415, RunGenAPIError),
    (422, RunGenBadRequestError),
]
TROUBLES: list[tuple[int, type[RunGenAPIError]]] = [
    (408, RunGenAPIError),
    (429, RunGenRateLimitedError),
    (500, RunGenServerError),
    (501, RunGenServerError),
    (502, RunGenServerError),
    (503, RunGenServerError),
    (504, RunGenServerError),
]
CALLS: dict[str, Callable[[], Flow[Any]]] = {
    "run": lambda: endpoints.run_job(APP, INPUT),
    "get": lambda: endpoints.get_job(APP, NO_JOB),
    "cancel": lambda: endpoints.cancel_job(APP, NO_JOB),
    "list_apps": endpoints.list_apps,
    "get_app": lambda: endpoints.get_app(APP),
    "create_app": lambda: endpoints.create_app({"name": "x"}),
    "update_app": lambda: endpoints.update_app(APP, {"name": "x"}),
    "delete_app": lambda: endpoints.delete_app("no-app"),
}
REPEATED = [name for name in CALLS if name not in ("run", "create_app")]


@pytest.mark.parametrize(("operation", "refusal", "via"), pairwise(CALLS, REFUSALS, VIAS), indirect=["via"])
def test_a_refusal_is_not_repeated(
    via: Via, operation: str, refusal: tuple[int, type[RunGenAPIError]]
) -> None:
    status, kind = refusal
    via.service.inject(Fault(on=operation, status=status, body={"error": "because I say so"}, times=None))

    with pytest.raises(kind, match="because I say so") as caught:
        via(CALLS[operation]())

    assert type(caught.value) is kind
    assert caught.value.status_code == status
    assert not caught.value.retryable
    assert str(status) in str(caught.value)
    if (operation, status) == ("cancel", 404):  # the service may not know a job yet
        return
    assert via.service.count(operation) == 1
    assert via.slept == []


def test_a_job_that_the_service_does_not_know_yet_is_canceled(via: Via) -> None:
    job = via(endpoints.run_job(APP, {"prompt": "x"}))
    via.service.inject(Fault(on="cancel", status=404, body={"error": "no such job"}, times=3))
    assert via(endpoints.cancel_job(APP, job.id)).status is JobStatus.CANCELED
    assert [each["status"] for each in via.service.jobs()] == ["CANCELED"]


@pytest.mark.parametrize("status", [302, 400, 402, 405, 407, 409, 410, 415, 451])
def test_a_page_of_somebody_in_between_is_outlasted(via: Via, status: int) -> None:
    job = via(endpoints.run_job(APP, {"prompt": "x"}))
    page: dict[str, Any] = {"body": "<html>Log in</html>", "headers": {"Location": "/login"}}
    via.service.inject(Fault(on="get", status=status, times=2, **page))
    assert via(endpoints.get_job(APP, job.id)).id == job.id
    via.service.inject(Fault(on="get", status=status, times=None, **page))
    with pytest.raises(RunGenAPIError) as caught:
        via(endpoints.get_job(APP, job.id))
    assert caught.value.retryable
    assert caught.value.status_code == status


@pytest.mark.parametrize(
    ("operation", "trouble", "via"), pairwise(REPEATED, TROUBLES, VIAS), indirect=["via"]
)
def test_trouble_is_outlasted_within_bounds(
    via: Via, operation: str, trouble: tuple[int, type[RunGenAPIError]]
) -> None:
    status, kind = trouble
    via.service.inject(Fault(on=operation, status=status, times=None))

    with pytest.raises(kind) as caught:
        via(CALLS[operation]())

    assert type(caught.value) is kind
    assert (caught.value.status_code, caught.value.retryable) == (status, True)
    assert via.service.count(operation) == retry.ATTEMPTS
    assert len(via.slept) == retry.ATTEMPTS - 1
    for number, seconds in enumerate(via.slept):
        assert 0.75 * retry.BACKOFF * 2**number <= seconds <= 1.25 * retry.BACKOFF * 2**number


@pytest.mark.parametrize("status", [status for status, _ in TROUBLES])
def test_trouble_that_passes_is_not_noticed(via: Via, status: int) -> None:
    via.service.inject(Fault(on="list_apps", status=status, times=retry.ATTEMPTS - 1))
    assert [app.id for app in via(endpoints.list_apps())] == [APP, "llama-text"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_post_that_was_turned_away_is_repeated(via: Via, status: int) -> None:
    via.service.inject(Fault(on="run", status=status, times=3))
    job = via(endpoints.run_job(APP, INPUT))
    assert [each["id"] for each in via.service.jobs()] == [job.id]
    assert via.posts() == 4


@pytest.mark.parametrize(("status", "kind"), [(429, RunGenRateLimitedError), (503, RunGenServerError)])
def test_a_post_that_is_always_turned_away_makes_no_job(
    via: Via, status: int, kind: type[RunGenError]
) -> None:
    via.service.inject(Fault(on="run", status=status, times=None))
    with pytest.raises(kind):
        via(endpoints.run_job(APP, INPUT))
    assert via.posts() == retry.ATTEMPTS
    assert via.service.stats()["jobs_created"] == 0


@pytest.mark.parametrize("status", [408, 500, 501, 502, 504, 520, 599])
def test_a_post_with_an_uncertain_refusal_is_sent_once(via: Via, status: int) -> None:
    via.service.inject(Fault(on="run", status=status, times=None))
    with pytest.raises(RunGenSubmissionUnknownError, match=APP) as caught:
        via(endpoints.run_job(APP, INPUT))
    assert str(status) in str(caught.value)
    assert via.posts() == 1
    assert via.slept == []


@pytest.mark.parametrize("status", [400, 403, 500])
def test_a_page_in_place_of_json_is_reported_in_plain_words(via: Via, status: int) -> None:
    page = "<!DOCTYPE html><html><head><style>p {}</style></head><body><p>nginx</p></body></html>"
    via.service.inject(Fault(on="get_app", status=status, body=page, times=None))
    with pytest.raises(RunGenAPIError, match=rf": nginx \(app {APP}\)") as caught:
        via(endpoints.get_app(APP))
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


def _retry_after(via: Via, form: str, seconds: float) -> str:
    if form == "seconds":
        return str(int(seconds))
    return email.utils.formatdate(via.clock.now + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("form", "status", "operation", "via"),
    pairwise(["seconds", "date"], [429, 503], ["run", "get_app", "update_app"], VIAS),
    indirect=["via"],
)
def test_retry_after_is_kept(via: Via, form: str, status: int, operation: str) -> None:
    headers = {"Retry-After": _retry_after(via, form, 17)}
    via.service.inject(Fault(on=operation, status=status, headers=headers, times=1))

    via(CALLS[operation]())

    assert len(via.slept) == 1
    assert 16 <= via.slept[0] <= 19
    assert early_retries(via.service) == 0


@pytest.mark.parametrize("asked", [61, 90, 119, 3600])
def test_nobody_comes_back_before_the_service_asked(via: Via, asked: int) -> None:
    via.service.inject(Fault(on="get_app", status=429, headers={"Retry-After": str(asked)}))
    with contextlib.suppress(RunGenRateLimitedError):
        via(endpoints.get_app(APP))
    assert early_retries(via.service) == 0


def test_nobody_asks_for_a_job_before_the_service_asked(via: Via) -> None:
    job = via(endpoints.run_job(APP, INPUT))
    via.service.inject(Fault(on="get", status=429, headers={"Retry-After": "45"}, times=3))
    [done] = via(wait([job.id]))
    assert done.status is JobStatus.COMPLETED
    assert early_retries(via.service) == 0


@pytest.mark.parametrize(
    "value", ["-1", "0", "soon", "1e9", "NaN", "9" * 400, "Fri, 99 Foo 2026 00:00:00 GMT", "١٢", "1, 2", ""]
)
def test_a_strange_retry_after_does_no_harm(direct: Via, value: str) -> None:
    answers = [
        Response(429, {"retry-after": value}, b"{}"),
        Response(200, {}, f'{{"data": {{"id": "{APP}"}}}}'.encode()),
    ]
    app = drive(endpoints.get_app(APP), lambda _: answers.pop(0), direct.clock.sleep, direct.clock.time)
    assert app.id == APP
    assert 0 < sum(direct.slept) <= 61


def test_an_http_date_is_understood_without_the_services_own_clock(direct: Via) -> None:
    until = email.utils.formatdate(direct.clock.now + 20, usegmt=True)
    answers = [
        Response(503, {"retry-after": until}, b"{}"),
        Response(200, {}, f'{{"id": "{APP}"}}'.encode()),
    ]
    drive(endpoints.get_app(APP), lambda _: answers.pop(0), direct.clock.sleep, direct.clock.time)
    assert sum(direct.slept) >= 19


def test_an_http_date_is_read_by_the_services_own_clock(direct: Via) -> None:
    theirs = direct.clock.now - 7200  # two hours slow
    headers = {
        "date": email.utils.formatdate(theirs, usegmt=True),
        "retry-after": email.utils.formatdate(theirs + 20, usegmt=True),
    }
    answers = [Response(503, headers, b"{}"), Response(200, {}, f'{{"id": "{APP}"}}'.encode())]
    drive(endpoints.get_app(APP), lambda _: answers.pop(0), direct.clock.sleep, direct.clock.time)
    assert 20 <= sum(direct.slept) <= 22


# --- accidents ----------------------------------------------------------------------------------------------

LOST = ["reset_before", "reset_after", "truncate"]
UNREADABLE = ["html", "empty", "garbage", "no_id"]
QUESTIONS: dict[str, Callable[[str], Flow[Any]]] = {
    "get": lambda job_id: endpoints.get_job(APP, job_id),
    "get_app": lambda _: endpoints.get_app(APP),
    "list_apps": lambda _: endpoints.list_apps(),
}


@pytest.mark.parametrize("kind", [*LOST, *UNREADABLE])
def test_the_fate_of_a_post_whose_answer_is_lost_is_unknown(via: Via, kind: str) -> None:
    via.service.inject(Fault(on="run", kind=kind, times=None))
    with pytest.raises(RunGenSubmissionUnknownError, match=r"^Fate unknown: ") as caught:
        via(endpoints.run_job(APP, INPUT))
    assert via.posts() == 1
    assert via.slept == []
    assert via.service.stats()["jobs_created"] == (
        kind in ("reset_after", "truncate", "empty", "garbage", "no_id")
    )
    assert "billed twice" in str(caught.value)


def test_wrong_types_in_the_answer_to_a_post_do_not_lose_it_silently(via: Via) -> None:
    via.service.inject(Fault(on="run", kind="wrong_types"))
    try:
        job = via(endpoints.run_job(APP, INPUT))
    except RunGenSubmissionUnknownError:
        job = None
    assert via.posts() == 1
    assert job is None or job.status is JobStatus.QUEUED


@pytest.mark.parametrize("kind", ["hang", "drip"])
def test_a_post_whose_answer_does_not_come_is_unknown(via: Via, kind: str) -> None:
    via.overrides = {"read_timeout": 0.3, "connect_timeout": 1.0}
    via.service.inject(Fault(on="run", kind=kind, times=None))
    started = time.monotonic()
    with pytest.raises(RunGenSubmissionUnknownError):
        via(endpoints.run_job(APP, INPUT))
    assert time.monotonic() - started < SOON
    assert via.posts() == 1


@pytest.mark.parametrize(
    ("operation", "kind", "via"),
    pairwise(["get", "get_app", "list_apps"], [*LOST, "html", "empty", "garbage"], VIAS),
    indirect=["via"],
)
def test_a_question_is_asked_again_after_an_accident(via: Via, operation: str, kind: str) -> None:
    job = via(endpoints.run_job(APP, INPUT))
    via.service.inject(Fault(on=operation, kind=kind, times=2))
    via.slept.clear()
    answer = via(QUESTIONS[operation](job.id))
    if operation == "list_apps":
        assert [app.id for app in answer] == [APP, "llama-text"]
    else:
        assert answer.id == (job.id if operation == "get" else APP)
    assert len(via.slept) == 2


@pytest.mark.parametrize("operation", ["get", "list_apps", "get_app"])
def test_wrong_types_in_an_answer_are_a_model_or_an_error_of_ours(via: Via, operation: str) -> None:
    job = via(endpoints.run_job(APP, INPUT))
    via.service.inject(Fault(on=operation, kind="wrong_types", times=None))
    with pytest.raises(RunGenResponseError):
        via(QUESTIONS[operation](job.id))


@pytest.mark.parametrize("kind", LOST)
def test_a_question_that_meets_accidents_only_ends_in_an_error(via: Via, kind: str) -> None:
    via.service.inject(Fault(on="get_app", kind=kind, times=None))
    with pytest.raises(RunGenConnectionError, match=rf"^Could not get the app: .* \(app {APP}\)") as caught:
        via(endpoints.get_app(APP))
    assert caught.value.sent
    assert caught.value.retryable
    assert via.service.count("get_app") == retry.ATTEMPTS
    assert len(via.slept) == retry.ATTEMPTS - 1


@pytest.mark.parametrize("kind", ["reset_after", "truncate", "empty", "garbage"])
def test_a_cancel_whose_answer_was_lost_is_a_cancel(via: Via, kind: str) -> None:
    job = via(endpoints.run_job(APP, INPUT))
    via.service.inject(Fault(on="cancel", kind=kind))
    assert via(endpoints.cancel_job(APP, job.id)).status is JobStatus.CANCELED
    assert via.service.stats()["jobs_cancelled"] == 1


def test_a_job_that_is_over_cannot_be_canceled(via: Via) -> None:
    job = via(endpoints.run_job(APP, INPUT))
    via.clock.now += 3
    with pytest.raises(RunGenConflictError, match=job.id):
        via(endpoints.cancel_job(APP, job.id))


def test_a_job_that_the_service_will_not_cancel_now_is_canceled_later(via: Via) -> None:
    job = via(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 900}}))
    via.service.inject(Fault(on="cancel", status=409, times=2))
    assert via(endpoints.cancel_job(APP, job.id)).status is JobStatus.CANCELED
    assert via.service.count("cancel") == 3


@pytest.mark.parametrize(
    ("faults", "why"),
    [([], "it is RUNNING"), ([Fault(on="get", status=503, times=None)], "its status is unknown")],
)
def test_a_job_that_runs_is_not_over_though_the_service_says_so(
    via: Via, faults: list[Fault], why: str
) -> None:
    job = via(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 900}}))
    via.clock.now += 1
    for fault in [Fault(on="cancel", status=409, times=None), *faults]:
        via.service.inject(fault)
    with pytest.raises(
        RunGenAPIError, match=rf"\(409\): .*, but {why} \(job {job.id}, app {APP}\)$"
    ) as caught:
        via(endpoints.cancel_job(APP, job.id))
    assert not isinstance(caught.value, RunGenConflictError)
    assert caught.value.retryable
    assert via.service.count("cancel") == retry.ATTEMPTS


def test_a_refused_cancel_is_repeated_within_its_budget(via: Via) -> None:
    job = via(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 900}}))
    via.service.inject(Fault(on="cancel", status=409, times=None))
    with pytest.raises(RunGenAPIError, match="409"):
        via(endpoints.cancel_job(APP, job.id, retry_budget=0.0))
    assert via.service.count("cancel") == 1


def test_a_job_that_the_service_forgot_is_over(via: Via) -> None:
    job = via(endpoints.run_job(APP, INPUT))
    via.service.inject(Fault(on="cancel", status=409))
    via.service.inject(Fault(on="get", status=404))
    with pytest.raises(RunGenConflictError):
        via(endpoints.cancel_job(APP, job.id))


@pytest.mark.parametrize("kind", ["reset_after", "truncate"])
def test_a_deletion_whose_answer_was_lost_is_a_deletion(via: Via, kind: str) -> None:
    via.service.add_app("doomed", workers=0)
    # a 204 has no body that could be cut short, so give it one
    via.service.inject(Fault(on="delete_app", kind=kind))
    via(endpoints.delete_app("doomed"))
    assert "doomed" not in [app.id for app in via(endpoints.list_apps())]


def test_a_page_in_place_of_the_answer_is_not_a_deletion(via: Via) -> None:
    via.service.add_app("doomed", workers=0)
    via.service.inject(Fault(on="delete_app", kind="html", status=200))
    via(endpoints.delete_app("doomed"))
    assert "doomed" not in [app.id for app in via(endpoints.list_apps())]


def test_a_connection_that_was_never_made_sends_nothing(via: Via, free_port: int) -> None:
    via.overrides = {"base_url": f"http://127.0.0.1:{free_port}"}
    with pytest.raises(RunGenConnectionError, match="run a job") as caught:
        via(endpoints.run_job(APP, INPUT))
    assert not caught.value.sent
    assert len(via.sent) == retry.ATTEMPTS
    assert via.posts() == 0


def test_a_post_is_repeated_until_the_service_is_there(via: Via, free_port: int) -> None:
    if via.kind == "direct":
        via.overrides = {"base_url": "http://nobody"}
        via.clock.on_sleep = lambda _: via.overrides.clear()
        job = via(endpoints.run_job(APP, INPUT))
        assert [each["id"] for each in via.service.jobs()] == [job.id]
        return
    later = Emulator(Service(clock=via.clock.time), port=free_port)
    via.overrides = {"base_url": f"http://127.0.0.1:{free_port}"}

    def open_late(_: float) -> None:
        if len(via.slept) == 2:
            later.start()

    via.clock.on_sleep = open_late
    try:
        job = via(endpoints.run_job(APP, INPUT))
        assert [each["id"] for each in later.service.jobs()] == [job.id]
        assert later.service.count("run") == 1
    finally:
        later.stop()


@pytest.mark.parametrize(
    ("operation", "status", "via"), pairwise(CALLS, [300, 301, 302, 303, 307, 308], VIAS), indirect=["via"]
)
def test_a_redirect_is_refused_and_the_key_goes_nowhere(via: Via, operation: str, status: int) -> None:
    with Emulator() as elsewhere:
        location = f"{elsewhere.url}/app?token=s3cret"
        via.service.inject(
            Fault(on=operation, kind="redirect", status=status, headers={"Location": location}, times=None)
        )
        with pytest.raises(RunGenAPIError, match=r"redirects to 127\.0\.0\.1") as caught:
            via(CALLS[operation]())
        assert elsewhere.service.records() == []
        assert elsewhere.service.connections_opened == 0
    assert via.service.count(operation) == (retry.ATTEMPTS if operation in REPEATED else 1)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [None, "", "/login", "//[bad", "http://[::1", "http://h:port/", "\\\\x", "http://" + "a" * 9000],
)
def test_a_redirect_to_nonsense_is_refused_too(direct: Via, location: str | None) -> None:
    headers = {} if location is None else {"location": location}
    with pytest.raises(RunGenAPIError, match="redirect"):
        drive(endpoints.get_app(APP), lambda _: Response(302, headers, b""))


# --- ids ----------------------------------------------------------------------------------------------------

BAD_IDS: list[Any] = [
    *("", ".", "..", "a/b", "../apps", "a\\b", "a?b", "a#b", "a%2Fb", "a b", " a", "a\n", "a\x00", "\t"),
    *("a\u2028b", "\u202ea", "\ud800", "a\u00a0b", "x" * 257),
    *(None, 0, 7, 1.5, True, b"abc", ["a"], {"id": "a"}),
]


@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
def test_an_invalid_id_is_refused_before_anything_is_sent(direct: Via, bad: Any) -> None:
    _assert_refused(direct, bad)


@pytest.mark.parametrize("bad", ["../apps", "a/b", "a\n", "..", None], ids=repr)
def test_an_id_that_is_not_a_path_segment_is_not_sent(via: Via, bad: Any) -> None:
    _assert_refused(via, bad)


def _assert_refused(via: Via, bad: Any) -> None:
    flows: list[tuple[str, Callable[[], Flow[Any]]]] = [
        ("app_id", lambda: endpoints.run_job(bad, INPUT)),
        ("app_id", lambda: endpoints.get_job(bad, "job")),
        ("job_id", lambda: endpoints.get_job(APP, bad)),
        ("job_id", lambda: endpoints.cancel_job(APP, bad)),
        ("job_id", lambda: wait([bad])),
        ("app_id", lambda: endpoints.get_app(bad)),
        ("app_id", lambda: endpoints.update_app(bad, {})),
        ("app_id", lambda: endpoints.delete_app(bad)),
    ]
    for name, make in flows:
        with pytest.raises(RunGenInputError, match=name) as caught:
            via(make())
        assert not caught.value.retryable
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    assert via.sent == []
    assert via.service.records() == []


@pytest.mark.parametrize("app_id", ["ä-ö", "a:b@c", "a;b=c,d", "a+b&c", "~a.b_c-d", "狐", "a'(b)*!$"])
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


BAD_INPUTS: list[tuple[Any, str]] = [
    (None, "input"),
    ([], "input"),
    ("{}", "input"),
    (7, "input"),
    ({"a": float("nan")}, "input.a"),
    ({"a": [1, {"b": float("inf")}]}, r"input\.a\[1\]\.b"),
    ({"a": -float("inf")}, "input.a"),
    ({"a": b"bytes"}, "input.a is a bytes"),
    ({"a": {"when": datetime.datetime(2025, 1, 1)}}, r"input\.a\.when is a datetime"),
    ({"a": {1, 2}}, "input.a is a set"),
    ({"a": object()}, "input.a is a object"),
    ({"a": {1: 2}}, "input.a has the key 1"),
    ({None: 2}, "input has the key None"),
    ({("a",): 2}, "input has the key"),
    ({"a": "\ud800"}, "input.a holds half a surrogate"),
    ({"\udfff": 1}, "a key of input holds half a surrogate"),
    (_self_containing(), "input.me"),
    ({"a": 10**5000}, "input"),
    ({"a\nb": {"c": float("nan")}}, "input"),
    ({"a\nb": {1: 2}}, "input"),
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
    assert direct.service.records() == []


def test_a_deep_but_finite_input_is_sent_or_refused_in_words() -> None:
    deep: Any = "bottom"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RunGenInputError, match="nested deeper"):
        codec.encode_input({"a": deep})


@pytest.mark.parametrize(
    "good", [{}, {"prompt": "x", "seed": 2**70}, {"prompt": "\x00\u2028"}, {"prompt": "😀"}]
)
def test_any_json_object_is_sent_unchanged(via: Via, good: dict[str, Any]) -> None:
    via(endpoints.run_job("llama-text", good))
    assert json.loads(via.service.records()[0].body) == {"input": good}


def test_a_change_of_an_app_is_checked_as_well(direct: Via) -> None:
    with pytest.raises(RunGenInputError, match=r"app\.configuration\.active_workers"):
        direct(endpoints.update_app(APP, {"configuration": {"active_workers": float("nan")}}))
    assert direct.sent == []


# --- waiting ------------------------------------------------------------------------------------------------


def test_a_job_that_is_over_is_not_asked_for_again(via: Via) -> None:
    quick = via(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 0}})).id
    slow = via(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 50}})).id
    via(wait([quick, slow], every=10))
    gets = [record.path.rsplit("/", 1)[1] for record in via.service.records() if record.operation == "get"]
    assert gets.count(quick) == 1
    assert gets.count(slow) == 6
    assert via.slept == [10] * 5


def test_an_unknown_status_counts_as_running_and_is_logged_once(
    via: Via, caplog: pytest.LogCaptureFixture
) -> None:
    via.service.style = Style(failed_word="WARMING_UP")
    job = via(endpoints.run_job(APP, {"prompt": "fail: x"}))
    via.clock.now += 10
    with caplog.at_level(logging.INFO), pytest.raises(RunGenJobTimeoutError, match=job.id) as caught:
        via(wait([job.id], deadline=via.clock.now + 60))
    assert (caught.value.app_id, caught.value.job_id) == (APP, job.id)
    assert len([record for record in caplog.records if "WARMING_UP" in record.getMessage()]) == 1
    assert via.service.count("get") > 5


@pytest.mark.parametrize("fault", [*LOST, 500, 503, 429, 408, "html", "empty", "garbage"])
def test_an_outage_is_logged_once_and_the_wait_goes_on(
    via: Via, fault: str | int, caplog: pytest.LogCaptureFixture
) -> None:
    job = via(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 30}}))
    if isinstance(fault, int):
        via.service.inject(Fault(on="get", status=fault, skip=1, times=12))
    else:
        via.service.inject(Fault(on="get", kind=fault, skip=1, times=12))
    with caplog.at_level(logging.INFO):
        [done] = via(wait([job.id]))
    assert done.status is JobStatus.COMPLETED
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1, [record.getMessage() for record in warnings]
    assert len([record for record in caplog.records if "answers again" in record.getMessage()]) == 1
    assert max(via.slept) <= retry.BACKOFF_CAP * 1.25


@pytest.mark.parametrize(
    ("status", "kind"), [(403, RunGenForbiddenError), (404, RunGenNotFoundError), (410, RunGenAPIError)]
)
def test_an_answer_that_no_waiting_can_change_ends_it(via: Via, status: int, kind: type[RunGenError]) -> None:
    job = via(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 30}}))
    via.service.inject(Fault(on="get", status=status, skip=2, times=None))
    with pytest.raises(kind):
        via(wait([job.id]))
    looks_in_vain = via.service.count("get") - 2
    # a key that is refused may be replaced in a moment, and a replica may lag behind
    assert 2 <= looks_in_vain <= 8 if status in (403, 404) else looks_in_vain == 1


def test_the_deadline_ends_the_waiting_and_leaves_the_job(via: Via) -> None:
    jobs = [via(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": s}})).id for s in (1, 500, 500)]
    deadline = via.clock.now + 32
    with pytest.raises(RunGenJobTimeoutError, match=rf"{jobs[1]}.*and 1 more") as caught:
        via(wait(jobs, deadline=deadline))
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.job_id == jobs[1]
    assert sum(via.slept) == pytest.approx(32, abs=0.1)
    assert via.service.stats()["jobs_cancelled"] == 0


def test_the_deadline_holds_in_an_outage(via: Via) -> None:
    job = via(endpoints.run_job(APP, INPUT)).id
    via.service.inject(Fault(on="get", status=503, times=None, headers={"Retry-After": "50"}))
    with pytest.raises(RunGenJobTimeoutError):
        via(wait([job], deadline=via.clock.now + 70))
    assert sum(via.slept) <= 70.1


def test_the_key_is_wrong(via: Via) -> None:
    via.overrides = {"api_key": "not-the-right-key"}
    with pytest.raises(RunGenForbiddenError, match="API key"):
        via(endpoints.list_apps())
    assert via.service.count("list_apps") == 1


@pytest.mark.parametrize(
    "body", [b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000]
)
def test_an_answer_that_is_nested_too_deeply_is_asked_for_once(body: bytes) -> None:
    sent: list[Request] = []

    def send(request: Request) -> Response:
        sent.append(request)
        return Response(200, {}, body)

    with pytest.raises(RunGenResponseError, match="nested too deeply") as caught:
        drive(endpoints.get_job(APP, "j"), send, lambda seconds: None)
    assert not caught.value.retryable
    assert len(sent) == 1
