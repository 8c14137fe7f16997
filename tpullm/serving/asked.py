"""What a request asks for beside its prompt: the fields that completions and chat have in common."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from tpullm.inference.sampling_options import Sampling
from tpullm.serving.request_fields import Fields

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
