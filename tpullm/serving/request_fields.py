"""The fields of a request: each is taken once and checked, and a field that nobody takes is refused.

What a request asks for beside its prompt: the fields that completions and chat have in common.
"""

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tpullm.recipe.sampling import Sampling
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


MOST_STOPS = 4
MOST_STOP_CHARACTERS = 256  # each new token is compared with every beginning of a stop
MOST_CHOICES = 128
MOST_TOP = 20
MOST_PENALTY = 2  # as OpenAI's, in nats
SEEDS = 1 << 31


@dataclass(frozen=True)
class Asked:
    """How answers are written.

    Args:
        sampling: how tokens are chosen.
        seed: of the first answer; each further one has the next.
        choices: the number of answers to each prompt.
        stops: texts that end an answer.
        bias: what is added to the logits of tokens, by id.
        presence_penalty, frequency_penalty: as in `Request`.
        stream: whether the answer comes part by part.
        usage: whether a stream ends with the number of tokens.
    """

    sampling: Sampling
    seed: int
    choices: int
    stops: tuple[str, ...]
    bias: Mapping[int, float]
    presence_penalty: float
    frequency_penalty: float
    stream: bool
    usage: bool


def read(fields: Fields, vocabulary_size: int) -> Asked:
    """Take the common fields of a request; `Refusal` names the one that is wrong."""
    stream = fields.flag("stream")
    if fields.has("stream_options") and not stream:
        raise fields.wrong("stream_options", "needs stream: true")
    options = fields.part("stream_options")
    usage = options.flag("include_usage")
    options.unsupported("include_obfuscation", (False,), "is not supported by this server; leave it out")
    options.end()
    seed = fields.whole("seed", -(1 << 63), (1 << 63) - 1)
    return Asked(
        _sampling(fields),
        secrets.randbelow(SEEDS) if seed is None else seed % SEEDS,
        fields.whole("n", 1, MOST_CHOICES, 1),
        _stops(fields),
        _bias(fields, vocabulary_size),
        float(fields.number("presence_penalty", -MOST_PENALTY, MOST_PENALTY, 0.0)),
        float(fields.number("frequency_penalty", -MOST_PENALTY, MOST_PENALTY, 0.0)),
        stream,
        usage,
    )


def _sampling(fields: Fields) -> Sampling:
    """The defaults are OpenAI's: each token as likely as the model says. Other servers have `top_k` and `min_p` too."""
    return Sampling(
        temperature=float(fields.number("temperature", 0, 2, 1.0)),
        top_k=max(0, fields.whole("top_k", -1, 1 << 30, 0)),
        top_p=float(fields.number("top_p", 1e-6, 1, 1.0)),
        min_p=float(fields.number("min_p", 0, 1, 0.0)),
    )


def _stops(fields: Fields) -> tuple[str, ...]:
    given = fields.take("stop", (str, list), "a text or a list of texts", [])
    stops = [given] if isinstance(given, str) else given
    if len(stops) > MOST_STOPS or not all(isinstance(stop, str) for stop in stops):
        raise fields.wrong("stop", f"is not a text or a list of at most {MOST_STOPS} texts")
    if not all(0 < len(stop) <= MOST_STOP_CHARACTERS for stop in stops):
        raise fields.wrong("stop", f"holds a text that is empty or longer than {MOST_STOP_CHARACTERS} characters")
    return tuple(stops)


def _bias(fields: Fields, vocabulary_size: int) -> dict[int, float]:
    bias = {}
    for name, value in fields.take("logit_bias", dict, "an object of token ids and numbers", {}).items():
        if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocabulary_size):
            raise fields.wrong("logit_bias", f"{name[:20]!r} is not a token of this model (0 to {vocabulary_size - 1})")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
            raise fields.wrong("logit_bias", f"the value of token {name} is not a number from -100 to 100")
        bias[int(name)] = float(value)
    return bias
