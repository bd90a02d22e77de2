"""Performs the operations of the service, for authorized requests."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import quote

from airflow_provider_rungen.emulator import answers, checks, png
from airflow_provider_rungen.emulator.apps import App, Job, State
from airflow_provider_rungen.emulator.clock import Clock
from airflow_provider_rungen.emulator.messages import Refusal, Reply, Request, json_reply
from airflow_provider_rungen.emulator.options import Options
from airflow_provider_rungen.emulator.outputs import Signer, storage_error

TEXT_APP_ID = "llama-text"


@dataclass(kw_only=True, eq=False)
class Operations(Options):
    """The apps and jobs. Each operation has a method of its name."""

    clock: Callable[[], float] = time.time
    outputs_url: str = "http://127.0.0.1"

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._pausable = Clock(self.clock)
        self.clock = self._pausable
        self._initial = {option.name: getattr(self, option.name) for option in fields(Options)}
        # the apps of connections, and their teams
        self._connected: list[tuple[str, str | None]] = []
        self.reset()

    def reset(self) -> None:
        """
        Begin again: with the options of the start, the default apps, and no jobs.

        The apps of open `Emulator.connection` blocks are added again.
        """
        with self._lock:
            for name, value in self._initial.items():
                setattr(self, name, value)
            self._apps: dict[str, App] = {}
            self._jobs: dict[str, Job] = {}
            self._signer = Signer()
            self._counts: Counter[str] = Counter()
            self._inputs: set[tuple[str, str]] = set()
            self._past_bills: dict[str, float] = {}
            self.add_app(self.app_id, name="FLUX Schnell", workers=self.workers)
            self.add_app(TEXT_APP_ID, name="Llama", kind="text", workers=self.workers)
            for app_id, team_id in self._connected:
                self._add_connected(app_id, team_id)

    def paused(self) -> AbstractContextManager[None]:
        """Stop the service's clock for a ``with`` block: no job starts or ends, and no worker is billed."""
        return self._pausable.paused()

    @contextmanager
    def connected(self, app_id: str, team_id: str | None) -> Iterator[None]:
        """
        Have an app for a ``with`` block, and after a reset in it, too. It stays when it was there.

        :raises ValueError: the app is another team's.
        """
        with self._lock:
            self._add_connected(app_id, team_id)
            self._connected.append((app_id, team_id))
        try:
            yield
        finally:
            with self._lock:
                self._connected.remove((app_id, team_id))

    def _add_connected(self, app_id: str, team_id: str | None) -> None:
        app = self._apps.get(app_id)
        if app is None:
            self.add_app(app_id, workers=self.workers, owner_team_id=team_id)
        elif app.owner_team_id != team_id:
            owner = "no team" if app.owner_team_id is None else f"team {app.owner_team_id}"
            raise ValueError(f"app {app_id} belongs to {owner}")

    def add_app(
        self,
        app_id: str,
        *,
        name: str | None = None,
        kind: str = "flux",
        workers: int = 0,
        owner_team_id: str | None = None,
        init_seconds: float | None = None,
        max_workers: int | None = None,
        model_url: str | None = None,
        tools: dict[str, Any] | None = None,
    ) -> App:
        """
        Add an app, whose workers are ready at once.

        :param kind: ``flux`` or ``text``.
        :param workers: the active workers.
        :param init_seconds: how long its later workers take to start; the service's option by default.
        :param max_workers: how many workers it gets at most, whatever it is set to.
        """
        with self._lock:
            now = self.clock()
            app = App(
                app_id, name or app_id, kind, now, model_url or f"https://models.example/{app_id}.safetensors"
            )
            app.owner_team_id, app.init_seconds, app.tools = owner_team_id, init_seconds, tools or {}
            app.max_workers = max_workers
            app.scale(workers, now, 0.0)
            self._apps[app_id] = app
            return app

    def scale(self, app_id: str, workers: int) -> None:
        with self._lock:
            app = self._apps[app_id]
            seconds = self.init_seconds if app.init_seconds is None else app.init_seconds
            app.scale(workers, self.clock(), seconds)

    # Jobs

    def _run(self, request: Request, team: str | None, now: float) -> Reply:
        app = self._app(request, team, now)
        given = checks.check_input(app.kind, request.object())
        instructions = given.get("emulator", {})
        prompt = given.get("prompt")
        error = instructions.get("fail")
        if error is None and isinstance(prompt, str) and prompt.startswith("fail:"):
            error = prompt.removeprefix("fail:").strip()
        job = Job(
            str(uuid.uuid4()), app.id, given, now, float(instructions.get("seconds", self.job_seconds)), error
        )
        seen = (app.id, json.dumps(given, sort_keys=True))
        self._counts["duplicate_inputs"] += seen in self._inputs
        self._inputs.add(seen)
        self._jobs[job.id] = job
        app.submit(job, now)
        return _reply(201, answers.run_answer(job))

    def _get(self, request: Request, team: str | None, now: float) -> Reply:
        app = self._app(request, team, now)
        job = self._job(request, app)
        return _reply(200, answers.job_answer(job, now, self._result(app, job, now)))

    def _cancel(self, request: Request, team: str | None, now: float) -> Reply:
        app = self._app(request, team, now)
        job = self._job(request, app)
        if not app.cancel(job, now):
            raise Refusal(409, f"the job is already over ({job.state.value})")
        return _reply(200, answers.cancel_answer(job))

    def _result(self, app: App, job: Job, now: float) -> Any:
        if job.state is not State.COMPLETED:
            return None
        instructions = job.input.get("emulator", {})
        if "result" in instructions:
            return self._with_outputs(instructions["result"], job, now)
        padding = "x" * int(instructions.get("result_bytes", 0))
        if app.kind != "flux":
            return padding or f"You said: {job.input.get('prompt', json.dumps(job.input))}"
        names = [f"{number}.png" for number in range(int(instructions.get("images", 1)))]
        images = [{"image": self._output_url(job, name, now)} for name in names]
        return {"images": images, "padding": padding} if padding else {"images": images}

    def _output_url(self, job: Job, name: str, now: float) -> str:
        path = f"/outputs/{job.id}/{quote(name, safe='')}"
        return self._signer.sign(self.outputs_url, path, now, self.url_seconds)

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

    def _output(self, request: Request, now: float) -> Reply:
        refusal = self._signer.refuse(request.path, now)
        if refusal:
            return refusal
        job, number = self._jobs.get(request.segments[1]), request.segments[2].removesuffix(".png")
        if job is None:
            return storage_error(404, "NoSuchKey", "The specified key does not exist.")
        if size := int(job.input.get("emulator", {}).get("output_bytes", 0)):
            content = f"{job.id}/{number} ".encode()
            return Reply(
                200,
                {"Content-Type": "application/octet-stream"},
                (content * (size // len(content) + 1))[:size],
            )
        prompt = str(job.input.get("prompt", "")) + (f" #{number}" if number != "0" else "")
        picture = png.draw(prompt, *checks.picture_size(job.input))
        return Reply(200, {"Content-Type": "image/png"}, picture)

    # Apps

    def _list_apps(self, _request: Request, team: str | None, _now: float) -> Reply:
        self._advance()
        apps = [app for app in self._apps.values() if app.owner_team_id == team]
        return _reply(200, [answers.app_answer(app) for app in apps])

    def _get_app(self, request: Request, team: str | None, now: float) -> Reply:
        return _reply(200, answers.app_answer(self._app(request, team, now)))

    def _create_app(self, request: Request, team: str | None, now: float) -> Reply:
        body = request.object()
        checks.check_new_app(body)
        workflow, configuration = body["workflow"], body["configuration"]
        kind = "flux" if "flux" in workflow["model_url"].lower() else "text"
        app = self.add_app(
            str(uuid.uuid4()),
            name=body["name"],
            kind=kind,
            owner_team_id=team,
            model_url=workflow["model_url"],
            tools=workflow.get("tools"),
        )
        app.description = body.get("description", "")
        app.gpu_tier, app.location = configuration["gpu_tier"], configuration.get("location")
        app.scale(int(configuration.get("active_workers", 0)), now, self.init_seconds)
        return _reply(201, answers.new_app_answer(app))

    def _update_app(self, request: Request, team: str | None, now: float) -> Reply:
        app = self._app(request, team, now)
        body = request.object()
        checks.check_update(app, body)
        configuration = body.get("configuration", {})
        app.name, app.description = body.get("name", app.name), body.get("description", app.description)
        app.gpu_tier = configuration.get("gpu_tier", app.gpu_tier)
        app.location = configuration.get("location", app.location)
        app.tools = body.get("workflow", {}).get("tools", app.tools)
        app.updated = now
        if "active_workers" in configuration:
            self.scale(app.id, int(configuration["active_workers"]))
        return _reply(200, answers.app_answer(app))

    def _delete_app(self, request: Request, team: str | None, now: float) -> Reply:
        app = self._app(request, team, now)
        if app.active_workers:
            raise Refusal(409, "the app has active workers: scale to 0 workers first")
        self._past_bills[app.id] = self._past_bills.get(app.id, 0.0) + app.worker_seconds(now)
        del self._apps[app.id]
        return Reply(204)

    # Helpers

    def _app(self, request: Request, team: str | None, now: float) -> App:
        app = self._apps.get(request.segments[1])
        if app is None or app.owner_team_id != team:
            raise Refusal(404, "no such app")
        app.advance(now)
        return app

    def _job(self, request: Request, app: App) -> Job:
        job = self._jobs.get(request.segments[3])
        if job is None or job.app_id != app.id:
            raise Refusal(404, "no such job for that app")
        return job

    def _advance(self) -> float:
        now = self.clock()
        for app in self._apps.values():
            app.advance(now)
        return now


def _reply(status: int, answer: Any) -> Reply:
    return json_reply(status, {"data": answer})
