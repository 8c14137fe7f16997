"""The hash of a traced program, whatever its functions are called.

JAX names the functions of a program, and shares equal ones, by what the process has traced before; so a function counts
as what it computes: its text, with the hash of what it calls in the place of each name.
"""

import hashlib
import re

_FUNCTION = re.compile(r"^  func\.func (?:public |private )?@([\w.]+)(.*?)^  \}$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"@([\w.]+)")


def fingerprint(text: str) -> str:
    """Of the text of a lowered function (StableHLO), 64 hexadecimal digits."""
    bodies = dict(_FUNCTION.findall(text))
    known: dict[str, str] = {}

    def of(name: str) -> str:
        if name not in known:
            inner = _NAME.sub(lambda called: of(called[1]) if called[1] in bodies else called[0], bodies[name])
            known[name] = _hash(inner)
        return known[name]

    around = _FUNCTION.sub("", text).split()
    return _hash(" ".join(around) + of("main"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
