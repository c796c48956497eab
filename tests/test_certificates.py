"""Which certificates are trusted, alike on each Python, and those replaced on disk while connections come and go."""

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from service import event_loop as loop
from service.certificates import Certificates, Current, Unusable, Validity, distrust
from tests.support.descriptors import no_more_descriptors

PREFIX = "VM_SYNC_KAFKA__SSL_"
LOOPS = pytest.mark.parametrize("factory", [None, loop.factory()], ids=["asyncio", "the service's loop"])
Factory = Callable[[], asyncio.AbstractEventLoop] | None


def run(work: Coroutine[None, None, None], factory: Factory) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


@asynccontextmanager
async def server(certificate: trustme.LeafCert, *, wants: trustme.CA | None = None) -> AsyncIterator[int]:
    """Serve TLS with a certificate, and yield the port; `wants`: whose clients it lets in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if wants is not None:
        wants.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome")
        writer.close()

    listening = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def greeted(port: int, context: ssl.SSLContext) -> bool:
    """Whether a new connection comes about."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        heard = await reader.read()
        writer.close()
    except (ssl.SSLError, ConnectionError):
        return False
    return heard == b"welcome"


def replace(file: Path, *parts: trustme.Blob) -> None:
    """Put another file in its place, as Kubernetes does with a mounted Secret."""
    new = file.with_suffix(".new")
    new.write_bytes(b"".join([part.bytes() for part in parts]))
    new.rename(file)


@LOOPS
def test_new_connections_believe_the_authority_that_the_file_names_by_then(factory: Factory, tmp_path: Path) -> None:
    async def work() -> None:
        old, new, file = trustme.CA(), trustme.CA(), tmp_path / "ca.pem"
        old.cert_pem.write_to_path(str(file))
        context = Current(Certificates(prefix=PREFIX, ca_file=file))
        async with server(old.issue_cert("127.0.0.1")) as by_old, server(new.issue_cert("127.0.0.1")) as by_new:
            assert (await greeted(by_old, context), await greeted(by_new, context)) == (True, False)
            replace(file, old.cert_pem, new.cert_pem)
            assert (await greeted(by_old, context), await greeted(by_new, context)) == (True, True)
            replace(file, new.cert_pem)
            assert (await greeted(by_old, context), await greeted(by_new, context)) == (False, True)

    run(work(), factory)


@LOOPS
def test_new_connections_show_the_certificate_that_the_files_hold_by_then(factory: Factory, tmp_path: Path) -> None:
    async def work() -> None:
        ours, theirs = trustme.CA(), trustme.CA()
        ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
        ours.cert_pem.write_to_path(str(ca))
        stranger, known = theirs.issue_cert("vm-sync"), ours.issue_cert("vm-sync")
        stranger.cert_chain_pems[0].write_to_path(str(cert))
        stranger.private_key_pem.write_to_path(str(key))
        context = Current(Certificates(prefix=PREFIX, ca_file=ca, cert_file=cert, key_file=key))
        async with server(ours.issue_cert("127.0.0.1"), wants=ours) as port:
            assert not await greeted(port, context)
            replace(cert, known.cert_chain_pems[0])
            # Of two files, one is replaced first: the two of before stay in use.
            assert not await greeted(port, context)
            replace(key, known.private_key_pem)
            assert await greeted(port, context)

    run(work(), factory)


BROKEN: dict[str, Callable[[Path], object]] = {
    "has no certificate": lambda file: file.write_text("nothing"),
    "is gone": lambda file: file.unlink(),
    "is empty": lambda file: file.write_text(""),
}


@LOOPS
@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_cannot_be_used_is_one_warning_and_leaves_the_last_good_one_in_force(
    how: str, factory: Factory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service.certificates")

    async def work() -> None:
        authority, file = trustme.CA(), tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(file))
        context = Current(Certificates(prefix=PREFIX, ca_file=file))
        async with server(authority.issue_cert("127.0.0.1")) as port:
            BROKEN[how](file)
            for _ in range(3):
                assert await greeted(port, context)
            assert str(context.trouble).startswith("VM_SYNC_KAFKA__SSL_CA_FILE: no certificate")
            replace(file, authority.cert_pem)
            assert await greeted(port, context)
            assert context.trouble is None

    run(work(), factory)

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "VM_SYNC_KAFKA__SSL_CA_FILE: no certificate" in caplog.messages[0]
    assert "have changed" in caplog.messages[1]


def test_nothing_is_read_while_the_files_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    context = Current(Certificates(prefix=PREFIX, ca_file=file))
    first = context.latest()

    assert context.latest() is first
    os.utime(file, ns=(0, 0))
    assert context.latest() is not first


def test_new_files_that_cannot_be_read_for_want_of_descriptors_are_read_once_they_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service.certificates")
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    context = Current(Certificates(prefix=PREFIX, ca_file=file))
    first = context.latest()
    replace(file, trustme.CA().cert_pem)
    with no_more_descriptors():
        for _ in range(3):
            assert context.latest() is first
        meanwhile = str(context.trouble)
    second = context.latest()

    assert second is not first
    assert context.latest() is second
    assert context.trouble is None
    assert "Too many open files" in meanwhile
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "Too many open files" in caplog.messages[0]
    assert caplog.messages[1] == (
        "Certificate files of VM_SYNC_KAFKA__SSL_*_FILE can be read now; new connections use their certificates"
    )


def test_the_systems_authorities_are_not_read_again_while_an_own_certificate_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take a tenth of a second, in which the event loop stands still."""
    file = tmp_path / "client.pem"
    trustme.CA().issue_cert("vm-sync").private_key_and_cert_chain_pem.write_to_path(str(file))
    context = Current(Certificates(prefix=PREFIX, cert_file=file))
    read: list[dict[str, Any]] = []
    monkeypatch.setattr(ssl, "create_default_context", lambda **given: read.append(given))
    file.unlink()
    for _ in range(3):
        context.latest()

    assert str(context.trouble).startswith("VM_SYNC_KAFKA__SSL_CERT_FILE: no certificate")
    assert read == []


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"ca_file": __file__}, "VM_SYNC_KAFKA__SSL_CA_FILE"),
        ({"ca_file": "/nowhere/ca.pem"}, "VM_SYNC_KAFKA__SSL_CA_FILE"),
        ({"cert_file": __file__}, "VM_SYNC_KAFKA__SSL_CERT_FILE"),
    ],
)
def test_at_the_start_a_file_that_cannot_be_used_is_refused_by_the_setting_that_names_it(
    given: dict[str, str], name: str
) -> None:
    with pytest.raises(Unusable, match=f"{name}: no certificate"):
        Current(Certificates(prefix=PREFIX, **given))


# ---------------------------------------------------------------- alike on each Python

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


@pytest.fixture(params=["3.11", "3.13"])
def default_flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each Python the default flags of another one, too."""
    make = ssl.create_default_context
    added = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN

    def with_flags(**given: Any) -> ssl.SSLContext:
        context = make(**given)
        context.verify_flags = (
            context.verify_flags | added if request.param == "3.13" else context.verify_flags & ~added
        )
        return context

    monkeypatch.setattr(ssl, "create_default_context", with_flags)


def issued(
    name: str,
    *,
    by: Issued | None = None,
    authority: bool = False,
    bits: int = 2048,
    begins: timedelta = -DAY,
    ends: timedelta = DAY,
) -> Issued:
    """Make a certificate as a few commands of openssl do: without key usage and key identifiers."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        host = x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
        builder = builder.add_extension(x509.SubjectAlternativeName([host]), critical=False)
    return Issued(builder.sign(by.key if by else key, hashes.SHA256()), key)


def presenting(folder: Path, *chain: Issued) -> ssl.SSLContext:
    """Return what a server needs to show these, the first one being its own."""
    file = folder / "server.pem"
    key = chain[0].key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(key + b"".join(one.pem for one in chain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT@SECLEVEL=0")  # to show a weak certificate
    context.load_cert_chain(file)
    return context


async def verified(folder: Path, trusted: Issued, *chain: Issued) -> ssl.SSLCertVerificationError | None:
    """Connect to a server that shows a chain; None: it is trusted."""
    (folder / "ca.pem").write_bytes(trusted.pem)
    context = Current(Certificates(prefix=PREFIX, ca_file=folder / "ca.pem"))
    listening = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=presenting(folder, *chain)
    )
    async with listening:
        try:
            _, writer = await asyncio.open_connection(*listening.sockets[0].getsockname(), ssl=context)
        except ssl.SSLCertVerificationError as error:
            return error
        writer.transport.abort()
        return None


@pytest.mark.usefixtures("default_flags")
async def test_a_self_made_authority_without_key_usage_is_trusted(tmp_path: Path) -> None:
    authority = issued("ours", authority=True)

    assert await verified(tmp_path, authority, issued("127.0.0.1", by=authority)) is None


@pytest.mark.usefixtures("default_flags")
async def test_a_self_signed_certificate_is_trusted_where_the_file_has_it(tmp_path: Path) -> None:
    own = issued("127.0.0.1")

    assert await verified(tmp_path, own, own) is None


@pytest.mark.usefixtures("default_flags")
async def test_an_intermediate_authority_may_be_the_one_that_is_trusted(tmp_path: Path) -> None:
    root = issued("root", authority=True)
    between = issued("between", by=root, authority=True)

    assert await verified(tmp_path, between, issued("127.0.0.1", by=between), between) is None


AUTHORITY = "set VM_SYNC_KAFKA__SSL_CA_FILE to the certificates of its authority"
UNTRUSTED: dict[str, tuple[dict[str, Any], bool, str]] = {
    "of an unknown authority": ({}, False, AUTHORITY),
    "that has expired": (
        {"begins": -2 * DAY, "ends": -DAY},
        True,
        "(certificate has expired): install a new certificate there",
    ),
    "that isn't valid yet": (
        {"begins": DAY, "ends": 2 * DAY},
        True,
        "): compare this machine's clock with the certificate's dates",
    ),
    "of another address": ({"name": "10.0.0.1"}, True, "): spell the host alike"),
    "of another host": ({"name": "kafka.example"}, True, "): spell the host alike"),
    "with a weak key": (
        {"bits": 1024},
        True,
        "(EE certificate key too weak): issue the certificate, or that of its authority, without this fault",
    ),
}


@pytest.mark.usefixtures("default_flags")
@pytest.mark.parametrize("name", UNTRUSTED)
async def test_what_is_wrong_is_named_with_its_cure_for_a_certificate(name: str, tmp_path: Path) -> None:
    given, known, expected = UNTRUSTED[name]
    authority = issued("ours", authority=True)
    wanted: dict[str, Any] = {"name": "127.0.0.1", "by": authority} | given
    leaf = issued(**wanted)

    error = await verified(tmp_path, authority if known else issued("others", authority=True), leaf)

    assert error is not None
    said = distrust(error, ca_setting="VM_SYNC_KAFKA__SSL_CA_FILE", if_misnamed="spell the host alike", there="there")
    assert expected in said
    assert (AUTHORITY in said) == (not known)


@pytest.mark.usefixtures("default_flags")
async def test_a_self_signed_certificate_that_the_file_lacks_is_not_trusted(tmp_path: Path) -> None:
    error = await verified(tmp_path, issued("ours", authority=True), issued("127.0.0.1"))

    assert error is not None
    said = distrust(error, ca_setting="VM_SYNC_KAFKA__SSL_CA_FILE", if_misnamed="", there="there")
    assert said == f"(self-signed certificate): {AUTHORITY}"


# ---------------------------------------------------------------- when they expire


def own(folder: Path, *chain: Issued) -> Certificates:
    """Write an own certificate, with those of its issuers, and its key."""
    key = chain[0].key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "own.pem").write_bytes(key + b"".join(one.pem for one in chain))
    return Certificates(prefix=PREFIX, cert_file=folder / "own.pem")


def authorities(folder: Path, *those: Issued) -> Certificates:
    (folder / "ca.pem").write_bytes(b"".join(one.pem for one in those))
    return Certificates(prefix=PREFIX, ca_file=folder / "ca.pem")


@pytest.mark.parametrize("ends", [DAY, 40 * 365 * DAY], ids=["in this century's first half", "later"])
def test_when_a_certificate_begins_and_ends_is_read_from_its_file(tmp_path: Path, ends: timedelta) -> None:
    made = issued("ours", authority=True, ends=ends).certificate
    found = authorities(tmp_path, Issued(made, issued("other").key)).validity()
    assert found == {f"{PREFIX}CA_FILE": Validity(made.not_valid_before_utc, made.not_valid_after_utc)}


@pytest.mark.parametrize("kind", [b"TRUSTED CERTIFICATE", b"X509 CERTIFICATE"])
def test_when_a_certificate_ends_is_read_from_each_kind_of_block_that_openssl_takes(
    tmp_path: Path, kind: bytes
) -> None:
    one = issued("ours", authority=True)
    file = tmp_path / "ca.pem"
    file.write_bytes(b"Bag Attributes \xff\n" + one.pem.replace(b"CERTIFICATE", kind).replace(b"\n", b"\r\n"))
    context = Current(Certificates(prefix=PREFIX, ca_file=file))
    assert context.latest().cert_store_stats()["x509"] == 1, "OpenSSL reads it"
    assert [dates.ends for dates in context.validity.values()] == [one.certificate.not_valid_after_utc]


def test_a_certificate_whose_dates_cannot_be_read_is_logged_and_hides_those_of_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd, good = issued("odd", authority=True), issued("good", authority=True)
    der = odd.certificate.public_bytes(Encoding.DER)
    at = der.index(b"\x17\x0d") + 2  # the tag and the length of the first moment
    pem = ssl.DER_cert_to_PEM_cert(der[:at] + b"261350000000Z" + der[at + 13 :])
    (tmp_path / "ca.pem").write_bytes(pem.encode() + good.pem)
    context = Current(Certificates(prefix=PREFIX, ca_file=tmp_path / "ca.pem"))
    assert [dates.ends for dates in context.validity.values()] == [good.certificate.not_valid_after_utc]
    assert caplog.messages == [
        f"{PREFIX}CA_FILE: nothing will say when one of its certificates expires: its dates can't be read"
    ]


def test_of_an_own_certificate_and_its_issuers_the_first_to_expire_counts_and_of_authorities_the_last(
    tmp_path: Path,
) -> None:
    soon, late = issued("soon", authority=True, ends=DAY), issued("late", authority=True, ends=99 * DAY)
    (chain,) = own(tmp_path, late, soon).validity().values()
    (trusted,) = authorities(tmp_path, soon, late).validity().values()
    assert (chain.ends, trusted.ends) == (soon.certificate.not_valid_after_utc, late.certificate.not_valid_after_utc)


@pytest.mark.parametrize(
    ("begins", "ends", "said"),
    [
        (-99 * DAY, 15 * DAY, None),
        (-99 * DAY, 14 * DAY, "the certificate expires at "),
        (-4 * DAY, 2 * DAY, None),
        (-4 * DAY, DAY, "the certificate expires at "),
        (-2 * DAY, -DAY, "the certificate expired at "),
        (DAY, 99 * DAY, "the certificate is not valid before "),
    ],
)
def test_a_certificate_that_is_not_valid_or_not_for_long_is_logged_once_and_named_until_it_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, begins: timedelta, ends: timedelta, said: str | None
) -> None:
    context = Current(own(tmp_path, issued("ours", begins=begins, ends=ends)))
    now = datetime.now(UTC)
    found = [context.complaints(now) for _ in range(2)]
    if said is None:
        assert (found, caplog.records) == ([[], []], [])
        return
    assert found[0] == found[1] == [record.getMessage() for record in caplog.records]
    assert found[0][0].startswith(f"{PREFIX}CERT_FILE: {said}")
    own(tmp_path, issued("ours", ends=99 * DAY))
    context.latest()
    assert context.complaints(now) == []


def test_a_file_whose_dates_cannot_be_read_at_all_has_none(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(b"-----BEGIN CERTIFICATE-----\nMAIC\n-----END CERTIFICATE-----\n")
    assert Certificates(prefix=PREFIX, ca_file=file).validity() == {}
