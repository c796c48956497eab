"""An appliance with a certificate of its own making, as VCDA has: it gets nothing until we are told how to know it."""

import asyncio
import hashlib
import ipaddress
import json
import ssl
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.sandbox.kafka import Kafka
from service.sandbox.vcda.simulator import Simulator
from service.sandbox.vcda.world import Durations, Plan
from tests.conftest import TopicNamer
from tests.support.process_harness import PASSWORD, Ledger, Process, appliance, counts

pytestmark = pytest.mark.e2e

SHORT = Plan(queued=Durations.of(0), duration=Durations.of(0.3))


@dataclass(frozen=True, slots=True)
class SelfSigned:
    """A certificate that vouches for itself, and its key."""

    file: Path
    thumbprint: str
    server: ssl.SSLContext


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> SelfSigned:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vcda.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("vcda")
    file, both = folder / "vcda.pem", folder / "both.pem"
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    file.write_bytes(pem)
    kind, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    both.write_bytes(key.private_bytes(kind, form, serialization.NoEncryption()) + pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(both)
    digits = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest().upper()
    return SelfSigned(file, ":".join(digits[at : at + 2] for at in range(0, 64, 2)), server)


@pytest.mark.parametrize(
    ("refused", "sentence", "accepted"),
    [
        pytest.param(
            {},
            "can't be trusted (self-signed certificate)",
            "thumbprint",
            id="nothing about it, and then its thumbprint",
        ),
        pytest.param(
            {"VM_SYNC_VCDA__THUMBPRINT": "ab" * 32},
            "does not match VM_SYNC_VCDA__THUMBPRINT",
            "ca file",
            id="another thumbprint, and then its own",
        ),
    ],
)
async def test_an_appliance_gets_nothing_until_we_are_told_how_to_know_it(
    refused: dict[str, str], sentence: str, accepted: str, own: SelfSigned, kafka: Kafka, topic_name: TopicNamer
) -> None:
    known = {
        "thumbprint": {"VM_SYNC_VCDA__THUMBPRINT": own.thumbprint},
        "ca file": {"VM_SYNC_VCDA__CA_FILE": str(own.file)},
    }
    async with (
        Simulator(appliance(SHORT), tls=own.server) as vcda,
        Ledger(bootstrap=kafka.bootstrap, simulator=vcda, prefix=topic_name("tls"), partitions=1) as ledger,
    ):
        distrustful = ledger.start(command=(), **refused)
        await ledger.ready(distrustful, within=120)
        await ledger.ask("op-1", f"C4-{uuid.uuid4()}")
        await _until(distrustful, "VM_SYNC_VCDA__THUMBPRINT")
        await _until_paused(distrustful)
        await _until_waiting(distrustful)
        assert await distrustful.stop() == 0

        assert vcda.world.counters()["calls"] == {}
        assert await ledger.outcomes() == []
        said = [line for line in _lines(distrustful) if "VM_SYNC_VCDA__THUMBPRINT" in line["message"]]
        assert all(line["level"] == "WARNING" for line in said)
        assert sentence in said[0]["message"]

        trusting = ledger.start(command=(), **known[accepted])
        told = await ledger.wait(within=120)
        await trusting.stop()
        verdict = await ledger.judge()

        assert counts(told) == {"completed": 1}
        assert verdict.violations == []
        assert vcda.world.counters()["calls"]["submit"] == 1
        assert PASSWORD not in distrustful.text() + trusting.text()


def _lines(process: Process) -> list[dict[str, str]]:
    return [json.loads(line) for line in process.text().splitlines()]


async def _until(process: Process, text: str, *, within: float = 60.0) -> None:
    until = time.monotonic() + within
    while text not in process.text():
        assert time.monotonic() < until, process.text()[-3000:]
        await asyncio.sleep(0.1)


async def _until_waiting(process: Process, *, within: float = 60.0) -> None:
    """Wait until its only sync waits, and no POST counts; one that is being tried counts until it has failed."""
    until = time.monotonic() + within
    while True:
        (sync,) = (await process.get("/syncs")).json()["syncs"]
        if (sync["state"], sync["attempts"]) == ("waiting", 0):
            return
        assert time.monotonic() < until, sync
        await asyncio.sleep(0.1)


async def _until_paused(process: Process, *, within: float = 60.0) -> None:
    until = time.monotonic() + within
    while 'vm_sync_api_paused{site="local"} 1.0' not in (await process.get("/metrics")).text:
        assert time.monotonic() < until, process.text()[-3000:]
        await asyncio.sleep(0.1)
