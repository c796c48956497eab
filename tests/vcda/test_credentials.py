"""The bodies of logins and extensions: peers' programs got these names wrong."""

import pytest

from service.vcda.credentials import Credentials, CredentialType, SiteCredentials


@pytest.mark.parametrize(
    ("credentials", "body"),
    [
        (
            Credentials(type=CredentialType.LOCAL_USER, user="root", password="p"),
            {"type": "localUser", "localUser": "root", "localPassword": "p"},
        ),
        (
            Credentials(user="admin1@org2", password="p", org="org2"),
            {"type": "vcdCredentials", "vcdUser": "admin1@org2", "vcdPassword": "p"},
        ),
        (
            Credentials(type=CredentialType.SSO_CREDENTIALS, user="u", password="p"),
            {"type": "ssoCredentials", "username": "u", "password": "p", "principal": None},
        ),
        (
            Credentials(type=CredentialType.VCD_ACCESS_TOKEN, token="jwt", org="acme-dr"),
            {"type": "vcdAccessToken", "vcdAccessToken": "jwt", "context": "acme-dr"},
        ),
        (
            Credentials(type=CredentialType.VCD_ACCESS_TOKEN, token="jwt"),
            {"type": "vcdAccessToken", "vcdAccessToken": "jwt"},
        ),
    ],
)
def test_a_login_is_spelled_as_documented(credentials: Credentials, body: dict[str, object]) -> None:
    assert credentials.login_body() == body


def test_an_extension_is_spelled_differently() -> None:
    by_password = SiteCredentials(name="site1", user="admin1@org2", password="p")
    by_token = SiteCredentials(name="site1", token="jwt")

    assert by_password.extend_body() == {
        "type": "credentials",
        "site": "site1",
        "vcdUsername": "admin1@org2",
        "vcdPassword": "p",
    }
    assert by_token.extend_body() == {"type": "vcdAccessToken", "site": "site1", "vcdAccessToken": "jwt"}


def test_credentials_do_not_show_their_secrets() -> None:
    everything = Credentials(
        user="u", password="hush", token="hush", sites=(SiteCredentials(name="s", token="hush", password="hush"),)
    )

    assert "hush" not in repr(everything)


@pytest.mark.parametrize("kind", list(CredentialType))
def test_credentials_that_could_never_log_in_are_refused(kind: CredentialType) -> None:
    with pytest.raises(ValueError, match="need"):
        Credentials(type=kind, user="u")


def test_site_credentials_that_could_never_extend_are_refused() -> None:
    with pytest.raises(ValueError, match="need"):
        SiteCredentials(name="site1", user="u")
