"""Text that must have a form: which tokens may come next, by llguidance (Earley parsing over the bytes of tokens).

A child with limits tries a schema before this process reads it (`grammar_trial.py`). Masks that turn out to be slow are
computed beside the engine's steps, in threads of low priority: llguidance holds no lock of Python meanwhile. So they
keep only each other waiting.
"""

import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from functools import cache
from itertools import groupby
from queue import LifoQueue
from typing import Any

import llguidance
import numpy as np

from tpullm.serving.call_forms import Calls
from tpullm.serving.grammar_trial import CPU_SECONDS, Vocabulary, check_grammar
from tpullm.serving.refusal import Refusal
from tpullm.system.errors import UserError
from tpullm.system.process.child import go_last
from tpullm.system.process.limited import Limited
from tpullm.tokenizer import Tokenizer

# White space between the parts of JSON, at most so much: a model that may write it without end sometimes does.
_JSON = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,16}"}
_MOST_SCHEMA_BYTES = 64 << 10
FORMS = 4  # are tried and compiled at a time, since a hostile one takes two seconds of a processor
_KEPT, _SIMPLE_SECONDS = 16, 0.05  # forms that are kept, and what compiling one may take; a large one has 5 MB
# What the masks of an answer may take of a processor while the engine waits: so much each, and once so much in all.
# An ordinary schema's take 0.03 ms on an idle processor and 0.15 on a busy one, those of 1,000 properties 0.3, of
# `multipleOf: 99991` 0.3 to 7. With 0.1 an ordinary answer became slow beside hostile ones, and took up to 4 s.
_MASK_SECONDS, _ONCE_SECONDS = 0.0002, 0.002


def schema_grammar(schema: dict[str, Any], param: str) -> str:
    """JSON that satisfies a schema; `Refusal` (about the field `param`) if the schema is wrong or too large."""
    _check_size([schema], param)
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_JSON)
    except ValueError as error:  # a whole number beyond 64 bits
        raise Refusal(f"{param}: {' '.join(str(error).split())[:300]}", param=param) from None


def calls_grammar(calls: Calls, functions: Sequence[dict[str, Any]], several: bool, must: bool, param: str) -> str:
    """One or several calls of these functions, in the form of a model; `Refusal` as of a schema.

    Args:
        must: the answer has to call; if not, it may also be text, or begin with text.
    """
    form, special = calls.form, calls.special
    # Where no call is asked for, what the grammar can't hold of a schema (`uniqueItems`, `not`) is no reason to refuse.
    how = _JSON | {"lenient": not must}
    schemas = [{"type": "object", **(function.get("parameters") or {}), "x-guidance": how} for function in functions]
    _check_size(schemas, param)

    def literal(text: str) -> str:
        parts = (f"<[{special[part]}]>" if part in special else json.dumps(part) for part in form.split(text) if part)
        return " ".join(parts)

    before, middle, after = form.parts
    opening = form.first + before
    more = f"({literal(form.between + before)} body)*" if several and form.between is not None else ""
    rules = [
        f"calls: body {more} {literal(form.last)}",
        f"body: {' | '.join(f'call{number}' for number in range(len(functions)))}",
    ]
    for number, (function, schema) in enumerate(zip(functions, schemas, strict=True)):
        rules.append(f"call{number}: {literal(function['name'] + middle)} %json {json.dumps(schema)} {literal(after)}")
    if must:
        rules.append(f"start: {literal(opening)} calls")
    elif not form.mark:
        rules += [f"start: TEXT | {literal(opening)} calls", "TEXT: /(\\s*[^{\\s](.|\\n)*)?/"]
    else:
        others = f"(<[{_ranges(calls.other_special)}]> TEXT?)*" if calls.other_special else ""
        rules += [
            f"start: TEXT? {others} (mark {literal(opening[len(form.mark) :])} calls)?",
            "TEXT: /(.|\\n)+/",
            # A rule that is lazy ends with the mark, and no text may go on there.
            f"mark: {literal(form.mark)}" if form.mark in special else f"mark[lazy]: ANY {literal(form.mark)}",
            "ANY: /(.|\\n)*/",
        ]
    return llguidance.LLMatcher.grammar_from_lark("\n".join(rules))


def _ranges(numbers: list[int]) -> str:
    """Numbers in their order, as `1-3,7`."""
    by_run = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    runs = ([number for _, number in run] for _, run in by_run)
    return ",".join(f"{run[0]}-{run[-1]}" for run in runs)


def _check_size(schemas: list[dict[str, Any]], param: str) -> None:
    if len(json.dumps(schemas)) > _MOST_SCHEMA_BYTES:
        raise Refusal(f"{param}: the schema has more than {_MOST_SCHEMA_BYTES:,} bytes; simplify it", param=param)


class Grammars:
    """Makes the masks of a model.

    Args:
        vocabulary_size: the width of the model's logits; there may be more than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int):
        tokens = [tokenizer.bytes_of(token) for token in range(tokenizer.vocabulary_size)]
        self._tokens = Vocabulary(tokens, tokenizer.stop_ids, tokenizer.bos_id, tokenizer.encode)
        self._trials: LifoQueue[Limited] = LifoQueue()
        for _ in range(FORMS):
            self._trials.put(Limited(CPU_SECONDS))
        self._kept: OrderedDict[str, Mask] = OrderedDict()
        self._last: Mask | None = None
        self._lock = threading.Lock()
        self._stop_ids, self._vocabulary_size = list(tokenizer.stop_ids), vocabulary_size

    def mask(self, grammar: str, param: str) -> "Mask":
        """As `of_grammar`; `Refusal` (about the field `param`) if a client's grammar is wrong or costs too much."""
        try:
            return self.of_grammar(grammar, param)
        except UserError as failed:
            raise Refusal(str(failed), param=param) from None

    def kept(self, grammar: str) -> "Mask | None":
        """The mask of a grammar that is compiled already: it need not wait behind others that are being compiled."""
        with self._lock:
            mask = self._last if self._last and self._last.grammar == grammar else self._kept.get(grammar)
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
            return mask and mask.copy()

    def of_grammar(self, grammar: str, tried_as: str = "") -> "Mask":
        """The mask of a grammar for an answer.

        Clients ask for the same form again, so simple ones are kept; and the last one, which other hosts than host 0
        are asked for as often as a request has answers.

        Args:
            tried_as: the field of a request that an error names; empty for what another host has tried.

        Raises:
            UserError: it is wrong or costs too much.
        """
        if (mask := self.kept(grammar)) is not None:
            return mask
        began = time.thread_time()
        mask = self._compile(grammar, tried_as)
        is_simple = time.thread_time() - began < _SIMPLE_SECONDS
        with self._lock:
            self._last = mask
            if is_simple:
                self._kept[grammar] = mask
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return mask.copy()

    def _compile(self, grammar: str, tried_as: str) -> "Mask":
        error = ""
        if tried_as:
            trial = self._trials.get()
            try:
                size = self._vocabulary_size if "<[" in grammar else 0
                error = trial.call(tried_as, f"{check_grammar.__module__}:{check_grammar.__name__}", grammar, size)
            finally:
                self._trials.put(trial)
        mask = None if error else Mask(grammar, self._tokens.matcher(grammar), self._stop_ids, self._vocabulary_size)
        if error or (error := mask.error):
            raise UserError(f"{tried_as}: {' '.join(error.split())[:300]}")
        return mask


class Mask:
    """`Request.allowed` of one answer. It reads the tokens that came since it was asked last.

    A matcher that fails on the way, at a limit, allows nothing but the end. The first mask is computed here, so the
    engine never waits for it.

    Attributes:
        grammar: that the text satisfies.
        error: what is wrong with it; empty if nothing is.
    """

    def __init__(self, grammar: str, matcher: Any, stop_ids: list[int], vocabulary_size: int):
        self.grammar, self._matcher, self._stop_ids, self._size = grammar, matcher, stop_ids, vocabulary_size
        self._read, self._computed, self._seconds = 0, 0, 0.0
        self._first_V = self._compute(())
        self._ahead: tuple[tuple[int, ...], Future] | None = None  # the ids whose mask was begun, and that mask
        self.error = matcher.get_error()

    def copy(self) -> "Mask":
        """The same for another answer; nothing is compiled again."""
        other = copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def is_slow(self) -> bool:
        """As `Allowed`: by the masks so far."""
        return self._seconds > _ONCE_SECONDS + self._computed * _MASK_SECONDS

    def is_ready(self, ids: tuple[int, ...]) -> bool:
        """As `Allowed`."""
        if self._ahead is None or self._ahead[0] != ids:
            self._ahead = ids, _slow_masks().submit(self._compute, ids)
        return self._ahead[1].done()

    def __call__(self, ids: tuple[int, ...]) -> np.ndarray:
        if self._ahead is not None and self._ahead[0] == ids:
            return self._ahead[1].result()
        return self._compute(ids) if ids else self._first_V

    def _compute(self, ids: tuple[int, ...]) -> np.ndarray:
        began = time.thread_time()
        if len(ids) < self._read:  # the answer is computed again from an earlier token
            self._matcher.reset()
            self._read = 0
        self._matcher.consume_tokens(list(ids[self._read :]))
        self._read = len(ids)
        allowed_V = np.zeros(self._size, bool)
        if not self._matcher.is_error() and not self._matcher.is_stopped():
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            found = np.unpackbits(bits, count=min(8 * bits.size, self._size), bitorder="little")
            allowed_V[: len(found)] = found
        if not allowed_V.any():
            allowed_V[self._stop_ids] = True
        self._seconds += time.thread_time() - began
        self._computed += 1
        return allowed_V


@cache
def _slow_masks() -> ThreadPoolExecutor:
    """Threads of little weight: on two processors, one of full weight that always computes would take half."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4), "computes slow masks", go_last)
