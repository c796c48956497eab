"""What a partition admits, what is seen of it, and how it fails."""

from service.messages.record_fate import Fate
from service.sync import Ended
from service.vcda.lanes import LaneLimits
from tests.support.simulated_deployment import DEAD, Deployment, deployed, moment


@deployed
async def test_a_message_that_cannot_be_understood_goes_to_the_dead_letters_and_stops_nothing(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1")
    d.broker.ask("C4-1", "a2", value=b"nonsense")
    d.broker.ask("C4-1", "a3")
    await d.settled()
    assert d.verdicts() == [("a1", "completed"), ("a3", "completed")]
    (dead,) = (told for told in d.log.told if told.topic == DEAD)
    assert dead.event.value == b"nonsense"
    assert p0.meter.counts["dead-letter not-json"] == 1


@deployed
async def test_records_below_the_cursor_were_taken_up_before(d: Deployment) -> None:
    p0 = d.owner()
    d.broker.ask("C4-1", "a1", value=b"nonsense")
    await d.settled()
    partition = p0.partition()
    assert partition is not None
    p0.meter.records_read(len(d.log.requests))
    partition.admit(d.log.requests)
    await d.until(1.0)
    assert len(d.log.told) == 1
    assert p0.meter.fates[Fate.REREAD] == 1


@deployed
async def test_a_timestamp_of_no_year_that_is_known_counts_as_now(d: Deployment) -> None:
    d.owner()
    d.broker.ask("C4-1", "a1")
    (record,) = d.log.requests
    d.log.requests[0] = type(record)(
        **{name: getattr(record, name) for name in record.__slots__} | {"timestamp_ms": 10**18}
    )
    await d.settled()
    assert d.log.told[0].data["requestedAt"].startswith("2030-01-01T00:00:00")


@deployed
async def test_what_has_ended_is_not_kept_until_its_deadline(d: Deployment) -> None:
    d.world.lasts = lambda _: 0.5
    p0 = d.owner(limits=LaneLimits(max_concurrent_submits=1000, max_running=0))
    for n in range(3000):
        d.broker.ask(f"C4-{n}", f"a{n}")
        if n % 500 == 499:
            await d.settled()
    partition = p0.partition()
    assert partition is not None
    assert len(partition._driver._expiry._deadlines) <= 2000


@deployed
async def test_what_is_seen_of_a_partition_is_in_the_order_of_acceptance_and_all_gone_when_it_closes(
    d: Deployment,
) -> None:
    d.world.lasts = lambda _: 50.0
    p0 = d.owner()
    for n in range(5):
        d.broker.ask(f"C4-{n % 3}", f"a{n}")
    await d.until(3.0)
    partition = p0.partition()
    assert partition is not None
    assert len(partition) == 5
    assert [work.request.operation_id for work in partition.tracked_syncs()] == ["a0", "a1", "a2", "a3", "a4"]
    assert p0.meter.in_flight == {"running": 3, "waiting": 2, "submitting": 0}
    await p0.crash()
    assert sum(p0.meter.in_flight.values()) == 0
    assert p0.meter.remembered == 0


@deployed
async def test_ended_syncs_stand_in_the_journal_with_their_story(d: Deployment) -> None:
    d.owner()
    d.broker.ask("C4-1", "a1")
    await d.settled()
    ended = d.log.states()["op:C4-1:a1"]
    assert isinstance(ended, Ended)
    assert (ended.task_id, ended.reason, ended.attempts) == ("task-1", None, 1)
    assert ended.request.accepted_at == moment(0.03)


@deployed
async def test_a_partition_that_is_told_to_fail_commits_nothing_more(d: Deployment) -> None:
    p0 = d.owner()
    await d.until(1.0)
    partition = p0.partition()
    assert partition is not None
    d.broker.ask("C4-1", "a1", value=b"nonsense")
    partition.admit(d.log.requests)
    partition.fail("admission failed")
    partition.fail("and again")
    await d.until(1.05)
    assert d.log.told == []
    await d.settled()
    assert p0.closings == ["admission failed"]
    assert len(d.log.told) == 1
