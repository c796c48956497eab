"""The credentials of the login and of remote sites, and the bodies of requests made of them. Pure; `repr` hides all."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, assert_never

Body = dict[str, Any]


class CredentialType(StrEnum):
    """The `type` of a login's body, spelled as VCDA spells it."""

    LOCAL_USER = "localUser"
    VCD_CREDENTIALS = "vcdCredentials"
    SSO_CREDENTIALS = "ssoCredentials"
    VCD_ACCESS_TOKEN = "vcdAccessToken"  # noqa: S105 - the name of a kind, not a token


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCredentials:
    """Credentials to extend the session to one remote site: user and password, or a token."""

    name: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse what could never extend a session.

        Raises:
            ValueError: neither a token nor a user and a password.
        """
        if self.token is None and (self.user is None or self.password is None):
            msg = f"the credentials of site {self.name!r} need a token, or a user and a password"
            raise ValueError(msg)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return what nobody but VCDA may see."""
        return tuple(secret for secret in (self.password, self.token) if secret is not None)

    @property
    def account(self) -> str:
        """Return the user at the site. The user of a token is unknown, so all tokens count as the same user's."""
        return self.user or "(token)"

    def extend_body(self) -> Body:
        """Return the body of `POST /sessions/extend`. Its field names differ from the login's."""
        if self.token is not None:
            return {"type": "vcdAccessToken", "site": self.name, "vcdAccessToken": self.token}
        return {"type": "credentials", "site": self.name, "vcdUsername": self.user, "vcdPassword": self.password}


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The credentials of the login, and those of the remote sites. `user` is as VCDA wants it: `admin1@org2`."""

    type: CredentialType = CredentialType.VCD_CREDENTIALS
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    org: str | None = None
    """Of the token."""
    sites: tuple[SiteCredentials, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could never log in.

        Raises:
            ValueError: what this type needs is missing.
        """
        if self.type is CredentialType.VCD_ACCESS_TOKEN:
            complete, needs = self.token is not None, "a token"
        else:
            complete, needs = self.user is not None and self.password is not None, "a user and a password"
        if not complete:
            msg = f"credentials of type {self.type} need {needs}"
            raise ValueError(msg)

    def of_site(self, site: str) -> SiteCredentials | None:
        """Return what extends the session to this site, if it is configured."""
        return next((one for one in self.sites if one.name == site), None)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return what nobody but VCDA may see, without the sites' own."""
        return tuple(secret for secret in (self.password, self.token) if secret is not None)

    @property
    def settings(self) -> str:
        """The settings that they come from, for a sentence."""
        fields = ("TOKEN", "ORG") if self.type is CredentialType.VCD_ACCESS_TOKEN else ("USER", "PASSWORD")
        return " and ".join([f"VM_SYNC_VCDA__CREDENTIALS__{field}" for field in fields])

    def login_body(self) -> Body:
        """Return the body of `POST /sessions`."""
        match self.type:
            case CredentialType.LOCAL_USER:
                return {"type": self.type, "localUser": self.user, "localPassword": self.password}
            case CredentialType.VCD_CREDENTIALS:
                return {"type": self.type, "vcdUser": self.user, "vcdPassword": self.password}
            case CredentialType.SSO_CREDENTIALS:
                return {"type": self.type, "username": self.user, "password": self.password, "principal": None}
            case CredentialType.VCD_ACCESS_TOKEN:
                # `context` is the organisation; the system organisation's tokens do without.
                context = {} if self.org is None else {"context": self.org}
                return {"type": self.type, "vcdAccessToken": self.token, **context}
            case _:
                assert_never(self.type)
