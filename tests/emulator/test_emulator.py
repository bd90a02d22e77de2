"""The emulator, tried by a client that shares no code with it."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from bad_answers import Fault
from client_mistakes import early_retries, keys_leaked

from airflow_provider_rungen.emulator import Emulator, Service, png
from airflow_provider_rungen.emulator.__main__ import main

KEY = "rungen-emulator-key"
START = 1_736_613_934.0  # 2025-01-11T16:45:34
FLUX = "/app/flux-schnell"


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def data(self) -> Any:
        return self.json["data"]


class Client:
    """A client that shares no code with the emulator."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = KEY,
        timeout: float = 10,
        **more: str,
    ) -> Answer:
        headers = {name.replace("_", "-"): value for name, value in more.items()}
        if key is not None:
            headers["X-API-Key"] = key
        if body is not None:
            headers["Content-Type"] = "application/json"
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=timeout)
        try:
            connection.request(method, path, body, headers)
            with connection.getresponse() as response:
                return Answer(
                    response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
                )
        finally:
            connection.close()

    def run(self, app: str = FLUX, **given: Any) -> str:
        answer = self("POST", f"{app}/run_async", {"input": {"prompt": "a fox", **given}})
        assert answer.status == 201, answer
        job_id: str = answer.data["id"]
        return job_id

    def get(self, job_id: str, app: str = FLUX) -> Any:
        answer = self("GET", f"{app}/job/{job_id}")
        assert answer.status == 200, answer
        return answer.data

    def download(self, url: str, **headers: Any) -> Answer:
        parts = urlsplit(url)
        return Client(url)("GET", f"{parts.path}?{parts.query}", key=None, **headers)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def emulator(clock: Clock) -> Iterator[Emulator]:
    with Emulator(Service(clock=clock, job_seconds=10)) as emulator:
        yield emulator


@pytest.fixture
def service(emulator: Emulator) -> Service:
    return emulator.service


@pytest.fixture
def client(emulator: Emulator) -> Client:
    return Client(emulator.url)


def words(client: Client, *job_ids: str) -> list[str]:
    return [client.get(job_id)["status"] for job_id in job_ids]


class TestJobs:
    def test_a_job_runs_and_its_picture_can_be_downloaded(self, client: Client, clock: Clock) -> None:
        answer = client(
            "POST", f"{FLUX}/run_async", {"input": {"prompt": "a fox", "width": 128, "height": 64}}
        )
        assert answer.status == 201
        assert answer.data["status"] == "QUEUED"
        assert answer.data["app_id"] == "flux-schnell"
        assert answer.data["created_at"] == "2025-01-11T16:45:34"
        job_id = answer.data["id"]
        clock.now += 4
        job = client.get(job_id)
        assert (job["status"], job["result"], job["execution_time"]) == ("RUNNING", None, "4.0")
        clock.now += 100
        job = client.get(job_id)
        assert (job["status"], job["execution_time"]) == ("COMPLETED", "10.0")
        assert job["request"] == {"input": answer.data["input"]}
        picture = client.download(job["result"]["images"][0]["image"])
        assert picture.status == 200
        assert picture.headers["content-type"] == "image/png"
        assert int(picture.headers["content-length"]) == len(picture.body)
        assert size(picture.body) == (128, 64)

    def test_jobs_are_first_come_first_served_one_per_worker(
        self, client: Client, clock: Clock, service: Service
    ) -> None:
        jobs = [client.run(emulator={"seconds": seconds}) for seconds in (5, 10, 10, 10)]
        assert words(client, *jobs) == ["RUNNING", "RUNNING", "QUEUED", "QUEUED"]
        assert "execution_time" not in client.get(jobs[2])
        clock.now += 5
        assert words(client, *jobs) == ["COMPLETED", "RUNNING", "RUNNING", "QUEUED"]
        clock.now += 1000
        assert words(client, *jobs) == ["COMPLETED"] * 4
        assert client("GET", FLUX).data["jobs"]["completed"] == 4
        assert [job["started"] - START for job in service.jobs()] == [0, 0, 5, 10]

    def test_canceling_frees_the_worker(self, client: Client) -> None:
        jobs = [client.run() for _ in range(4)]
        for job in (jobs[2], jobs[0]):
            answer = client("PUT", f"{FLUX}/job/{job}")
            assert (answer.status, answer.data) == (200, {"job_id": job, "status": "CANCELED"})
        assert words(client, *jobs) == ["CANCELED", "RUNNING", "CANCELED", "RUNNING"]

    def test_a_job_that_is_over_cannot_be_canceled(
        self, client: Client, clock: Clock, service: Service
    ) -> None:
        job = client.run()
        clock.now += 10
        assert client("PUT", f"{FLUX}/job/{job}").status == 409
        assert service.stats()["jobs_cancelled"] == 0
        assert service.stats()["cancels_received"] == 1

    @pytest.mark.parametrize(
        "given", [{"prompt": "fail: out of memory"}, {"emulator": {"fail": "out of memory"}}]
    )
    def test_a_job_fails_on_request(self, client: Client, clock: Clock, given: dict[str, Any]) -> None:
        job_id = client.run(**given)
        clock.now += 10
        job = client.get(job_id)
        assert (job["status"], job["error"], job["result"]) == ("FAILED", "out of memory", None)

    def test_the_input_controls_the_result(self, client: Client) -> None:
        many = client.run(emulator={"images": 3, "result_bytes": 2_000_000, "seconds": 0})
        fixed = client.run(emulator={"result": [1, None], "seconds": 0})
        result = client.get(many)["result"]
        assert len(result["padding"]) == 2_000_000
        pictures = {client.download(image["image"]).body for image in result["images"]}
        assert len(pictures) == 3
        assert client.get(fixed)["result"] == [1, None]
        said = client.run("/app/llama-text", emulator={"seconds": 0})
        assert client.get(said, "/app/llama-text")["result"] == "You said: a fox"

    def test_the_input_controls_names_and_sizes_of_outputs(self, client: Client) -> None:
        result = {"clip": "output:../a b.mp4", "frames": ["output:1", "text"]}
        job_id = client.run(emulator={"result": result, "output_bytes": 1000, "seconds": 0})
        got = client.get(job_id)["result"]
        assert got["frames"][1] == "text"
        assert "/..%2Fa%20b.mp4?X-Amz-" in got["clip"]
        clip, frame = client.download(got["clip"]).body, client.download(got["frames"][0]).body
        assert len(clip) == len(frame) == 1000
        assert clip != frame

    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"[]",
            b'{"input": {"prompt": "x", "guidance_scale": NaN}}',
            {},
            {"input": None},
            {"input": {}},
            {"input": {"prompt": " "}},
            {"input": {"prompt": 7}},
            {"input": {"prompt": "x", "width": 0}},
            {"input": {"prompt": "x", "width": -64}},
            {"input": {"prompt": "x", "height": 100_000}},
            {"input": {"prompt": "x", "guidance_scale": "3"}},
            {"input": {"prompt": "x", "height": "512"}},
            {"input": {"prompt": "x", "height": True}},
            {"input": {"prompt": "x", "emulator": {"seconds": -1}}},
            {"input": {"prompt": "x", "emulator": {"images": "many"}}},
        ],
    )
    def test_an_invalid_input_is_refused(self, client: Client, service: Service, body: Any) -> None:
        answer = client("POST", f"{FLUX}/run_async", body)
        assert answer.status == 400
        assert isinstance(answer.json["error"], str)
        assert service.stats()["jobs_created"] == 0

    def test_a_body_needs_its_content_type(self, client: Client) -> None:
        connection = http.client.HTTPConnection(urlsplit(client.url).netloc)
        connection.request("POST", f"{FLUX}/run_async", b'{"input": {"prompt": "x"}}', {"x-api-key": KEY})
        with connection.getresponse() as response:
            assert response.status == 400
        connection.close()


class TestDoors:
    @pytest.mark.parametrize("key", [None, "", "wrong"])
    def test_a_request_without_the_key_is_refused(self, client: Client, key: str | None) -> None:
        for method, path in (("GET", "/app"), ("GET", "/nowhere"), ("POST", f"{FLUX}/run_async")):
            answer = client(method, path, key=key)
            assert answer.status == 403
            assert "error" in answer.json

    def test_an_app_is_seen_by_its_team_only(self, client: Client, service: Service) -> None:
        service.add_app("shared", owner_team_id="blue", workers=1)
        assert client("GET", "/app/shared").status == 404
        assert client("GET", "/app/shared", x_team_id="red").status == 404
        assert client("GET", "/app/shared", x_team_id="blue").data["owner_team_id"] == "blue"
        assert client("GET", FLUX, x_team_id="blue").status == 404
        assert [app["id"] for app in client("GET", "/app", x_team_id="blue").data] == ["shared"]
        assert "shared" not in [app["id"] for app in client("GET", "/app").data]

    def test_a_key_may_be_restricted_to_teams(self, client: Client, service: Service) -> None:
        service.teams = ("blue",)
        assert client("GET", "/app", x_team_id="blue").status == 200
        assert client("GET", "/app", x_team_id="red").status == 403

    @pytest.mark.parametrize(
        "path",
        ["/", "/ap", "/app/", "/app/x", f"{FLUX}/job/x", f"{FLUX}/", "/app/flux%2Dschnell%2F", "//app"],
    )
    def test_what_does_not_exist_is_not_found(self, client: Client, path: str) -> None:
        answer = client("GET", path)
        assert answer.status == 404
        assert "error" in answer.json

    def test_a_job_of_another_app_is_not_found(self, client: Client) -> None:
        assert client("GET", f"/app/llama-text/job/{client.run()}").status == 404

    @pytest.mark.parametrize(
        ("method", "path"),
        [("DELETE", "/app"), ("POST", FLUX), ("GET", f"{FLUX}/run_async"), ("POST", f"{FLUX}/job/x")],
    )
    def test_a_wrong_method_is_refused(self, client: Client, method: str, path: str) -> None:
        answer = client(method, path)
        assert answer.status == 405
        assert "error" in answer.json

    def test_segments_are_decoded_after_they_were_split(self, client: Client, service: Service) -> None:
        service.add_app("a/b c?é")
        assert client("GET", "/app/a%2Fb%20c%3F%C3%A9").data["id"] == "a/b c?é"
        assert client("GET", "/app/flux%2Dschnell").status == 200


NEW_APP = {
    "name": "Mine",
    "configuration": {"gpu_tier": "STANDARD"},
    "workflow": {
        "model_url": "https://models.example/flux.safetensors",
        "tools": {"loras": [{"id": "1", "name": "ink", "weight": 0.5}]},
    },
}


class TestApps:
    def test_an_app_from_creation_to_deletion(self, client: Client, clock: Clock, service: Service) -> None:
        service.init_seconds = 60
        answer = client("POST", "/app", NEW_APP)
        assert answer.status == 201
        assert "jobs" not in answer.data
        path = f"/app/{answer.data['id']}"
        assert client("GET", path).data["status"] == "STOPPED"
        job_id = client.run(path)
        answer = client("PUT", path, {"configuration": {"active_workers": 1}})
        assert (answer.status, answer.data["status"]) == (200, "INITIALIZING")
        assert answer.data["configuration"] == {"active_workers": 1, "gpu_tier": "STANDARD"}
        clock.now += 59
        assert client.get(job_id, path)["status"] == "QUEUED"
        clock.now += 1
        assert client("GET", path).data["status"] == "RUNNING"
        assert client.get(job_id, path)["status"] == "RUNNING"
        assert client("DELETE", path).status == 409
        client("PUT", path, {"configuration": {"active_workers": 0}})
        answer = client("DELETE", path)
        assert (answer.status, answer.body) == (204, b"")
        assert client("GET", path).status == 404
        assert service.stats()["worker_seconds"][path.removeprefix("/app/")] == 60

    @pytest.mark.parametrize(
        "change",
        [
            {"name": ""},
            {"configuration": {}},
            {"configuration": {"gpu_tier": "FREE"}},
            {"configuration": {"gpu_tier": "BASIC", "active_workers": -1}},
            {"configuration": None},
            {"workflow": {}},
            {"workflow": {"model_url": ""}},
            {"workflow": {"model_url": "x", "tools": "x"}},
            {"workflow": {"model_url": "x", "tools": {"loras": {}}}},
            {"workflow": {"model_url": "x", "tools": {"loras": ["ink"]}}},
            {"workflow": {"model_url": "x", "tools": {"loras": [{"weight": "0.8"}]}}},
        ],
    )
    def test_creating_needs_what_the_contract_needs(self, client: Client, change: dict[str, Any]) -> None:
        assert client("POST", "/app", {**NEW_APP, **change}).status == 400

    def test_an_update_changes_what_was_sent(self, client: Client) -> None:
        path = f"/app/{client('POST', '/app', NEW_APP).data['id']}"
        answer = client("PUT", path, {"description": "new"})
        assert (answer.data["name"], answer.data["description"]) == ("Mine", "new")
        tools = {"loras": [{"id": "1", "name": "ink", "weight": 0.9}]}
        assert client("PUT", path, {"workflow": {"tools": tools}}).data["workflow"]["tools"] == tools

    @pytest.mark.parametrize(
        "change",
        [
            {"name": 7},
            {"configuration": {"active_workers": True}},
            {"configuration": []},
            {"workflow": {"model_url": "https://models.example/other"}},
            {"workflow": {"tools": {"loras": []}}},
            {"workflow": {"tools": {"loras": [{"id": "2", "name": "ink", "weight": 0.5}]}}},
        ],
    )
    def test_a_wrong_update_is_refused(self, client: Client, change: dict[str, Any]) -> None:
        path = f"/app/{client('POST', '/app', NEW_APP).data['id']}"
        before = client("GET", path).data
        assert client("PUT", path, change).status == 400
        assert client("GET", path).data == before

    def test_scaling_to_zero_puts_running_jobs_back(self, client: Client, clock: Clock) -> None:
        jobs = [client.run() for _ in range(3)]
        clock.now += 5
        stopped = client("PUT", FLUX, {"configuration": {"active_workers": 0}}).data
        assert stopped["status"] == "STOPPED"
        assert (stopped["jobs"]["in_queue"], stopped["jobs"]["retried"]) == (3, 2)
        clock.now += 500
        assert words(client, *jobs) == ["QUEUED"] * 3
        client("PUT", FLUX, {"configuration": {"active_workers": 1}})
        assert words(client, *jobs) == ["RUNNING", "QUEUED", "QUEUED"]

    def test_fewer_workers_finish_what_they_run(self, client: Client, clock: Clock, service: Service) -> None:
        jobs = [client.run() for _ in range(4)]
        service.scale("flux-schnell", 1)
        clock.now += 10
        assert words(client, *jobs) == ["COMPLETED", "COMPLETED", "RUNNING", "QUEUED"]

    def test_the_bill_runs_while_there_are_workers(
        self, client: Client, clock: Clock, service: Service
    ) -> None:
        clock.now += 100
        assert service.stats()["worker_seconds"]["flux-schnell"] == 200
        client("PUT", FLUX, {"configuration": {"active_workers": 3}})
        clock.now += 10
        client("PUT", FLUX, {"configuration": {"active_workers": 0}})
        clock.now += 1000
        assert service.stats()["worker_seconds"]["flux-schnell"] == 230


class TestOutputs:
    @pytest.fixture
    def url(self, client: Client) -> Callable[[], str]:
        job_id = client.run(emulator={"seconds": 0})
        return lambda: client.get(job_id)["result"]["images"][0]["image"]

    def test_each_answer_has_a_new_url(self, client: Client, url: Callable[[], str]) -> None:
        first, second = url(), url()
        assert first != second
        assert client.download(first).body == client.download(second).body
        assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in first
        assert "X-Amz-Expires=604800" in first

    def test_a_url_expires(
        self, client: Client, clock: Clock, service: Service, url: Callable[[], str]
    ) -> None:
        first = url()
        clock.now += 604_799
        assert client.download(first).status == 200
        clock.now += 1
        answer = client.download(first)
        assert answer.status == 403
        assert answer.headers["content-type"] == "application/xml"
        assert b"<Message>Request has expired</Message>" in answer.body
        second = url()
        assert client.download(second).status == 200
        service.expire_urls()
        assert client.download(second).status == 403

    def test_a_forged_url_is_refused(self, client: Client, url: Callable[[], str]) -> None:
        good = url()
        for bad in (
            good.replace("/0.png", "/1.png"),
            good.replace("Expires=604800", "Expires=99999999"),
            good.partition("?")[0],
            f"{good[:-1]}{'0' if good[-1] != '0' else '1'}",
        ):
            answer = client.download(bad)
            assert answer.status == 403
            assert b"SignatureDoesNotMatch" in answer.body

    def test_a_leaked_key_is_noticed(self, client: Client, service: Service, url: Callable[[], str]) -> None:
        client.download(url())
        assert keys_leaked(service) == 0
        client.download(url(), x_api_key="any")
        client.download(url(), Authorization=f"Bearer {KEY}")
        assert keys_leaked(service) == 2


class TestFaults:
    RUN: tuple[str, str, Any] = ("POST", f"{FLUX}/run_async", {"input": {"prompt": "x"}})

    def test_a_status(self, client: Client, service: Service) -> None:
        service.inject(Fault(on="run", status=503, headers={"Retry-After": "7"}, times=2))
        for _ in range(2):
            answer = client(*self.RUN)
            assert (answer.status, answer.headers["retry-after"]) == (503, "7")
            assert "503" in answer.json["error"]
        assert service.stats()["jobs_created"] == 0
        assert client(*self.RUN).status == 201

    def test_a_status_although_the_request_was_taken(self, client: Client, service: Service) -> None:
        service.inject(Fault(on="run", status=504, body="gateway timeout", taken=True))
        answer = client(*self.RUN)
        assert (answer.status, answer.body) == (504, b"gateway timeout")
        assert service.stats()["jobs_created"] == 1

    @pytest.mark.parametrize(("kind", "jobs"), [("reset_before", 0), ("reset_after", 1)])
    def test_a_reset(self, client: Client, service: Service, kind: str, jobs: int) -> None:
        service.inject(Fault(on="run", kind=kind))
        with pytest.raises(ConnectionResetError):
            client(*self.RUN)
        assert service.stats()["jobs_created"] == jobs
        assert client(*self.RUN).status == 201

    @pytest.mark.parametrize("taken", [False, True])
    def test_an_answer_that_never_comes(self, client: Client, service: Service, taken: bool) -> None:
        service.inject(Fault(on="run", kind="hang", taken=taken or None))
        with pytest.raises(TimeoutError):
            client(*self.RUN, timeout=0.2)
        assert service.stats()["jobs_created"] == taken
        assert service.requests[-1].status == (201 if taken else 0)

    def test_stopping_releases_what_hangs(self, client: Client, emulator: Emulator) -> None:
        emulator.service.inject(Fault(kind="hang"))
        failures: list[BaseException] = []

        def hang() -> None:
            try:
                client("GET", FLUX)
            except OSError as error:
                failures.append(error)

        thread = threading.Thread(target=hang)
        thread.start()
        while not emulator.service.count("get_app"):
            time.sleep(0.005)
        emulator.stop()
        thread.join(5)
        assert failures

    def test_which_requests_a_fault_applies_to(self, client: Client, service: Service) -> None:
        unlucky, lucky = client.run(), client.run()
        service.inject(Fault(on="get", status=500, job_id=unlucky, skip=1, times=None))
        service.inject(Fault(on="any", status=502, skip=4))
        got = [
            client("GET", f"{FLUX}/job/{job}").status
            for job in (unlucky, lucky, unlucky, unlucky, lucky, lucky)
        ]
        assert got == [200, 200, 500, 500, 200, 200]
        assert client("GET", FLUX).status == 502
        service.clear_faults()
        assert client("GET", f"{FLUX}/job/{unlucky}").status == 200

    @pytest.mark.parametrize("wrong", [{"on": "lunch"}, {"kind": "odd"}])
    def test_a_fault_that_does_not_exist_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must be one of"):
            Fault(**wrong)


class TestMemory:
    def test_early_retries_are_counted(self, client: Client, clock: Clock, service: Service) -> None:
        when = format_datetime(datetime.fromtimestamp(START + 30, UTC), usegmt=True)
        for wait in ("20", when):
            service.inject(Fault(on="run", status=429, headers={"retry-after": wait}))
            client(*TestFaults.RUN)
            client("POST", f"{FLUX}/run_async", {"input": {"prompt": "another"}})
            clock.now = START + 19
            client(*TestFaults.RUN)
        assert early_retries(service) == 3
        clock.now = START + 30
        client(*TestFaults.RUN)
        assert early_retries(service) == 3

    def test_stats(self, client: Client, clock: Clock, service: Service) -> None:
        for given in ({}, {}, {"prompt": "fail:x"}, {}):
            job = client.run(**given)
        client("PUT", f"{FLUX}/job/{job}")
        clock.now += 100
        stats = service.stats()
        assert stats["jobs_created"] == 4
        assert stats["jobs_completed"] == 2
        assert stats["jobs_failed"] == 1
        assert stats["jobs_cancelled"] == stats["cancels_received"] == 1
        assert stats["duplicate_inputs"] == 2
        assert stats["requests"] == {"run": 4, "cancel": 1}
        assert stats["connections_opened"] == 5
        assert stats["max_open_connections"] >= 1

    def test_control_from_another_process(self, client: Client, service: Service) -> None:
        def control(method: str, name: str, body: Any = None) -> Answer:
            return client(method, f"/_emulator/{name}", body, key=None)

        assert control("POST", "options", {"job_seconds": 0}).status == 200
        assert control("POST", "faults", {"on": "get_app", "status": 500, "times": None}).status == 200
        assert control("POST", "workers", {"app_id": "flux-schnell", "workers": 7}).status == 200
        assert client("GET", FLUX).status == 500
        assert control("DELETE", "faults").status == 200
        assert client("GET", FLUX).data["configuration"]["active_workers"] == 7
        client("POST", f"{FLUX}/run_async", {"input": {"prompt": "x"}})
        assert control("GET", "stats").json["jobs_completed"] == 1
        assert [job["input"] for job in control("GET", "jobs").json] == [{"prompt": "x"}]
        assert [r["operation"] for r in control("GET", "requests").json] == ["get_app", "get_app", "run"]
        assert service.count("unknown") == 0
        assert control("POST", "reset").status == 200
        assert control("GET", "jobs").json == []
        for name, body in (
            ("options", {"size": 1}),
            ("faults", {"x": 1}),
            ("workers", {"app_id": "none", "workers": 1}),
        ):
            assert control("POST", name, body).status == 400
        assert control("GET", "nothing").status == 404

    def test_a_reset_makes_it_as_new(self, clock: Clock) -> None:
        new = Service(clock=clock, job_seconds=3)
        service = Service(clock=clock, job_seconds=3)
        with Emulator(service) as emulator:
            client = Client(emulator.url)
            service.configure({"api_key": "another", "job_seconds": 0})
            service.configure({"api_key": KEY})
            service.inject(Fault(on="get_app", status=503, headers={"Retry-After": "60"}, times=None))
            service.add_app("gpu", workers=1)
            service.scale("flux-schnell", 0)
            client("GET", FLUX)
            client("POST", f"{FLUX}/run_async", {"input": {"prompt": "x"}})
            clock.now += 50
            service.reset()
            assert (service.jobs(), service.records()) == ([], [])
            assert service.stats() == new.stats() | {
                "max_open_connections": service.connections_open,
                "worker_seconds": {"flux-schnell": 0, "llama-text": 0},
            }
            assert client("GET", "/app/gpu").status == 404
            assert client.get(client.run())["status"] == "RUNNING"
            assert service.stats()["duplicate_inputs"] == early_retries(service) == 0

    def test_a_reset_does_not_disturb_a_client_that_is_connected(
        self, client: Client, service: Service
    ) -> None:
        connection = http.client.HTTPConnection(urlsplit(client.url).netloc, timeout=10)
        for _ in range(2):
            connection.request("GET", FLUX, headers={"X-API-Key": KEY})
            assert connection.getresponse().read()
            service.reset()
            assert service.connections_open == 1
        connection.close()
        assert service.count("get_app") == service.stats()["connections_opened"] == 0
        assert service.stats()["max_open_connections"] == 1

    def test_the_clock_can_stand_still(self, client: Client, clock: Clock, service: Service) -> None:
        job = client.run()
        with service.paused(), service.paused():
            clock.now += 100
            assert words(client, job) == ["RUNNING"]
        assert words(client, job) == ["RUNNING"]
        clock.now += 9
        assert words(client, job) == ["RUNNING"]
        clock.now += 1
        assert words(client, job) == ["COMPLETED"]
        assert service.stats()["worker_seconds"]["flux-schnell"] == 20


def size(picture: bytes) -> tuple[int, int]:
    """Decode a PNG by hand, check that it is complete, and return its width and height."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(picture):
        (length,) = struct.unpack(">I", picture[place : place + 4])
        name, content = picture[place + 4 : place + 8], picture[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", picture[place + 8 + length : place + 12 + length])
        assert zlib.crc32(name + content) == checksum
        chunks[name] = content
        place += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *kind = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kind == [8, 2, 0, 0, 0]
    assert len(zlib.decompress(chunks[b"IDAT"])) == height * (1 + 3 * width)
    return width, height


class TestPictures:
    @pytest.mark.parametrize("asked", [(512, 384), (1024, 1024), (2048, 64), (64, 2048), (1, 1)])
    def test_it_has_the_size_that_was_asked_for(self, asked: tuple[int, int]) -> None:
        assert size(png.draw("a fox", *asked)) == asked

    @pytest.mark.parametrize(
        ("app", "given", "drawn"),
        [
            (FLUX, {}, (256, 256)),
            (FLUX, {"width": 512.0, "height": 384}, (512, 384)),
            ("/app/llama-text", {"width": "wide", "height": 10**9}, (256, 256)),
        ],
    )
    def test_what_is_not_asked_for_is_usual(
        self, client: Client, app: str, given: dict[str, Any], drawn: tuple[int, int]
    ) -> None:
        job_id = client.run(app, **given, emulator={"seconds": 0, "result": "output:0.png"})
        assert size(client.download(client.get(job_id, app)["result"]).body) == drawn

    def test_the_prompt_decides(self) -> None:
        first = png.draw("a fox", 256, 256)
        png.draw.cache_clear()
        assert png.draw("a fox", 256, 256) == first
        assert png.draw("an owl", 256, 256) != first


class TestStarting:
    def test_the_connection_names_the_emulator(self, emulator: Emulator) -> None:
        assert json.loads(emulator.airflow_connection(team_id="blue")) == {
            "conn_type": "rungen",
            "password": KEY,
            "host": emulator.url,
            "extra": {"app_id": "flux-schnell", "team_id": "blue"},
        }

    def test_a_second_connection_has_a_team_and_an_app(self, emulator: Emulator, client: Client) -> None:
        with emulator.connection(
            "rungen_marketing", team_id="blue", app_id="posters", price="1 USD/h"
        ) as conn_id:
            assert conn_id == "rungen_marketing"
            connection = json.loads(os.environ["AIRFLOW_CONN_RUNGEN_MARKETING"])
            assert connection["host"] == emulator.url
            assert connection["extra"] == {"app_id": "posters", "team_id": "blue", "price": "1 USD/h"}
            for _ in range(2):
                assert client("GET", "/app/posters").status == 404
                assert client("GET", "/app/posters", x_team_id="blue").data["workers"]["ready"] == 2
                emulator.service.reset()
        assert "AIRFLOW_CONN_RUNGEN_MARKETING" not in os.environ
        assert client("GET", "/app/posters", x_team_id="blue").status == 200
        emulator.service.reset()
        assert client("GET", "/app/posters", x_team_id="blue").status == 404

    def test_a_connection_without_an_app_has_the_default_one_or_one_of_its_team(
        self, emulator: Emulator, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", "before")
        with emulator.connection() as outer, emulator.connection(team_id="blue") as inner:
            assert outer == inner == "rungen_default"
            extra = json.loads(os.environ["AIRFLOW_CONN_RUNGEN_DEFAULT"])["extra"]
            assert extra == {"app_id": "flux-schnell-blue", "team_id": "blue"}
            assert client("GET", f"{FLUX}-blue", x_team_id="blue").status == 200
        assert os.environ["AIRFLOW_CONN_RUNGEN_DEFAULT"] == "before"

    def test_the_app_of_another_team_is_refused(self, emulator: Emulator) -> None:
        with (
            emulator.connection("ours", team_id="blue", app_id="posters"),
            pytest.raises(ValueError, match="app posters belongs to team blue"),
            emulator.connection("theirs", team_id="red", app_id="posters"),
        ):
            pass
        assert "AIRFLOW_CONN_OURS" not in os.environ
        assert "AIRFLOW_CONN_THEIRS" not in os.environ

    def test_a_restart_keeps_the_address(self, emulator: Emulator, client: Client) -> None:
        url, job = emulator.url, client.run()
        emulator.stop()
        with pytest.raises(ConnectionRefusedError):
            client.get(job)
        emulator.start()
        assert emulator.url == url
        assert client.get(job)["status"] == "RUNNING"

    def test_the_service_can_be_replaced(self, emulator: Emulator, client: Client, clock: Clock) -> None:
        job = client.run()
        emulator.service = Service(clock=clock, job_seconds=0)
        assert client("GET", f"{FLUX}/job/{job}").status == 404
        url = client.get(client.run())["result"]["images"][0]["image"]
        assert url.startswith(emulator.url)
        assert client.download(url).status == 200
        assert emulator.service.stats()["connections_opened"] == 4

    def test_a_port_that_is_taken(self, emulator: Emulator) -> None:
        with pytest.raises(OSError, match="address already in use"):
            Emulator(port=emulator.port).start()
        with pytest.raises(RuntimeError, match="running already"):
            emulator.start()

    def test_the_fixtures_of_a_module_and_of_a_session(
        self, rungen_emulator_session: Emulator, rungen_emulator_module: Emulator
    ) -> None:
        assert rungen_emulator_session is not rungen_emulator_module
        connection = json.loads(os.environ["AIRFLOW_CONN_RUNGEN_DEFAULT"])
        assert connection["host"] == rungen_emulator_module.url
        Client(rungen_emulator_session.url).run()
        rungen_emulator_session.service.reset()
        assert rungen_emulator_session.service.jobs() == []
        assert rungen_emulator_session.service.job_seconds == 0.05

    def test_the_fixture_costs_a_test_run_nothing(self) -> None:
        code = (
            "import sys, airflow_provider_rungen.emulator.pytest_plugin\n"
            "sys.exit(bool({'aiohttp', 'airflow', 'requests'} & set(sys.modules)))"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_the_command_refuses_what_is_no_field(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["--connection", "rungen_marketing", "marketing"])
        assert "fields such as team_id=marketing, not marketing" in capsys.readouterr().err

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_command(self, number: signal.Signals) -> None:
        command = [
            sys.executable,
            "-m",
            "airflow_provider_rungen.emulator",
            "--job-seconds",
            "0",
        ]
        more = ["--connection", "rungen_marketing", "team_id=blue", "app_id=posters"]
        with subprocess.Popen(
            [*command, "--api-key", "it's", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            word, assignment = shlex.split(process.stdout.readline())
            name, _, value = assignment.partition("=")
            assert (word, name) == ("export", "AIRFLOW_CONN_RUNGEN_DEFAULT")
            connection = json.loads(value)
            assert connection["password"] == "it's"
            answer = Client(connection["host"])("GET", FLUX, key="it's")
            assert answer.data["id"] == "flux-schnell"
            _, assignment = shlex.split(process.stdout.readline())
            name, _, value = assignment.partition("=")
            assert name == "AIRFLOW_CONN_RUNGEN_MARKETING"
            assert json.loads(value)["extra"] == {"app_id": "posters", "team_id": "blue"}
            answer = Client(connection["host"])("GET", "/app/posters", key="it's", x_team_id="blue")
            assert answer.data["id"] == "posters"
            assert process.stdout.readline() == f"export RUNGEN_EMULATOR={connection['host']}\n"
            process.send_signal(number)
            assert process.wait(10) == 0
            assert process.stderr.read() == ""
