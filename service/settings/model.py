"""Every setting: name, meaning, default, the reason for the default, and invalid combinations.

The first paragraph of a setting's docstring is its meaning, the second why its default is what it is; the README's
tables and `vm-sync settings` are made of them. The module validates only the values passed in, and whether named files
exist.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FilePath, PrivateAttr, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

from service.settings.types import (
    Duration,
    Extensions,
    Name,
    Positive,
    Servers,
    Thumbprint,
    TokenUrl,
    Topic,
    Url,
    iso8601,
)

PREFIX: Final = "VM_SYNC_"
BETWEEN: Final = "__"

Origin: TypeAlias = Literal["default", "environment", "file"]


@dataclass(frozen=True, slots=True)
class Given:
    """One value as it was found."""

    text: str
    origin: Origin
    file: Path | None = None


Fault: TypeAlias = tuple[str, str]
"""A field's name, or a path below it as in `sites__0__name`, and what to do about it."""


class InvalidCombination(ValueError):
    """An invalid combination of fields. A ValueError, so that pydantic collects it with other errors."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__(str(faults))
        self.faults = faults


class Part(BaseModel):
    """The base class of the groups of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    def faults(self) -> Iterator[Fault]:
        """Return the invalid combinations of fields."""
        yield from ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if faults := tuple(self.faults()):
            raise InvalidCombination(faults)
        return self


def _numbered(value: object) -> object:
    """Take `{"0": site, "1": site}`, which is how VM_SYNC_VCDA__SITES__0__NAME arrives, as a list."""
    if not isinstance(value, dict):
        return value
    if sorted(value) != sorted(str(number) for number in range(len(value))):
        msg = "number the sites 0, 1, 2 ... without gaps"
        raise ValueError(msg)
    return [value[str(number)] for number in range(len(value))]


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class Topics(Part):
    """The Kafka topics."""

    requests: Topic = "vm-sync.requests"
    """Topic from which requests are read."""
    completed: Topic = "vm-sync.completed"
    """Topic to which the outcomes of completed syncs are published."""
    failed: Topic = "vm-sync.failed"
    """Topic to which the outcomes of failed requests are published; may be the same topic as COMPLETED.

    Two topics, since most consumers need only one of them."""
    dead_letter: Topic = "vm-sync.dead-letter"
    """Topic to which invalid messages are written."""
    journal: Topic = "vm-sync.journal"
    """Topic that holds the service's own state; compacted; private to the service."""
    control: Topic = "vm-sync.control"
    """Topic that holds the operators' site pauses; compacted; one partition; read whole by every instance."""
    progress: Topic | None = None
    """Topic to which the progress of running syncs is published; empty: progress is not published.

    Empty, since most consumers need outcomes only, and `/syncs` shows the progress as well."""

    @override
    def faults(self) -> Iterator[Fault]:
        taken: dict[str, str] = {}
        for field in type(self).model_fields:
            topic = getattr(self, field)
            if topic is None or (field == "failed" and topic == self.completed):
                continue
            if topic in taken:
                yield field, f"name a topic of its own, not that of {taken[topic].upper()}"
            taken[topic] = field


SecurityProtocol: TypeAlias = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism: TypeAlias = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]


class Kafka(Part):
    """The connection to Kafka, and the consumer group."""

    bootstrap_servers: Servers = "localhost:9092"
    """Bootstrap servers, as host:port, comma-separated."""
    group_id: Name = "vm-sync"
    """Consumer group."""
    session_timeout: Annotated[Duration, Field(ge=timedelta(seconds=6), le=timedelta(minutes=30))] = timedelta(
        seconds=10
    )
    """How long a dead member keeps its partitions; at least 6 s.

    Longer than a pause of a second or two, and short enough that a crash delays outcomes only briefly; brokers refuse
    less than 6 s and more than 30 min by default."""
    start_limit: Positive = timedelta(minutes=5)
    """How long to keep trying to reach Kafka at the start.

    Longer than a broker's restart; then exit code 1 makes the failure visible in the orchestrator."""
    create_topics: bool = True
    """Whether to create missing topics.

    The topics need particular settings, and the journal needs as many partitions as the requests topic."""
    partitions: Annotated[int, Field(ge=1, le=10_000)] = 12
    """Number of partitions of created topics.

    12 divides evenly among 1, 2, 3, 4, 6 and 12 processes; adding partitions later moves keys."""
    security_protocol: SecurityProtocol = "PLAINTEXT"
    """Protocol of the brokers' listener.

    A broker's default."""
    sasl_mechanism: SaslMechanism | None = None
    """SASL mechanism; required with SASL_PLAINTEXT and SASL_SSL."""
    sasl_username: str | None = None
    """User name for SASL, except for OAUTHBEARER."""
    sasl_password: SecretStr | None = None
    """Password for SASL, except for OAUTHBEARER."""
    oauth_token_url: TokenUrl | None = None
    """Address of the OAuth token server, for SASL_MECHANISM OAUTHBEARER: tokens come from there by the
    client-credentials flow, or from OAUTH_TOKEN_FILE. Plain http is refused unless the host is loopback."""
    oauth_client_id: Name | None = None
    """Client id at the token server."""
    oauth_client_secret: SecretStr | None = None
    """Client secret at the token server; sent by HTTP Basic authentication."""
    oauth_scope: Name | None = None
    """Scope that is asked for; several are separated by spaces.

    Empty: what the token server gives by default."""
    oauth_ca_file: FilePath | None = None
    """Certificates of the authorities that sign the token server's certificate, PEM; empty: those of the system."""
    oauth_token_file: FilePath | None = None
    """File with a token, read for each login, such as a projected service-account token; instead of
    OAUTH_TOKEN_URL."""
    oauth_extensions: Extensions | None = None
    """SASL extensions that are sent with a token, as name=value, comma-separated; Confluent Cloud wants
    `logicalCluster=lkc-...,identityPoolId=pool-...`."""
    ssl_ca_file: FilePath | None = None
    """Certificates of the authorities that sign the brokers' certificates, PEM; empty: those of the system."""
    ssl_cert_file: FilePath | None = None
    """The service's client certificate, PEM, where brokers require one."""
    ssl_key_file: FilePath | None = None
    """Private key of the client certificate, PEM, not encrypted; empty: the file of SSL_CERT_FILE contains it."""

    @property
    def servers(self) -> list[str]:
        """The brokers one by one; Kafka clients take a string with commas for a single host."""
        return [server.strip() for server in self.bootstrap_servers.split(",")]

    @override
    def faults(self) -> Iterator[Fault]:
        sasl, tls = self.security_protocol.startswith("SASL_"), self.security_protocol.endswith("SSL")
        oauth = self.sasl_mechanism == "OAUTHBEARER"
        for field in ("sasl_mechanism", "sasl_username", "sasl_password"):
            needed = field == "sasl_mechanism" or not oauth
            if sasl and needed and not getattr(self, field):
                yield field, f"required with SECURITY_PROTOCOL {self.security_protocol}"
            if sasl and not needed and getattr(self, field):
                yield field, "unset it: OAUTHBEARER logs in with a token"
            if not sasl and getattr(self, field):
                yield field, f"unset it, or choose a SASL protocol instead of {self.security_protocol}"
        yield from self._oauth_faults() if oauth else self._oauth_is_unused()
        for field in ("ssl_ca_file", "ssl_cert_file", "ssl_key_file"):
            if not tls and getattr(self, field):
                yield field, f"unset it, or choose SSL or SASL_SSL instead of {self.security_protocol}"
        if self.ssl_key_file and not self.ssl_cert_file:
            yield "ssl_cert_file", "required with SSL_KEY_FILE"

    def _oauth_is_unused(self) -> Iterator[Fault]:
        for field in type(self).model_fields:
            if field.startswith("oauth_") and getattr(self, field):
                yield field, "unset it, or set SASL_MECHANISM to OAUTHBEARER"

    def _oauth_faults(self) -> Iterator[Fault]:
        of_server = ("oauth_client_id", "oauth_client_secret", "oauth_scope", "oauth_ca_file")
        if not (self.oauth_token_url or self.oauth_token_file):
            yield "oauth_token_url", "required with SASL_MECHANISM OAUTHBEARER, or else OAUTH_TOKEN_FILE"
        if self.oauth_token_url and self.oauth_token_file:
            yield "oauth_token_file", "give either a token file or OAUTH_TOKEN_URL"
        for field in of_server:
            if self.oauth_token_url and field in of_server[:2] and not getattr(self, field):
                yield field, "required with OAUTH_TOKEN_URL"
            if not self.oauth_token_url and getattr(self, field):
                yield field, "unset it, or give OAUTH_TOKEN_URL"
        if self.oauth_ca_file and self.oauth_token_url and self.oauth_token_url.startswith("http:"):
            yield "oauth_ca_file", "unset it, or write https:// in OAUTH_TOKEN_URL"


CredentialsType: TypeAlias = Literal["localUser", "vcdCredentials", "ssoCredentials", "vcdAccessToken"]


class Credentials(Part):
    """The service's account at VCDA."""

    type: CredentialsType = "vcdCredentials"
    """Kind of credentials, in VCDA's own words.

    Tenants have a Cloud Director account; the other kinds are for providers and for API tokens."""
    user: Name | None = None
    """User name; for vcdCredentials with its organization, as in `admin@org`, or with ORG set. Required except for
    vcdAccessToken."""
    password: SecretStr | None = None
    """Password; required except for vcdAccessToken."""
    token: SecretStr | None = None
    """API token; required for vcdAccessToken."""
    org: Name | None = None
    """Organization; required for vcdAccessToken, and for vcdCredentials unless USER contains it."""

    @override
    def faults(self) -> Iterator[Fault]:
        needed = ("token", "org") if self.type == "vcdAccessToken" else ("user", "password")
        for field in needed:
            if not getattr(self, field):
                yield field, f"required for TYPE {self.type}"
        if self.type == "vcdCredentials" and self.user and "@" not in self.user and not self.org:
            yield "org", "required for TYPE vcdCredentials, unless USER is written as user@organization"

    @property
    def login(self) -> str | None:
        """The user name as VCDA wants it."""
        if self.type == "vcdCredentials" and self.user and self.org and "@" not in self.user:
            return f"{self.user}@{self.org}"
        return self.user


class Site(Part):
    """Credentials to extend the session to a remote site."""

    name: Name
    """The site's name, as requests give it."""
    user: Name | None = None
    """User name there, with its organization, as in `admin@org`."""
    password: SecretStr | None = None
    """Password there."""
    token: SecretStr | None = None
    """API token there, instead of user and password."""

    @override
    def faults(self) -> Iterator[Fault]:
        if self.token and (self.user or self.password):
            yield "token", "give either a token, or user and password"
        for field in ("user", "password"):
            if not self.token and not getattr(self, field):
                yield field, "required, unless the site has a token"


class Vcda(Part):
    """The connection to VMware Cloud Director Availability."""

    url: Url
    """The API's address, `https://host[:port]`; plain http is refused unless the host is loopback."""
    credentials: Credentials
    sites: Annotated[tuple[Site, ...], BeforeValidator(_numbered)] = ()
    """Remote sites and their credentials: a JSON list of `{name, user, password}` or `{name, token}`. Variables such as
    `VM_SYNC_VCDA__SITES__0__NAME` override the list.

    The local site needs no entry: the login is enough."""
    ca_file: FilePath | None = None
    """Certificates of the authority that signs VCDA's certificate, PEM.

    Empty: the system's authorities."""
    thumbprint: Thumbprint | None = None
    """SHA-256 of the certificate of a self-signed appliance, in hexadecimal, instead of CA_FILE. Verification can't be
    switched off.

    Empty: the certificate is verified as usual."""
    request_timeout: Annotated[Duration, Field(ge=timedelta(seconds=1), le=timedelta(minutes=10))] = timedelta(
        seconds=30
    )
    """Time limit of one complete HTTP call.

    Long enough for an answer through several proxies. A POST in doubt waits for it before it can be repeated."""

    @override
    def faults(self) -> Iterator[Fault]:
        if self.ca_file and self.thumbprint:
            yield "thumbprint", "give either a thumbprint or CA_FILE"
        names = [site.name for site in self.sites]
        for number, name in enumerate(names):
            if name in names[:number]:
                yield f"sites__{number}__name", "each site may be named only once"


class Sync(Part):
    """Limits and times of syncs."""

    deadline: Positive = timedelta(hours=6)
    """Time from acceptance after which a request fails as `timed-out` or `not-started`.

    A first sync of a large VM takes hours; a request may set its own deadline."""
    deduplicate_for: Duration = timedelta(hours=24)
    """How long an ended request's identity is remembered.

    Senders that repeat a message usually do so within a day."""
    settle: Duration = timedelta(minutes=1)
    """How long after VCDA__REQUEST_TIMEOUT VCDA may still create the task of a POST in doubt; the POST is not repeated
    earlier.

    Waiting a minute costs less than a second sync."""
    lost_after: Duration = timedelta(minutes=10)
    """How long VCDA must answer without a task, or with 404, before the task counts as lost.

    Longer than an appliance's restart."""
    max_in_flight: Annotated[int, Field(ge=1)] = 50_000
    """Maximum number of requests without an outcome per process; at this number, reading the requests topic pauses.

    A journal with this many requests is restored within seconds."""
    max_concurrent_submits: Annotated[int, Field(ge=1)] = 16
    """Maximum number of POSTs at once, per site and process.

    Enough to work off a backlog without slowing down other users of the same appliance."""
    max_running: Annotated[int, Field(ge=0)] = 200
    """Maximum number of syncs running at VCDA at once, per site and process; at this number, requests wait; 0 = no
    limit.

    Other users' syncs share the appliance; raise the limit once you know the appliance's capacity."""
    poll_min: Positive = timedelta(seconds=1)
    """Shortest polling interval.

    The end of a short sync is noticed within a second; a batch of up to 100 tasks costs one call."""
    poll_max: Positive = timedelta(minutes=1)
    """Longest polling interval.

    The end of a long sync is noticed with at most this delay."""

    @override
    def faults(self) -> Iterator[Fault]:
        if self.poll_min > self.poll_max:
            yield "poll_min", f"at most POLL_MAX, which is {iso8601(self.poll_max)}"


class Ops(Part):
    """The operations server and the shutdown."""

    host: Name = "0.0.0.0"  # noqa: S104 - probes and Prometheus come from outside of the container
    """Address that the operations server listens on.

    All addresses, since probes and Prometheus come from outside the container."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """Port that the operations server listens on; 0 picks a free one and logs it."""
    drain_limit: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(seconds=25)
    """Time limit of a clean shutdown.

    Shorter than Kubernetes' grace period of 30 s."""


class Log(Part):
    """Logs."""

    format: Literal["json", "text"] = "json"
    """Format of the log on standard error: `json` for log collectors, `text` for people.

    Most logs are read by log collectors."""
    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = "INFO"
    """Lowest level that is logged.

    INFO logs a line for each outcome and none for a poll."""


CONFIG: Final = SettingsConfigDict(
    env_prefix=PREFIX,
    env_nested_delimiter=BETWEEN,
    frozen=True,
    extra="forbid",
    use_attribute_docstrings=True,
    hide_input_in_errors=True,
)


class KafkaSettings(BaseSettings):
    """The settings of a command that uses only Kafka. Made only by `load_for_kafka`; VCDA's part may be missing."""

    model_config = CONFIG

    topics: Topics = Topics()
    kafka: Kafka = Kafka()
    ops: Ops = Ops()


class Settings(BaseSettings):
    """All settings. Made only by `load`; the constructor itself reads neither variables nor files."""

    model_config = CONFIG

    topics: Topics = Topics()
    kafka: Kafka = Kafka()
    vcda: Vcda
    sync: Sync = Sync()
    ops: Ops = Ops()
    log: Log = Log()
    secrets_dir: Path = Path("/run/secrets/vm-sync")
    """Folder whose files are read as settings: the file `vcda__credentials__password` (case ignored) stands for
    `VM_SYNC_VCDA__CREDENTIALS__PASSWORD`.

    Docker and Kubernetes mount secrets there by convention."""

    _given: Mapping[str, Given] = PrivateAttr(default_factory=dict)

    def origin(self, name: str) -> Origin:
        """Return the source of a setting's value."""
        found = (given.origin for given_name, given in self._given.items() if f"{given_name}__".startswith(f"{name}__"))
        return next(found, "default")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.sync.settle >= self.sync.deadline:
            raise InvalidCombination(
                (
                    (
                        "sync__settle",
                        "must be less than SYNC__DEADLINE, or no POST in doubt can be resolved before its deadline",
                    ),
                )
            )
        return self

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)
