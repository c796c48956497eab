"""Learns how VCDA spells the service's user on tasks, which may differ from the session's user. Pure.

VCDA's documentation shows sessions of "admin1@Org1" and tasks of "org2@site2", and a remote site knows the user that
the session was extended with. A name is learnt from the task in the answer to a POST, which certainly is the service's,
and from later polls of that task. There are few names, and each is kept as long as possible: while none is known, a
look-up can ignore no task.

A spelling also has the type of that task, if it is another than the documented one: look-ups have to search for it.
"""

from collections.abc import Iterable
from typing import Final

from service.sync import Account, Names, Spelling

EACH: Final = 4
"""Names kept for one account at one site. There is one; a few, where the account's user is renamed."""

ALL: Final = 64
"""Names kept in all, the latest: they are written into each cursor record."""


class Spellings:
    """The learnt names of the service's user on tasks, for each account and site."""

    def __init__(self) -> None:
        self.known: tuple[Spelling, ...] = ()
        """All that was learnt: the same object until there is more."""

    def learn(self, spellings: Iterable[Spelling]) -> None:
        """Add spellings: from a task of the service, or from an earlier process."""
        for one in spellings:
            if one in self.known:
                continue
            siblings = [known for known in self.known if (known.account, known.site) == (one.account, one.site)]
            surplus = siblings[: max(0, len(siblings) + 1 - EACH)]
            self.known = (*(known for known in self.known if known not in surplus), one)[-ALL:]

    def types(self, site: str | None) -> tuple[str, ...]:
        """Return the types of tasks of syncs at the site that differ from the documented one, in a fixed order."""
        return tuple(sorted({one.task_type for one in self.known if one.site == site and one.task_type is not None}))

    def names(self, account: Account | None, site: str | None) -> Names:
        """Return the possible names of the account's user on tasks of the site: learnt ones and the session's."""
        if account is None:
            return Names(frozenset(), learnt=False)
        learnt = frozenset(one.name for one in self.known if one.account == account and one.site == site)
        own = {account.user} if account.at_site is None else {account.user, account.at_site}
        return Names(learnt | own, learnt=bool(learnt))
