"""Checks logins and session extensions at a simulated VCDA: the documented bodies, field by field.

The two operations spell the same things differently (`vcdUser` and `vcdUsername`, `vcdCookie` and `cookie`), which
has misled several clients. A field that the documentation doesn't name is refused.
"""

import json
from collections.abc import Iterable, Mapping

from service.sandbox.vcda.world import (
    ApiError,
    Session,
    User,
    World,
    bad_input,
    not_authenticated,
    remote_authentication_failure,
)

LOGINS: Mapping[str, frozenset[str]] = {
    "ssoCredentials": frozenset({"username", "password"}),
    "ssoToken": frozenset({"samlToken", "timestamp", "nonce", "signature"}),
    "vcdCredentials": frozenset({"vcdUser", "vcdPassword"}),
    "vcdCookie": frozenset({"vcdCookie"}),
    "vcdAccessToken": frozenset({"vcdAccessToken", "context"}),
    "localUser": frozenset({"localUser", "localPassword"}),
}

EXTENSIONS: Mapping[str, frozenset[str]] = {
    "credentials": frozenset({"site", "vcdUsername", "vcdPassword"}),
    "cookie": frozenset({"site", "cookie"}),
    "vcdAccessToken": frozenset({"site", "vcdAccessToken"}),
    "multisite": frozenset({"site", "org"}),
}


def _fields(body: bytes, variants: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Read a body of exactly one of the variants; `principal` may come with the two kinds of SSO."""
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ApiError(400, "BadRequest", "The body is not a JSON object.")
    wanted = variants.get(str(fields.get("type")))
    if wanted is None:
        msg = f"type is one of {', '.join(variants)}."
        raise bad_input(msg, "type")
    if str(fields["type"]).startswith("sso"):
        fields.pop("principal", None)
    if fields.keys() != wanted | {"type"}:
        wrong = sorted(fields.keys() ^ (wanted | {"type"}))
        msg = f"Missing or unknown for {fields['type']}: {', '.join(wrong)}."
        raise bad_input(msg, *wrong)
    for name, value in fields.items():
        if not isinstance(value, int if name == "timestamp" else str):
            msg = f"{name} is of the wrong type."
            raise bad_input(msg, name)
    return fields


def log_in(world: World, body: bytes) -> Session:
    """POST /sessions."""
    fields = _fields(body, LOGINS)
    users = world.sites[world.config.local_site].users
    match fields["type"]:
        case "localUser":
            user = _by_password(users, fields["localUser"], fields["localPassword"], kind="local")
        case "vcdCredentials":
            user = _by_password(users, fields["vcdUser"], fields["vcdPassword"], kind="vcd")
        case "ssoCredentials":
            user = _by_password(users, fields["username"], fields["password"], kind="sso")
        case "ssoToken":
            user = _by_token(users.values(), fields["samlToken"])
        case "vcdCookie":
            user = _by_token(users.values(), fields["vcdCookie"])
        case _:
            user = _by_token(users.values(), fields["vcdAccessToken"], org=fields["context"])
    if user is None:
        raise not_authenticated(session_gone=False)
    return world.login(user)


def extend(world: World, session: Session, body: bytes) -> Session:
    """POST /sessions/extend."""
    fields = _fields(body, EXTENSIONS)
    site = fields["site"]
    if site == world.config.local_site:
        msg = f"{site} is the local site."
        raise bad_input(msg, site)
    if site not in world.sites:
        raise ApiError(404, "SiteNotFound", f"Site {site} not found.", words=(site,))
    users = world.sites[site].users
    match fields["type"]:
        case "credentials":
            user = _by_password(users, fields["vcdUsername"], fields["vcdPassword"], kind="vcd")
        case "cookie":
            user = _by_token(users.values(), fields["cookie"])
        case "vcdAccessToken":
            user = _by_token(users.values(), fields["vcdAccessToken"])
        case _:
            user = users.get(session.user.name)
            user = user if user is not None and user.org == fields["org"] else None
    if user is None:
        raise remote_authentication_failure(site)
    session.sites[site] = (user, world.now())
    return session


def shrink(session: Session, site: str) -> Session:
    """DELETE /sessions/{site}."""
    if session.sites.pop(site, None) is None:
        msg = f"The session is not extended to {site}."
        raise bad_input(msg, site)
    return session


def _by_password(users: Mapping[str, User], name: str, password: str, *, kind: str) -> User | None:
    user = users.get(name)
    return user if user is not None and user.kind == kind and user.password == password else None


def _by_token(users: Iterable[User], token: str, *, org: str | None = None) -> User | None:
    return next((user for user in users if user.token == token and org in {None, user.org}), None)
