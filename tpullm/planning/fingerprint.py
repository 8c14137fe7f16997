"""The hash of a traced program, independent of its functions' names.

What the process traced before decides how JAX names functions and which equal functions it shares. So a function is
hashed by its text, in which the hash of each called function replaces its name.
"""

import hashlib
import re

_FUNCTION = re.compile(r"^  func\.func (?:public |private )?@([\w.]+)(.*?)^  \}$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"@([\w.]+)")


def fingerprint(text: str) -> str:
    """The hash of a lowered function's text (StableHLO): 64 hexadecimal digits."""
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
