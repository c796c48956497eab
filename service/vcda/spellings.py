"""How VCDA spells the service's user on tasks, learnt from its answers; it may differ from the session's user. Pure.

VCDA's documentation shows sessions of "admin1@Org1" and tasks of "org2@site2", and a remote site knows the user that
the session was extended with. Learnt is a name from a task that was given for a POST, which is ours for certain: as
that answer has it, and as polls show it later. Names are few, but each is kept as long as possible: while none is
known, a look-up can pass no task over.
"""

from collections.abc import Iterable
from typing import Final

from service.sync import Account, Names, Spelling

EACH: Final = 4
"""Names kept for one account at one site. There is one; a few, where the account's user is renamed."""

ALL: Final = 64
"""Names kept in all, the latest: they are written into each cursor record."""


class Spellings:
    """The names under which VCDA shows this service's user on tasks, learnt from its answers, for each site."""

    def __init__(self) -> None:
        self.known: tuple[Spelling, ...] = ()
        """All that was learnt: the same object until there is more."""

    def learn(self, spellings: Iterable[Spelling]) -> None:
        """Take some in: of a task of ours, or those that an earlier process had learnt."""
        for one in spellings:
            if one in self.known:
                continue
            siblings = [known for known in self.known if (known.account, known.site) == (one.account, one.site)]
            surplus = siblings[: max(0, len(siblings) + 1 - EACH)]
            self.known = (*(known for known in self.known if known not in surplus), one)[-ALL:]

    def names(self, account: Account | None, site: str | None) -> Names:
        """Return what tasks of the site may name the account's user: what was learnt, and what it calls itself."""
        if account is None:
            return Names(frozenset(), learnt=False)
        learnt = frozenset(one.name for one in self.known if one.account == account and one.site == site)
        own = {account.user} if account.at_site is None else {account.user, account.at_site}
        return Names(learnt | own, learnt=bool(learnt))
