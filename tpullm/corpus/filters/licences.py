"""Whether the licence of a document is one that the recipe allows."""

import re
from collections.abc import Sequence

# https://creativecommons.org/licenses/by-sa/4.0/ is CC-BY-SA-4.0 in SPDX's list, and publicdomain/zero/1.0 is CC0-1.0.
DEED = re.compile(
    r"(?:https?:)?/*(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)/([0-9.]+)(?:[/?#].*)?"
)
NAMED = re.compile(r"(?:creative commons|cc)[ _-]+(by(?:[ _-](?:nc|nd|sa))*)[ _-]+([0-9.]+)")


def is_allowed(licence: str, allowed: Sequence[str]) -> bool:
    """Whether `licence` is one of `allowed`: names or expressions of SPDX, addresses of Creative Commons, or sentences.

    Case and spaces do not count. `A OR B` is allowed if one of both is, `A AND B` if both are. No licence is not
    allowed.
    """
    return _is_allowed(_plain(licence), {_plain(name) for name in allowed})


def _is_allowed(licence: str, allowed: set[str]) -> bool:
    if licence in allowed:
        return True
    for word, combine in ((" or ", any), (" and ", all)):  # AND binds more strongly, so OR is split first
        parts = licence.split(word)
        if len(parts) > 1 and "(" not in licence:
            return combine(_is_allowed(_plain(part), allowed) for part in parts)
    return False


def _plain(licence: str) -> str:
    """One form of a name: lower case, single spaces, and SPDX's name for the address of a deed."""
    name = " ".join(licence.lower().split())
    if deed := DEED.fullmatch(name):
        kind, version = deed.groups()
        return {"zero": "cc0", "mark": "cc-pdm"}.get(kind, f"cc-{kind}") + f"-{version}"
    if named := NAMED.fullmatch(name):
        return f"cc-{re.sub('[ _]', '-', named[1])}-{named[2]}"
    return name
