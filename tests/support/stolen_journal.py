"""Takes a partition's journal from its owner, as another process would, and leaves a cursor in it."""

from service.clock import Clock
from service.kafka.journal import KafkaJournal, Refusals
from service.kafka.journal_api import Batch
from service.kafka.journal_codec import Cursor
from tests.support.process_harness import Ledger


async def write_cursor(ledger: Ledger, partition: int, cursor: Cursor, *, poke: bool = True) -> None:
    """Take the journal from its owner, who notices with its next commit, and leave this in it."""
    opened = await KafkaJournal.open(
        topic=ledger.topics["journal"],
        partition=partition,
        connection={"bootstrap_servers": ledger.bootstrap},
        clock=Clock(),
        refusals=Refusals(),
    )
    await opened.journal.commit(Batch(cursor=cursor))
    await opened.journal.close()
    if poke:
        await ledger.send_raw(partition=partition, value=b"something to commit")
