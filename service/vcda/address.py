"""Checks VCDA's URL and the thumbprint of its certificate; an error says what to write instead. Pure."""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit


def checked_url(text: str) -> SplitResult:
    """Take the address of VCDA apart.

    Raises:
        ValueError: it is not `https://host[:port]`, or it is `http` to another machine; says what to write.
    """
    form = "write https://host or https://host:port, without path, query or user"
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise ValueError(form) from None
    bare = not (url.path.strip("/") or url.query or url.fragment or "@" in url.netloc)
    if url.scheme not in {"https", "http"} or not host or not bare or port == 0:
        raise ValueError(form)
    if url.scheme == "http" and not is_loopback(host):
        msg = "write https://: plain http is allowed only for this machine, since a password is sent to VCDA"
        raise ValueError(msg)
    return url


def checked_thumbprint(text: str) -> str:
    """Return a certificate's SHA-256 as 64 lower-case hexadecimal digits.

    Raises:
        ValueError: it is none; says what to write.
    """
    digits = re.sub(r"(?i)^sha-?256:", "", text.strip()).replace(":", "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        msg = "write the certificate's SHA-256 as 64 hexadecimal digits; colons between them are fine"
        raise ValueError(msg)
    return digits


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
