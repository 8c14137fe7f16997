"""The fields of a request: each is taken once and checked, and a field that nobody takes is refused."""

import json
import math
from collections.abc import Mapping
from typing import Any

from tpullm.serving.refusal import Refusal

# Clients of OpenAI's send these of themselves, or for OpenAI's own bookkeeping: they change no answer here.
HARMLESS = {"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object that a body is; `Refusal` if it is none."""
    try:
        text = raw.decode("utf-8")
        body = json.loads(text, parse_constant=_no_number)
        if "\\ud" in text.lower():
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise Refusal("the body is not UTF-8; send JSON in UTF-8") from None
    except UnicodeEncodeError:
        raise Refusal("the body holds half of a surrogate pair, which is no character; repair the text") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON ({str(error)[:200]})") from None
    if not isinstance(body, dict):
        raise Refusal("the body is not a JSON object; send the fields of a request, {...}")
    return body


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


class Fields:
    """The fields of a JSON object. A field that is null is as if it were not there.

    Args:
        values: the object.
        where: what the names of its fields begin with in errors, such as `stream_options.`.
    """

    def __init__(self, values: Mapping[str, Any], where: str = ""):
        self._left = {name: value for name, value in values.items() if value is not None}
        self._where = where

    def wrong(self, name: str, what: str) -> Refusal:
        """The refusal of a field: `what` follows its name."""
        return Refusal(f"{self._where}{name}: {what}", param=f"{self._where}{name}")

    def take(self, name: str, kind: type | tuple[type, ...], called: str, default: Any = None) -> Any:
        """The value of a field of the JSON type `kind`, which is `called` so in the error."""
        value = self._left.pop(name, default)
        if value is default or isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        raise self.wrong(name, f"is not {called}; correct it or leave it out")

    def needed(self, name: str, kind: type | tuple[type, ...], called: str) -> Any:
        """The same for a field that must be there."""
        value = self.take(name, kind, called)
        if value is None:
            raise self.wrong(name, f"is missing; give {called}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float | None:
        """A number from `low` to `high`."""
        value = self.take(name, (int, float), "a number", default)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            raise self.wrong(name, f"is not from {low:g} to {high:g}")
        return value

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        """A whole number from `low` to `high`."""
        value = self.take(name, int, "a whole number", default)
        if value is not None and not low <= value <= high:
            raise self.wrong(name, f"is not from {low} to {high}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false."""
        return self.take(name, bool, "true or false", default)

    def part(self, name: str) -> "Fields":
        """The fields of an object in a field; none if it is not there."""
        return Fields(self.take(name, dict, "an object", {}), f"{self._where}{name}.")

    def has(self, name: str) -> bool:
        """Whether a field is there and was not taken."""
        return name in self._left

    def unsupported(self, name: str, allowed: tuple, why: str) -> None:
        """Refuse any other value of a field than those `allowed`; 0 and false are told apart."""
        value = self._left.pop(name, None)
        if value is not None and not any(type(value) is type(one) and value == one for one in allowed):
            raise self.wrong(name, why)

    def end(self, ignored: set[str] = frozenset()) -> None:
        """Refuse the fields that nobody took."""
        if unknown := next((name for name in self._left if name not in ignored), None):
            raise self.wrong(unknown[:100], "is not a field that this server knows; leave it out")
