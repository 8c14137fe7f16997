"""What `evaluate` finds in a run: figures of each of its models, samples, and questions before and after tuning.

`RUN/evaluate/results.json` holds them. All hosts compute the same; each host has its own rows of a batch.
"""

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tpullm.corpus.sources import YOURS, sources
from tpullm.data.stream import held_out_batches
from tpullm.data.tuning_data import CONVERSATIONS
from tpullm.engine.generation import sample_texts
from tpullm.engine.session import Session, load_session, row_bucket
from tpullm.evaluation import before_and_after, own_text, tenki_truth
from tpullm.evaluation.scoring import attention_weights
from tpullm.model.architecture import parameter_count
from tpullm.model.rows import own_rows
from tpullm.recipe.schema import Recipe
from tpullm.run import manifest
from tpullm.system import storage
from tpullm.training.evaluation import held_out_losses
from tpullm.training.metrics import read_rows
from tpullm.training.step import make_evaluation


def measure_run(recipe: Recipe, run: Path) -> dict[str, Any]:
    """The results of a run whose models are made."""
    base = load_session(run / recipe.foundation)
    config, tokenizer, asked = base.architecture.config, base.tokenizer, recipe.evaluate
    stages = ("base", "documents", "tokenizer", "tokens", "pretrain", *recipe.finetune)
    made = {stage: storage.read_json(run / stage / manifest.FILE) for stage in stages if (run / stage).exists()}
    device = jax.local_devices()[0]
    programs = {"python": platform.python_version(), "jax": jax.__version__}
    here = {"platform": device.platform, "device": device.device_kind, "cores": os.cpu_count()}
    results = {
        "model": {"parameters": parameter_count(base.architecture.shapes), "config": dataclasses.asdict(config)},
        "machine": programs | here,
        "seconds": {stage: value["seconds"] for stage, value in made.items() if "seconds" in value},
    }
    results |= held_out_loss(recipe, run, base)
    if YOURS in results["bits_per_byte"]:
        results["yours"] = own_text.measure_own_text(recipe, run, base)
    for source in sources(recipe):
        if source.kind == "tenki":
            results[source.name] = tenki_truth.loss_and_entropy(run / "tokens" / source.name / "held_out", base)
            results |= {"blank": tenki_truth.compare_blanks(base), "swaps": tenki_truth.compare_swaps(base)}
    tuned = base
    for name in recipe.finetune:
        tuned = None  # free this model before loading the next
        tuned = load_session(run / name)
        results.setdefault("stages", {})[name] = held_out_loss(recipe, run, tuned)
        if learned := conversations_learned(run / name):
            results.setdefault("learned", {})[name] = learned
    results |= before_and_after.measure_before_and_after(recipe, base, tuned)
    texts = sample_texts(base, asked.prompts, asked.sample_tokens, recipe.seed)
    results["samples"] = [{"prompt": prompt, "text": text} for prompt, text in zip(asked.prompts, texts, strict=True)]
    text = tokenizer.decode(tokenizer.encode(asked.attention)[: base.context_length - 1])
    tokens, shares = attention_weights(base, text)
    results["attention"] = {"text": text, "tokens": tokens, "weights": np.round(shares, 3).tolist()}
    return results


def held_out_loss(recipe: Recipe, run: Path, session: Session) -> dict[str, dict[str, float]]:
    """Nats a token and bits a byte of each source's held-out text."""
    rows, length = row_bucket(session, recipe.evaluate.batch_size), recipe.pretrain.sequence_length
    batches = held_out_batches(recipe, run, rows, length, recipe.evaluate.rows, own_rows(session.mesh, rows))
    evaluate = make_evaluation(session.architecture, session.dtype)
    with jax.set_mesh(session.mesh):
        found = held_out_losses(evaluate, session.params, session.mesh, batches, session.tokenizer.bytes_per_token())
    return {"loss_nats_per_token": found["eval_loss"], "bits_per_byte": found["eval_bits_per_byte"]}


def conversations_learned(stage: Path) -> dict[str, float]:
    """Bits a byte of the held-out conversations of a stage, before its first step and after its last.

    None if the stage did not measure them before, as one does that begins with an adapter.
    """
    rows = [row for row in read_rows(stage / "metrics.jsonl") if CONVERSATIONS in row.get("eval_bits_per_byte", {})]
    if not rows or rows[0]["step"]:
        return {}
    before, after = (row["eval_bits_per_byte"][CONVERSATIONS] for row in (rows[0], rows[-1]))
    return {"before": before, "after": after}
