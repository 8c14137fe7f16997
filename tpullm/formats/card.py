"""The model card, `README.md` of a published model: what it is, its data, and how good it is.

The part of a model card about tasks: the scores, how sure they are, and what repeats them.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tpullm import __version__
from tpullm.recipe.schema import AdapterConfig
from tpullm.run import manifest

Figures = dict[str, Any]


def task_sections(tasks: dict[str, Figures], model: str) -> Iterator[str]:
    """Paragraphs of Markdown; none without tasks.

    Args:
        tasks: the figures of each, as `evaluate --tasks` has them.
        model: the name of the published folder.
    """
    if not tasks:
        return
    rows = [
        f"| {_cell(task)} | {_cell(what)} | {value} | {sure} | {count} |"
        for task, figures in tasks.items()
        for what, value, sure, count in _scores(figures)
    ]
    header = "| task | what the model does | score | 95 % interval | questions |"
    yield "\n".join([header, "| --- | --- | --- | --- | --- |", *rows])
    yield (
        "The interval holds the score on all such questions 95 times in 100. A guess is the score of somebody who "
        "chooses at random."
    )
    for task, figures in tasks.items():
        yield from _repeated(task, figures, model)


def _scores(figures: Figures) -> Iterator[tuple[str, str, str, int | str]]:
    for metric, found in figures.get("metrics", {}).items():
        interval = found["interval"]
        sure = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
        yield metric, f"{found['value']:.4g}", sure, found["count"]
    choice = figures.get("likelihood", {}).get("likelihood")
    for what, found in (("chooses the right answer", choice), ("writes the right answer", figures.get("written"))):
        if found:
            low, high = found["interval"]
            yield what, f"{found['share']:.1%}", f"{low:.1%} to {high:.1%}", found["count"]
    for name, found in figures.get("pass_at_k", {}).items():
        low, high = found["interval"]
        yield f"solves the problem ({name})", f"{found['share']:.1%}", f"{low:.1%} to {high:.1%}", found["count"]
    if "chance" in figures:
        yield "a guess chooses it", f"{figures['chance']:.1%}", "", ""


def _repeated(task: str, figures: Figures, model: str) -> Iterator[str]:
    """What repeats the measurement of a task: its version, the command, and what the model read."""
    settings = figures["settings"]
    # A group without --shots has those of its tasks.
    shots = "" if settings["shots"] == "" else f", {settings['shots'] or 0} examples before each question"
    facts = f"Version `{figures['version']}`{shots}"
    facts += f", seed {settings['seed']}" if "seed" in settings else ""
    facts += f", lm-evaluation-harness {settings['harness']}" if "harness" in settings else ""
    yield f"### {_cell(task)}"
    yield f"{facts}. This repeats it:"
    yield f"```sh\n{manifest.command(task, figures, model)}\n```"
    if prompt := figures.get("prompt"):
        yield "The model read, before its first answer:"
        # As a string of JSON in one line, a prompt can end no block of the card.
        yield f"```json\n{json.dumps(prompt, ensure_ascii=False)}\n```"


def _cell(text: str) -> str:
    """A name in a table or a heading of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


_USE = """```python
from transformers import pipeline

model = pipeline("text-generation", "{folder}")
print(model({prompt}, max_new_tokens=100)[0]["generated_text"])
```"""

_USE_ADAPTER = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{folder}")
```
"""


def write(folder: Path, card: dict[str, Any]) -> None:
    """Write `README.md`.

    Args:
        card: `name`, `parameters`, `config` (of `config.json`), `talks`, `licence` (or ""), `base` (or ""), `recipe`,
            `data` (the text of the data card, or ""), `languages`, `evaluation` (pairs of a measure and its result),
            `tasks` (the figures of each task, as `evaluate --tasks` has them).
    """
    (folder / "README.md").write_text("\n\n".join(_sections(card)) + "\n", encoding="utf-8")


def _sections(card: dict[str, Any]) -> Iterable[str]:
    yield _front_matter(card)
    yield f"# {card['name']}"
    kind = "tuned on conversations" if card["talks"] else "which continues a text"
    layers, width = (card["config"].get(key) or card["config"].get(old) for key, old in _SHAPES)
    yield (
        f"A language model of {card['parameters']:,} parameters ({layers} layers of width {width}), {kind}. "
        f"In the format of `{card['config']['architectures'][0]}`; exported by tpullm {__version__}."
    )
    if card["base"]:
        yield f"It was made from `{card['base']}`, whose licence and limits hold for it too."
    yield "## Use"
    prompt = json.dumps([{"role": "user", "content": "こんにちは"}] if card["talks"] else "今日は", ensure_ascii=False)
    yield _USE.format(folder=card["name"], prompt=prompt)
    yield (
        "The name of a special token in a text, such as `</s>`, becomes that token unless the tokenizer is called with "
        "`split_special_tokens=True`: keep it out of what users type."
    )
    yield "## Licence"
    yield card["licence"] or "Not stated by its owner. The licences of its data are below."
    yield "## Data"
    yield card["data"].replace("\n# ", "\n### ").replace("\n## ", "\n#### ") or "No data card was made for this model."
    yield "## Evaluation"
    rows = [f"| {what} | {result} |" for what, result in card["evaluation"]]
    if rows or not card["tasks"]:
        yield "\n".join(["| what | result |", "| --- | --- |", *rows]) if rows else "Not evaluated."
    yield from task_sections(card["tasks"], card["name"])
    yield "## Recipe"
    yield f"```yaml\n{card['recipe'].strip()}\n```"


def of_adapter(name: str, base: str, adapter: AdapterConfig, licence: str) -> str:
    """The card of an adapter alone."""
    lines = ["---", f"license: {licence.lower() or 'other'}", f"base_model: {base}", "library_name: peft", "---"]
    kind = "DoRA" if adapter.magnitude else "rsLoRA" if adapter.root_scale else "LoRA"
    return "\n".join(
        [
            *lines,
            f"\n# {name}\n",
            f"A {kind} adapter of rank {adapter.rank} of `{base}`, beside {', '.join(adapter.targets)}; exported by "
            f"tpullm {__version__}.\n",
            f"## Use\n\n{_USE_ADAPTER.format(base=base, folder=name)}",
        ]
    )


_SHAPES = (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"))


def _front_matter(card: dict[str, Any]) -> str:
    """What the Hub reads. A licence that the Hub has no name for is `other`."""
    name = card["licence"].lower()
    is_name = name and all(character.isalnum() or character in "-." for character in name)
    lines = ["---", f"license: {name if is_name else 'other'}"]
    if card["languages"]:
        lines += ["language:", *(f"- {language}" for language in card["languages"])]
    if card["base"]:
        lines.append(f"base_model: {card['base']}")
    return "\n".join([*lines, "library_name: transformers", "pipeline_tag: text-generation", "---"])
