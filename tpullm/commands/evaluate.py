"""Measure the model: held-out loss, the truth tables of `tenki`, and answers before and after tuning.

It makes RUN/evaluate.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from tpullm import storage
from tpullm.cluster import hosts
from tpullm.corpus import document_files, tenki
from tpullm.corpus.sources import YOURS, sources
from tpullm.data.batch import Batch
from tpullm.data.stream import evaluation_batches, pretraining_stream
from tpullm.data.token_store import TokenStore
from tpullm.errors import UserError
from tpullm.inference import own_text
from tpullm.inference.answers import answer, counterfactual
from tpullm.inference.attention_weights import weights
from tpullm.inference.blank import fill
from tpullm.inference.decode import decode
from tpullm.inference.sampling_options import Sampling
from tpullm.inference.scoring import log_probabilities
from tpullm.inference.session import Session, load, row_bucket
from tpullm.inference.streaming import characters
from tpullm.log import say
from tpullm.model.count import parameter_count
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest
from tpullm.run.stages import begin, evaluate_inputs
from tpullm.training.evaluation import held_out, make_evaluation


def main(recipe: Recipe, run: Path) -> None:
    """Write `RUN/evaluate/results.json` and print its figures; with several hosts, the first does so on its devices."""
    hosts.on_first("evaluate", _evaluate, recipe, run)


def _evaluate(recipe: Recipe, run: Path) -> None:
    stage, inputs = run / "evaluate", evaluate_inputs(recipe, run)
    if manifest.is_finished(stage, inputs):
        return say("evaluate: finished, skipped")
    start = time.monotonic()
    base = load(run / recipe.foundation)
    results = {"model": _model(base), "machine": _machine(), "seconds": _seconds(run)}
    results |= _held_out_loss(recipe, run, base)
    for source in sources(recipe):
        if source.name == YOURS and _rows(recipe, run, source.name, base):
            results["yours"] = _yours(recipe, run, base)
        if source.kind == "tenki":
            results |= {source.name: truth(run / "tokens" / source.name / "held_out", base)} | tables(base)
    if recipe.finetune and "tenki" in recipe.finetune.conversations:
        results |= _answers(recipe, base, load(run / "finetune"))
    results["samples"] = samples(base, recipe.evaluate.prompts, recipe.evaluate.sample_tokens, recipe.seed)
    results["attention"] = _attention(base, recipe.evaluate.attention)
    begin(stage, inputs)
    results["seconds"]["evaluate"] = round(time.monotonic() - start, 1)
    storage.write_json(stage / "results.json", results)
    manifest.write(stage, inputs, seconds=results["seconds"]["evaluate"])
    _print(results)


def _held_out_loss(recipe: Recipe, run: Path, session: Session) -> dict:
    batches = {source.name: _rows(recipe, run, source.name, session) for source in sources(recipe)}
    batches = {name: rows for name, rows in batches.items() if rows}
    evaluate = make_evaluation(session.architecture, session.dtype)
    with jax.set_mesh(session.mesh):
        found = held_out(evaluate, session.params, session.mesh, batches, session.tokenizer.bytes_per_token())
    return {"loss_nats_per_token": found["eval_loss"], "bits_per_byte": found["eval_bits_per_byte"]}


def _rows(recipe: Recipe, run: Path, source: str, session: Session) -> Iterator[Batch] | None:
    """The rows of a source's held-out text that are evaluated; None if there are none."""
    path, config = run / "tokens" / source / "held_out", recipe.evaluate
    if not path.exists():
        return None
    rows = row_bucket(session, config.batch_size)
    return evaluation_batches(TokenStore(path), rows, recipe.pretrain.sequence_length, config.rows)


def _yours(recipe: Recipe, run: Path, session: Session) -> dict:
    """What the model learned of the user's own text, and how much better than a compressor it predicts it."""
    texts = own_text.passages(
        record["text"] for record in document_files.read(run / "documents", YOURS, document_files.HELD_OUT)
    )
    training = (record["text"] for record in document_files.read(run / "documents", YOURS, document_files.TRAIN))
    evaluated = own_text.evaluated_bytes(session, _rows(recipe, run, YOURS, session))
    times_read = pretraining_stream(recipe, run).epoch_at(recipe.pretrain.steps)[YOURS]
    return {
        "times_read": round(times_read, 2),
        "sentence": next((sentence for text in texts for sentence in own_text.sentences(text)), ""),
        "continuations": own_text.continuations(session, texts, recipe.evaluate.sample_tokens, recipe.seed),
        "blanks": own_text.blanks(session, texts),
        "compressor": {
            "name": "xz -9e",
            "bits_per_byte": own_text.compressor_bits_per_byte(training, evaluated),
            "bytes": len(evaluated),
        },
    }


def truth(path: Path, session: Session) -> dict[str, float]:
    """How far the model is from the grammar: its loss and the grammar's own surprise, on the same held-out tokens.

    Whole documents, their ends included; documents longer than the context are left out on both sides.
    """
    store, tokenizer = TokenStore(path), session.tokenizer
    documents = [store.document(index).tolist() for index in range(len(store.lengths))]
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


def tables(session: Session) -> dict:
    """The blank table (model against truth, by word) and the counterfactual table (the verb follows the object)."""
    rows = [_blank(session, text) for text in tenki.BLANKS]
    found = counterfactual(session, tenki.swaps())
    return {
        "blank": {
            "total_variation": rows[0]["total_variation"],
            "mean_total_variation": float(np.mean([row["total_variation"] for row in rows])),
            "table": rows,
        },
        "swaps": {
            "accuracy": found.share,
            "pairs": len(tenki.swaps()),
            "table": [
                {
                    "prefix": item.prefix,
                    "object": item.object,
                    "verb": item.verb,
                    "model_verb": item.likeliest,
                    "probability": item.probability,
                    "right": item.likeliest == item.verb,
                }
                for item in found.expectations
            ],
        },
    }


def _blank(session: Session, text: str) -> dict:
    """One row: half the sum of the differences between the two distributions, over all words of either."""
    true = tenki.blank(text)
    try:
        model = dict(fill(session, text))
    except UserError:  # a model that has learned little finds no word: as far from the truth as can be
        model = {}
    words = sorted(model.keys() | true.keys(), key=lambda word: -true.get(word, 0.0) - 1e-3 * model.get(word, 0.0))
    distance = sum(abs(model.get(word, 0.0) - true.get(word, 0.0)) for word in words) / 2
    shown = [{"word": word, "model": model.get(word, 0.0), "truth": true.get(word, 0.0)} for word in words[:12]]
    return {"text": text, "total_variation": distance, "words": shown}


def _answers(recipe: Recipe, base: Session, tuned: Session) -> dict:
    """Right answers (the exact sentence) to held-out questions, before and after tuning."""
    _, questions = tenki.split_questions(recipe.finetune.held_out_fraction, recipe.seed)
    questions = questions[: recipe.evaluate.questions or None]
    asked = [question.question for question in questions]
    said = {"base": answer(base, asked), "tuned": answer(tuned, asked)}
    right = {
        name: [text.strip() in question.answers for text, question in zip(texts, questions, strict=True)]
        for name, texts in said.items()
    }
    table = [
        {"question": question.question, "expected": question.answers[0], "kind": question.kind,
         "base": said["base"][i], "tuned": said["tuned"][i], "right": right["tuned"][i]}
        for i, question in enumerate(questions)
    ]  # fmt: skip
    return {
        "tuned": {"accuracy": float(np.mean(right["tuned"])), "questions": len(questions)},
        "base": {"accuracy": float(np.mean(right["base"])), "questions": len(questions)},
        "answers": table,
    }


def samples(session: Session, prompts: list[str], tokens: int, seed: int) -> list[dict[str, str]]:
    """What the model writes after each prompt."""
    tokenizer = session.tokenizer
    ids = [[*tokenizer.begin, *tokenizer.encode(prompt)][: session.context_length - 1] for prompt in prompts]
    written = decode(session, ids, tokens, Sampling(temperature=0.8), seeds=[seed]) if ids else []
    texts = ["".join(characters(tokenizer, new)) for new in written]
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]


def _attention(session: Session, text: str) -> dict:
    tokenizer = session.tokenizer
    text = tokenizer.decode(tokenizer.encode(text)[: session.context_length - 1])
    tokens, shares = weights(session, text)
    return {"text": text, "tokens": tokens, "weights": np.round(shares, 3).tolist()}


def _model(session: Session) -> dict:
    config = session.architecture.config
    return {"parameters": parameter_count(session.architecture.shapes), "config": dataclasses.asdict(config)}


def _machine() -> dict:
    device = jax.local_devices()[0]
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "platform": device.platform,
        "device": device.device_kind,
        "cores": os.cpu_count(),
    }


def _seconds(run: Path) -> dict[str, float]:
    stages = ("base", "documents", "tokenizer", "tokens", "pretrain", "finetune")
    found = {stage: storage.read_json(run / stage / manifest.FILE) for stage in stages if (run / stage).exists()}
    return {stage: value["seconds"] for stage, value in found.items() if "seconds" in value}


def _print(results: dict) -> None:
    from rich.table import Table

    from tpullm.log import console

    table = Table(title="What the model learned", title_justify="left", show_header=False)
    for source, bits in results["bits_per_byte"].items():
        loss = results["loss_nats_per_token"][source]
        table.add_row(f"held-out {source}", f"{loss:.4f} nats a token, {bits:.3f} bits a byte")
    if "yours" in results:
        compressor, bits = results["yours"]["compressor"], results["bits_per_byte"][YOURS]
        less = 1 - bits / compressor["bits_per_byte"] if compressor["bits_per_byte"] else 0.0
        beside = f"the model needs {abs(less):.0%} {'less' if less > 0 else 'more'}"
        table.add_row(f"your text by {compressor['name']}", f"{compressor['bits_per_byte']:.3f} bits a byte; {beside}")
        blanks = results["yours"]["blanks"]
        first, five = (sum(1 <= blank["place"] <= last for blank in blanks) for last in (1, 5))
        table.add_row("words missing in it", f"of {len(blanks)}, {first} guessed first, {five} among the first five")
    for name, value in results.items():
        if isinstance(value, dict) and "gap_nats_per_token" in value:
            loss, entropy, gap = (value[f"{key}_nats_per_token"] for key in ("loss", "entropy", "gap"))
            table.add_row(f"{name}: loss - true entropy", f"{loss:.4f} - {entropy:.4f} = {gap:.4f} nats a token")
    if "blank" in results:
        first = results["blank"]["table"][0]
        table.add_row(f"blank {first['text']}", f"total variation from the truth {first['total_variation']:.3f}")
        table.add_row("all blanks", f"mean total variation {results['blank']['mean_total_variation']:.3f}")
        table.add_row(
            "リンゴ→本: the verb follows", f"{results['swaps']['accuracy']:.1%} of {results['swaps']['pairs']} swaps"
        )
    if "tuned" in results:
        right, count = results["tuned"]["accuracy"], results["tuned"]["questions"]
        table.add_row(
            "right answers, tuned / base",
            f"{right:.1%} / {results['base']['accuracy']:.1%} of {count} held-out questions",
        )
    console().print(table)
    say(f"evaluate: {results['seconds']['evaluate']} s")
