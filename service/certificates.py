"""Reloads TLS certificates from files: certificate authorities, and the process's own certificate and key.

Certificates expire and are replaced; that needs no restart. A connection keeps the certificates it was opened with, and
a new connection uses the current content of the files. If that is invalid, the previous certificates stay in use.
"""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

from typing_extensions import override

log = logging.getLogger(__name__)


Stamp: TypeAlias = tuple[tuple[int, ...] | None, ...]


class Unusable(ValueError):
    """Certificates can't be used; the text names the setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """PEM files, and the prefix of the settings that name them."""

    prefix: str
    """VM_SYNC_VCDA__CA_FILE begins with `VM_SYNC_VCDA__`."""
    ca_file: Path | str | None = None
    """None: the system's authorities."""
    cert_file: Path | str | None = None
    key_file: Path | str | None = None

    def stamp(self) -> Stamp:
        """Return a value that changes when a file is written or replaced. Kubernetes replaces links."""
        return tuple(_stamp(file) for file in (self.ca_file, self.cert_file, self.key_file) if file is not None)

    def load(self) -> ssl.SSLContext:
        """Read them. Raises `Unusable`."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            msg = f"{self.prefix}CA_FILE: no certificates could be read from it ({_why(error)})"
            raise Unusable(msg) from None
        if self.cert_file is not None:
            try:
                # Without a password, OpenSSL would ask for one at the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
            except OSError as error:
                msg = f"{self.prefix}CERT_FILE: no certificate with an unencrypted key could be read ({_why(error)})"
                raise Unusable(msg) from None
        return context


class Current(ssl.SSLContext):
    """A TLS context that uses, for each new connection, the certificates in the files at that moment.

    An event loop makes a connection's TLS with `wrap_bio`; that is passed on to a context that was made when the files
    changed last. Nothing is read as long as the files are the same.

    Raises:
        Unusable: at the start; later that is a warning, one for each change, and the last good files stay in force.
    """

    def __new__(cls, certificates: Certificates) -> Self:
        """Make the context that delegates to the current one; it trusts no authority itself."""
        del certificates
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self._seen = certificates.stamp()
        self._latest = certificates.load()

    def latest(self) -> ssl.SSLContext:
        """Return the context of this moment."""
        # Before they are read: what changes meanwhile is a change for the next connection.
        stamp = self._certificates.stamp()
        if stamp != self._seen:
            self._seen = stamp
            prefix = self._certificates.prefix
            try:
                self._latest = self._certificates.load()
            except Unusable as error:
                log.warning(
                    "Certificate files have changed and are invalid; continuing with the previous ones: %s", error
                )
            else:
                log.info("Certificate files of %s*_FILE have changed; new connections use the new certificates", prefix)
        return self._latest

    @override
    def wrap_bio(self, *given: Any, **options: Any) -> ssl.SSLObject:
        return self.latest().wrap_bio(*given, **options)


def _stamp(file: Path | str) -> tuple[int, ...] | None:
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _why(error: OSError) -> str:
    return error.strerror or str(error)
