"""The service without sockets: it authorizes requests, applies faults, and logs both."""

from __future__ import annotations

import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rungen_emulator.apps import State
from rungen_emulator.faults import Fault
from rungen_emulator.messages import Refusal, Reply, Request, json_reply
from rungen_emulator.operations import Operations, options

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
    """
    The emulated service. It is thread-safe.

    Its options can be changed by assignment while it runs.
    """

    # Called by tests.

    def reset(self) -> None:
        """
        Begin again as a new service: options, apps, jobs, faults, counts and the request log.

        Clients may stay connected. The clock goes on.
        """
        with self._lock:
            super().reset()
            self.requests: deque[Record] = deque(maxlen=200_000)
            self._operations: Counter[str] = Counter()
            self.clear_faults()

    def inject(self, fault: Fault) -> None:
        """Add a fault. It applies after the earlier ones."""
        with self._lock:
            self._faults.append((fault, itertools.count()))

    def clear_faults(self) -> None:
        """Remove all faults."""
        with self._lock:
            # with the number of requests that each has matched
            self._faults: list[tuple[Fault, Iterator[int]]] = []

    def configure(self, changes: Mapping[str, Any]) -> None:
        """
        Change options by name.

        :raises ValueError: an option is unknown.
        """
        if unknown := sorted(set(changes) - {option.name for option in options()}):
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
        shown = ("id", "app_id", "input", "created", "started", "finished")
        with self._lock:
            self._advance()
            return [
                {"status": job.state.value, **{name: getattr(job, name) for name in shown}}
                for job in self._jobs.values()
            ]

    def stats(self) -> dict[str, Any]:
        """Return counts of jobs and requests, and the bill."""
        with self._lock:
            now = self._advance()
            states = Counter(job.state for job in self._jobs.values())
            bills = self._past_bills.copy()
            for app in self._apps.values():
                bills[app.id] += app.worker_seconds(now)
            return {
                "jobs_created": len(self._jobs),
                "jobs_completed": states[State.COMPLETED],
                "jobs_failed": states[State.FAILED],
                "jobs_cancelled": states[State.CANCELED],
                "requests": dict(self._operations),
                "duplicate_inputs": len(self._jobs) - len(self._inputs),
                "worker_seconds": dict(bills),
                "active_workers": {app.id: app.active_workers for app in self._apps.values()},
            }

    # Called by the HTTP layer.

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """
        Answer a request.

        :param path: the path as sent, with its query string.
        """
        lower = {name.lower(): text for name, text in headers.items()}
        request = Request(method.upper(), path, lower, body)
        if request.segments[0] == "_emulator":
            return self._control(request)
        with self._lock:
            now = self.now()
            operation = _methods(request).get(request.method, "unknown")
            self._operations[operation] += 1
            fault = self._take_fault(operation, request)
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

    def _take_fault(self, operation: str, request: Request) -> Fault | None:
        """Return the first fault that applies to a request."""
        place = {"get": 3, "cancel": 3, "output": 1}.get(operation)
        job_id = None if place is None else request.segments[place]
        for fault, matched in self._faults:
            if fault.matches(operation, job_id):
                used = next(matched) - fault.skip
                if used >= 0 and (fault.times is None or used < fault.times):
                    return fault
        return None

    def _perform(self, operation: str, request: Request, now: float) -> Reply:
        try:
            if operation == "output":
                return self._output(request, now)
            team = self._authorize(request)
            if operation == "unknown":
                raise Refusal(404, "no such operation")
            perform: Callable[[Request, str | None, float], Reply] = getattr(self, f"_{operation}")
            return perform(request, team, now)
        except Refusal as refusal:
            return refusal.reply

    def _authorize(self, request: Request) -> str | None:
        if request.headers.get("x-api-key") != self.api_key:
            raise Refusal(403, "the API key is missing or wrong")
        team = request.headers.get("x-team-id")
        if team is not None and self.teams is not None and team not in self.teams:
            raise Refusal(403, "the API key may not be used for this team")
        return team

    def _control(self, request: Request) -> Reply:
        """Answer a control request. It needs no key and is not logged; a wrong body is answered with 400."""

        def body() -> dict[str, Any]:
            return dict(json.loads(request.body))

        def records() -> list[dict[str, Any]]:
            return [{**asdict(each), "body": each.body.decode("utf-8", "replace")} for each in self.records()]

        actions: dict[tuple[str, ...], Callable[[], Any]] = {
            ("GET", "stats"): self.stats,
            ("GET", "requests"): records,
            ("GET", "jobs"): self.jobs,
            ("POST", "faults"): lambda: self.inject(Fault(**body())),
            ("DELETE", "faults"): self.clear_faults,
            ("POST", "reset"): self.reset,
            ("POST", "options"): lambda: self.configure(body()),
            ("POST", "workers"): lambda: self.scale(**body()),
        }
        action = actions.get((request.method, *request.segments[1:]))
        if action is None:
            return Refusal(404, "no such control").reply
        try:
            answer = action()
            return json_reply(200, {} if answer is None else answer)
        except (KeyError, TypeError, ValueError) as error:
            return Refusal(400, f"{type(error).__name__}: {error}").reply


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
