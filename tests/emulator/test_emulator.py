"""The emulator: what it answers, in process and over HTTP."""

from __future__ import annotations

import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from bad_answers import Fault
from client_mistakes import early_retries, keys_leaked
from rungen_emulator import Emulator, Service, png

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from airflow_instance import AirflowError, AirflowInstance

pytestmark = pytest.mark.contract

KEY = "rungen-emulator-key"
START = 1_736_613_934.0  # 2025-01-11T16:45:34
FLUX = "/app/flux-schnell"
RUN: tuple[str, str, Any] = ("POST", f"{FLUX}/run_async", {"input": {"prompt": "x"}})


@dataclass
class Clock:
    now: float = START

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
    """Asks the service of an emulator without a connection."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator

    def __call__(self, method: str, path: str, body: Any = None, **more: str | None) -> Answer:
        given = {"x_api_key": KEY, "content_type": "application/json"} | more
        headers = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        reply = self.emulator.handle_request(method, self.emulator.url + path, headers, content)
        return Answer(reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.body)

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
        return self("GET", url.removeprefix(self.emulator.url), **{"x_api_key": None} | headers)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def emulator(clock: Clock) -> Emulator:
    return Emulator(Service(clock=clock, job_seconds=10), port=9)


@pytest.fixture
def service(emulator: Emulator) -> Service:
    return emulator.service


@pytest.fixture
def client(emulator: Emulator) -> Client:
    return Client(emulator)


@pytest.fixture
def served(clock: Clock) -> Iterator[Emulator]:
    """An emulator that answers over HTTP."""
    with Emulator(Service(clock=clock, job_seconds=10)) as emulator:
        yield emulator


def ask(emulator: Emulator, method: str, path: str, **options: Any) -> requests.Response:
    timeout: float = options.pop("timeout", 10)
    headers: dict[str, str] = options.pop("headers", {"x-api-key": KEY})
    return requests.request(method, emulator.url + path, headers=headers, timeout=timeout, **options)


def words(client: Client, *job_ids: str) -> list[str]:
    return [client.get(job_id)["status"] for job_id in job_ids]


# --- jobs ---------------------------------------------------------------------------------------------------


def test_a_job_runs_and_its_picture_can_be_downloaded(client: Client, clock: Clock) -> None:
    answer = client("POST", f"{FLUX}/run_async", {"input": {"prompt": "a fox", "width": 128, "height": 64}})
    assert answer.status == 201
    created = {"status": "QUEUED", "app_id": "flux-schnell", "created_at": "2025-01-11T16:45:34"}
    assert answer.data.items() >= created.items()
    clock.now += 4
    job = client.get(answer.data["id"])
    assert (job["status"], job["result"], job["execution_time"]) == ("RUNNING", None, "4.0")
    clock.now += 100
    job = client.get(answer.data["id"])
    assert (job["status"], job["execution_time"]) == ("COMPLETED", "10.0")
    assert job["request"] == {"input": answer.data["input"]}
    picture = client.download(job["result"]["images"][0]["image"])
    assert (picture.status, picture.headers["content-type"]) == (200, "image/png")
    assert size(picture.body) == (128, 64)


def test_jobs_are_first_come_first_served_one_per_worker(
    client: Client, clock: Clock, service: Service
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


def test_canceling_frees_the_worker_and_comes_too_late_for_a_job_that_is_over(
    client: Client, clock: Clock
) -> None:
    jobs = [client.run() for _ in range(4)]
    for job in (jobs[2], jobs[0]):
        answer = client("PUT", f"{FLUX}/job/{job}")
        assert (answer.status, answer.data) == (200, {"job_id": job, "status": "CANCELED"})
    assert words(client, *jobs) == ["CANCELED", "RUNNING", "CANCELED", "RUNNING"]
    clock.now += 10
    assert client("PUT", f"{FLUX}/job/{jobs[1]}").status == 409


def test_the_input_controls_the_result(client: Client) -> None:
    many = client.run(emulator={"images": 3, "result_bytes": 2_000_000, "seconds": 0})
    result = client.get(many)["result"]
    assert len(result["padding"]) == 2_000_000
    assert len({client.download(image["image"]).body for image in result["images"]}) == 3
    said = client.run("/app/llama-text", emulator={"seconds": 0})
    assert client.get(said, "/app/llama-text")["result"] == "You said: a fox"
    client.emulator.service.add_app("llama-text", workers=1, result='{"title": "A kettle"}')
    said = client.run("/app/llama-text", emulator={"seconds": 0})
    assert client.get(said, "/app/llama-text")["result"] == '{"title": "A kettle"}'
    result = {"clip": "output:../a b.mp4", "frames": ["output:1", "text", None]}
    fixed = client.run(emulator={"result": result, "output_bytes": 1000, "seconds": 0})
    got = client.get(fixed)["result"]
    assert got["frames"][1:] == ["text", None]
    assert "/..%2Fa%20b.mp4?X-Amz-" in got["clip"]
    clip, frame = client.download(got["clip"]).body, client.download(got["frames"][0]).body
    assert len(clip) == len(frame) == 1000
    assert clip != frame


@pytest.mark.parametrize(
    "body",
    [
        *(b"{", b"[]", b'{"input": {"prompt": "x", "guidance_scale": NaN}}', {}),
        *({"input": given} for given in (None, {}, {"prompt": " "}, {"prompt": 7})),
        *(
            {"input": {"prompt": "x", "width": width}}
            for width in (0, -64, 56, 100, 2056, 512.5, "512", True)
        ),
        *(
            {"input": {"prompt": "x", "emulator": control}}
            for control in ({"seconds": -1}, {"images": "many"})
        ),
        {"input": {"prompt": "x", "guidance_scale": "3"}},
    ],
)
def test_an_invalid_input_is_refused(client: Client, service: Service, body: Any) -> None:
    answer = client("POST", f"{FLUX}/run_async", body)
    assert (answer.status, type(answer.json["error"])) == (400, str)
    assert client(*RUN, content_type="text/plain").status == 400
    assert service.stats()["jobs_created"] == 0


# --- who may ask for what -----------------------------------------------------------------------------------


def test_a_request_without_the_key_is_refused(client: Client) -> None:
    for key in (None, "wrong"):
        for method, path in (("GET", "/app"), ("GET", "/nowhere"), ("POST", f"{FLUX}/run_async")):
            answer = client(method, path, x_api_key=key)
            assert (answer.status, list(answer.json)) == (403, ["error"])


def test_an_app_is_seen_by_its_team_only(client: Client, service: Service) -> None:
    service.add_app("shared", owner_team_id="blue", workers=1)
    assert client("GET", "/app/shared").status == 404
    assert client("GET", "/app/shared", x_team_id="red").status == 404
    assert client("GET", "/app/shared", x_team_id="blue").data["owner_team_id"] == "blue"
    assert client("GET", FLUX, x_team_id="blue").status == 404
    assert [app["id"] for app in client("GET", "/app", x_team_id="blue").data] == ["shared"]
    assert "shared" not in [app["id"] for app in client("GET", "/app").data]
    service.teams = ("blue",)
    assert client("GET", "/app", x_team_id="red").status == 403


def test_what_does_not_exist_is_refused(client: Client) -> None:
    paths = ("/", "/ap", "/app/", "/app/x", "//app", f"{FLUX}/", f"{FLUX}/job/x")
    calls = [("POST", FLUX), ("PATCH", FLUX), ("GET", f"{FLUX}/run_async"), ("POST", f"{FLUX}/job/x")]
    calls += [("GET", path) for path in (*paths, f"/app/llama-text/job/{client.run()}")]
    for method, path in [*calls, ("DELETE", "/app")]:
        answer = client(method, path)
        assert (answer.status, list(answer.json)) == (404, ["error"]), (method, path)


def test_segments_are_decoded_after_they_were_split(client: Client, service: Service) -> None:
    service.add_app("a/b c?é")
    assert client("GET", "/app/a%2Fb%20c%3F%C3%A9").data["id"] == "a/b c?é"


# --- apps ---------------------------------------------------------------------------------------------------

INK = {"id": "1", "name": "ink", "weight": 0.5}

NEW_APP = {
    "name": "Mine",
    "configuration": {"gpu_tier": "STANDARD"},
    "workflow": {"model_url": "https://models.example/flux.safetensors", "tools": {"loras": [INK]}},
}


def test_an_app_from_creation_to_deletion(client: Client, clock: Clock, service: Service) -> None:
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


WRONG_APPS: list[dict[str, Any]] = [
    {"name": ""},
    *({"configuration": value} for value in ({}, {"gpu_tier": "FREE"}, None)),
    {"configuration": {"gpu_tier": "BASIC", "active_workers": -1}},
    *({"workflow": value} for value in ({}, {"model_url": ""}, {"model_url": "x", "tools": "x"})),
    *({"workflow": {"model_url": "x", "tools": {"loras": [lora]}}} for lora in ("ink", {"weight": "0.8"})),
]
WRONG_CHANGES: list[dict[str, Any]] = [
    *({"name": 7}, {"configuration": {"active_workers": True}}, {"configuration": []}),
]


def test_what_the_contract_does_not_allow_is_refused(client: Client) -> None:
    for wrong in WRONG_APPS:
        assert client("POST", "/app", {**NEW_APP, **wrong}).status == 400, wrong
    path = f"/app/{client('POST', '/app', NEW_APP).data['id']}"
    before = client("GET", path).data
    for wrong in WRONG_CHANGES:
        assert client("PUT", path, wrong).status == 400, wrong
        assert client("GET", path).data == before


def test_an_update_changes_what_was_sent(client: Client) -> None:
    path = f"/app/{client('POST', '/app', NEW_APP).data['id']}"
    answer = client("PUT", path, {"description": "new"})
    assert (answer.data["name"], answer.data["description"]) == ("Mine", "new")
    tools = {"loras": [INK | {"weight": 0.9}]}
    assert client("PUT", path, {"workflow": {"tools": tools}}).data["workflow"]["tools"] == tools


def test_scaling_to_zero_puts_running_jobs_back_and_fewer_workers_finish_what_they_run(
    client: Client, clock: Clock, service: Service
) -> None:
    jobs = [client.run() for _ in range(3)]
    clock.now += 5
    stopped = client("PUT", FLUX, {"configuration": {"active_workers": 0}}).data
    assert stopped["status"] == "STOPPED"
    assert (stopped["jobs"]["in_queue"], stopped["jobs"]["retried"]) == (3, 2)
    clock.now += 500
    assert words(client, *jobs) == ["QUEUED"] * 3
    client("PUT", FLUX, {"configuration": {"active_workers": 2}})
    assert words(client, *jobs) == ["RUNNING", "RUNNING", "QUEUED"]
    jobs.append(client.run())
    service.scale("flux-schnell", 1)
    clock.now += 10
    assert words(client, *jobs) == ["COMPLETED", "COMPLETED", "RUNNING", "QUEUED"]


def test_the_bill_runs_while_there_are_workers(client: Client, clock: Clock, service: Service) -> None:
    clock.now += 100
    assert service.stats()["worker_seconds"]["flux-schnell"] == 200
    client("PUT", FLUX, {"configuration": {"active_workers": 3}})
    clock.now += 10
    client("PUT", FLUX, {"configuration": {"active_workers": 0}})
    clock.now += 1000
    assert service.stats()["worker_seconds"]["flux-schnell"] == 230


# --- outputs ------------------------------------------------------------------------------------------------


@pytest.fixture
def url(client: Client) -> Callable[[], str]:
    job_id = client.run(emulator={"seconds": 0})
    return lambda: client.get(job_id)["result"]["images"][0]["image"]


def test_each_answer_has_a_new_url_that_expires(
    client: Client, clock: Clock, service: Service, url: Callable[[], str]
) -> None:
    first, second = url(), url()
    assert first != second
    assert client.download(first).body == client.download(second).body
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in first
    clock.now += 604_799
    assert client.download(first).status == 200
    clock.now += 1
    answer = client.download(first)
    assert (answer.status, answer.headers["content-type"]) == (403, "application/xml")
    assert b"<Message>Request has expired</Message>" in answer.body
    third = url()
    assert client.download(third).status == 200
    service.expire_urls()
    assert client.download(third).status == 403


def test_a_forged_url_is_refused(client: Client, url: Callable[[], str]) -> None:
    good = url()
    for bad in (
        good.replace("/0.png", "/1.png"),
        good.replace("Expires=604800", "Expires=99999999"),
        good.partition("?")[0],
        f"{good[:-1]}{'0' if good[-1] != '0' else '1'}",
    ):
        assert b"SignatureDoesNotMatch" in client.download(bad).body


def size(picture: bytes) -> tuple[int, int]:
    """Decode a PNG by hand, check that it is complete, and return its width and height."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(picture):
        (length,) = struct.unpack(">I", picture[place : place + 4])
        chunk, place = picture[place + 4 : place + 8 + length], place + 12 + length
        assert struct.unpack(">I", picture[place - 4 : place]) == (zlib.crc32(chunk),)
        chunks[chunk[:4]] = chunk[4:]
    width, height, *kind = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (list(chunks), kind) == ([b"IHDR", b"IDAT", b"IEND"], [8, 2, 0, 0, 0])
    assert len(zlib.decompress(chunks[b"IDAT"])) == height * (1 + 3 * width)
    return width, height


def test_a_picture_has_the_size_that_was_asked_for_and_the_prompt_decides_what_is_painted() -> None:
    for asked in ((512, 384), (2048, 64)):
        assert size(png.draw("a fox", *asked)) == asked
    first = png.draw("a fox", 64, 64)
    png.draw.cache_clear()
    assert png.draw("a fox", 64, 64) == first
    assert png.draw("an owl", 64, 64) != first


def test_a_size_that_is_not_asked_for_is_usual(client: Client) -> None:
    drawn: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
        (FLUX, {}, (256, 256)),
        (FLUX, {"width": 512.0, "height": 384}, (512, 384)),
        ("/app/llama-text", {"width": 64, "height": 2048}, (64, 2048)),
    ]
    for app, given, expected in drawn:
        job_id = client.run(app, **given, emulator={"seconds": 0, "result": "output:0.png"})
        assert size(client.download(client.get(job_id, app)["result"]).body) == expected


# --- faults -------------------------------------------------------------------------------------------------


def test_a_fault_answers_with_a_status(client: Client, service: Service) -> None:
    service.inject(Fault(on="run", status=503, headers={"Retry-After": "7"}, times=2))
    for _ in range(2):
        answer = client(*RUN)
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
        assert "503" in answer.json["error"]
    assert service.stats()["jobs_created"] == 0
    service.inject(Fault(on="run", status=504, body="gateway timeout", taken=True))
    answer = client(*RUN)
    assert (answer.status, answer.body) == (504, b"gateway timeout")
    assert service.stats()["jobs_created"] == 1
    assert client(*RUN).status == 201


def test_stopping_releases_what_hangs(served: Emulator) -> None:
    served.service.inject(Fault(kind="hang"))
    with ThreadPoolExecutor() as pool:
        hanging = pool.submit(ask, served, "GET", FLUX)
        while not served.service.count("get_app"):
            time.sleep(0.005)
        served.stop()
        with pytest.raises(requests.ConnectionError):
            hanging.result(5)


def test_which_requests_a_fault_applies_to(client: Client, service: Service) -> None:
    unlucky, lucky = client.run(), client.run()
    service.inject(Fault(on="get", status=500, job_id=unlucky, skip=1, times=None))
    service.inject(Fault(on="any", status=502, skip=4))
    jobs = (unlucky, lucky, unlucky, unlucky, lucky, lucky)
    assert [client("GET", f"{FLUX}/job/{job}").status for job in jobs] == [200, 200, 500, 500, 200, 200]
    assert client("GET", FLUX).status == 502
    service.clear_faults()
    assert client("GET", f"{FLUX}/job/{unlucky}").status == 200
    with pytest.raises(ValueError, match="on must be one of"):
        Fault(on="lunch")
    with pytest.raises(ValueError, match="kind must be one of"):
        Fault(kind="odd")


# --- what it has seen ---------------------------------------------------------------------------------------


def test_mistakes_of_clients_are_counted(
    client: Client, clock: Clock, service: Service, url: Callable[[], str]
) -> None:
    used: tuple[dict[str, str], ...] = ({}, {"x_api_key": "any"}, {"Authorization": f"Bearer {KEY}"})
    for headers in used:
        client.download(url(), **headers)
    assert keys_leaked(service) == 2
    when = format_datetime(datetime.fromtimestamp(START + 30, UTC), usegmt=True)
    for wait in ("20", when):
        service.inject(Fault(on="run", status=429, headers={"retry-after": wait}))
        client(*RUN)
        client("POST", f"{FLUX}/run_async", {"input": {"prompt": "another"}})
        clock.now = START + 19
        client(*RUN)
    assert early_retries(service) == 3
    clock.now = START + 30
    client(*RUN)
    assert early_retries(service) == 3


def test_stats(served: Emulator, clock: Clock) -> None:
    client = Client(served)
    for given in ({}, {}, {"prompt": "fail:x"}, {}):
        job = client.run(**given)
    ask(served, "PUT", f"{FLUX}/job/{job}")
    clock.now += 100
    expected = {"jobs_created": 4, "jobs_completed": 2, "jobs_failed": 1, "jobs_cancelled": 1}
    expected |= {"duplicate_inputs": 2}
    assert served.service.stats().items() >= expected.items()
    assert served.service.stats()["requests"] == {"run": 4, "cancel": 1}


def test_it_is_controlled_over_http(served: Emulator) -> None:
    def control(method: str, name: str, body: Any = None) -> requests.Response:
        return ask(served, method, f"/_emulator/{name}", headers={}, json=body)

    assert control("POST", "options", {"job_seconds": 0}).status_code == 200
    assert control("POST", "faults", {"on": "get_app", "status": 500, "times": None}).status_code == 200
    assert control("POST", "workers", {"app_id": "flux-schnell", "workers": 7}).status_code == 200
    assert ask(served, "GET", FLUX).status_code == 500
    assert control("DELETE", "faults").status_code == 200
    assert ask(served, "GET", FLUX).json()["data"]["configuration"]["active_workers"] == 7
    ask(served, *RUN[:2], json=RUN[2])
    assert control("GET", "stats").json()["jobs_completed"] == 1
    assert [job["input"] for job in control("GET", "jobs").json()] == [{"prompt": "x"}]
    assert [r["operation"] for r in control("GET", "requests").json()] == ["get_app", "get_app", "run"]
    assert served.service.count("unknown") == 0
    assert control("POST", "reset").status_code == 200
    assert control("GET", "jobs").json() == []
    bad = (("options", {"size": 1}), ("faults", {"x": 1}), ("workers", {"app_id": "x"}))
    for name, body in bad:
        assert control("POST", name, body).status_code == 400
    assert control("GET", "nothing").status_code == 404


def test_a_reset_makes_it_as_new(client: Client, service: Service, clock: Clock) -> None:
    new = service.stats()
    service.configure({"api_key": "another", "job_seconds": 0})
    service.configure({"api_key": KEY})
    service.inject(Fault(on="get_app", status=503, headers={"Retry-After": "60"}, times=None))
    service.add_app("gpu", workers=1)
    service.scale("flux-schnell", 0)
    client("GET", FLUX)
    client(*RUN)
    clock.now += 50
    service.reset()
    assert (service.jobs(), service.records(), service.stats()) == ([], [], new)
    assert client("GET", "/app/gpu").status == 404
    assert client.get(client.run())["status"] == "RUNNING"
    assert service.stats()["duplicate_inputs"] == early_retries(service) == 0


def test_the_clock_can_stand_still(client: Client, clock: Clock, service: Service) -> None:
    job = client.run()
    with service.paused(), service.paused():
        clock.now += 100
        assert words(client, job) == ["RUNNING"]
    clock.now += 9
    assert words(client, job) == ["RUNNING"]
    clock.now += 1
    assert words(client, job) == ["COMPLETED"]
    assert service.stats()["worker_seconds"]["flux-schnell"] == 20


# --- starting it --------------------------------------------------------------------------------------------


def test_the_connection_names_the_emulator(emulator: Emulator) -> None:
    connection = json.loads(emulator.airflow_connection(team_id="blue"))
    extra = {"app_id": "flux-schnell", "team_id": "blue"}
    assert connection == {"conn_type": "rungen", "password": KEY, "host": emulator.url, "extra": extra}


def test_a_second_connection_has_a_team_and_an_app(emulator: Emulator, client: Client) -> None:
    with emulator.connection("rungen_blue", team_id="blue", app_id="posters", price="1 USD/h") as conn_id:
        assert conn_id == "rungen_blue"
        connection = json.loads(os.environ["AIRFLOW_CONN_RUNGEN_BLUE"])
        assert connection["host"] == emulator.url
        assert connection["extra"] == {"app_id": "posters", "team_id": "blue", "price": "1 USD/h"}
        for _ in range(2):
            assert client("GET", "/app/posters").status == 404
            assert client("GET", "/app/posters", x_team_id="blue").data["workers"]["ready"] == 2
            emulator.service.reset()
        with (
            pytest.raises(ValueError, match="app posters belongs to team blue"),
            emulator.connection("rungen_red", team_id="red", app_id="posters"),
        ):
            pass
    assert not {"AIRFLOW_CONN_RUNGEN_BLUE", "AIRFLOW_CONN_RUNGEN_RED"} & set(os.environ)


def test_a_connection_without_an_app_has_the_default_one_or_one_of_its_team(
    emulator: Emulator, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", "before")
    with emulator.connection() as outer, emulator.connection(team_id="blue") as inner:
        assert outer == inner == "rungen_default"
        extra = json.loads(os.environ["AIRFLOW_CONN_RUNGEN_DEFAULT"])["extra"]
        assert extra == {"app_id": "flux-schnell-blue", "team_id": "blue"}
        assert client("GET", f"{FLUX}-blue", x_team_id="blue").status == 200
    assert os.environ["AIRFLOW_CONN_RUNGEN_DEFAULT"] == "before"


def test_a_restart_keeps_the_address(served: Emulator) -> None:
    url, job = served.url, Client(served).run()
    served.stop()
    with pytest.raises(requests.ConnectionError):
        ask(served, "GET", FLUX)
    with pytest.raises(RuntimeError, match="running already"):
        served.start().start()
    assert served.url == url
    assert ask(served, "GET", f"{FLUX}/job/{job}").json()["data"]["status"] == "RUNNING"
    with pytest.raises(OSError, match="address already in use"):
        Emulator(port=served.port).start()


def test_the_service_can_be_replaced(served: Emulator, clock: Clock) -> None:
    client = Client(served)
    job = client.run()
    served.service = Service(clock=clock, job_seconds=0)
    assert client("GET", f"{FLUX}/job/{job}").status == 404
    url = client.get(client.run())["result"]["images"][0]["image"]
    assert requests.get(url, timeout=10).ok


def test_the_fixtures_of_a_module_and_of_a_session(
    rungen_emulator_session: Emulator, rungen_emulator_module: Emulator
) -> None:
    assert rungen_emulator_session is not rungen_emulator_module
    connection = json.loads(os.environ["AIRFLOW_CONN_RUNGEN_DEFAULT"])
    assert connection["host"] == rungen_emulator_module.url
    Client(rungen_emulator_session).run()
    rungen_emulator_session.service.reset()
    assert rungen_emulator_session.service.jobs() == []
    assert rungen_emulator_session.service.job_seconds == 0.05


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "rungen_emulator", "--job-seconds", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--api-key", "it's"], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        word, assignment = shlex.split(process.stdout.readline())
        name, _, value = assignment.partition("=")
        assert (word, name) == ("export", "AIRFLOW_CONN_RUNGEN_DEFAULT")
        connection = json.loads(value)
        answer = requests.get(connection["host"] + FLUX, headers={"x-api-key": "it's"}, timeout=10)
        assert answer.json()["data"]["id"] == "flux-schnell"
        assert process.stdout.readline() == f"export RUNGEN_EMULATOR={connection['host']}\n"
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_an_exported_emulator_does_not_reach_the_airflow_of_the_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "airflow").write_text("#!/bin/sh\nenv\n")
    (tmp_path / "airflow").chmod(0o755)
    monkeypatch.setenv("RUNGEN_EMULATOR", "http://127.0.0.1:8765")
    with pytest.raises(AirflowError):
        AirflowInstance(tmp_path / "standalone", tmp_path, bin_folder=tmp_path).start()
    seen = (tmp_path / "standalone" / "standalone.log").read_text()
    assert "AIRFLOW_HOME=" in seen
    assert "RUNGEN_EMULATOR" not in seen
