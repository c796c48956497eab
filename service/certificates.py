"""Reloads TLS certificates from files: certificate authorities, and the process's own certificate and key.

Certificates expire, which is said two weeks before, and are replaced; that needs no restart. A connection keeps the
certificates it was opened with, and a new connection uses the current content of the files. If that is invalid, the
previous certificates stay in use.
"""

import logging
import re
import ssl
from binascii import a2b_base64
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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

RENEW: Final = timedelta(days=14)
"""Before a certificate's end. Whatever renews certificates by itself does so earlier, so by then it has failed."""

_PEM: Final = re.compile(rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----(.+?)-----END \1-----", re.DOTALL)
"""What OpenSSL reads certificates from; behind a trusted one stands what it is trusted for."""

_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
"""Tags of DER."""


class Unusable(ValueError):
    """Certificates can't be used; the text names the setting."""

    def __init__(self, text: str, error: OSError) -> None:
        super().__init__(f"{text} ({_why(error)})")
        self.unread = not isinstance(error, ssl.SSLError)
        """A file could not be read at all, so the same file may be valid later."""


@dataclass(frozen=True, slots=True)
class Validity:
    """From when until when certificates can be used."""

    begins: datetime
    ends: datetime

    def complaint(self, setting: str, now: datetime) -> str | None:
        """Say that they can't be used, or not for long; None: they can."""
        if now >= self.ends:
            return f"{setting}: the certificate expired at {self.ends:%Y-%m-%d %H:%MZ}; write a new one to the file"
        if now < self.begins:
            return (
                f"{setting}: the certificate is not valid before {self.begins:%Y-%m-%d %H:%MZ}; compare this machine's "
                "clock, or write another one to the file"
            )
        if self.ends - now <= min(RENEW, (self.ends - self.begins) / 5):  # those that live for a day are renewed late
            return f"{setting}: the certificate expires at {self.ends:%Y-%m-%d %H:%MZ}; write a new one to the file"
        return None


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

    def validity(self) -> dict[str, Validity]:
        """Return when the certificates of the files are valid, by setting. The system's authorities are left out.

        The own certificate needs those of its issuers beside it, so the first to expire counts. Of several authorities
        one is enough, so the last one counts: while one is replaced, the file contains both.
        """
        found = {}
        for name, file, begin, end in (("CA_FILE", self.ca_file, min, max), ("CERT_FILE", self.cert_file, max, min)):
            setting = f"{self.prefix}{name}"
            if file is not None and (dates := _dates(Path(file), setting)):
                found[setting] = Validity(begin(b for b, _ in dates), end(e for _, e in dates))
        return found

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
        self.validity = certificates.validity()
        """Of the certificates in use, by setting."""
        self._complaints: list[str] = []
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
                self.validity = self._certificates.validity()
                self._unread, self.trouble = False, None
                what = "have changed" if changed else "can be read now"
                log.info("Certificate files of %s*_FILE %s; new connections use their certificates", prefix, what)
        return self._latest

    def complaints(self, now: datetime) -> list[str]:
        """Say which certificates in use have expired, will soon, or are not valid yet. Each is logged once."""
        found = [said for setting, dates in self.validity.items() if (said := dates.complaint(setting, now))]
        for said in found:
            if said not in self._complaints:
                log.warning("%s", said)
        self._complaints = found
        return found

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


def _dates(file: Path, setting: str) -> list[tuple[datetime, datetime]]:
    """Return when each certificate of a PEM file begins and ends: OpenSSL has read them, and Python doesn't say it.

    Python's `get_ca_certs` leaves out an own certificate, and a self-signed one that is trusted itself.
    """
    try:
        blocks = _PEM.findall(file.read_bytes())
    except OSError:  # replaced meanwhile, so it is read again
        return []
    found = []
    for _, base64 in blocks:
        try:
            found.append(_begin_and_end(a2b_base64(base64)))
        except (ValueError, IndexError):
            log.warning("%s: nothing will say when one of its certificates expires: its dates can't be read", setting)
    return found


def _begin_and_end(der: bytes) -> tuple[datetime, datetime]:
    _, at, _ = _element(der, _element(der, 0)[1])  # the outer element has the signature, too
    if der[at] == _VERSION:
        at = _element(der, at)[2]
    for _ in ("serial number", "algorithm", "issuer"):
        at = _element(der, at)[2]
    begins = _element(der, at)[1]
    return _moment(der, begins), _moment(der, _element(der, begins)[2])


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Return the tag of the element of DER at `at`, and where its content begins and ends."""
    tag, length, begin = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + size]), begin + size
    return tag, begin, begin + length


def _moment(der: bytes, at: int) -> datetime:
    tag, begin, end = _element(der, at)
    text = der[begin:end].decode("ascii")
    if tag == _UTC_TIME:  # with two digits of the year
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _stamp(file: Path | str) -> tuple[int, ...] | None:
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _why(error: OSError) -> str:
    return error.strerror or str(error)
