"""What `evaluate` finds in a run: figures of each of its models, samples, and questions before and after tuning.

`RUN/evaluate/results.json` holds them. All hosts compute the same; each host has its own rows of a batch.
"""

import contextlib
import dataclasses
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tpullm.corpus import document_files, tenki
from tpullm.corpus.question import Question, is_right
from tpullm.corpus.sources import YOURS, sources
from tpullm.data import examples
from tpullm.data.batch import Batch
from tpullm.data.stream import evaluation_batches, pretraining_stream
from tpullm.data.token_store import TokenStore
from tpullm.engine.generation import answer, sampled
from tpullm.engine.session import Session, load, row_bucket
from tpullm.evaluation import own_text, tenki_truth
from tpullm.evaluation.prompt_forms import KANA
from tpullm.evaluation.scoring import weights
from tpullm.evaluation.statistics import wilson
from tpullm.model.architecture import parameter_count
from tpullm.model.rows import own_rows
from tpullm.recipe.schema import Recipe
from tpullm.report import tables
from tpullm.run import manifest
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.log import console
from tpullm.training.evaluation import held_out
from tpullm.training.rewards.code_tests import PASSED, Judge
from tpullm.training.step import make_evaluation

SECONDS, MEMORY_BYTES = 2, 256 << 20  # of a program that answers a question


def measure(recipe: Recipe, run: Path) -> dict[str, Any]:
    """The results of a run whose models are made."""
    base = load(run / recipe.foundation)
    architecture, stages = base.architecture, ("base", "documents", "tokenizer", "tokens", "pretrain", *recipe.finetune)
    made = {stage: storage.read_json(run / stage / manifest.FILE) for stage in stages if (run / stage).exists()}
    results = {
        "model": {
            "parameters": parameter_count(architecture.shapes),
            "config": dataclasses.asdict(architecture.config),
        },
        "machine": _machine(),
        "seconds": {stage: value["seconds"] for stage, value in made.items() if "seconds" in value},
    }
    results |= held_out_loss(recipe, run, base)
    for source in sources(recipe):
        if source.name == YOURS and held_out_rows(recipe, run, source.name, base):
            results["yours"] = of_own_text(recipe, run, base)
        if source.kind == "tenki":
            found = tenki_truth.loss_and_entropy(run / "tokens" / source.name / "held_out", base)
            swaps = tenki_truth.swaps(base, tenki.swaps())
            results |= {source.name: found, "blank": tenki_truth.blanks(base), "swaps": swaps}
    tuned = base
    for name in recipe.finetune:
        tuned = None  # free this model before loading the next
        tuned = load(run / name)
        results.setdefault("stages", {})[name] = held_out_loss(recipe, run, tuned)
    results |= _questions(recipe, base, tuned) if recipe.finetune else {}
    prompts = recipe.evaluate.prompts
    texts = sampled(base, prompts, recipe.evaluate.sample_tokens, recipe.seed)
    results["samples"] = [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
    tokenizer = base.tokenizer
    text = tokenizer.decode(tokenizer.encode(recipe.evaluate.attention)[: base.context_length - 1])
    tokens, shares = weights(base, text)
    results["attention"] = {"text": text, "tokens": tokens, "weights": np.round(shares, 3).tolist()}
    return results


def held_out_loss(recipe: Recipe, run: Path, session: Session) -> dict[str, dict[str, float]]:
    """Nats a token and bits a byte of each source's held-out text."""
    own = own_rows(session.mesh, row_bucket(session, recipe.evaluate.batch_size))
    batches = {source.name: held_out_rows(recipe, run, source.name, session, own) for source in sources(recipe)}
    batches = {name: rows for name, rows in batches.items() if rows}
    evaluate = make_evaluation(session.architecture, session.dtype)
    with jax.set_mesh(session.mesh):
        found = held_out(evaluate, session.params, session.mesh, batches, session.tokenizer.bytes_per_token())
    return {"loss_nats_per_token": found["eval_loss"], "bits_per_byte": found["eval_bits_per_byte"]}


def held_out_rows(
    recipe: Recipe, run: Path, source: str, session: Session, own: np.ndarray | None = None
) -> Iterator[Batch] | None:
    """The batches of a source's held-out text; None if it has none.

    Args:
        own: the rows of each batch; None is all.
    """
    path, config = run / "tokens" / source / "held_out", recipe.evaluate
    if not path.exists():
        return None
    rows = row_bucket(session, config.batch_size)
    return evaluation_batches(TokenStore(path), rows, recipe.pretrain.sequence_length, config.rows, own)


def of_own_text(recipe: Recipe, run: Path, session: Session) -> dict[str, Any]:
    """What the model learned from the user's own text, and the bits a byte of a compressor on it."""
    documents = run / "documents"
    texts = own_text.passages(
        record["text"] for record in document_files.read(documents, YOURS, document_files.HELD_OUT)
    )

    def compressor() -> dict[str, Any]:
        training = (record["text"] for record in document_files.read(documents, YOURS, document_files.TRAIN))
        evaluated = own_text.evaluated_bytes(session, held_out_rows(recipe, run, YOURS, session))
        bits = own_text.compressor_bits_per_byte(training, evaluated)
        return {"name": "xz -9e", "bits_per_byte": bits, "bytes": len(evaluated)}

    times_read = pretraining_stream(recipe, run).epoch_at(recipe.pretrain.steps).get(YOURS, 0.0)
    return {
        "times_read": round(times_read, 2),
        "sentence": next((sentence for text in texts for sentence in own_text.sentences(text)), ""),
        "continuations": own_text.continuations(session, texts, recipe.evaluate.sample_tokens, recipe.seed),
        "blanks": own_text.blanks(session, texts),
        "compressor": hosts.broadcast("the compressor", compressor),
    }


def _questions(recipe: Recipe, base: Session, tuned: Session) -> dict[str, Any]:
    """The held-out questions of the first stage that learns built-in ones, before tuning and after all of it.

    Each share of right answers has its interval.
    """
    # A casual answer is a matter of style, and later stages may change it on purpose.
    built_in = [
        (name, stage)
        for stage in recipe.finetune.values()
        for name in stage.conversations
        if name in examples.BUILT_IN and name != "tenki_casual"
    ]
    if not built_in:
        return {}
    name, stage = built_in[0]
    learned, asked = examples.questions(name, stage.held_out_fraction, recipe.seed)
    if (
        not base.tokenizer.has_template
    ):  # a base that was never tuned to talk: it is asked in the tuned model's template
        base = dataclasses.replace(base, tokenizer=tuned.tokenizer)
    with judge(name) as right:
        found = ask(base, tuned, asked[: recipe.evaluate.questions or None], learned, right)
    for model in ("base", "tuned"):
        share, count = found[model]["accuracy"], found[model]["questions"]
        found[model]["interval"] = list(wilson(share * count, count))
    return found


@contextlib.contextmanager
def judge(name: str) -> Iterator[Callable[[Question, str], bool]]:
    """What says whether an answer to a built-in question of this name is right.

    An answer to `tenki` is right word for word. The domains judge by what is meant, and code by its tests, in processes
    that can do little else.
    """
    if name.startswith("tenki"):
        yield lambda question, said: said.strip() in question.answers
        return
    with contextlib.closing(Judge(SECONDS, MEMORY_BYTES)) as programs:

        def passes(program: str, tests: str) -> bool:
            return programs.verdicts([[program, [tests]]]) == [[PASSED]]

        yield lambda question, said: is_right(question, said, passes)


def ask(
    base: Session,
    tuned: Session,
    questions: Sequence[Question],
    learned: Sequence[Question],
    right: Callable[[Question, str], bool],
) -> dict:
    """The share of right answers before and after tuning.

    Args:
        questions: the held-out questions to ask.
        learned: the questions of tuning. Their commonest answer, of a kind and a language, is what one who knows
            nothing else would say.

    Returns:
        `tuned` and `base`: `accuracy` and the number of `questions`; `kinds`: the same by the kind of question, and
        `guess`, the share of that commonest answer; `answers`: all of them.
    """
    texts = [question.question for question in questions]
    said = {"base": answer(base, texts), "tuned": answer(tuned, texts)}
    judged = {
        name: [right(question, text) for question, text in zip(questions, found, strict=True)]
        for name, found in said.items()
    }
    table = [
        {"question": question.question, "expected": question.answers[0], "kind": question.kind,
         "base": said["base"][i], "tuned": said["tuned"][i], "right": judged["tuned"][i]}
        for i, question in enumerate(questions)
    ]  # fmt: skip
    # By how it is asked, the answer that most questions have; of several the first.
    answers: dict[tuple[str, bool], Counter] = {}
    for question in learned:
        answers.setdefault(_asked_how(question), Counter())[question.answers[0]] += 1
    commonest = {how: counts.most_common(1)[0][0] for how, counts in answers.items()}
    kinds = {}
    for kind in dict.fromkeys(question.kind for question in questions):
        places = [i for i, question in enumerate(questions) if question.kind == kind]
        shares = {name: sum(found[i] for i in places) / len(places) for name, found in judged.items()}
        guessed = sum(right(questions[i], commonest.get(_asked_how(questions[i]), "")) for i in places) / len(places)
        kinds[kind] = shares | {"guess": guessed, "questions": len(places)}
    whole = {
        name: {"accuracy": sum(found) / max(len(found), 1), "questions": len(questions)}
        for name, found in judged.items()
    }
    return whole | {"kinds": kinds, "answers": table}


def _asked_how(question: Question) -> tuple[str, bool]:
    """The kind of a question, and whether it is asked in Japanese, which has kana."""
    return question.kind, bool(KANA.search(question.question))


def _machine() -> dict[str, Any]:
    device = jax.local_devices()[0]
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "platform": device.platform,
        "device": device.device_kind,
        "cores": os.cpu_count(),
    }


def show(results: dict[str, Any]) -> None:
    """Print the figures as a table."""
    rows = list(_figures(results))
    tables.show("What the model learned", ("", ""), rows, folded=(0, 1), lines="all", on=console())


def _figures(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for source, bits in results["bits_per_byte"].items():
        loss = results["loss_nats_per_token"][source]
        yield f"held-out {source}", f"{loss:.4f} nats a token, {bits:.3f} bits a byte"
    for stage, found in results.get("stages", {}).items():
        for source, bits in found["bits_per_byte"].items():
            yield f"after {stage}: held-out {source}", f"{bits:.3f} bits a byte"
    if "yours" in results:
        compressor, bits = results["yours"]["compressor"], results["bits_per_byte"][YOURS]
        less = 1 - bits / compressor["bits_per_byte"] if compressor["bits_per_byte"] else 0.0
        beside = f"the model needs {abs(less):.0%} {'less' if less > 0 else 'more'}"
        yield f"your text by {compressor['name']}", f"{compressor['bits_per_byte']:.3f} bits a byte; {beside}"
        blanks = results["yours"]["blanks"]
        first, five = (sum(1 <= blank["place"] <= last for blank in blanks) for last in (1, 5))
        yield "blanks in your text", f"of {len(blanks)}, {first} guessed first, {five} among the first five"
    for name, value in results.items():
        if isinstance(value, dict) and "gap_nats_per_token" in value:
            loss, entropy, gap = (value[f"{key}_nats_per_token"] for key in ("loss", "entropy", "gap"))
            yield f"{name}: loss - true entropy", f"{loss:.4f} - {entropy:.4f} = {gap:.4f} nats a token"
    if "blank" in results:
        first, swaps = results["blank"]["table"][0], results["swaps"]
        yield f"blank {first['text']}", f"total variation from the truth {first['total_variation']:.3f}"
        yield "all blanks", f"mean total variation {results['blank']['mean_total_variation']:.3f}"
        yield "リンゴ→本: the verb follows", f"{swaps['accuracy']:.1%} of {swaps['pairs']} swaps"
    if "tuned" in results:
        tuned, base = results["tuned"], results["base"]
        shares = f"{tuned['accuracy']:.1%} / {base['accuracy']:.1%}"
        yield "right answers, tuned / base", f"{shares} of {tuned['questions']} held-out questions"
        for kind, found in results["kinds"].items() if len(results["kinds"]) > 1 else ():
            shares = f"{found['tuned']:.1%} / {found['base']:.1%} of {found['questions']}"
            yield f"  {kind}", f"{shares}; the commonest answer {found['guess']:.1%}"
