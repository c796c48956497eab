"""The JSON that a simulated VCDA answers with, in the documentation's shapes, and the filters of GET /tasks.

The answers contain values that a careless client would leak (passwords of guest customization, stack traces) and values
that a strict client may reject (undocumented fields, nulls, -1 for a moment).
"""

import bisect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from service.sandbox.vcda.world import ApiError, Replication, Session, Site, Task, User, World, bad_input

PAGE = 100
"""The documented default and maximum of `limit`."""

TASK_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

STATES = frozenset({"RUNNING", "SUCCEEDED", "FAILED"})
"""The documented values of the filter; tasks themselves may also be QUEUED."""


def error_body(error: ApiError) -> bytes:
    """Write an ApiError as Jackson prints it: a space on either side of the colon, and inside an empty list."""
    words = "[ " + ", ".join(map(json.dumps, error.words)) + " ]" if error.words else "[ ]"
    return (
        f'{{\n  "code" : {json.dumps(error.code)},\n  "msg" : {json.dumps(error.msg)},\n'
        f'  "args" : {words},\n  "stacktrace" : null\n}}'
    ).encode()


def session_details(world: World, session: Session) -> dict[str, Any]:
    """Show a session: C4SessionDetails."""
    sites = world.extended(session)
    return {
        "user": session.user.spelled or session.user.name,
        "roles": session.user.roles,
        "authenticatedSites": [{"site": site, "org": user.org} for site, user in sites.items()],
    }


def task_details(world: World, task: Task, *, now: float) -> dict[str, Any]:
    """Show a task: C4ApiTask_of_SingleVmReplicationInfo."""
    ended = now >= task.ends
    succeeded = ended and not task.fails
    replication = world.replications[task.replication_id]
    updated = task.start_time if now < task.runs else task.moment(min(now, task.ends))
    details: dict[str, Any] = {
        "id": task.id,
        "user": task.shown_user,
        "workflowInfo": {
            "type": task.type,
            "resourceType": "vmReplication",
            "resourceId": task.shown_resource,
            "resourceName": f"VM-{replication.number:03}" if replication.number % 7 else None,
        },
        "progress": task.progress(now),
        "state": task.state(now),
        "lastUpdated": updated if task.number % 5 else -1,
        "startTime": task.start_time,
        "endTime": task.moment(task.ends) if ended else -1,
        "resultType": "SingleVmReplicationInfo" if succeeded else None,
        "result": replication_details(world, replication, at=task) if succeeded else None,
        "error": _error(task) if ended and task.fails else None,
        "warnings": [_warning(task)] if task.warnings and now >= task.runs else [],
        "site": task.site,
    }
    if world.config.extra_fields:
        details["isInternal"] = False
        details["origin"] = {"node": "cloud-1", "parents": [], "attributes": {"RUNNING": None}}
    return details


def _error(task: Task) -> dict[str, Any]:
    msg = f"Sync of {task.replication_id} failed: the replicator is out of space."
    trace = f"com.vmware.h4.api.error.exceptions.ReplicationException: {msg}\n\tat S3cret-in-the-stack(Sync.java:42)\n"
    return {"code": task.plan.code, "msg": msg, "args": [task.replication_id], "stacktrace": trace * 20}


def _warning(task: Task) -> dict[str, Any]:
    return {
        "code": "QuiesceFailed",
        "msg": "The virtual machine could not be quiesced.",
        "args": [task.replication_id],
        "stacktrace": "com.vmware.h4.api.error.exceptions.QuiesceException: S3cret-in-the-stack",
    }


def replication_details(world: World, replication: Replication, *, at: Task | None = None) -> dict[str, Any]:
    """Show a replication: SingleVmReplicationInfo, as it was at the end of a task, or now."""
    now = world.now()
    if at is None:
        done = [task for task in replication.tasks if not task.fails and task.ends <= now]
        at = max(done, key=lambda task: task.sequence, default=None)
    running = any(task.runs <= now < task.ends for task in replication.tasks)
    instance = None
    if at is not None:
        instance = {
            "isPinned": False,
            "key": f"replica-{at.id}",
            "quiescedType": "fileSystemQuiesced",
            "sequenceNumber": at.sequence,
            "timestamp": at.moment(at.ends),
            "transferBytes": 4096 * (at.number % 1000 + 1),
            "transferSeconds": int(at.ends - at.runs),
        }
    return {
        "id": replication.id,
        "owner": f"org1@{world.config.local_site}",
        "vmName": f"VM-{replication.number:03}",
        "isPaused": False,
        "isMigration": False,
        "metadata": {},
        "overallHealth": "GREEN",
        "dataConnectionState": "SYNCING" if running else "OK",
        "settings": {"rpo": 60, "dataConnectionType": "ENCRYPTED_COMPRESSED", "quiesced": True, "description": None},
        "destinationState": {
            "currentRpoViolation": 0,
            "lastError": None,
            "latestInstance": instance,
            "recoveryInfo": {"recoveryState": "NOT_STARTED", "vAppId": None, "vcdVmId": None},
            "spaceRequirement": 512000,
            "state": "opened",
            "stateAge": 0,
        },
        "guestCustomization": {
            "adminPassword": "S3cret-of-the-administrator",
            "domainUserName": "joiner",
            "domainUserPassword": "S3cret-of-the-domain",
            "script": "echo S3cret-in-the-script",
        },
        "source": {"vappName": "vApp1"},
        "destination": {"org": "org2", "recoveredVappId": None, "site": replication.site, "vdcName": "Virtual DC 2"},
        "vappReplicationId": "C4VAPP-ccbe771e-b685-46c7-8c7a-4ed36915d963",
    }


# ---------------------------------------------------------------- GET /tasks


def whole_number(asked: Mapping[str, str], name: str, *, least: int | None = None) -> int | None:
    """Read a parameter that is a whole number; None where it isn't given."""
    text = asked.get(name)
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or not text.lstrip("-").isdecimal() or (least is not None and number < least):
        msg = f"{name} is not valid: {text[:50]}"
        raise bad_input(msg, name)
    return number


def task_page(world: World, where: Site, user: User, asked: Mapping[str, str]) -> dict[str, Any]:
    """Answer GET /tasks: {items, total, offset, limit}."""
    _only_for_administrators(user, asked)
    limit = min(whole_number(asked, "limit", least=1) or PAGE, PAGE)
    offset = whole_number(asked, "offset", least=0) or 0
    now = world.now()
    found = [task for task in _candidates(world, where, asked) if world.visible(task, where, user)]
    if "ids" not in asked:
        found = [task for task in found if task.refused or now >= task.created + task.plan.listed_after]
    for keep in _conditions(world, asked, now=now):
        found = list(filter(keep, found))
    page = _sorted(found, asked.get("sort"), now=now)[offset : offset + limit]
    return {
        "items": [task_details(world, task, now=now) for task in page],
        "total": len(found),
        "offset": offset,
        "limit": limit,
    }


def _only_for_administrators(user: User, asked: Mapping[str, str]) -> None:
    if not user.administrator and asked.keys() & {"user", "destinationOrg"}:
        raise ApiError(403, "Forbidden", "Permission denied.")
    if asked.keys() >= {"user", "destinationOrg"}:
        msg = "destinationOrg excludes user."
        raise bad_input(msg, "destinationOrg")


def _candidates(world: World, where: Site, asked: Mapping[str, str]) -> list[Task]:
    """Pick a superset by the cheapest filter given, in the order of their start."""
    if "ids" in asked:
        ids = asked["ids"].split(",")
        if not all(map(TASK_ID.fullmatch, ids)):
            msg = "ids are not valid."
            raise bad_input(msg, "ids")
        known = [world.tasks.get(id_) for id_ in dict.fromkeys(ids)]
        return [task for task in known if task is not None]
    if "resourceId" in asked:
        replication = world.replications.get(asked["resourceId"])
        return replication.tasks if replication else []
    after = whole_number(asked, "startTimeAfter")
    if after is None:
        return where.tasks
    return where.tasks[bisect.bisect_right(where.tasks, after, key=lambda task: task.start_time) :]


def _conditions(world: World, asked: Mapping[str, str], *, now: float) -> list[Callable[[Task], bool]]:
    conditions: list[Callable[[Task], bool]] = []
    state = asked.get("state")
    if state is not None:
        if state not in STATES:
            msg = f"state is not valid: {state[:50]}"
            raise bad_input(msg, "state")
        conditions.append(lambda task: task.state(now) == state)
    texts: dict[str, Callable[[Task], str | None]] = {
        "user": lambda task: task.shown_user,
        "sourceOrg": lambda task: task.user.org,
        "destinationOrg": lambda task: task.user.org,
        "type": lambda task: task.type,
        "resourceId": lambda task: task.shown_resource,
        "resourceName": lambda task: task_details(world, task, now=now)["workflowInfo"]["resourceName"],
    }
    for name, read in texts.items():
        if name in asked:
            conditions.append(lambda task, read=read, wanted=asked[name]: read(task) == wanted)  # type: ignore[misc]
    if "resourceType" in asked and "vmReplication" not in asked["resourceType"].split(","):
        conditions.append(lambda _: False)
    if (before := whole_number(asked, "startTimeBefore")) is not None:
        conditions.append(lambda task: task.start_time < before)
    if (after := whole_number(asked, "startTimeAfter")) is not None:
        conditions.append(lambda task: task.start_time > after)
    if (end_before := whole_number(asked, "endTimeBefore")) is not None:
        conditions.append(lambda task: now >= task.ends and task.moment(task.ends) < end_before)
    if (end_after := whole_number(asked, "endTimeAfter")) is not None:
        conditions.append(lambda task: now >= task.ends and task.moment(task.ends) > end_after)
    return conditions


def _sorted(tasks: list[Task], wanted: str | None, *, now: float) -> list[Task]:
    if wanted is None:
        return sorted(tasks, key=lambda task: -task.start_time)
    keys: dict[str, Callable[[Task], Any]] = {
        "id": lambda task: task.id,
        "user": lambda task: task.shown_user or "",
        "progress": lambda task: task.progress(now),
        "state": lambda task: task.state(now),
        "lastUpdated": lambda task: min(now, task.ends),
        "startTime": lambda task: task.start_time,
        "endTime": lambda task: task.moment(task.ends) if now >= task.ends else -1,
        "resultType": lambda task: now >= task.ends and not task.fails,
        "site": lambda task: task.site,
    }
    for name in reversed([name.strip() for name in wanted.split(",")]):
        key = keys.get(name.removesuffix("-"))
        if key is None:
            msg = f"sort is not valid: {name[:50]}"
            raise bad_input(msg, "sort")
        tasks = sorted(tasks, key=key, reverse=name.endswith("-"))
    return tasks
