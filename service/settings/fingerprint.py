"""A hash of the settings that must be equal on all instances of a deployment, so that a difference can be alerted on.

Secrets are left out, and settings that may differ: the connection to Kafka, the verification of VCDA's certificate, the
operations server and the log.
"""

import hashlib
import json
from typing import Any, Final

from service.settings.model import Settings

MAY_DIFFER: Final[dict[str, Any]] = {
    "ops": True,
    "log": True,
    "secrets_dir": True,
    "kafka": {
        "bootstrap_servers",
        "start_limit",
        "security_protocol",
        "sasl_mechanism",
        "sasl_username",
        "sasl_password",
        "oauth_token_url",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_scope",
        "oauth_ca_file",
        "oauth_token_file",
        "oauth_extensions",
        "ssl_ca_file",
        "ssl_cert_file",
        "ssl_key_file",
    },
    "vcda": {
        "ca_file": True,
        "thumbprint": True,
        "credentials": {"password", "token"},
        "sites": {"__all__": {"password", "token"}},
    },
}
"""In pydantic's notation. Secrets are left out so that they can't be guessed from the hash."""


def fingerprint(settings: Settings) -> str:
    """Return the hash: twelve hexadecimal digits, the same for settings that say the same."""
    shared: dict[str, Any] = settings.model_dump(mode="json", exclude=MAY_DIFFER)
    shared["vcda"]["sites"].sort(key=lambda site: site["name"])
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:12]
