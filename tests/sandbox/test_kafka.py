"""The embedded Kafka: what tests and the demo rely on."""

import asyncio
import os
import select
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jgo
import pytest
import requests
import trustme
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from service.sandbox.kafka import Broker, EmbeddedKafka, Kafka, class_archive
from service.sandbox.kafka_jars import KafkaError, jars, trusting_the_system
from tests.conftest import missing
from tools import kafka_classes

HOLDER = """
import signal
from service.sandbox.kafka import EmbeddedKafka
kafka = EmbeddedKafka()
kafka.start()
print(kafka.pid, flush=True)
signal.pause()
"""


READ_ONLY = """
import sys, tempfile
from service.cli import main
tempfile._candidate_tempdir_list = lambda: ["/proc/nowhere"]  # as where nothing can be written
sys.argv = ["vm-sync", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("command", ["kafka", "demo"])
def test_without_a_directory_that_can_be_written_a_sentence_names_the_variable_to_set(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, command], capture_output=True, text=True, check=False, timeout=240
    )

    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("Starting")]
    assert "set TMPDIR to a directory that can be written" in line


def test_a_cache_that_cannot_be_written_is_a_sentence_that_names_the_variable_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    with pytest.raises(KafkaError, match=r"set XDG_CACHE_HOME to a directory that can be written"):
        jars()


@dataclass
class FakeArtifact:
    artifactId: str  # noqa: N815 - so it is called there
    filename: str
    source: Path

    def resolve(self) -> Path:
        self.source.write_text("a jar", encoding="utf-8")
        return self.source


async def _create(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()


async def _publish(bootstrap: str, topic: str, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=topic)
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(topic, value, partition=0)
    finally:
        await producer.stop()


async def _read(bootstrap: str, topic: str, *, count: int) -> list[bytes | None]:
    # So many, rather than to the end: a commit is acknowledged before its markers are written, so a broker that is
    # killed then completes the transaction a moment after its next start.
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_what_was_committed_outlives_a_stop_and_a_kill(own_kafka: EmbeddedKafka) -> None:
    before = own_kafka.bootstrap
    await _create(before, "memory")
    await _publish(before, "memory", b"first")
    own_kafka.restart()
    await _publish(before, "memory", b"second")
    own_kafka.kill()
    own_kafka.start()

    assert own_kafka.bootstrap == before
    assert await _read(before, "memory", count=2) == [b"first", b"second"]


@pytest.mark.kafka
@pytest.mark.skipif(sys.platform != "linux", reason="the parent's-death signal is Linux's own")
def test_it_dies_with_a_parent_that_was_killed() -> None:
    jars()  # the download, if it is due, is not what is tested here
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        watch = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        ended, _, _ = select.select([watch], [], [], 10)  # such a descriptor is readable once the process has ended
    finally:
        os.close(watch)

    assert ended


@pytest.mark.kafka
def test_a_start_that_fails_shows_the_end_of_the_log() -> None:
    broken = EmbeddedKafka(properties={"num.io.threads": "0"})

    with pytest.raises(KafkaError, match=r"num\.io\.threads"), broken:
        pytest.fail("it must not start")


@pytest.mark.skipif(sys.platform != "linux", reason="looks at what the process has mapped")
def test_it_starts_with_the_classes_that_make_test_keeps(kafka: Kafka) -> None:
    if not isinstance(kafka, EmbeddedKafka):
        pytest.skip("somebody else runs it")
    archive = class_archive()
    if not archive.exists():
        missing("Kafka's classes are not kept: python -m tools.kafka_classes")

    assert str(archive) in Path(f"/proc/{kafka.pid}/maps").read_text()


@pytest.mark.kafka
def test_classes_that_are_kept_of_other_jars_are_not_taken_for_usable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after another download of Kafka; Java starts without them, in twice the time."""
    if not class_archive().exists():
        missing("Kafka's classes are not kept: python -m tools.kafka_classes")
    assert kafka_classes.usable()
    others = tmp_path / "jars"
    others.mkdir()
    for jar in jars().iterdir():
        (others / jar.name).symlink_to(jar)
    (others / next(others.glob("kafka-clients-*.jar")).name).unlink()
    monkeypatch.setattr(kafka_classes, "jars", lambda: others)

    assert not kafka_classes.usable()


def test_what_it_stores_is_for_its_user_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    modes: list[int] = []

    def format_(broker: Broker, *, scram: object) -> subprocess.Popen[str]:
        del scram
        modes.append(stat.S_IMODE(broker.log.parent.parent.stat().st_mode))
        raise KafkaError

    monkeypatch.setattr(Broker, "format", format_)
    with pytest.raises(KafkaError):
        EmbeddedKafka(users={"alice": "password"}).start()

    assert modes == [0o700]
    assert list(tmp_path.iterdir()) == []


def test_two_processes_at_once_download_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def resolve(endpoint: str) -> list[FakeArtifact]:
        asked.append(endpoint)
        return [FakeArtifact(endpoint, f"{len(asked)}.jar", tmp_path / "source")]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(jgo, "resolve", resolve)
    with ThreadPoolExecutor(2) as pool:
        one, other = [future.result() for future in [pool.submit(jars), pool.submit(jars)]]

    assert one == other
    assert sorted(jar.name for jar in one.iterdir()) == ["1.jar", "2.jar"]
    assert len(asked) == 2


def test_a_download_behind_a_proxy_that_inspects_tls_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def resolve(endpoint: str) -> list[FakeArtifact]:
        reason = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
        raise requests.exceptions.SSLError(endpoint, reason)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jgo, "resolve", resolve)

    with pytest.raises(KafkaError, match="system's store, or set REQUESTS_CA_BUNDLE"):
        jars()


def test_a_download_trusts_the_authorities_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))  # where OpenSSL looks for the system's
    with HTTPServer(("localhost", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://localhost:{server.server_port}/"
        try:
            with trusting_the_system():
                answer = requests.get(url, timeout=60)
            with pytest.raises(requests.exceptions.SSLError):
                requests.get(url, timeout=60)
        finally:
            server.shutdown()

    assert answer.status_code == 501  # nothing is served


def test_without_maven_central_one_line_says_so_and_nothing_half_done_remains(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def resolve(endpoint: str) -> list[FakeArtifact]:
        raise ConnectionError(endpoint)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jgo, "resolve", resolve)

    with pytest.raises(KafkaError, match="can't be downloaded from Maven Central") as caught:
        jars()

    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "vm-sync").iterdir() if path.is_dir()]
