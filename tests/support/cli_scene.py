"""A Kafka with topics of a test's own, the commands that are run against it, and what they read and write there."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from typer.testing import CliRunner, Result
from typing_extensions import override

from service.cli.commands import app
from service.kafka.connection import client_id
from tests.conftest import TopicNamer


@dataclass(frozen=True)
class Scene:
    """A Kafka with topics of the test's own, and the settings that name them."""

    bootstrap: str
    name: TopicNamer

    @property
    def env(self) -> dict[str, str]:
        topics = ("requests", "completed", "failed", "dead_letter", "journal", "control")
        return {
            "VM_SYNC_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap,
            "VM_SYNC_KAFKA__PARTITIONS": "3",
            **{f"VM_SYNC_TOPICS__{topic.upper()}": self.name(topic) for topic in topics},
        }

    def run(self, *arguments: str, **env: str) -> Result:
        return CliRunner().invoke(app, arguments, env=self.env | env, prog_name="vm-sync")

    def answer(self, *arguments: str, code: int = 0, **env: str) -> Any:
        result = self.run(*arguments, "--json", **env)
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def write(self, topic: str, *records: Mapping[str, Any]) -> None:
        asyncio.run(self._write(topic, records))

    async def _write(self, topic: str, records: Sequence[Mapping[str, Any]]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, linger_ms=5)
        await producer.start()
        try:
            await asyncio.gather(*[await producer.send(self.name(topic), **record) for record in records])
        finally:
            await producer.stop()

    def read(self, topic: str) -> list[Any]:
        return asyncio.run(self._read(topic))

    async def _read(self, topic: str) -> list[Any]:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        consumer.assign([TopicPartition(self.name(topic), number) for number in range(3)])
        await consumer.start()
        try:
            ends = await consumer.end_offsets(consumer.assignment())
            found = []
            while any([await consumer.position(place) < end for place, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    found += records
            return found
        finally:
            await consumer.stop()


@contextmanager
def instance(scene: Scene, answer: Callable[[], dict[str, Any]]) -> Iterator[str]:
    """Run a member of the service's group whose operations server answers so; yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(answer()).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    async def member(port: int) -> None:
        consumer = AIOKafkaConsumer(
            scene.name("requests"),
            bootstrap_servers=scene.bootstrap,
            group_id=scene.name("group"),
            client_id=client_id(port),
        )
        await consumer.start()
        try:
            while not consumer.assignment():
                await asyncio.sleep(0.05)
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.05)
        finally:
            await consumer.stop()

    ready, stop = threading.Event(), threading.Event()
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_address[1]
        threads = [
            threading.Thread(target=server.serve_forever),
            threading.Thread(target=lambda: asyncio.run(member(port))),
        ]
        for thread in threads:
            thread.start()
        assert ready.wait(60)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            stop.set()
            server.shutdown()
            for thread in threads:
                thread.join()
