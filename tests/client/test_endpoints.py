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
# For a run, a poll and a cancel, tests/emulator/test_faults.py has what each status and accident means.

REFUSALS: dict[int, type[RunGenAPIError]] = {
    **dict.fromkeys((402, 405, 415), RunGenAPIError),
    **dict.fromkeys((400, 413, 422), RunGenBadRequestError),
    **dict.fromkeys((401, 403), RunGenForbiddenError),
    **dict.fromkeys((404, 410), RunGenNotFoundError),
    409: RunGenConflictError,
}
# What says nothing about that which is read.
ODD = {402, 405, 409, 415}
TROUBLES: dict[int, type[RunGenAPIError]] = {
    408: RunGenAPIError,
    429: RunGenRateLimitedError,
    **dict.fromkeys((500, 501, 502, 503, 504), RunGenServerError),
}
CALLS: dict[str, Callable[[], Flow[Any]]] = {
    "run": lambda: endpoints.run_job(APP, INPUT),
    "get": lambda: endpoints.get_job(APP, NO_JOB),
    "list_apps": endpoints.list_apps,
    "get_app": lambda: endpoints.get_app(APP),
    "create_app": lambda: endpoints.create_app({"name": "x"}),
    "update_app": lambda: endpoints.update_app(APP, {"name": "x"}),
    "delete_app": lambda: endpoints.delete_app("no-app"),
}
# no verdict about what was read, or about workers
PASSING = {**dict.fromkeys(("get", "list_apps", "get_app"), ODD), "update_app": (402, 409)}
REPEATED = [name for name in CALLS if name not in ("run", "create_app")]


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        (operation, status)
        for operation, status in pairwise(CALLS, REFUSALS)
        if status not in (401, 403) and status not in PASSING.get(operation, ())
    ],
)
def test_a_refusal_is_not_repeated(direct: Via, operation: str, status: int) -> None:
    direct.service.inject(Fault(on=operation, status=status, body={"error": "because"}, times=None))
    with pytest.raises(REFUSALS[status], match=rf"\({status}\): because") as caught:
        direct(CALLS[operation]())
    assert type(caught.value) is REFUSALS[status]
    assert (caught.value.status_code, caught.value.retryable) == (status, False)
    assert (direct.service.count(operation), direct.slept) == (1, [])


@pytest.mark.parametrize("operation", CALLS)
def test_a_refused_key_is_outlasted_for_a_while(
    direct: Via, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    monkeypatch.setattr(retry, "REFUSAL_GRACE", 30.0)
    direct.service.inject(Fault(on=operation, status=403, times=2))
    with contextlib.suppress(RunGenNotFoundError, RunGenBadRequestError):  # as they are
        direct(CALLS[operation]())
    assert direct.slept == [5.0] * 2
    direct.service.inject(Fault(on=operation, status=403, times=None))
    with pytest.raises(RunGenForbiddenError):
        direct(CALLS[operation]())
    assert direct.slept == [5.0] * 8


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        *pairwise(REPEATED, TROUBLES),
        *(("get", 402), ("get_app", 405), ("get", 409), ("update_app", 402), ("update_app", 409)),
    ],
)
def test_trouble_is_outlasted_within_bounds(direct: Via, operation: str, status: int) -> None:
    direct.service.inject(Fault(on=operation, status=status, times=None))
    with pytest.raises((TROUBLES | REFUSALS)[status]) as caught:
        direct(CALLS[operation]())
    assert type(caught.value) is (TROUBLES | REFUSALS)[status]
    assert (caught.value.status_code, caught.value.retryable) == (status, True)
    assert direct.service.count(operation) == retry.ATTEMPTS
    assert len(direct.slept) == retry.ATTEMPTS - 1
    for number, seconds in enumerate(direct.slept):
        assert 0.75 * retry.BACKOFF * 2**number <= seconds <= 1.25 * retry.BACKOFF * 2**number


@pytest.mark.parametrize("status", [302, 400, 402, 405, 407, 409, 410, 415, 451])
def test_a_page_of_somebody_in_between_is_outlasted(direct: Via, status: int) -> None:
    page: dict[str, Any] = {"body": "<html>Log in</html>", "headers": {"Location": "/login"}}
    direct.service.inject(Fault(on="get_app", status=status, times=2, **page))
    assert direct(endpoints.get_app(APP)).id == APP
    direct.service.inject(Fault(on="get_app", status=status, times=None, **page))
    with pytest.raises(RunGenAPIError) as caught:
        direct(endpoints.get_app(APP))
    assert (caught.value.retryable, caught.value.status_code) == (True, status)


@pytest.mark.parametrize(("status", "kind"), [(429, RunGenRateLimitedError), (503, RunGenServerError)])
def test_a_post_that_was_turned_away_is_repeated(via: Via, status: int, kind: type[RunGenError]) -> None:
    via.service.inject(Fault(on="run", status=status, times=3))
    job = via(endpoints.run_job(APP, INPUT))
    assert [each["id"] for each in via.service.jobs()] == [job.id]
    assert via.posts() == 4
    via.service.inject(Fault(on="run", status=status, times=None))
    with pytest.raises(kind):
        via(endpoints.run_job(APP, INPUT))
    assert via.posts() == 4 + retry.ATTEMPTS
    assert via.service.stats()["jobs_created"] == 1


@pytest.mark.parametrize("status", [408, 500, 501, 502, 504, 520, 599])
def test_a_post_with_an_uncertain_refusal_is_sent_once(direct: Via, status: int) -> None:
    direct.service.inject(Fault(on="run", status=status, times=None))
    with pytest.raises(RunGenSubmissionUnknownError, match=rf"\({status}\).*{APP}"):
        direct(endpoints.run_job(APP, INPUT))
    assert (direct.posts(), direct.slept) == (1, [])


@pytest.mark.parametrize("status", [400, 403, 500])
def test_a_page_in_place_of_json_is_reported_in_plain_words(direct: Via, status: int) -> None:
    page = "<!DOCTYPE html><html><head><style>p {}</style></head><body><p>nginx</p></body></html>"
    direct.service.inject(Fault(on="get_app", status=status, body=page, times=None))
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


def _retry_after(form: str, seconds: float, now: float) -> str:
    return str(int(seconds)) if form == "seconds" else email.utils.formatdate(now + seconds, usegmt=True)


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize(("operation", "status"), [("run", 429), ("get_app", 503), ("update_app", 429)])
def test_retry_after_is_kept(direct: Via, form: str, status: int, operation: str) -> None:
    headers = {"Retry-After": _retry_after(form, 17, direct.clock.now)}
    direct.service.inject(Fault(on=operation, status=status, headers=headers, times=1))
    direct(CALLS[operation]())
    [slept] = direct.slept
    assert 16 <= slept <= 19
    assert early_retries(direct.service) == 0


@pytest.mark.parametrize("asked", [61, 119, 3600])
def test_nobody_comes_back_before_the_service_asked(direct: Via, asked: int) -> None:
    direct.service.inject(Fault(on="get_app", status=429, headers={"Retry-After": str(asked)}))
    with contextlib.suppress(RunGenRateLimitedError):
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

LOST = ["reset_before", "reset_after", "truncate"]


@pytest.mark.parametrize("kind", [*LOST, "html", "empty", "garbage", "no_id"])
def test_the_fate_of_a_post_whose_answer_is_lost_is_unknown(via: Via, kind: str) -> None:
    via.service.inject(Fault(on="run", kind=kind, times=None))
    with pytest.raises(RunGenSubmissionUnknownError, match=r"^Fate unknown: .*billed twice"):
        via(endpoints.run_job(APP, INPUT))
    assert (via.posts(), via.slept) == (1, [])
    assert via.service.stats()["jobs_created"] == (kind not in ("reset_before", "html"))


def test_wrong_types_are_a_model_or_an_error_of_ours(direct: Via) -> None:
    made = direct(endpoints.run_job(APP, INPUT))
    for operation in ("run", "get", "list_apps", "get_app"):
        direct.service.inject(Fault(on=operation, kind="wrong_types", times=None))
    with contextlib.suppress(RunGenSubmissionUnknownError):
        assert direct(endpoints.run_job(APP, INPUT)).status is JobStatus.QUEUED
    assert direct.posts() == 2
    for flow in (endpoints.get_job(APP, made.id), endpoints.list_apps(), endpoints.get_app(APP)):
        with pytest.raises(RunGenResponseError):
            direct(flow)


@pytest.mark.parametrize("kind", LOST)
def test_a_question_that_meets_accidents_only_ends_in_an_error(via: Via, kind: str) -> None:
    via.service.inject(Fault(on="get_app", kind=kind, times=None))
    with pytest.raises(RunGenConnectionError, match=rf"^Could not get the app: .* \(app {APP}\)") as caught:
        via(endpoints.get_app(APP))
    assert (caught.value.sent, caught.value.retryable) == (True, True)
    assert via.service.count("get_app") == retry.ATTEMPTS == len(via.slept) + 1


@pytest.mark.parametrize(
    "fault", [Fault(on="cancel", status=404, times=3), Fault(on="cancel", status=409, times=2)]
)
def test_a_job_that_cannot_be_canceled_yet_is_canceled_later(via: Via, fault: Fault) -> None:
    job = via(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 900}}))
    via.service.inject(fault)
    assert via(endpoints.cancel_job(APP, job.id)).status is JobStatus.CANCELED
    assert [each["status"] for each in via.service.jobs()] == ["CANCELED"]


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"data": {"status": "RUNNING"}}, {"status": "COMPLETED"}, {"success": False}),
        *({"error": "cannot cancel"}, "<html>", ""),
    ],
)
@pytest.mark.parametrize("is_canceled", [False, True])
def test_a_job_is_canceled_when_the_service_says_so(via: Via, body: Any, is_canceled: bool) -> None:
    job = via(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 900}}))
    via.service.inject(Fault(on="cancel", status=200, body=body, taken=is_canceled))
    assert via(endpoints.cancel_job(APP, job.id)).status is JobStatus.CANCELED
    assert [each["status"] for each in via.service.jobs()] == ["CANCELED"]
    assert via.service.count("cancel") == (1 if is_canceled else 2)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, RunGenNotFoundError), (409, RunGenAPIError), (503, RunGenServerError)]
)
def test_a_cancel_is_repeated_within_bounds(via: Via, status: int, kind: type[RunGenError]) -> None:
    job = via(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 900}}))
    via.service.inject(Fault(on="cancel", status=status, times=None))
    for budget, sent in ((0.0, 1), (900.0, 1 + retry.ATTEMPTS)):
        with pytest.raises(kind, match=str(status)):
            via(endpoints.cancel_job(APP, job.id, retry_budget=budget))
        assert via.service.count("cancel") == sent


def test_all_of_the_time_is_used(direct: Via) -> None:
    """As at a kill, which leaves no time for the next pause in full."""
    job = direct(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 900}}))
    direct.service.inject(Fault(on="cancel", status=503, times=retry.ATTEMPTS - 1))
    # the pauses would be 0.05, 0.1, 0.2 and 0.4
    assert direct(endpoints.cancel_job(APP, job.id, retry_budget=0.5)).status is JobStatus.CANCELED
    assert sum(direct.slept) == pytest.approx(0.5)
    direct.service.inject(Fault(on="update_app", status=503, headers={"Retry-After": "2"}))
    with pytest.raises(RunGenServerError):
        direct(endpoints.scale_app(APP, 1, retry_budget=1.5))
    assert direct.service.count("update_app") == 1, "unless the service asks for more"


def test_a_job_that_is_over_or_forgotten_cannot_be_canceled(via: Via) -> None:
    job = via(endpoints.run_job(APP, INPUT))
    via.clock.now += 3
    with pytest.raises(RunGenConflictError, match=job.id):
        via(endpoints.cancel_job(APP, job.id))
    via.service.inject(Fault(on="get", status=404))
    with pytest.raises(RunGenConflictError):
        via(endpoints.cancel_job(APP, job.id))


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
    message = rf"\(409\): .*, but {why} \(job {job.id}, app {APP}\)$"
    with pytest.raises(RunGenAPIError, match=message) as caught:
        via(endpoints.cancel_job(APP, job.id))
    assert not isinstance(caught.value, RunGenConflictError)
    assert caught.value.retryable


@pytest.mark.parametrize(
    "fault", [*(Fault(on="delete_app", kind=kind) for kind in ("reset_after", "truncate")),
              Fault(on="delete_app", kind="html", status=200)]
)  # fmt: skip
def test_an_app_is_deleted_whatever_becomes_of_the_answer(via: Via, fault: Fault) -> None:
    via.service.add_app("doomed", workers=0)
    via.service.inject(fault)
    via(endpoints.delete_app("doomed"))
    assert "doomed" not in [app.id for app in via(endpoints.list_apps())]


def test_a_post_is_repeated_until_the_service_is_there(via: Via, free_port: int) -> None:
    nowhere = {"base_url": f"http://127.0.0.1:{free_port}"}
    via.overrides = dict(nowhere)
    with pytest.raises(RunGenConnectionError, match="run a job") as caught:
        via(endpoints.run_job(APP, INPUT))
    assert not caught.value.sent
    assert len(via.sent) == retry.ATTEMPTS
    if via.kind == "direct":
        via.clock.on_sleep = lambda _: via.overrides.clear()
        job = via(endpoints.run_job(APP, INPUT))
        assert [each["id"] for each in via.service.jobs()] == [job.id]
        return
    with contextlib.ExitStack() as stack:
        later = Emulator(Service(clock=via.clock.time), port=free_port)
        stack.callback(later.stop)

        def open_late(_: float) -> None:
            via.clock.on_sleep = None
            later.start()

        via.clock.on_sleep = open_late
        job = via(endpoints.run_job(APP, INPUT))
        assert [each["id"] for each in later.service.jobs()] == [job.id]


@pytest.mark.parametrize(
    ("operation", "status", "via"), pairwise(CALLS, [300, 301, 302, 303, 307, 308], VIAS), indirect=["via"]
)
def test_a_redirect_is_refused_and_the_key_goes_nowhere(via: Via, operation: str, status: int) -> None:
    with Emulator() as elsewhere:
        headers = {"Location": f"{elsewhere.url}/app?token=s3cret"}
        via.service.inject(Fault(on=operation, kind="redirect", status=status, headers=headers, times=None))
        # the request may have been performed before
        is_unknown = operation == "run" and status in (300, 302, 303)
        kind = RunGenSubmissionUnknownError if is_unknown else RunGenAPIError
        with pytest.raises(kind, match=r"redirects to 127\.0\.0\.1") as caught:
            via(CALLS[operation]())
        assert elsewhere.service.connections_opened == 0
    assert via.service.count(operation) == (retry.ATTEMPTS if operation in REPEATED else 1)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [None, "", "/login", "//[bad", "http://[::1", "http://h:port/", "\\\\x", "http://" + "a" * 9000],
)
def test_a_redirect_to_nonsense_is_refused_too(location: str | None) -> None:
    headers = {} if location is None else {"location": location}
    with pytest.raises(RunGenAPIError, match="redirect"):
        drive(endpoints.get_app(APP), lambda _: Response(302, headers, b""), lambda _: None)


# --- ids ----------------------------------------------------------------------------------------------------

BAD_IDS: list[Any] = [
    *("", ".", "..", "a/b", "../apps", "a\\b", "a?b", "a#b", "a%2Fb", "a b", " a", "a\n", "a\x00", "\t"),
    *("a\u2028b", "\u202ea", "\ud800", "a\u00a0b", "x" * 257),
    *(None, 0, 7, 1.5, True, b"abc", ["a"], {"id": "a"}),
]


@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
def test_an_invalid_id_is_refused_before_anything_is_sent(direct: Via, bad: Any) -> None:
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
            direct(make())
        assert not caught.value.retryable
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    assert direct.sent == []
    assert direct.service.records() == []


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


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, RunGenBadRequestError), (403, RunGenForbiddenError), (410, RunGenNotFoundError)],
)
def test_an_answer_that_no_waiting_can_change_ends_it(via: Via, status: int, kind: type[RunGenError]) -> None:
    job = via(endpoints.run_job(APP, {**INPUT, "emulator": {"seconds": 30}}))
    via.service.inject(Fault(on="get", status=status, skip=2, times=None))
    with pytest.raises(kind):
        via(wait([job.id]))
    looks_in_vain = via.service.count("get") - 2
    # a key that is refused may be replaced in a moment, and a replica may lag behind
    assert 2 <= looks_in_vain <= 8


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
