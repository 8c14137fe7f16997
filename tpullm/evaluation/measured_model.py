"""A model that is measured: it answers requests, and what it answered before is not computed again.

It writes texts after given prompts, up to a text that ends them, and gives likelihoods of continuations. Several hosts
ask the same and fetch whole results; host 0 keeps them.

`answers.jsonl` grows by a line for each answer: the key of its request, and the answer. So an evaluation that was
killed can resume; a line that was cut off is not read. On `gs://` the file is sent every few seconds
(`system/storage/mirror.py`).

Answers are kept by the hash of the parameters, which is computed where the parameters are. The bits of each number are
multiplied by a hash of its place, and the products are added modulo 2^32: integers, so the sum is the same on any mesh.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tpullm.engine.generation import BATCH, continuations_by_end
from tpullm.engine.request import Request
from tpullm.engine.session import Session
from tpullm.evaluation import likelihoods
from tpullm.evaluation.likelihoods import Continuation, Ids, Likelihood
from tpullm.formats.huggingface import tensors
from tpullm.model.rows import fetch_whole
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.system import log, storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.system.storage.mirror import mirrored

FILE = "answers.jsonl"
AT_A_TIME = 100  # answers in a message between hosts, which are of bounded length
_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_SALTS = (0x9E3779B9, 0x85EBCA6B)  # two sums: 64 bits for each parameter


class Writing(NamedTuple):
    """A request: what does the model write after `prompt` (token ids)?

    Args:
        tokens: the most it writes.
        stops: texts; what it writes ends before the first of them.
        sampling: how tokens are chosen.
        seed: of sampling.
        by_bytes: the text is that of the bytes of the tokens. Some published tokenizers take a space from the beginning
            of a text, and programs need it.
    """

    prompt: Ids
    tokens: int
    stops: tuple[str, ...] = ()
    sampling: Sampling = GREEDY
    seed: int = 0
    by_bytes: bool = False


class KeptAnswers:
    """The answers in a folder; without one, none is kept. Host 0 reads and writes them; `found` tells all hosts."""

    def __init__(self, folder: Path | None = None):
        self._keeps, self._file = folder is not None, None
        self._answers: dict[str, Any] = {}
        if not folder or not hosts.is_first():
            return
        storage.check_writable(folder)
        self._grows = mirrored(folder)
        file = self._grows.folder / FILE
        if storage.is_remote(folder) and (folder / FILE).exists():
            file.write_bytes((folder / FILE).read_bytes())
        *lines, cut = file.read_bytes().split(b"\n") if file.exists() else [b""]
        for number, line in enumerate(lines, 1):
            try:
                found = json.loads(line)
                self._answers[str(found["key"])] = found["answer"]
            except (ValueError, TypeError, KeyError):
                where = f"{folder / FILE}: line {number}"
                raise UserError(f"{where}: is not an answer; remove the file, and all is asked again") from None
        if cut:  # the end of a line is missing
            file.write_bytes(b"".join(line + b"\n" for line in lines))
        self._file = open(file, "ab", buffering=0)

    def found(self, keys: Sequence[str]) -> list[Any]:
        """The answer of each key, None where there is none; on all hosts the same."""
        if not self._keeps:
            return [None] * len(keys)
        found: list[Any] = []
        for first in range(0, len(keys), AT_A_TIME):
            part = keys[first : first + AT_A_TIME]
            found += hosts.broadcast("kept answers", lambda part=part: [self._answers.get(key) for key in part])
        return found

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep answers (JSON) by their keys."""
        if self._file:
            self._answers |= answers
            lines = [json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in answers.items()]
            storage.append(self._file, "".join(lines).encode())
            self._grows.changed()

    def close(self) -> None:
        """All that was added is written."""
        if self._file:
            self._file.close()
            self._grows.close()
            self._file = None


@dataclass
class MeasuredModel:
    """A model, and the answers that it gave. With several hosts, all of them ask the same.

    Args:
        session: the model.
        answers: that are kept.
        parameters: the hash of the parameters.
        counts: `requests`, how many there were; `kept`, those that an earlier evaluation had answered; `cut`, those
            that were longer than the context and lost tokens at their left.
        between: called after each batch of requests; what it raises ends the measurement.
    """

    session: Session
    answers: KeptAnswers = field(default_factory=KeptAnswers)
    parameters: str = ""
    counts: dict[str, int] = field(default_factory=lambda: {"requests": 0, "kept": 0, "cut": 0})
    between: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.parameters = self.parameters or parameter_hash(self.session)

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        """How likely each continuation is after its context.

        Raises:
            UserError: a continuation is empty, or longer than the context.
        """
        most = self.session.context_length
        for request in requests:
            if not 0 < len(request.continuation) <= most or not request.context:
                what = f"{len(request.continuation)} tokens after {len(request.context)}"
                raise UserError(f"a continuation of {what}: the model scores 1 to {most} tokens after 1 or more")
        self.counts["cut"] += sum(len(of.context) + len(of.continuation) > most + 1 for of in requests)
        keys = [("likelihood", of.context, of.continuation) for of in requests]
        score = partial(likelihoods.likelihoods, self.session)
        return [Likelihood(*found) for found in self._answered(requests, keys, score, "likelihoods")]

    def written(self, requests: Sequence[Writing]) -> list[str]:
        """What the model writes after each prompt."""
        most = self.session.context_length
        self.counts["cut"] += sum(len(of.prompt) > len(cut_prompt(of, most)) for of in requests)
        keys = [("writing", *of[:3], astuple(of.sampling), of.seed) for of in requests]
        said = self._answered(requests, keys, partial(write_texts, self.session), "texts")
        return [written_text(self.session, ids, of) for ids, of in zip(said, requests, strict=True)]

    def warn_of_cuts(self, command: str) -> None:
        """Say how many requests were too long; host 0 does."""
        if (cut := self.counts["cut"]) and hosts.is_first():
            log.warn(
                f"{command}: {cut:,} of {self.counts['requests']:,} requests are longer than the context of "
                f"{self.session.context_length} tokens, and lost their beginning"
            )

    def _answered(self, requests: Sequence, keys: Sequence, ask: Callable, what: str) -> list[Any]:
        """The answer to each request, as JSON has it: kept, or asked for now. Equal requests are asked once."""
        keys = [request_key(self.parameters, key) for key in keys]
        kept = self.answers.found(keys)
        answers = {key: answer for key, answer in zip(keys, kept, strict=True) if answer is not None}
        self.counts["requests"] += len(keys)
        self.counts["kept"] += sum(answer is not None for answer in kept)
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in answers}
        names = list(missing)
        with log.progress("evaluate", len(names), what) as advance:

            def done(found: dict[int, Any]) -> None:
                new = {names[number]: answer for number, answer in found.items()}
                answers.update(new)
                self.answers.add(new)
                advance(len(new))
                self.between()

            ask(list(missing.values()), done)
        return [answers[key] for key in keys]


def cut_prompt(request: Writing, most: int) -> Ids:
    """The prompt without the tokens at its left for which a context of `most` tokens has no room.

    Raises:
        UserError: there is no room for any prompt.
    """
    if not 0 < request.tokens < most:
        raise UserError(
            f"a text of up to {request.tokens} tokens: the model's context holds {most}, the prompt included; ask for "
            f"1 to {most - 1} (in a task of the harness: `max_gen_toks`)"
        )
    return tuple(request.prompt[-(most - request.tokens) :])


def write_texts(session: Session, requests: Sequence[Writing], done: Callable[[dict[int, list[int]]], None]) -> None:
    """Continue prompts, the longest first; `done` gets the ids of some, by the numbers of the requests, with a stop's.

    With several hosts, all of them call it.
    """
    if not requests:
        return
    ids = [cut_prompt(request, session.context_length) for request in requests]
    order = sorted(range(len(requests)), key=lambda number: len(ids[number]), reverse=True)
    stops, ordered = tuple(session.tokenizer.stop_ids), [requests[number] for number in order]
    asked = [Request(ids[n], of.tokens, of.sampling, of.seed, stops) for n, of in zip(order, ordered, strict=True)]

    def is_over(place: int, new: list[int]) -> bool:
        ends = ordered[place].stops
        return bool(ends) and any(stop in session.tokenizer.decode(new) for stop in ends)

    ended = continuations_by_end(session, asked, BATCH, is_over)
    while some := list(itertools.islice(ended, BATCH)):
        done({order[place]: new for place, new in some})


def written_text(session: Session, ids: Sequence[int], request: Writing) -> str:
    """The text of what was written, before the texts that end it: cut at one after the other, as the harness does."""
    tokenizer = session.tokenizer
    if request.by_bytes:
        text = b"".join(map(tokenizer.bytes_of, ids)).decode("utf-8", errors="replace")
    else:
        text = tokenizer.decode(ids)
    for stop in filter(None, request.stops):
        text = text.split(stop)[0]
    return text


def request_key(parameters: str, request: Sequence[Any]) -> str:
    """The key of a request (JSON) to a model of the hash `parameters`: all that the answer depends on."""
    return hashlib.sha256(json.dumps([parameters, *request]).encode()).hexdigest()[:32]


def parameter_hash(session: Session) -> str:
    """The hash of all parameters, in the type in which they are used, and of the model that they are parameters of.

    It tells apart models and checkpoints; nobody is to be kept from making two that are alike.
    """
    architecture = session.architecture
    model = {"config": dataclasses.asdict(architecture.config), "adapter": repr(architecture.adapter)}
    sums = {}
    with jax.set_mesh(session.mesh):
        for name, part in sorted(tensors.flat(session.params).items()):
            leaves = jax.tree.leaves(part)
            sums[name] = [[str(leaf.dtype), *fetch_whole(session.mesh, _sums(leaf)).tolist()] for leaf in leaves]
    return storage.hash_json({"model": model, "parameters": sums})


@jax.jit
def _sums(array: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array, _BITS[array.dtype.itemsize]).astype(jnp.uint32)
    return jnp.stack([jnp.sum(bits * _place_multipliers(array.shape, salt), dtype=jnp.uint32) for salt in _SALTS])


def _place_multipliers(shape: tuple[int, ...], salt: int) -> jax.Array:
    """An odd number for each place in an array, well mixed (the finalizer of MurmurHash3)."""
    number = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(shape):
        number = number * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    mixed = (number + jnp.uint32(1)) * jnp.uint32(salt)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return (mixed ^ (mixed >> 16)) | jnp.uint32(1)
