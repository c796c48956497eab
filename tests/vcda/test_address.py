"""The address of VCDA and the thumbprint of its certificate: what is taken, and what is said of the rest."""

import pytest

from service.vcda.address import checked_thumbprint, checked_url

DIGITS = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [
        "https://vcda.example",
        "https://vcda.example:8046/",
        "http://localhost:1",
        "http://127.0.0.1",
        "http://[::1]:8046",
    ],
)
def test_https_is_taken_and_http_to_this_machine(text: str) -> None:
    assert checked_url(text).geturl() == text


@pytest.mark.parametrize(
    "text",
    [
        "vcda.example",
        "ftp://vcda.example",
        "https://",
        "https://vcda.example/api",
        "https://vcda.example?site=1",
        "https://vcda.example#there",
        "https://user@vcda.example",
        "https://vcda.example:0",
        "https://vcda.example:70000",
        "https://[::1",
    ],
)
def test_what_is_more_or_less_than_a_host_is_refused_with_the_form_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="write https://host or https://host:port"):
        checked_url(text)


@pytest.mark.parametrize("host", ["vcda.example", "10.0.0.1", "localhost.example"])
def test_http_to_another_machine_is_refused_since_a_password_is_sent(host: str) -> None:
    with pytest.raises(ValueError, match="a password is sent"):
        checked_url(f"http://{host}")


@pytest.mark.parametrize(
    "text",
    [
        DIGITS,
        DIGITS.upper(),
        f"SHA-256:{DIGITS}",
        f"sha256:{DIGITS}",
        ":".join(DIGITS[n : n + 2] for n in range(0, 64, 2)),
        f" {DIGITS}\n",
    ],
)
def test_a_thumbprint_is_taken_however_tools_write_it(text: str) -> None:
    assert checked_thumbprint(text) == DIGITS


@pytest.mark.parametrize("text", ["", "abc", "z" * 64, DIGITS + "00"])
def test_what_is_no_sha_256_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="SHA-256 as 64 hexadecimal digits"):
        checked_thumbprint(text)
