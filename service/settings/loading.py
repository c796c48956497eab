"""Reads the settings, once at the start, from variables and files; all errors are reported together.

A setting is an environment variable, or a file of that name without its prefix in `VM_SYNC_SECRETS_DIR`; the variable
wins. Both are read alike: as UTF-8, without a byte order mark and without newlines at the end. No value of a secret is
ever in a message or a traceback.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource

from service.settings.describe import leaves
from service.settings.model import BETWEEN, PREFIX, Fault, Given, InvalidCombination, KafkaSettings, Settings, Site

Kind = TypeVar("Kind", bound=BaseSettings)

SECRETS_DIR: Final = PREFIX + "SECRETS_DIR"
SITES: Final = "VM_SYNC_VCDA__SITES"
UNREAD: Final = "VM_SYNC_TEST_"
"""Variables that only this project's tests read."""


class SettingsError(Exception):
    """The settings are invalid. `lines` are for the operator, one for each setting, without any secret."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings, from this process's environment if none is handed in. Raises `SettingsError`."""
    # The empty parts make pydantic look into them, and name each missing setting.
    settings, given = _read(Settings, environ, least={"vcda": {"credentials": {}}})
    settings._given = given  # noqa: SLF001 - its own maker
    return settings


def load_for_kafka(environ: Mapping[str, str] | None = None) -> KafkaSettings:
    """Read what commands need that never talk to VCDA, likewise; its settings may be missing or wrong."""
    settings, _ = _read(KafkaSettings, environ, least={})
    return settings


def _read(
    kind: type[Kind], environ: Mapping[str, str] | None, *, least: dict[str, Any]
) -> tuple[Kind, Mapping[str, Given]]:
    given, lines = _given(os.environ if environ is None else environ)
    found = EnvSettingsSource(kind, case_sensitive=False)
    found.env_vars = {name.lower(): value.text for name, value in given.items()}
    try:
        settings = kind(**_over(least, found()))
        if not lines:
            return settings, given
    except ValidationError as error:
        # What a misspelt name or an unreadable file leaves missing has its line already.
        told = set(re.findall(PREFIX + r"\w+", "\n".join(lines)))
        lines += [line for line in sorted(_lines(error, given)) if line.partition(":")[0] not in told]
    # Raised out here, so that nothing that holds a value hangs on it as its context.
    raise SettingsError(tuple(lines))


def _given(environ: Mapping[str, str]) -> tuple[dict[str, Given], list[str]]:
    """Gather what variables and files give, the variables over the files, and what is wrong with those left out."""
    variables, lines = _variables(environ)
    files, unread = _files(variables.get(SECRETS_DIR))
    lines += unread
    given = {name: value for name, value in (files | variables).items() if value.text}
    if SITES in given:
        try:
            given = _numbers(given.pop(SITES)) | given
        except (ValueError, TypeError, AttributeError):
            lines.append(f'{SITES}: write a JSON list of objects of texts, as in [{{"name": "site2", "token": "..."}}]')
    known = {leaf.name for leaf in leaves()}
    for name in sorted(given):
        site = re.match(SITES + r"__\d+__", name)
        right = {site[0] + field.upper() for field in Site.model_fields} if site else known
        if name not in right:
            del given[name]
            near = difflib.get_close_matches(name, right, n=1)
            lines.append(f"{name}: there is no such setting" + (f"; did you mean {near[0]}?" if near else ""))
    return given, lines


def _variables(environ: Mapping[str, str]) -> tuple[dict[str, Given], list[str]]:
    variables, lines = {}, []
    for name, found in environ.items():
        # An empty variable is how compose files and manifests spell "not set".
        if not (text := _text(found)) or not name.upper().startswith(PREFIX):
            continue
        if name.startswith(UNREAD) or _of_kubernetes(name, text):
            continue
        if text.isascii() or _is_unicode(text):
            variables[name.upper()] = Given(text, "environment")
        else:
            lines.append(f"{name.upper()}: the environment's value is not UTF-8")
    return variables, lines


def _text(found: str) -> str:
    """Return a value as it was meant: editors and `echo` end a text with a newline, and some begin it with a mark.

    A blank may be part of a password.
    """
    return found.removeprefix("\ufeff").rstrip("\r\n")


def _is_unicode(text: str) -> bool:
    """Whether Python could read all bytes of it; those that it couldn't stand in it as halves of surrogate pairs."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _of_kubernetes(name: str, text: str) -> bool:
    """Whether Kubernetes injected a variable for a Service whose name begins with vm-sync, as it does for all Services.

    VM_SYNC_OPS_PORT=tcp://10.0.0.1:8080 is such a one, VM_SYNC_OPS_PORT=8080 a misspelt VM_SYNC_OPS__PORT.
    """
    service = r"VM_SYNC_([A-Z0-9]+_)*"
    if re.fullmatch(
        service + r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9]+)*|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)", name
    ):
        return True
    return re.fullmatch(service + "PORT", name) is not None and re.match(r"(tcp|udp|sctp)://", text) is not None


def _files(folder: Given | None) -> tuple[dict[str, Given], list[str]]:
    path = Path(folder.text) if folder and folder.text else Settings.model_fields["secrets_dir"].default
    try:
        if not path.is_dir():
            # Nobody has to have the default one.
            return {}, [f"{SECRETS_DIR}: there is no folder {path}"] if folder and folder.text else []
        found = sorted(path.iterdir())
    except OSError as error:
        return {}, [f"{SECRETS_DIR}: the folder {path} can't be read: {error.strerror}"]
    files, lines = {}, []
    for file in found:
        # Without a `__` it can't be meant as a setting: certificates may well lie beside the passwords.
        if BETWEEN not in file.name or file.name.startswith("."):
            continue
        name = PREFIX + file.name.upper()
        try:
            if not file.is_file():
                continue
            files[name] = Given(_text(file.read_text(encoding="utf-8")), "file", file)
        except (OSError, UnicodeDecodeError) as error:
            lines.append(f"{name}: the file {file} can't be read: {type(error).__name__}")
    return files, lines


def _numbers(sites: Given) -> dict[str, Given]:
    """Take a JSON list of sites apart, so that a single password of it may come from a file."""
    return {
        f"{SITES}__{number}__{field.upper()}": Given(text, sites.origin, sites.file)
        for number, site in enumerate(json.loads(sites.text))
        for field, text in site.items()
        if _is_text(text)
    }


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        raise TypeError
    return True


def _over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _over(merged[key], value) if isinstance(value, dict) and key in merged else value
    return merged


def _lines(error: ValidationError, given: Mapping[str, Given]) -> Iterator[str]:
    """Return the errors, a line for each setting, with the invalid value unless it may contain a secret."""
    public = {leaf.name for leaf in leaves() if not leaf.secret}
    for found in error.errors(include_url=False, include_input=False):
        cause = found.get("ctx", {}).get("error")
        faults: tuple[Fault, ...] = (("", str(cause or found["msg"])),)
        if isinstance(cause, InvalidCombination):
            faults = cause.faults
        elif found["type"] == "missing":
            faults = (("", "required"),)
        for field, advice in faults:
            steps = [str(step) for step in found["loc"]] + ([field] if field else [])
            name = PREFIX + BETWEEN.join(steps).upper()
            value = given.get(name)
            if value is None:
                yield f"{name}: {advice}"
            else:
                where = f"the file {value.file}" if value.file else "the environment"
                what = repr(value.text) if name in public and "@" not in value.text else "what it is now"
                yield f"{name}: {advice} (now {what}, from {where})"
