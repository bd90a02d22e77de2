"""Performs the operations of the service, for authorized requests."""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from rungen_emulator import png
from rungen_emulator.apps import App, Job, State, format_time
from rungen_emulator.messages import (
    Refusal,
    Reply,
    Request,
    StorageRefusal,
    check_body,
    json_reply,
)

# Pixels, fewer than a model paints, since most tests do not look at their pictures.
_USUAL_SIDE = 256


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(kw_only=True, eq=False)
class Operations:
    """The options, the apps and the jobs of the service. Each operation has a method of its name."""

    api_key: str = _option("rungen-emulator-key", "the API key it accepts")
    teams: tuple[str, ...] | None = _option(None, "the teams that the key may use; all by default")
    app_id: str = _option("flux-schnell", "id of the default app")
    workers: int = _option(2, "active workers of the default apps at the start")
    job_seconds: float = _option(2.0, "how long a job runs")
    init_seconds: float = _option(0.0, "how long a new worker takes to start")
    url_seconds: int = _option(604_800, "how long the URL of an output is valid")
    clock: Callable[[], float] = time.time
    outputs_url: str = "http://127.0.0.1"

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._initial = {option.name: getattr(self, option.name) for option in options()}
        # how far its time is behind the clock, its time in a pause, and the pauses that have not ended
        self._delay = 0.0
        self._paused_at: float | None = None
        self._pauses = 0
        # the teams of the apps that connections added
        self._connected: dict[str, str | None] = {}
        self.reset()

    def reset(self) -> None:
        """
        Begin again: with the options of the start, the default apps, and no jobs.

        The apps that `Emulator.connection` added are added again.
        """
        with self._lock:
            for name, value in self._initial.items():
                setattr(self, name, value)
            self._apps: dict[str, App] = {}
            self._jobs: dict[str, Job] = {}
            # when each signed path expires, with its query string
            self._url_ends: dict[str, float] = {}
            self._url_serials = itertools.count(1)
            self._inputs: set[str] = set()
            self._past_bills: dict[str, float] = defaultdict(float)
            self.add_app(self.app_id, name="FLUX Schnell", workers=self.workers)
            self.add_app("llama-text", name="Llama", kind="text", workers=self.workers)
            for app_id, team_id in self._connected.items():
                self.add_app(app_id, workers=self.workers, owner_team_id=team_id)

    # --- time ---

    def now(self) -> float:
        """Return the time of the service."""
        return self.clock() - self._delay if self._paused_at is None else self._paused_at

    @contextmanager
    def paused(self) -> Iterator[None]:
        """
        Stop the service's time for a ``with`` block: no job starts or ends, and no worker is billed.

        Of pauses that overlap, the last one to end lets time go on.
        """
        with self._lock:
            self._paused_at = self.now()
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                if not self._pauses:
                    self._delay = self.clock() - self._paused_at
                    self._paused_at = None

    # --- apps ---

    def connect(self, app_id: str, team_id: str | None) -> None:
        """
        Add the app of a connection if there is none. A reset adds it again.

        :raises ValueError: the app is another team's.
        """
        with self._lock:
            if app_id not in self._apps:
                self._connected[app_id] = team_id
                self.add_app(app_id, workers=self.workers, owner_team_id=team_id)
            elif (owner := self._apps[app_id].owner_team_id) != team_id:
                raise ValueError(f"app {app_id} belongs to {'no team' if owner is None else f'team {owner}'}")

    def add_app(
        self,
        app_id: str,
        *,
        kind: str = "flux",
        workers: int = 0,
        owner_team_id: str | None = None,
        init_seconds: float | None = None,
        max_workers: int | None = None,
        result: Any = None,
        **details: Any,
    ) -> App:
        """
        Add an app, whose workers are ready at once.

        :param kind: ``flux`` or ``text``.
        :param workers: the active workers.
        :param init_seconds: how long its later workers take to start; the service's option by default.
        :param max_workers: how many workers it gets at most, whatever it is set to.
        :param result: what its jobs return, unless the input says otherwise.
        :param details: its name, description, configuration and workflow.
        """
        usual = {
            "name": app_id,
            "description": "",
            "configuration": {"gpu_tier": "BASIC"},
            "workflow": {"model_url": f"https://models.example/{app_id}.safetensors", "tools": {}},
        }
        with self._lock:
            now = self.now()
            app = App(app_id, kind, now, usual | details, owner_team_id, init_seconds, max_workers, result)
            app.scale(workers, now, 0.0)
            self._apps[app_id] = app
            return app

    def scale(self, app_id: str, workers: int) -> None:
        """Set the number of workers of an app."""
        with self._lock:
            app = self._apps[app_id]
            seconds = self.init_seconds if app.init_seconds is None else app.init_seconds
            app.scale(workers, self.now(), seconds)

    def _list_apps(self, _request: Request, team: str | None, _now: float) -> Reply:
        self._advance()
        return _reply(200, [app.shown() for app in self._apps.values() if app.owner_team_id == team])

    def _get_app(self, request: Request, team: str | None, now: float) -> Reply:
        return _reply(200, self._app(request, team, now).shown())

    def _create_app(self, request: Request, team: str | None, _now: float) -> Reply:
        body = check_body("new app", request)
        workflow = {"tools": {}, **body["workflow"]}
        kind = "flux" if "flux" in workflow["model_url"].lower() else "text"
        app = self.add_app(
            str(uuid.uuid4()), kind=kind, owner_team_id=team, **_details(body) | {"workflow": workflow}
        )
        self.scale(app.id, int(body["configuration"].get("active_workers", 0)))
        return _reply(201, app.shown(is_new=True))

    def _update_app(self, request: Request, team: str | None, now: float) -> Reply:
        app = self._app(request, team, now)
        body = check_body("update", request)
        details = app.details | _details(body)
        for part in ("configuration", "workflow"):
            details[part] = app.details[part] | body.get(part, {})
        app.details, app.updated = details, now
        workers = body.get("configuration", {}).get("active_workers")
        if workers is not None:
            self.scale(app.id, int(workers))
        return _reply(200, app.shown())

    def _delete_app(self, request: Request, team: str | None, now: float) -> Reply:
        app = self._app(request, team, now)
        if app.active_workers:
            raise Refusal(409, "the app has active workers: scale to 0 workers first")
        self._past_bills[app.id] += app.worker_seconds(now)
        del self._apps[app.id]
        return Reply(204)

    def _app(self, request: Request, team: str | None, now: float) -> App:
        app = self._apps.get(request.segments[1])
        if app is None or app.owner_team_id != team:
            raise Refusal(404, "no such app")
        app.advance(now)
        return app

    def _advance(self) -> float:
        now = self.now()
        for app in self._apps.values():
            app.advance(now)
        return now

    # --- jobs ---

    def _run(self, request: Request, team: str | None, now: float) -> Reply:
        app = self._app(request, team, now)
        given = check_body(app.kind, request)["input"]
        instructions, prompt = given.get("emulator", {}), given.get("prompt")
        error = instructions.get("fail")
        if error is None and isinstance(prompt, str) and prompt.startswith("fail:"):
            error = prompt.removeprefix("fail:").strip()
        seconds = float(instructions.get("seconds", self.job_seconds))
        job = Job(str(uuid.uuid4()), app.id, given, now, seconds, error)
        self._jobs[job.id] = job
        self._inputs.add(json.dumps([app.id, given], sort_keys=True))
        app.submit(job, now)
        answer = {"id": job.id, "status": State.QUEUED, "app_id": app.id, "created_at": format_time(now)}
        return _reply(201, {**answer, "input": given})

    def _get(self, request: Request, team: str | None, now: float) -> Reply:
        app = self._app(request, team, now)
        job = self._job(request, app)
        return _reply(200, job.shown(now, self._result(app, job, now)))

    def _cancel(self, request: Request, team: str | None, now: float) -> Reply:
        app = self._app(request, team, now)
        job = self._job(request, app)
        if not app.cancel(job, now):
            raise Refusal(409, f"the job is already over ({job.state.value})")
        return _reply(200, {"job_id": job.id, "status": State.CANCELED})

    def _job(self, request: Request, app: App) -> Job:
        job = self._jobs.get(request.segments[3])
        if job is None or job.app_id != app.id:
            raise Refusal(404, "no such job for that app")
        return job

    def _result(self, app: App, job: Job, now: float) -> Any:
        if job.state is not State.COMPLETED:
            return None
        instructions = job.input.get("emulator", {})
        if "result" in instructions or app.result is not None:
            return self._with_outputs(instructions.get("result", app.result), job, now)
        padding = "x" * int(instructions.get("result_bytes", 0))
        if app.kind != "flux":
            return padding or f"You said: {job.input.get('prompt', json.dumps(job.input))}"
        names = [f"{number}.png" for number in range(int(instructions.get("images", 1)))]
        images = [{"image": self._output_url(job, name, now)} for name in names]
        return {"images": images, "padding": padding} if padding else {"images": images}

    # --- outputs ---

    def _with_outputs(self, result: Any, job: Job, now: float) -> Any:
        """Replace each text ``output:NAME`` by the URL of an output."""
        match result:
            case str() if result.startswith("output:"):
                return self._output_url(job, result.removeprefix("output:"), now)
            case dict():
                return {key: self._with_outputs(item, job, now) for key, item in result.items()}
            case list():
                return [self._with_outputs(item, job, now) for item in result]
        return result

    def _output_url(self, job: Job, name: str, now: float) -> str:
        """Return a new URL of an output, signed as for an object storage."""
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Date": datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ"),
            "X-Amz-Expires": str(int(self.url_seconds)),
            "X-Amz-Security-Token": str(next(self._url_serials)),
            "X-Amz-SignedHeaders": "host",
            "X-Amz-Signature": secrets.token_hex(32),
        }
        path = f"/outputs/{job.id}/{quote(name, safe='')}?{urlencode(query)}"
        self._url_ends[path] = now + self.url_seconds
        return self.outputs_url + path

    def expire_urls(self) -> None:
        """Expire all URLs of outputs that were returned until now."""
        with self._lock:
            self._url_ends = dict.fromkeys(self._url_ends, 0.0)

    def _output(self, request: Request, now: float) -> Reply:
        if request.path not in self._url_ends:
            text = "The request signature we calculated does not match the signature you provided."
            raise StorageRefusal("SignatureDoesNotMatch", text)
        if now >= self._url_ends[request.path]:
            raise StorageRefusal("AccessDenied", "Request has expired")
        job, number = self._jobs[request.segments[1]], request.segments[2].removesuffix(".png")
        if size := int(job.input.get("emulator", {}).get("output_bytes", 0)):
            content = f"{job.id}/{number} ".encode()
            content = (content * (size // len(content) + 1))[:size]
            return Reply(200, {"Content-Type": "application/octet-stream"}, content)
        prompt = str(job.input.get("prompt", "")) + (f" #{number}" if number != "0" else "")
        width, height = (int(job.input.get(side, _USUAL_SIDE)) for side in ("width", "height"))
        return Reply(200, {"Content-Type": "image/png"}, png.draw(prompt, width, height))


def options() -> list[Field[Any]]:
    """Return the options: the fields with a text for the help of the command."""
    return [each for each in fields(Operations) if "help" in each.metadata]


def _details(body: dict[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in ("name", "description", "configuration", "workflow") if name in body}


def _reply(status: int, answer: Any) -> Reply:
    return json_reply(status, {"data": answer})
