"""Texts by the engine: of many prompts at once, several answers to each prompt, or one text as it is written.

Shapes: G prompts, A answers to each, B = G * A rows, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tpullm.engine.cache import SHORT, SIZE, Cache, Piece, empty_block
from tpullm.engine.engine import Engine, rotation_length
from tpullm.engine.forward import SharedPrompts, advance_answers
from tpullm.engine.request import Request, Token, whole_characters
from tpullm.engine.sampling import choose
from tpullm.engine.session import Session, check_context, length_bucket, near_length, row_bucket
from tpullm.model.rows import fetch_whole
from tpullm.recipe.sampling import GREEDY, Sampling
from tpullm.tokenizer.chat_template import Messages, without_old_turns

IsOver = Callable[[int, list[int]], bool]

ANSWER_TOKENS = 48
CHAT_TOKENS = 200  # the longest answer in a conversation, if nothing else is said
BATCH = 64  # texts that are written at a time, where all prompts are there from the start
LOOK_EVERY = 16  # tokens, after which it is looked whether a text is over


def answer_questions(
    session: Session, questions: Sequence[str], batch: int = BATCH, tokens: int = ANSWER_TOKENS
) -> list[str]:
    """The likeliest answer to each question. Each question begins a conversation of its own.

    Args:
        batch: how many answers are written at a time.
        tokens: the length at which an answer is cut off.

    Raises:
        UserError: a question is longer than the context.
    """
    tokenizer = session.tokenizer
    asked = [{"role": "user", "content": question} for question in questions]
    prompts = [tokenizer.chat_template([message], add_generation_prompt=True)[0] for message in asked]
    return [tokenizer.decode(ids) for ids in likeliest_continuations(session, prompts, batch, tokens)]


def conversation_ids(session: Session, messages: Messages, tokens: int) -> tuple[list[int], int]:
    """The ids of a conversation up to where the model answers, and how many of its oldest turns are left out.

    `without_old_turns` leaves them out, to make room for an answer of `tokens`.

    Raises:
        UserError: the last message alone is longer than the context.
    """

    def prompt_ids(kept: Messages) -> list[int]:
        return session.tokenizer.chat_template(kept, add_generation_prompt=True)[0]

    kept, turns = without_old_turns(messages, lambda kept: len(prompt_ids(kept)), session.context_length, tokens)
    ids = prompt_ids(kept)
    check_context(session, ids, "prompt")
    return ids, turns


def likeliest_continuations(
    session: Session, prompts: Sequence[list[int]], batch: int = BATCH, tokens: int = ANSWER_TOKENS
) -> list[list[int]]:
    """The ids of the likeliest answer to each prompt of ids; arguments and errors are those of `answer_questions`."""
    stops = tuple(session.tokenizer.stop_ids)
    return continue_prompts(session, [Request(tuple(ids), tokens, GREEDY, stop_ids=stops) for ids in prompts], batch)


def sample_texts(session: Session, prompts: Sequence[str], tokens: int, seed: int) -> list[str]:
    """A continuation of each prompt, sampled with the defaults of `Sampling`. A prompt is cut to fit the context.

    Args:
        seed: of the first prompt; further ones have the next. With one seed for all, a model that knows little writes
            nearly the same after each.
    """
    tokenizer = session.tokenizer
    stops = tuple(tokenizer.stop_ids)
    ids = [(*tokenizer.begin, *tokenizer.encode(prompt))[: session.context_length - 1] for prompt in prompts]
    asked = [Request(own, tokens, Sampling(), seed + n, stops) for n, own in enumerate(ids)]
    return ["".join(whole_characters(tokenizer, new)) for new in continue_prompts(session, asked)]


def continue_prompts(session: Session, requests: Sequence[Request], rows: int = BATCH) -> list[list[int]]:
    """The new ids of each request, the one that ended its text included; none where the prompt fills the context.

    Raises:
        UserError: a prompt does not fit.
    """
    new = dict(continuations_by_end(session, requests, rows))
    return [new.get(number, []) for number in range(len(requests))]


def continuations_by_end(
    session: Session, requests: Sequence[Request], rows: int = BATCH, is_over: IsOver | None = None
) -> Iterator[tuple[int, list[int]]]:
    """The number and the new ids of each request whose prompt leaves room for some, as soon as its text has ended.

    Args:
        is_over: whether the text of a request, by its number, needs no more tokens. It is asked every `LOOK_EVERY`
            tokens, so a text may have some tokens more.
    """
    for request in requests:
        check_context(session, list(request.ids), "prompt")
    asked = [number for number, request in enumerate(requests) if len(request.ids) < session.context_length]
    if not asked:
        return
    longest = max(len(requests[number].ids) + requests[number].tokens for number in asked)
    # Each number of rows is a program, and so is each length of them: one of few, which further texts share.
    few = min(rows, 1 << (len(asked) - 1).bit_length())
    engine = Engine(session, few, max(SHORT, near_length(longest)), reads_first=True)
    ended: list[tuple[int, list[int]]] = []

    def submit(number: int) -> None:
        ids: list[int] = []

        def on_token(token: Token) -> None:
            ids.append(token.id)
            over = is_over is not None and len(ids) % LOOK_EVERY == 0 and is_over(number, ids)
            if token.ends or over:
                ended.append((number, ids))
            if over and not token.ends:
                engine.cancel(submitted)

        submitted = engine.submit(requests[number], on_token)

    for number in asked:
        submit(number)
    going = True
    while going:
        going = engine.step()
        yield from ended
        ended.clear()


def stream_tokens(
    session: Session,
    prompt: Sequence[int],
    tokens: int,
    sampling: Sampling,
    seed: int = 0,
    stop_ids: Sequence[int] | None = None,
    engine: Engine | None = None,
) -> Iterator[int]:
    """Yield up to `tokens` new tokens as they are chosen, the one that ends the text included.

    When the context is full, writing goes on from its last half.

    Args:
        stop_ids: tokens that end the text; default: the tokenizer's.
        engine: one for several texts that begin alike, such as the turns of a conversation; default: a new one.

    Raises:
        UserError: the prompt is longer than the context.
    """
    check_context(session, list(prompt), "prompt")
    stops = tuple(session.tokenizer.stop_ids if stop_ids is None else stop_ids)
    ids, left, emitted = tuple(prompt), tokens, deque()
    engine = engine or Engine(session, 1, length_bucket(len(ids) + tokens))
    while left > 0:
        if len(ids) >= engine.longest:
            ids = ids[-max(1, engine.longest // 2) :]
        number = engine.submit(Request(ids, left, sampling, seed + tokens - left, stops), emitted.append)
        try:
            going = True
            while going:
                going = engine.step()
                while emitted:
                    token = emitted.popleft().id
                    ids, left = (*ids, token), left - 1
                    yield token
                    if token in stops:
                        return
        finally:
            engine.cancel(number)


def decode_batch(
    session: Session,
    prompts: Sequence[list[int]],
    tokens: int,
    sampling: Sampling = GREEDY,
    seeds: Sequence[int] = (0,),
    stop_ids: Sequence[int] | None = None,
    each: int = 1,
) -> list[list[int]]:
    """Answer several prompts, all rows in each step, for training: the batch is as it is given, and so are its bits.

    A prompt is read once. Its answers share its keys and values and have slots of their own behind it: 64 answers of 64
    tokens to 8 prompts took 1.3 s and now 1.1 with 20 tokens in a prompt, 2.5 and 1.7 s with 200. A single answer
    stands in the row of its prompt, since two places cost 7 to 14 % more (12 M parameters, two cores).

    Args:
        prompts: token ids, `<s>` first. Their lengths can differ.
        tokens: the largest number of new tokens for each prompt. No row grows beyond the context.
        seeds: one for each answer; repeated if there are fewer.
        stop_ids: tokens that end a text (default: the tokenizer's). The token that ended a row is returned too.
        each: number of answers to each prompt.

    Returns:
        The new ids of each answer, prompt by prompt.

    Raises:
        UserError: a prompt is longer than the context.
    """
    for ids in prompts:
        check_context(session, ids, "prompt")
    stops = list(session.tokenizer.stop_ids if stop_ids is None else stop_ids)
    mesh, lengths = session.mesh, [len(ids) for ids in prompts]
    G, P, S = row_bucket(session, len(prompts)), length_bucket(max(lengths)), length_bucket(tokens)
    longest = [rotation_length(session, len(ids) + tokens) for ids in prompts]
    cache = Cache(session, [(G, P if each > 1 else P + S)], [[P if each > 1 else P + S]])
    with jax.set_mesh(mesh):
        logits_GV = _prefill_shared(cache, prompts, longest, G, P)
        lengths_B = np.repeat(np.resize(lengths, G), each).astype(np.int32)
        seeds_B = np.resize(np.asarray(seeds, np.uint32), len(lengths_B)).astype(np.int32)
        longest_B = np.repeat(np.resize(longest, G), each).astype(np.int32)
        rows_B3 = cache.put(np.stack([lengths_B, seeds_B, longest_B], axis=1), "batch", None)
        blocks, shared = cache.blocks(0, P), None
        if each > 1:
            shared = SharedPrompts(blocks[0], cache.put(lengths_B, "batch"))
            blocks = (empty_block(session.architecture, len(lengths_B), S, session.dtype),)
        new_BT = np.full((len(prompts) * each, tokens), -1)
        last_B, ended_B = _first_tokens(logits_GV, rows_B3, sampling, each=each), np.zeros(len(new_BT), bool)
        for n in range(tokens):
            before_B = last_B
            if n + 1 < tokens:  # on its way before the tokens of the last step are looked at
                arguments = blocks, shared, last_B, rows_B3, sampling
                last_B, rows_B3, blocks = advance_answers(*session.arrays, *arguments, dtype=session.dtype)
            new_BT[~ended_B, n] = fetch_whole(mesh, before_B)[: len(new_BT)][~ended_B]
            ended_B |= np.isin(new_BT[:, n], stops)
            if ended_B.all():
                break
    rooms = [min(tokens, session.context_length - len(ids)) for ids in prompts for _ in range(each)]
    return [[token for token in row[:room].tolist() if token >= 0] for row, room in zip(new_BT, rooms, strict=True)]


def _prefill_shared(cache: Cache, prompts: Sequence[list[int]], longest: list[int], rows: int, slots: int) -> jax.Array:
    """Read each prompt into its row of the first group: the logits after the last token of each, `[G, V]`."""
    size = min(SIZE, slots)
    for start in range(0, max(map(len, prompts)), size):
        # Every prompt has a piece, for its number is that of its row; one that is read has a piece without tokens.
        pieces = [Piece(n, start, tuple(ids[start : start + size]), longest[n]) for n, ids in enumerate(prompts)]
        *_, (some_GV, _) = cache.read(0, pieces, rows, size, end=slots)
        if start == 0:
            logits_GV = some_GV
        else:  # for the prompts that reach so far
            reach = [len(ids) > start for ids in prompts] + [False] * (rows - len(prompts))
            logits_GV = jnp.where(cache.put(np.array(reach)[:, None], "batch", None), some_GV, logits_GV)
    return logits_GV


@partial(jax.jit, static_argnames=("each",))
def _first_tokens(logits_GV, rows_B3, sampling: Sampling, *, each: int) -> jax.Array:
    """The first token of each answer, `[B]`; each device has the answers to its own prompts."""
    spec = jax.typeof(logits_GV).sharding.spec
    logits_BV = jax.shard_map(lambda own: jnp.repeat(own, each, axis=0), out_specs=spec)(logits_GV)
    return choose(logits_BV, sampling, rows_B3[:, 1].astype(jnp.uint32), rows_B3[:, 0])
