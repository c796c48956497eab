"""Kafka's jars of any version, from Maven Central, and the Java to run them with; downloaded once for each user."""

import contextlib
import fcntl
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

KAFKA_VERSION: Final = "4.3.1"
"""Used unless another is asked for."""

_LOGGING: Final = {
    3: ("reload4j-1.2.25", ("org.slf4j:slf4j-reload4j:1.7.36", "ch.qos.reload4j:reload4j:1.2.25")),
    4: ("log4j-2.25.4", ("org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",)),
}
"""By Kafka's major version, what connects Kafka's logging with a file: a name for it, and the artefacts. They aren't
among Kafka's dependencies, and without them a broker that doesn't start says nothing."""


class KafkaError(Exception):
    """Kafka can't be downloaded or started; the text says what to do."""


def major(version: str) -> int:
    """Return the major version.

    Raises:
        KafkaError: the embedded Kafka can't be of this version.
    """
    if not re.fullmatch(r"3\.[789]\.\d+|4\.\d+\.\d+", version):
        msg = f"The embedded Kafka can't be of version {version}: name one from 3.7.0 on, such as {KAFKA_VERSION}."
        raise KafkaError(msg)
    return int(version[0])


def jars(version: str = KAFKA_VERSION) -> Path:
    """Return the folder with the jars of a version; the first time for this user, download them.

    Raises:
        KafkaError: Maven Central can't be reached, or has no such version.
    """
    logger, _ = _LOGGING[major(version)]
    cache = _cache()
    folder = cache / f"kafka-{version}-{logger}"
    if folder.is_dir():
        return folder
    lock = cache / "download.lock"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise _unwritable(error.strerror or str(error)) from None
    with _one_at_a_time(lock):
        if not folder.is_dir():  # another process may have been faster
            staging = Path(tempfile.mkdtemp(prefix="kafka-", dir=cache))
            try:
                _download(version, staging)
                staging.rename(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return folder


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vm-sync"
    except RuntimeError:  # the user has no entry in the system's list of users, as in a container
        why = "this user has no home directory"
        raise _unwritable(why) from None


def _unwritable(why: str) -> KafkaError:
    return KafkaError(
        f"The downloaded Apache Kafka can't be stored ({why}): set XDG_CACHE_HOME to a directory that can be written."
    )


def _download(version: str, folder: Path) -> None:
    import jgo  # only here: slow to import, and needed once in a user's life

    say = sys.stderr
    print(f"Downloading Apache Kafka {version} from Maven Central (45 MB, this once) ...", file=say, flush=True)
    try:
        with trusting_the_system():
            artifacts = jgo.resolve(f"org.apache.kafka:kafka_2.13:{version}")
            there = {artifact.artifactId for artifact in artifacts}
            # By themselves: resolved together with Kafka, their word on the versions of what both need would count.
            for endpoint in _LOGGING[major(version)][1]:
                more = [artifact for artifact in jgo.resolve(endpoint) if artifact.artifactId not in there]
                there |= {artifact.artifactId for artifact in more}
                artifacts += more
            for number, artifact in enumerate(artifacts, start=1):
                shutil.copy(artifact.resolve(), folder / artifact.filename)
                if say.isatty():
                    print(f"\r  {number} of {len(artifacts)} files", end="", file=say, flush=True)
    except (OSError, RuntimeError) as error:  # requests' exceptions are OSErrors
        why = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in why:
            why = (
                "its certificate isn't trusted. Behind a proxy that inspects TLS, install the proxy's authority in the "
                "system's store, or set REQUESTS_CA_BUNDLE to a file with its certificate."
            )
        msg = f"Apache Kafka {version} can't be downloaded from Maven Central: {why}"
        raise KafkaError(msg) from error
    if say.isatty():
        print(file=say)


@contextlib.contextmanager
def trusting_the_system() -> Iterator[None]:
    """Verify certificates with the system's authorities, as pip does, beside those that come with requests.

    A proxy that inspects TLS signs with an authority that only the system knows. Applies to the whole process.
    """
    import truststore

    truststore.inject_into_ssl()
    try:
        yield
    finally:
        truststore.extract_from_ssl()


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the operating system lets go of it when the process dies
        yield
