"""Certificates that are replaced on disk while connections come and go."""

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from service import event_loop as loop
from service.certificates import Certificates, Current, Unusable

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
            replace(file, authority.cert_pem)
            assert await greeted(port, context)

    run(work(), factory)

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "VM_SYNC_KAFKA__SSL_CA_FILE: no certificate" in caplog.messages[0]


def test_nothing_is_read_while_the_files_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    context = Current(Certificates(prefix=PREFIX, ca_file=file))
    first = context.latest()

    assert context.latest() is first
    os.utime(file, ns=(0, 0))
    assert context.latest() is not first


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
