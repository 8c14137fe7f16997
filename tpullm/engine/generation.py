"""Texts by the engine: of many prompts at once, or one as it is written."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from tpullm.engine.engine import Engine
from tpullm.engine.padding import bucket, fits, near
from tpullm.engine.request import Request, Token
from tpullm.engine.row_sizes import SHORT
from tpullm.engine.session import Session
from tpullm.engine.streaming import characters
from tpullm.recipe.sampling import GREEDY, Sampling

IsOver = Callable[[int, list[int]], bool]

ANSWER_TOKENS = 48
BATCH = 64  # texts that are written at a time, where all prompts are there from the start
LOOK_EVERY = 16  # tokens, after which it is looked whether a text is over


def answer(session: Session, questions: Sequence[str], batch: int = BATCH, tokens: int = ANSWER_TOKENS) -> list[str]:
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
    return [tokenizer.decode(ids) for ids in likeliest(session, prompts, batch, tokens)]


def likeliest(
    session: Session, prompts: Sequence[list[int]], batch: int = BATCH, tokens: int = ANSWER_TOKENS
) -> list[list[int]]:
    """The ids of the likeliest answer to each prompt of ids; the arguments and the error are those of `answer`."""
    stops = tuple(session.tokenizer.stop_ids)
    return continued(session, [Request(tuple(ids), tokens, GREEDY, stop_ids=stops) for ids in prompts], batch)


def sampled(session: Session, prompts: Sequence[str], tokens: int, seed: int) -> list[str]:
    """A continuation of each prompt, sampled with the defaults of `Sampling`. A prompt is cut to fit the context.

    Args:
        seed: of the first prompt; further ones have the next. With one seed for all, a model that knows little writes
            nearly the same after each.
    """
    tokenizer = session.tokenizer
    stops = tuple(tokenizer.stop_ids)
    ids = [(*tokenizer.begin, *tokenizer.encode(prompt))[: session.context_length - 1] for prompt in prompts]
    asked = [Request(own, tokens, Sampling(), seed + n, stops) for n, own in enumerate(ids)]
    return ["".join(characters(tokenizer, new)) for new in continued(session, asked)]


def continued(session: Session, requests: Sequence[Request], rows: int = BATCH) -> list[list[int]]:
    """The new ids of each request, the one that ended its text included; none where the prompt fills the context.

    Raises:
        UserError: a prompt does not fit.
    """
    new: list[list[int]] = [[] for _ in requests]
    for number, ids in as_they_end(session, requests, rows):
        new[number] = ids
    return new


def as_they_end(
    session: Session, requests: Sequence[Request], rows: int = BATCH, is_over: IsOver | None = None
) -> Iterator[tuple[int, list[int]]]:
    """The number and the new ids of each request whose prompt leaves room for some, as soon as its text has ended.

    Args:
        is_over: whether the text of a request, by its number, needs no more tokens. It is asked every `LOOK_EVERY`
            tokens, so a text may have some tokens more.
    """
    for request in requests:
        fits(session, list(request.ids), "prompt")
    asked = [number for number, request in enumerate(requests) if len(request.ids) < session.context_length]
    if not asked:
        return
    longest = max(len(requests[number].ids) + requests[number].tokens for number in asked)
    # Each number of rows is a program, and so is each length of them: one of few, which further texts share.
    few = min(rows, 1 << (len(asked) - 1).bit_length())
    engine = Engine(session, few, max(SHORT, near(longest)), reads_first=True)
    ended: list[tuple[int, list[int]]] = []
    for number in asked:
        _ask(engine, number, requests[number], ended, is_over)
    going = True
    while going:
        going = engine.step()
        yield from ended
        ended.clear()


def _ask(engine: Engine, number: int, request: Request, ended: list, is_over: IsOver | None) -> None:
    ids: list[int] = []

    def heard(token: Token) -> None:
        ids.append(token.id)
        over = is_over is not None and len(ids) % LOOK_EVERY == 0 and is_over(number, ids)
        if token.ends or over:
            ended.append((number, ids))
        if over and not token.ends:
            engine.cancel(submitted)

    submitted = engine.submit(request, heard)


def stream(
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
    fits(session, list(prompt), "prompt")
    stops = tuple(session.tokenizer.stop_ids if stop_ids is None else stop_ids)
    ids, left = tuple(prompt), tokens
    engine = engine or Engine(session, 1, bucket(len(ids) + tokens))
    while left > 0:
        if len(ids) >= session.context_length:
            ids = ids[-max(1, session.context_length // 2) :]
        for token in _streamed(engine, Request(ids, left, sampling, seed + tokens - left, stops)):
            ids, left = (*ids, token), left - 1
            yield token
            if token in stops:
                return


def _streamed(engine: Engine, request: Request) -> Iterator[int]:
    heard: deque[Token] = deque()
    number = engine.submit(request, heard.append)
    try:
        going = True
        while going:
            going = engine.step()
            while heard:
                yield heard.popleft().id
    finally:
        engine.cancel(number)
