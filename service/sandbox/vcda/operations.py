"""The operations of a simulated VCDA: applies a parsed call to the world, and returns the reply."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from service.sandbox.vcda import logins as vcda_logins
from service.sandbox.vcda import shapes as vcda_shapes
from service.sandbox.vcda.requests import Call
from service.sandbox.vcda.world import ApiError, Session, World

ABOUT = {
    "buildDate": 1673427938059,
    "buildVersion": "4.7.0.5431581-59ae61a850",
    "instanceId": "ece0a1a2-3d8a-464c-9b6d-5ff31f83f670",
    "productName": "VMware Cloud Director Availability",
    "serviceType": "CLOUD",
}


class Reply(NamedTuple):
    """An answer before it is put on the wire."""

    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str] = {}


def perform(world: World, call: Call) -> Reply:
    """Do what was asked. Raises ApiError where VCDA would refuse."""
    if call.operation == "login":
        session = vcda_logins.log_in(world, call.body)
        return _session(world, session, call)._replace(headers={"X-VCAV-Auth": session.token})
    if call.operation == "guide":
        return Reply(200, b"<html><title>API guide</title></html>", "text/html;charset=UTF-8")
    return OPERATIONS[call.operation](world, world.session(call.token), call)


def replications_of(world: World, call: Call) -> set[str]:
    """Return which replications a call speaks of, by their own ids or by those of their tasks."""
    match call.operation:
        case "submit" | "replication":
            return {call.target}
        case "find":
            return {call.asked["resourceId"]} if "resourceId" in call.asked else set()
        case "poll" | "ask":
            ids = call.asked["ids"].split(",") if call.operation == "poll" else [call.target]
            return {task.replication_id for id_ in ids if (task := world.tasks.get(id_)) is not None}
        case _:
            return set()


def refusal(error: ApiError, *, content_type: str) -> Reply:
    """Return an error in VCDA's format."""
    return Reply(error.status, vcda_shapes.error_body(error), content_type, error.headers)


def _submit(world: World, session: Session, call: Call) -> Reply:
    task = world.submit(
        session, replication_id=call.target, site=call.asked.get("site"), operation_id=call.operation_id
    )
    return _json(vcda_shapes.task_details(world, task, now=task.created), call)._replace(status=202)


def _find(world: World, session: Session, call: Call) -> Reply:
    where, user = world.at(session, call.asked.get("site"))
    return _json(vcda_shapes.task_page(world, where, user, call.asked), call)


def _ask(world: World, session: Session, call: Call) -> Reply:
    where, user = world.at(session, call.asked.get("site"))
    task = world.tasks.get(call.target)
    if task is None or not world.visible(task, where, user):
        raise ApiError(404, "TaskNotFound", f"Task {call.target} not found.", words=(call.target,))
    return _json(vcda_shapes.task_details(world, task, now=world.now()), call)


def _replication(world: World, session: Session, call: Call) -> Reply:
    where, _ = world.at(session, call.asked.get("site"))
    replication = world.replication(call.target, where.name)
    return _json(vcda_shapes.replication_details(world, replication), call)


def _extend(world: World, session: Session, call: Call) -> Reply:
    return _session(world, vcda_logins.extend(world, session, call.body), call)


def _shrink(world: World, session: Session, call: Call) -> Reply:
    return _session(world, vcda_logins.shrink(session, call.target), call)


def _logout(world: World, session: Session, call: Call) -> Reply:
    del world.sessions[session.token]
    return Reply(204, b"", call.usual)


def _about(_: World, __: Session, call: Call) -> Reply:
    return _json(ABOUT, call)


def _session(world: World, session: Session, call: Call) -> Reply:
    return _json(vcda_shapes.session_details(world, session), call)


OPERATIONS: Mapping[str, Callable[[World, Session, Call], Reply]] = {
    "submit": _submit,
    "poll": _find,
    "find": _find,
    "ask": _ask,
    "replication": _replication,
    "extend": _extend,
    "shrink": _shrink,
    "session": _session,
    "logout": _logout,
    "about": _about,
}


def _json(value: Mapping[str, Any], call: Call) -> Reply:
    return Reply(200, json.dumps(value, separators=(",", ":")).encode(), call.usual)
