"""The data of the page, read from a run directory. Only the recipe must exist; without the rest the page is shorter."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpullm.corpus import tenki
from tpullm.recipe.schema import ModelConfig, Recipe
from tpullm.report.language import ENGLISH, Language
from tpullm.run import hours, manifest
from tpullm.run.stages import chat_commands
from tpullm.system import storage
from tpullm.system.errors import UserError

EXAMPLES = (
    "今日はいい天気ですね。",
    "今日はとても寒い天気ですね。",
    "私はリンゴを食べるのが好きです。",
    "The weather is nice today.",
    "def add(a, b): return a + b",
)


@dataclass(frozen=True)
class RunData:
    """The data of the page. What the run has not made yet is an empty dict or list.

    Args:
        name: the recipe's.
        recipe: its YAML text.
        model: resolved as far as the vocabulary is known (0: not yet).
        language: of the page.
        datacard: `documents/datacard.json`.
        manifests: by stage.
        splits: example texts as tokens, (text of the token, its id); the first is a sentence of the user's own text, if
            there is one.
        pretrain: the lines of `metrics.jsonl`.
        tuned: the same of the stages of tuning, by their names, in order.
        results: `evaluate/results.json`.
        plan: `pretrain/plan.json`, the predicted time of a step.
        measured: what `evaluate --tasks` found of each stage: the figures by task.
        commands: by program, the command that begins a conversation with the tuned model.
        hours: the lines of `pretrain/hours.jsonl`, where the time went.
        stages: that the recipe makes, in order.
        steps: the last step of each training.
        entropy: of tenki, in nats a token: the floor of its loss. That of the held-out documents is in `results`.
        compared: the same as `pretrain` of several runs, this one the first, whose losses are drawn over each other.
    """

    name: str
    recipe: str
    model: ModelConfig
    language: Language = ENGLISH
    datacard: dict[str, Any] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    splits: list[list[tuple[str, int]]] = field(default_factory=list)
    pretrain: list[dict[str, Any]] = field(default_factory=list)
    tuned: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    hours: list[dict[str, Any]] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    entropy: float | None = None
    compared: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def nested_value(value: Any, *keys: str) -> Any:
    """The value under nested keys, or None if one of them is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def finite_number(value: Any, *keys: str) -> float | None:
    """The finite number under nested keys, or None."""
    found = nested_value(value, *keys)
    usable = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    return found if usable else None


def finite_numbers(values: Any) -> dict[str, float]:
    """The finite numbers among the values of a dict."""
    return {key: found for key in values or {} if (found := finite_number(values, key)) is not None}


def series_by_tokens(rows: Sequence[dict[str, Any]], *keys: str) -> list[tuple[float, float]]:
    """(tokens, value) of every line of `metrics.jsonl` that has the value."""
    points = [(finite_number(row, "tokens") or finite_number(row, "step"), finite_number(row, *keys)) for row in rows]
    return [(x, y) for x, y in points if x is not None and y is not None]


def read(
    recipe: Recipe, run: Path, language: Language = ENGLISH, compared: Mapping[str, Path] | None = None
) -> RunData:
    """Read a run directory, for a page in `language`; of the runs that are `compared` with it, the losses.

    Raises:
        UserError: the run directory has no recipe, or one of its files is broken.
    """
    kept = run / "recipe.yaml"
    if not kept.is_file():
        raise UserError(f"{kept}: no such recipe, so {run} is not a run directory; make one with `tpullm run`")
    results = _json_of_run(run / "evaluate" / "results.json")
    stages = ("base", "documents", "tokenizer", "tokens", "pretrain", "evaluate", *recipe.finetune)
    manifests = {stage: _json_of_run(run / stage / manifest.FILE) for stage in stages}
    examples = [*filter(None, [nested_value(results, "yours", "sentence")]), *EXAMPLES]
    tokenizer = run / ("tokenizer" if recipe.foundation == "pretrain" else "base/tokenizer")
    splits, vocabulary_size = [], 0
    if tokenizer.is_dir():
        from tpullm.tokenizer import load  # only if there is one to read

        loaded = load(tokenizer)
        splits, vocabulary_size = [loaded.pieces(text) for text in examples], loaded.vocabulary_size
        # What a published tokenizer has no words for is bytes, which show little.
        splits = [pieces for pieces in splits if sum("<0x" in piece for piece, _ in pieces) * 3 < len(pieces)] or splits
    # The model that was evaluated or imported; else the recipe's.
    known = nested_value(results, "model", "config") or manifests["base"].get("model", {})
    names = {item.name for item in dataclasses.fields(ModelConfig)}
    changes = {key: value for key, value in known.items() if key in names}
    return RunData(
        name=recipe.name,
        language=language,
        recipe=kept.read_text(encoding="utf-8"),
        model=dataclasses.replace(recipe.model, **changes).resolved(vocabulary_size),
        datacard=_json_of_run(run / "documents" / "datacard.json"),
        manifests=manifests,
        splits=splits,
        pretrain=_metrics_lines(run / "pretrain" / "metrics.jsonl"),
        tuned={name: rows for name in recipe.finetune if (rows := _metrics_lines(run / name / "metrics.jsonl"))},
        results=results,
        plan=_json_of_run(run / "pretrain" / "plan.json"),
        measured={stage: manifest.tasks(run, stage) for stage in recipe.trained},
        commands=chat_commands(recipe, run) if recipe.export.gguf and manifests[recipe.trained[-1]] else {},
        hours=hours.read(run / "pretrain" / hours.FILE),
        stages=stages_of(recipe),
        steps={"pretrain": recipe.pretrain.steps} | {name: of.train.steps for name, of in recipe.finetune.items()},
        entropy=_entropy(recipe, manifests),
        compared={name: _metrics_lines(of / "pretrain" / "metrics.jsonl") for name, of in (compared or {}).items()},
    )


def stages_of(recipe: Recipe) -> list[str]:
    """The stages that a recipe makes, in order."""
    text = ["documents", "tokenizer", "tokens"] if recipe.reads_text else []
    return [*["base"] * bool(recipe.base), *text, *recipe.trained[recipe.foundation == "base" :], "evaluate"]


def _entropy(recipe: Recipe, manifests: Mapping[str, Any]) -> float | None:
    """The entropy of tenki in nats a token, as soon as its tokens are counted: all but the first of each document."""
    if not any(source.name == source.kind == "tenki" for source in recipe.corpus.sources):
        return None
    splits = (nested_value(manifests, "tokens", "sources", "tenki") or {}).values()
    documents, tokens = (sum(finite_number(of, what) or 0 for of in splits) for what in ("documents", "tokens"))
    return tenki.entropy() * documents / (tokens - documents) if tokens > documents else None


def _json_of_run(path: Path) -> dict[str, Any]:
    value = storage.read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object; remove it and run `tpullm run` to make it again")
    return value


def _metrics_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`. A last line without a line end is still being written and is left out."""
    if not path.is_file():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error.msg}); remove that line") from None
        if not isinstance(rows[-1], dict):
            raise UserError(f"{path}: line {number} is not a JSON object; remove that line")
    return rows
