"""Measure the model: held-out loss, the comparison with the truth of `tenki`, answers before and after tuning.

It makes RUN/evaluate. With --tasks it takes a MODEL instead of a recipe, and measures it on tasks of the
lm-evaluation-harness, on humaneval, and on files of questions or of problems of programming.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from tpullm.cli.options import add_json, add_mesh, print_json
from tpullm.corpus import document_files, tenki
from tpullm.corpus.sources import YOURS, sources
from tpullm.data import examples
from tpullm.data.batch import Batch
from tpullm.data.stream import evaluation_batches, pretraining_stream
from tpullm.data.token_store import TokenStore
from tpullm.engine.generation import sampled
from tpullm.engine.padding import row_bucket
from tpullm.engine.session import Session, find, load, loaded
from tpullm.evaluation import evaluate_tasks, own_text, programming_task, questions, tables, tenki_truth
from tpullm.evaluation.programming_task import Attempts
from tpullm.evaluation.question_task import Asking
from tpullm.evaluation.scoring import weights
from tpullm.evaluation.statistics import wilson
from tpullm.model.architecture import parameter_count
from tpullm.model.rows import own_rows
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest
from tpullm.run.stages import begin, evaluate_inputs
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import UserError
from tpullm.system.log import say
from tpullm.training.evaluation import held_out
from tpullm.training.step import make_evaluation


def add_show_arguments(parser) -> None:
    """`MODEL --tasks ...`: measure a model on tasks instead of making the stage."""
    about = "with --tasks: a run directory, a stage, a checkpoint, or a folder in the format of Hugging Face"
    parser.add_argument("model", metavar="MODEL", type=str, help=about)
    about = "humaneval, names of the lm-evaluation-harness, its YAML files, files of questions; with commas"
    parser.add_argument("--tasks", required=True, type=str, help=about)
    parser.add_argument("--shots", type=int, default=0, help="examples before each question; 0: as the task says")
    parser.add_argument("--seed", type=int, default=0, help="chooses the examples")
    parser.add_argument("--limit", type=int, default=0, help="at most this many questions of each task; 0: all")
    parser.add_argument("--samples", type=int, default=1, help="programs for each problem of programming")
    parser.add_argument("--temperature", type=float, default=0.0, help="of programs; 0: the likeliest one")
    parser.add_argument("--chat", action="store_true", help="ask in the chat template of the model")
    add_mesh(parser)
    parser.add_argument(
        "--out", type=str, default="", help="the folder of results; empty: in RUN/measured or ./measured"
    )
    add_json(parser)


def show_main(arguments) -> None:
    """Load the model, measure it on the tasks, and print a table."""
    for option in ("shots", "limit", "seed"):
        if getattr(arguments, option) < 0:
            raise UserError(f"--{option}: {getattr(arguments, option)} is below 0; use 0 or more")
    asking = Asking(arguments.shots, arguments.seed, arguments.limit, arguments.chat)
    attempts = programming_task.check(Attempts(arguments.samples, arguments.temperature))
    settings = dataclasses.asdict(asking) | dataclasses.asdict(attempts)
    hosts.agree("the command", {"asking": settings, "tasks": arguments.tasks})
    words = list(filter(None, map(str.strip, arguments.tasks.split(","))))
    chosen = evaluate_tasks.tasks(words)
    evaluate_tasks.agree(chosen)
    hosts.on_first("the folder of results", evaluate_tasks.check_out, words, chosen, arguments.out)
    if attempts != Attempts() and not chosen.problems:
        raise UserError("--samples, --temperature: no task is one of programming; leave them out")
    found = find(arguments.model)
    if asking.chat and not found.tokenizer.has_template:
        raise UserError(f"--chat: {arguments.model} has no chat template; leave --chat out")
    evaluate_tasks.check(chosen, asking, found.config.context_length)
    session = loaded(found, mesh=arguments.mesh)
    results, folder = evaluate_tasks.evaluate(session, arguments.model, chosen, asking, attempts, arguments.out)
    if hosts.is_first():
        if arguments.json:
            return print_json(results)
        tables.show(results)
        say(f"evaluate: {results['seconds']} s; {folder / manifest.RESULTS}")


def main(recipe: Recipe, run: Path) -> None:
    """Write `RUN/evaluate/results.json` and print its figures.

    The model is on the devices of all hosts. All of them compute the same, from results that they all have; host 0
    writes.
    """
    stage, inputs = run / "evaluate", evaluate_inputs(recipe, run)
    if hosts.broadcast("evaluate", lambda: manifest.is_finished(stage, inputs)):
        return say("evaluate: finished, skipped")
    start = time.monotonic()
    results = _results(recipe, run)
    results["seconds"]["evaluate"] = round(time.monotonic() - start, 1)
    hosts.on_first("evaluate ends", _write, stage, inputs, results)


def _write(stage: Path, inputs: dict, results: dict) -> None:
    begin(stage, inputs)
    storage.write_json(stage / "results.json", results)
    manifest.write(stage, inputs, seconds=results["seconds"]["evaluate"])
    _print(results)


def _results(recipe: Recipe, run: Path) -> dict:
    base = load(run / recipe.foundation)
    results = {"model": _model(base), "machine": _machine(), "seconds": _seconds(recipe, run)}
    results |= _held_out_loss(recipe, run, base)
    for source in sources(recipe):
        if source.name == YOURS and _rows(recipe, run, source.name, base):
            results["yours"] = _yours(recipe, run, base)
        if source.kind == "tenki":
            found = tenki_truth.loss_and_entropy(run / "tokens" / source.name / "held_out", base)
            swaps = tenki_truth.swaps(base, tenki.swaps())
            results |= {source.name: found, "blank": tenki_truth.blanks(base), "swaps": swaps}
    tuned = base
    for name in recipe.finetune:
        tuned = None  # the memory of one model less
        tuned = load(run / name)
        results.setdefault("stages", {})[name] = _held_out_loss(recipe, run, tuned)
    results |= _questions(recipe, base, tuned) if recipe.finetune else {}
    prompts = recipe.evaluate.prompts
    texts = sampled(base, prompts, recipe.evaluate.sample_tokens, recipe.seed)
    results["samples"] = [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
    results["attention"] = _attention(base, recipe.evaluate.attention)
    return results


def _questions(recipe: Recipe, base: Session, tuned: Session) -> dict:
    """The held-out questions of the first stage that learns built-in ones, before tuning and after all of it."""
    for stage in recipe.finetune.values():
        for name in stage.conversations:
            # A casual answer is a matter of style, and later stages may change it on purpose.
            if name in examples.BUILT_IN and name != "tenki_casual":
                learned, held_out = examples.questions(name, stage.held_out_fraction, recipe.seed)
                # A base that was never tuned to talk has no chat template: it is asked in that of the tuned model.
                asked = base if base.tokenizer.has_template else dataclasses.replace(base, tokenizer=tuned.tokenizer)
                with questions.judge(name) as right:
                    held_out = held_out[: recipe.evaluate.questions or None]
                    return _with_intervals(questions.asked(asked, tuned, held_out, learned, right))
    return {}


def _with_intervals(found: dict) -> dict:
    """The results of `questions.asked`, with the interval of each share of right answers over all questions."""
    for name in ("base", "tuned"):
        share, count = found[name]["accuracy"], found[name]["questions"]
        found[name]["interval"] = list(wilson(share * count, count))
    return found


def _held_out_loss(recipe: Recipe, run: Path, session: Session) -> dict:
    own = own_rows(session.mesh, row_bucket(session, recipe.evaluate.batch_size))
    batches = {source.name: _rows(recipe, run, source.name, session, own) for source in sources(recipe)}
    batches = {name: rows for name, rows in batches.items() if rows}
    evaluate = make_evaluation(session.architecture, session.dtype)
    with jax.set_mesh(session.mesh):
        found = held_out(evaluate, session.params, session.mesh, batches, session.tokenizer.bytes_per_token())
    return {"loss_nats_per_token": found["eval_loss"], "bits_per_byte": found["eval_bits_per_byte"]}


def _rows(
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


def _yours(recipe: Recipe, run: Path, session: Session) -> dict:
    """What the model learned from the user's own text, and the bits a byte of a compressor on it."""
    texts = own_text.passages(
        record["text"] for record in document_files.read(run / "documents", YOURS, document_files.HELD_OUT)
    )
    compressor = hosts.broadcast("the compressor", lambda: _compressor(recipe, run, session))
    times_read = pretraining_stream(recipe, run).epoch_at(recipe.pretrain.steps).get(YOURS, 0.0)
    return {
        "times_read": round(times_read, 2),
        "sentence": next((sentence for text in texts for sentence in own_text.sentences(text)), ""),
        "continuations": own_text.continuations(session, texts, recipe.evaluate.sample_tokens, recipe.seed),
        "blanks": own_text.blanks(session, texts),
        "compressor": compressor,
    }


def _compressor(recipe: Recipe, run: Path, session: Session) -> dict:
    training = (record["text"] for record in document_files.read(run / "documents", YOURS, document_files.TRAIN))
    evaluated = own_text.evaluated_bytes(session, _rows(recipe, run, YOURS, session))
    bits = own_text.compressor_bits_per_byte(training, evaluated)
    return {"name": "xz -9e", "bits_per_byte": bits, "bytes": len(evaluated)}


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


def _seconds(recipe: Recipe, run: Path) -> dict[str, float]:
    stages = ("base", "documents", "tokenizer", "tokens", "pretrain", *recipe.finetune)
    found = {stage: storage.read_json(run / stage / manifest.FILE) for stage in stages if (run / stage).exists()}
    return {stage: value["seconds"] for stage, value in found.items() if "seconds" in value}


def _print(results: dict) -> None:
    from rich.table import Table

    from tpullm.system.log import console

    table = Table(title="What the model learned", title_justify="left", show_header=False)
    for source, bits in results["bits_per_byte"].items():
        loss = results["loss_nats_per_token"][source]
        table.add_row(f"held-out {source}", f"{loss:.4f} nats a token, {bits:.3f} bits a byte")
    for stage, found in results.get("stages", {}).items():
        for source, bits in found["bits_per_byte"].items():
            table.add_row(f"after {stage}: held-out {source}", f"{bits:.3f} bits a byte")
    if "yours" in results:
        compressor, bits = results["yours"]["compressor"], results["bits_per_byte"][YOURS]
        less = 1 - bits / compressor["bits_per_byte"] if compressor["bits_per_byte"] else 0.0
        beside = f"the model needs {abs(less):.0%} {'less' if less > 0 else 'more'}"
        table.add_row(f"your text by {compressor['name']}", f"{compressor['bits_per_byte']:.3f} bits a byte; {beside}")
        blanks = results["yours"]["blanks"]
        first, five = (sum(1 <= blank["place"] <= last for blank in blanks) for last in (1, 5))
        table.add_row("blanks in your text", f"of {len(blanks)}, {first} guessed first, {five} among the first five")
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
        for kind, found in results["kinds"].items() if len(results["kinds"]) > 1 else ():
            shares = f"{found['tuned']:.1%} / {found['base']:.1%} of {found['questions']}"
            table.add_row(f"  {kind}", f"{shares}; the commonest answer {found['guess']:.1%}")
    console().print(table)
    say(f"evaluate: {results['seconds']['evaluate']} s")
