"""``/_emulator/…``: inspect and control the service from another process."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.emulator.faults import Fault
from airflow_provider_rungen.emulator.messages import Refusal, Reply, Request, error_reply, json_reply

if TYPE_CHECKING:
    from airflow_provider_rungen.emulator.service import Service


def answer(service: Service, request: Request) -> Reply:
    """Answer a control request. It needs no key and is not logged; a wrong body is answered with 400."""
    try:
        return json_reply(200, _perform(service, request))
    except Refusal as refusal:
        return error_reply(refusal.status, str(refusal))
    except (KeyError, TypeError, ValueError) as error:
        return error_reply(400, f"{type(error).__name__}: {error}")


def _perform(service: Service, request: Request) -> Any:
    match (request.method, *request.segments[1:]):
        case ("GET", "stats"):
            return service.stats()
        case ("GET", "requests"):
            return [{**asdict(r), "body": r.body.decode("utf-8", "replace")} for r in service.records()]
        case ("GET", "jobs"):
            return service.jobs()
        case ("POST", "faults"):
            service.inject(Fault(**request.object(any_type=True)))
        case ("DELETE", "faults"):
            service.clear_faults()
        case ("POST", "reset"):
            service.reset()
        case ("POST", "options"):
            service.configure(request.object(any_type=True))
        case ("POST", "workers"):
            body = request.object(any_type=True)
            service.scale(body["app_id"], int(body["workers"]))
        case _:
            raise Refusal(404, "no such control")
    return {}
