"""Reloads TLS certificates from files: certificate authorities, and the process's own certificate and key.

Certificates expire and are replaced; that needs no restart. A connection keeps the certificates it was opened with, and
a new connection uses the current content of the files. If that is invalid, the previous certificates stay in use.
"""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from typing_extensions import override

log = logging.getLogger(__name__)


Stamp: TypeAlias = tuple[tuple[int, ...] | None, ...]

NOT_YET_VALID: Final = 9
EXPIRED: Final = 10
UNKNOWN_AUTHORITY: Final = (2, 18, 19, 20, 21)
MISNAMED: Final = (62, 64)
"""OpenSSL's codes for what is wrong with a certificate: its dates, who has signed it, and the host or address in it."""


class Unusable(ValueError):
    """Certificates can't be used; the text names the setting."""

    def __init__(self, text: str, error: OSError) -> None:
        super().__init__(f"{text} ({_why(error)})")
        self.unread = not isinstance(error, ssl.SSLError)
        """A file could not be read at all, so the same file may be valid later."""


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
        # First alone: to read the system's authorities takes 0.1 s, and files that can't be read are tried often.
        self._load_own(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            msg = f"{self.prefix}CA_FILE: no certificates could be read from it"
            raise Unusable(msg, error) from None
        self._load_own(context)
        _verify_alike_on_each_python(context)
        return context

    def _load_own(self, context: ssl.SSLContext) -> None:
        if self.cert_file is None:
            return
        try:
            # Without a password, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(self.cert_file, self.key_file, password="")
        except OSError as error:
            msg = f"{self.prefix}CERT_FILE: no certificate with an unencrypted key could be read"
            raise Unusable(msg, error) from None


class Current(ssl.SSLContext):
    """A TLS context that uses, for each new connection, the certificates in the files at that moment.

    An event loop makes a connection's TLS with `wrap_bio`; that is passed on to a context that was made when the files
    changed last. Nothing is read as long as the files are the same, unless they could not be read.

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
        self._unread = False
        self._latest = certificates.load()
        self.trouble: str | None = None
        """Why the files can't be used as they were at the last look, and the setting; None: they are in use."""

    def latest(self) -> ssl.SSLContext:
        """Return the context of this moment."""
        # Before they are read: what changes meanwhile is a change for the next connection.
        stamp = self._certificates.stamp()
        changed = stamp != self._seen
        if changed or self._unread:
            self._seen = stamp
            prefix = self._certificates.prefix
            try:
                self._latest = self._certificates.load()
            except Unusable as error:
                self._unread, self.trouble = error.unread, str(error)
                if changed:
                    log.warning(
                        "Certificate files have changed and are invalid; continuing with the previous ones: %s", error
                    )
            else:
                self._unread, self.trouble = False, None
                what = "have changed" if changed else "can be read now"
                log.info("Certificate files of %s*_FILE %s; new connections use their certificates", prefix, what)
        return self._latest

    @override
    def wrap_bio(self, *given: Any, **options: Any) -> ssl.SSLObject:
        return self.latest().wrap_bio(*given, **options)


def distrust(error: Exception, *, ca_setting: str, if_misnamed: str, there: str) -> str:
    """Return why a certificate isn't trusted, and what to change: `(certificate has expired): install ...`.

    `if_misnamed` is what to change for a certificate of another host, `there` where the other side's certificate is
    installed: `on the brokers`.
    """
    match getattr(error, "verify_code", None):
        case code if code == EXPIRED:
            cure = f"install a new certificate {there}"
        case code if code == NOT_YET_VALID:
            cure = f"compare this machine's clock with the certificate's dates, or install another certificate {there}"
        case code if code in MISNAMED:
            cure = if_misnamed
        case code if code in UNKNOWN_AUTHORITY:
            cure = f"set {ca_setting} to the certificates of its authority"
        case _:
            cure = f"issue the certificate, or that of its authority, without this fault, and install it {there}"
    return f"({getattr(error, 'verify_message', None) or type(error).__name__}): {cure}"


def _verify_alike_on_each_python(context: ssl.SSLContext) -> None:
    """Set the flags in which Python 3.13's default context differs from earlier ones; see docs/decisions/0010."""
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT


def _stamp(file: Path | str) -> tuple[int, ...] | None:
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _why(error: OSError) -> str:
    return error.strerror or str(error)
