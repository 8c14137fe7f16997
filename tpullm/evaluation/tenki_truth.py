"""How close a model is to the truth of `tenki`: its loss beside the entropy, blanks, swapped objects."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tpullm.corpus import tenki
from tpullm.corpus.tenki.blanks import total_variation
from tpullm.data.token_store import TokenStore
from tpullm.engine.session import Session
from tpullm.evaluation.blank import BLANK, fill_blank
from tpullm.evaluation.scoring import log_probabilities, text_log_probabilities
from tpullm.system.errors import UserError


def loss_and_entropy(path: Path, session: Session) -> dict[str, float]:
    """The model's loss and the grammar's entropy on the same held-out tokens, and the difference.

    Only whole documents are counted, with their end tokens. A document longer than the context counts on neither side.

    Args:
        path: the token store of held-out text.

    Raises:
        UserError: no document fits the context.
    """
    store, tokenizer = TokenStore(path), session.tokenizer
    documents = [store.document(index).tolist() for index in range(store.lengths.documents)]
    documents = [ids for ids in documents if len(ids) <= session.context_length]
    if not documents:
        raise UserError(f"{path}: no held-out document fits model.context_length {session.context_length}; raise it")
    predicted = sum(len(ids) - 1 for ids in documents)
    loss = -sum(float(scores.sum()) for scores in log_probabilities(session, documents))
    entropy = -sum(tenki.log_probability(tokenizer.decode(ids)) for ids in documents)
    return {
        "loss_nats_per_token": loss / predicted,
        "entropy_nats_per_token": entropy / predicted,
        "gap_nats_per_token": (loss - entropy) / predicted,
        "documents": len(documents),
        "tokens": predicted,
        "entropy_nats_per_document": tenki.entropy(),
    }


def compare_blanks(session: Session) -> dict:
    """The words that the model expects in each blank of `tenki.BLANKS`, beside the true probabilities."""
    rows = []
    for text in tenki.BLANKS:
        model: dict[str, float] = {}
        with contextlib.suppress(UserError):  # a model that has learned little finds no word
            model = dict(fill_blank(session, text))
        rows.append(_beside_truth(text, model))
    distances = [row["total_variation"] for row in rows]
    return {"total_variation": distances[0], "mean_total_variation": float(np.mean(distances)), "table": rows}


def choose_in_blank(session: Session, text: str) -> dict:
    """The probability of each word of tenki in a blank, among all of them, beside the true ones.

    Cheaper than `fill_blank`, since nothing is proposed, and a model that knows nothing has an answer.
    """
    scores = np.array(text_log_probabilities(session, filled_texts(text)))
    shares = np.exp(scores - np.logaddexp.reduce(scores))
    return _beside_truth(text, dict(zip(tenki.words(), shares.tolist(), strict=True)))


def filled_texts(text: str) -> list[str]:
    """The text with each word of tenki in its blank."""
    left, right = BLANK.split(text)
    return [left + word + right for word in tenki.words()]


def _beside_truth(text: str, model: Mapping[str, float]) -> dict:
    """The twelve likeliest words by the truth, then by the model, with both probabilities."""
    truth = tenki.blank(text)
    words = sorted(model.keys() | truth.keys(), key=lambda of: -truth.get(of, 0.0) - 1e-3 * model.get(of, 0.0))
    shown = [{"word": of, "model": model.get(of, 0.0), "truth": truth.get(of, 0.0)} for of in words[:12]]
    return {"text": text, "total_variation": total_variation(model, truth) if model else 1.0, "words": shown}


def compare_swaps(session: Session) -> dict:
    """Whether the likeliest verb follows the object: each prefix of `tenki.swaps` is scored with each of their verbs.

    Returns:
        `accuracy`: the share of pairs with the right verb on both sides; `pairs`: their number; `table`: one row for
        each prefix, whose `probability` is that of the likeliest verb among all verbs.
    """
    wanted, pairs = {}, tenki.swaps()
    for pair in pairs:
        wanted[pair.prefix] = (pair.object, pair.verb)
        wanted[pair.other_prefix] = (pair.other_object, pair.other_verb)
    verbs = sorted({verb for _, verb in wanted.values()})
    texts = [prefix + verb for prefix in wanted for verb in verbs]
    scores = np.reshape(text_log_probabilities(session, texts), (len(wanted), len(verbs)))
    shares = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    rows = [
        {"prefix": prefix, "object": thing, "verb": verb, "model_verb": (likeliest := verbs[row.argmax()]),
         "probability": float(row.max()), "right": likeliest == verb}
        for (prefix, (thing, verb)), row in zip(wanted.items(), shares, strict=True)
    ]  # fmt: skip
    right = {row["prefix"]: row["right"] for row in rows}
    accuracy = float(np.mean([right[pair.prefix] and right[pair.other_prefix] for pair in pairs]))
    return {"accuracy": accuracy, "pairs": len(pairs), "table": rows}
