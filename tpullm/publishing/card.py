"""The model card, `README.md` of a published model: what it is, its data, and how good it is."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tpullm import __version__
from tpullm.publishing.card_tasks import task_sections
from tpullm.recipe.schema import AdapterConfig

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
