"""The service without sockets: it authorizes requests, applies faults, and logs both."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from airflow_provider_rungen.emulator import control
from airflow_provider_rungen.emulator.apps import State
from airflow_provider_rungen.emulator.faults import Fault, Faults
from airflow_provider_rungen.emulator.messages import Refusal, Reply, Request, error_reply, json_reply
from airflow_provider_rungen.emulator.operations import Operations
from airflow_provider_rungen.emulator.options import Options

_LOGGED_BODY = 4096


@dataclass(frozen=True)
class Record:
    """
    One request as it arrived.

    :param status: the status of its answer; 0 if there was none.
    :param fault: the kind of the fault that applied to it.
    :param retry_after: what its answer asked for.
    """

    time: float
    operation: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int
    fault: str | None
    retry_after: str | None


@dataclass(kw_only=True, eq=False)
class Service(Operations):
    """The state and the rules of the emulated service. It is thread-safe."""

    def __post_init__(self) -> None:
        self.connections_open = 0
        super().__post_init__()

    # Called by tests.

    def reset(self) -> None:
        """
        Begin again as a new service: options, apps, jobs, faults, counts and the request log.

        Clients may stay connected. The clock goes on.
        """
        with self._lock:
            super().reset()
            self.requests: deque[Record] = deque(maxlen=200_000)
            self.connections_opened, self.max_open_connections = 0, self.connections_open
            self._faults = Faults()
            self._operations: Counter[str] = Counter()

    def inject(self, fault: Fault) -> None:
        """Add a fault. It applies after the earlier ones."""
        with self._lock:
            self._faults.inject(fault)

    def clear_faults(self) -> None:
        with self._lock:
            self._faults.clear()

    def expire_urls(self) -> None:
        """Expire all URLs of outputs that were returned until now."""
        with self._lock:
            self._signer.expire_all()

    def configure(self, changes: Mapping[str, Any]) -> None:
        """
        Change options by name.

        :raises ValueError: an option is unknown.
        """
        known = {option.name for option in fields(Options)}
        if unknown := sorted(set(changes) - known):
            raise ValueError(f"no such option: {', '.join(unknown)}")
        with self._lock:
            for name, value in changes.items():
                setattr(self, name, value)

    def count(self, operation: str) -> int:
        """Return how many requests for an operation have arrived."""
        with self._lock:
            return self._operations[operation]

    def records(self) -> list[Record]:
        """Return a copy of the request log, which does not change while requests arrive."""
        with self._lock:
            return list(self.requests)

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs in the order of their creation."""
        with self._lock:
            self._advance()
            return [
                {
                    "id": job.id,
                    "app_id": job.app_id,
                    "status": job.state.value,
                    "input": job.input,
                    "created": job.created,
                    "started": job.started,
                    "finished": job.finished,
                }
                for job in self._jobs.values()
            ]

    def stats(self) -> dict[str, Any]:
        """Return counts of jobs, requests, connections and mistakes of clients, and the bill."""
        with self._lock:
            now = self._advance()
            states = Counter(job.state for job in self._jobs.values())
            bills = dict(self._past_bills)
            for app in self._apps.values():
                bills[app.id] = bills.get(app.id, 0.0) + app.worker_seconds(now)
            return {
                "jobs_created": len(self._jobs),
                "jobs_completed": states[State.COMPLETED],
                "jobs_failed": states[State.FAILED],
                "jobs_cancelled": states[State.CANCELED],
                "cancels_received": self._operations["cancel"],
                "requests": dict(self._operations),
                "duplicate_inputs": self._counts["duplicate_inputs"],
                "worker_seconds": bills,
                "active_workers": {app.id: app.active_workers for app in self._apps.values()},
                "connections_opened": self.connections_opened,
                "max_open_connections": self.max_open_connections,
            }

    def connection(self, change: int) -> None:
        """Count a connection that was opened (+1) or closed (-1)."""
        with self._lock:
            # A connection may have been opened while another service was served.
            self.connections_open = max(0, self.connections_open + change)
            self.connections_opened += max(0, change)
            self.max_open_connections = max(self.max_open_connections, self.connections_open)

    # Called by the HTTP layer.

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """
        Answer a request.

        :param path: the path as sent, with its query string.
        """
        request = Request.parse(method, path, headers, body)
        if request.segments[:1] == ("_emulator",):
            return control.answer(self, request)
        with self._lock:
            now = self.clock()
            operation = _operation(request)
            self._operations[operation] += 1
            fault = self._faults.take(operation, _job_id(operation, request))
            performed = fault is None or fault.performs
            reply = self._perform(operation, request, now) if performed else json_reply(200, {})
            if fault is not None:
                reply = fault.apply(reply)
            self.requests.append(
                Record(
                    time=now,
                    operation=operation,
                    method=method,
                    path=path,
                    headers=request.headers,
                    body=body[:_LOGGED_BODY],
                    status=reply.status if performed or reply.send is None else 0,
                    fault=None if fault is None else fault.kind,
                    retry_after=reply.headers.get("Retry-After"),
                )
            )
            return reply

    def _perform(self, operation: str, request: Request, now: float) -> Reply:
        try:
            if operation == "output":
                return self._output(request, now)
            team = self._authorize(request)
            if operation == "unknown":
                raise _no_operation(request)
            perform: Callable[[Request, str | None, float], Reply] = getattr(self, f"_{operation}")
            return perform(request, team, now)
        except Refusal as refusal:
            return error_reply(refusal.status, str(refusal), refusal.headers)

    def _authorize(self, request: Request) -> str | None:
        if request.headers.get("x-api-key") != self.api_key:
            raise Refusal(403, "the API key is missing or wrong")
        team = request.headers.get("x-team-id")
        if team is not None and self.teams is not None and team not in self.teams:
            raise Refusal(403, "the API key may not be used for this team")
        return team


def _methods(request: Request) -> dict[str, str]:
    """Return the operations on this path, by their HTTP method."""
    match request.segments:
        case ("app",):
            return {"GET": "list_apps", "POST": "create_app"}
        case ("app", _):
            return {"GET": "get_app", "PUT": "update_app", "DELETE": "delete_app"}
        case ("app", _, "run_async"):
            return {"POST": "run"}
        case ("app", _, "job", _):
            return {"GET": "get", "PUT": "cancel"}
        case ("outputs", _, _):
            return {"GET": "output"}
    return {}


def _operation(request: Request) -> str:
    return _methods(request).get(request.method, "unknown")


def _no_operation(request: Request) -> Refusal:
    if methods := _methods(request):
        return Refusal(405, f"{request.method} is not allowed here", Allow=", ".join(methods))
    return Refusal(404, "no such path")


def _job_id(operation: str, request: Request) -> str | None:
    place = {"get": 3, "cancel": 3, "output": 1}.get(operation)
    return None if place is None else request.segments[place]
