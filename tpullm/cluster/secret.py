"""The secret that the hosts of one training share, and how they prove to each other that they have it.

The secret itself is never sent. Each side sends a random number, and the other answers with an HMAC over it.
"""

import hmac
import json
import secrets
from collections.abc import MutableMapping
from typing import Any

from tpullm.errors import UserError

VARIABLE = "TPULLM_HOSTS_SECRET"  # not a flag: every user of a machine sees the flags of all processes
FEWEST_CHARACTERS = 16  # whoever hears one handshake can try short secrets at leisure


def make() -> str:
    """A new secret, for `VARIABLE`."""
    return secrets.token_hex(32)


def take(environment: MutableMapping[str, str]) -> bytes:
    """The secret of this process, and remove it: what it starts need not know. Empty if there is none.

    Raises:
        UserError: it is too short.
    """
    secret = environment.pop(VARIABLE, "")
    if 0 < len(secret) < FEWEST_CHARACTERS:
        raise UserError(f"{VARIABLE}: is shorter than {FEWEST_CHARACTERS} characters, so it can be guessed; use more")
    return secret.encode()


def number() -> str:
    """A random number that nobody has used before."""
    return secrets.token_hex(16)


def proof(secret: bytes, *facts: Any) -> str:
    """The proof that whoever says `facts` (JSON) has the secret; without a secret an empty text."""
    return hmac.new(secret, json.dumps(facts, sort_keys=True).encode(), "sha256").hexdigest() if secret else ""


def proves(given: Any, secret: bytes, *facts: Any) -> bool:
    """Whether `given`, which may be anything, is the `proof` of the facts."""
    return isinstance(given, str) and hmac.compare_digest(
        given.encode(errors="replace"), proof(secret, *facts).encode()
    )
