"""POSTs leave within their submit windows, and under the account that their intents name."""

import re
from functools import partial

import pytest

from service import sync
from service.partition.submitter import BACKOFF, LOOK
from service.sync import Submitting
from tests.support.simulated_deployment import WINDOW, Deployment, deployed, sent


async def slowly(d: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    p0 = d.owner()
    await d.until(1.0)
    d.broker.latency = lambda: 1.8  # each way; a commit takes longer than the submit window
    for number in range(3):
        d.broker.ask(f"C4-{number}", f"a{number}")
    before = p0.meter.counts["commit"]
    await d.until(601.0)
    partition = p0.partition()
    assert partition is not None
    assert p0.vcda.sent == []
    assert partition.held_since == pytest.approx(5.0, abs=5.0)
    assert p0.meter.counts["commit"] - before < 600 / BACKOFF.longest.total_seconds() + 20, "it pauses between proofs"
    said = [record.getMessage() for record in caplog.records if "missed their submit windows" in record.getMessage()]
    assert len(said) == 9, "about once a minute, however many POSTs wait"
    assert re.fullmatch(
        r"Partition 0: 3 POSTs have missed their submit windows \(the POST of op:C4-\d:a\d has waited for 5\d\d s\): a "
        r"commit to Kafka \(3\.6 s\) plus login and connection to VCDA take longer than the window of 2 s",
        said[-1],
    )

    d.broker.latency = lambda: 0.005
    await d.settled()
    left = [at for at, _ in p0.vcda.sent]
    assert len(left) == 3
    assert max(left) < 601.0 + BACKOFF.longest.total_seconds() + 4.0
    assert partition.held_since is None

    d.broker.latency = lambda: 1.8
    d.broker.ask("C4-4", "a4")
    again = d.loop.time()
    await d.until(again + 60.0)
    partition = p0.partition()
    assert partition is not None
    assert (partition.held_since or 0.0) >= again, "of the POSTs that left nothing is held back"


def test_while_commits_take_longer_than_the_window_no_post_leaves_and_that_is_said_and_seen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deployed(partial(slowly, caplog=caplog))()


@deployed
async def test_a_post_that_pauses_between_proofs_does_not_hold_up_whoever_quiesces(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(1.0)
    d.broker.latency = lambda: 1.8
    d.broker.ask("C4-1", "a1")
    await d.until(300.0)
    d.broker.latency = lambda: 0.005
    assert await p0.quiesce(0)
    assert d.loop.time() < 300.0 + LOOK.total_seconds() + 4.0
    assert not p0.vcda.sent


@deployed
async def test_a_post_whose_login_took_longer_than_the_window_proves_anew_and_goes(d: Deployment) -> None:
    p0 = d.owner()
    p0.vcda.login = WINDOW + 0.5
    d.broker.ask("C4-1", "a1")
    await d.until(3.0)
    p0.vcda.login = 0.0
    commits = p0.meter.counts["commit"]
    await d.settled()
    (at,) = sent(p0, "a1")
    assert at == pytest.approx(0.040 + 2.505 + 2.505 + 0.010, abs=3.0)
    assert p0.meter.counts["commit"] > commits
    assert d.log.told[0].data["attempts"] == 1


@deployed
async def test_a_post_leaves_under_the_account_that_its_intent_names_and_under_no_other(d: Deployment) -> None:
    """Before the first login nobody knows who we are; whoever finds the intent in doubt has to."""
    p0 = d.owner()
    p0.vcda.user = None
    intents: list[sync.Account | None] = []

    def leaves(_: str) -> None:
        state = list(d.log.states().values())[-1]
        assert isinstance(state, Submitting)
        intents.append(state.account)

    p0.vcda.leaves = leaves
    d.broker.ask("C4-1", "a1")
    await d.settled()
    p0.vcda.user = "somebody@else"
    d.broker.ask("C4-1", "a2")
    await d.settled()
    assert intents == [sync.Account("admin@org"), sync.Account("somebody@else")]
    assert [told.data["attempts"] for told in d.log.told] == [1, 1]
