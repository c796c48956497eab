"""How VCDA spells the service's user: learnt for each account and site, and kept within bounds."""

from service.sync import Account, Names, Spelling
from service.vcda.spellings import ALL, EACH, Spellings

ME = Account("admin@org")
REMOTE = Account("admin@org", "us@west")


def test_before_anything_is_learnt_tasks_may_name_the_sessions_user_and_that_of_the_site() -> None:
    spellings = Spellings()
    assert spellings.names(ME, None) == Names(frozenset({"admin@org"}), learnt=False)
    assert spellings.names(REMOTE, "west").names == {"admin@org", "us@west"}


def test_without_a_session_no_name_is_known() -> None:
    assert Spellings().names(None, None) == Names(frozenset(), learnt=False)


def test_what_is_learnt_holds_for_its_account_at_its_site_alone() -> None:
    spellings = Spellings()
    spellings.learn([Spelling(ME, None, "org2@site2")])
    assert spellings.names(ME, None) == Names(frozenset({"admin@org", "org2@site2"}), learnt=True)
    assert not spellings.names(ME, "west").learnt
    assert not spellings.names(Account("another@org"), None).learnt


def test_what_is_known_already_changes_nothing() -> None:
    spellings = Spellings()
    spellings.learn([Spelling(ME, None, "org2@site2")])
    known = spellings.known
    spellings.learn([Spelling(ME, None, "org2@site2")])
    assert spellings.known is known, "the same object, by which the cursor knows that there is nothing to write"


def test_of_one_account_at_one_site_the_latest_few_are_kept() -> None:
    spellings = Spellings()
    spellings.learn([Spelling(ME, "west", "elsewhere")])
    spellings.learn([Spelling(ME, None, f"name-{n}") for n in range(EACH + 3)])
    assert [one.name for one in spellings.known] == ["elsewhere", *(f"name-{n}" for n in range(3, EACH + 3))]


def test_of_all_the_latest_are_kept() -> None:
    spellings = Spellings()
    spellings.learn([Spelling(Account(f"user-{n}"), None, "name") for n in range(ALL + 5)])
    assert [one.account.user for one in spellings.known] == [f"user-{n}" for n in range(5, ALL + 5)]
