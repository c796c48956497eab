"""What tests share: a real Kafka for those that ask for it, topic names that nobody else has, and CI's strictness."""

import faulthandler
import os
import signal
import sys
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeAlias

import pytest
from hypothesis import settings

from service.sandbox.kafka import EmbeddedKafka, Kafka, KafkaElsewhere, KafkaError
from tests.support.cluster import Cluster

TopicNamer: TypeAlias = Callable[[str], str]

settings.register_profile("any machine", deadline=None)  # a loaded one, or one that measures coverage, is slow at times
settings.load_profile("any machine")

TEARDOWN_LIMIT = 120.0
"""Seconds. The time-out of a test ends its call; what it leaves behind, such as a task that can't be cancelled, may
hold up its end for ever, and with it the whole run."""

if sys.version_info < (3, 12):
    # To mark the place in a line, Python 3.11 parses it whenever a traceback is formatted. Garbage that is collected
    # while pytest parses a test file may log a traceback; parsing within parsing ends in "SystemError: AST constructor
    # recursion depth mismatch", in whatever test runs by then (seen with 3.11.7). Without the marks nothing is parsed.
    traceback._extract_caret_anchors_from_line_segment = lambda _: None  # type: ignore[attr-defined]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what runs in its background, and the commands that tests start and interrupt inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def missing(reason: str) -> NoReturn:
    """Say that this machine lacks what a test needs: a skip on a person's machine, a failure in CI.

    A test that CI never runs guards nothing, and nobody reads the list of skipped tests of a green run.
    """
    if os.environ.get("CI"):
        pytest.fail(f"CI must have all that the tests need: {reason}", pytrace=False)
    pytest.skip(reason)


@contextmanager
def started(embedded: EmbeddedKafka) -> Iterator[EmbeddedKafka]:
    """Run a Kafka of one's own, where the machine has what it takes."""
    try:
        embedded.start()
    except KafkaError as error:
        missing(str(error))
    else:
        yield embedded
    finally:
        embedded.close()


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A Kafka for the whole run, shared by all tests: never stop it, and use only topics from `topic_name`.

    VM_SYNC_TEST_BOOTSTRAP names another one to use instead.
    """
    if elsewhere := os.environ.get("VM_SYNC_TEST_BOOTSTRAP"):
        yield KafkaElsewhere(elsewhere)
        return
    with started(EmbeddedKafka()) as embedded:
        yield embedded


@pytest.fixture(scope="module")
def _cluster() -> Iterator[Cluster]:
    """Not for the whole run: three idle brokers take as much CPU time in four minutes as their start does."""
    found = Cluster()
    try:
        found.open()
    except KafkaError as error:
        missing(str(error))
    else:
        yield found
    finally:
        found.close()


@pytest.fixture
async def cluster(_cluster: Cluster) -> AsyncIterator[Cluster]:
    """Three brokers with rights, started when the first test asks for them; whole again after each test.

    A test may stop, freeze and kill any of them. Use only topics from `topic_name`.
    """
    yield _cluster
    await _cluster.heal()


@pytest.fixture
def own_kafka() -> Iterator[EmbeddedKafka]:
    """A Kafka for this test alone, which may stop, kill and start it; takes seconds."""
    with started(EmbeddedKafka()) as embedded:
        yield embedded


@pytest.fixture
def topic_name() -> TopicNamer:
    """Names that nobody else has: `topic_name("requests")` is the same name all through one test, and no other test's.

    For groups and transactional ids too, since they outlive a test just as topics do.
    """
    run = uuid.uuid4().hex[:8]
    return lambda name: f"test-{run}.{name}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs a Kafka, so that `-m "not kafka"` leaves the fast ones; begin with the long files on workers."""
    for item in items:
        if isinstance(item, pytest.Function) and any(map(_is_a_kafka, item.fixturenames)):
            item.add_marker("kafka")
    if hasattr(config, "workerinput"):
        longest_first(items)


def _is_a_kafka(fixture: str) -> bool:
    return fixture == "cluster" or fixture.endswith("kafka")


def longest_first(items: list[pytest.Item]) -> None:
    """Sort test files: those that may take longest, those with whole processes, those with Kafka, all others.

    A file is run by one worker. The files of a second each fill up what the long ones leave over, so that all workers
    end at the same time; the other way round, one worker ends minutes after the others.
    """
    ranks: dict[str, tuple[float, bool, bool]] = {}
    for item in items:
        limits = [float(mark.args[0]) for mark in item.iter_markers("timeout")]
        rank = (-max(limits, default=0), item.get_closest_marker("e2e") is None, "kafka" not in item.keywords)
        ranks[item.location[0]] = min(rank, ranks.get(item.location[0], rank))
    items.sort(key=lambda item: ranks[item.location[0]])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None]:
    """End a process whose teardown hangs, so that xdist names the test and goes on."""
    faulthandler.dump_traceback_later(TEARDOWN_LIMIT, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


class _AtOnce:
    """Names each failed test when it fails: a run that is cut off would else end without a word about them."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            text = getattr(report.longrepr, "reprcrash", None)
            message = text.message.partition("\n")[0] if text else str(report.longrepr)[-300:]
            self._terminal.ensure_newline()
            self._terminal.write_line(f"{report.when} of {report.nodeid} after {report.duration:.1f} s: {message}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_AtOnce(terminal))
