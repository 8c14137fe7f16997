"""How llama.cpp splits a text before it joins pairs of tokens, by the names of its pre-tokenizers.

The expressions are in `pre_tokenizers.yaml`.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tpullm.system.storage import read_tables


@dataclass(frozen=True)
class PreTokenizer:
    """One way of splitting.

    Args:
        names: those in `tokenizer.ggml.pre`; the first one is written.
        splits: expressions, the later ones for what the earlier ones left; each is a list of alternatives.
        published: the same as the `tokenizer.json` of others has it, if that is written otherwise.
        ignores_merges: a piece that is a token stays whole, whatever pairs it has.
        begins: a text begins with the first token, where the file does not say.
    """

    names: tuple[str, ...]
    splits: tuple[tuple[str, ...], ...]
    published: tuple[tuple[str, ...], ...] = ()
    ignores_merges: bool = False
    begins: bool = False

    def described(self, missing: Collection[str] = ()) -> dict:
        """The same as `tokenizer.json` has it.

        Args:
            missing: letters of bytes that are no tokens; they are taken out.
        """
        steps = [_split(expression) for expression in _joined(self.splits)]
        letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        out = [_split(f"[{''.join(map(re.escape, missing))}]", "Removed")] if missing else []
        return {"type": "Sequence", "pretokenizers": [*steps, letters, *out]}


def _split(pattern: str, behavior: str = "Isolated") -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def _joined(splits: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    return tuple(map("|".join, splits))


_SPLITS = (("Split", "Isolated", False), ("Split", "Removed", True))  # the same, of an expression that all text has
(_KNOWN,) = read_tables(Path(__file__).with_suffix(".yaml"), pre_tokenizers=list[PreTokenizer])
PRE_TOKENIZERS = {name: one for one in _KNOWN for name in one.names}
_EITHER = {"gpt-2", "qwen2", "gpt-4o", "tekken"}  # so llama.cpp's converter names them, whatever `ignore_merges` says
(_GPT_2,) = _joined(PRE_TOKENIZERS["gpt-2"].splits)


def name_of(described: dict, ignores_merges: bool) -> str | None:
    """The name for how a `tokenizer.json` splits, whatever bytes are missing; None if llama.cpp does not split so."""
    wanted = _expressions(described)
    found = [one for one in _KNOWN if wanted and wanted in (_joined(one.splits), _joined(one.published))]
    named = (one.names[0] for one in found if one.ignores_merges == ignores_merges or _EITHER & {*one.names})
    return next(named, None)


def _expressions(described: dict) -> tuple[str, ...]:
    """The expressions by which a `tokenizer.json` splits; none if it has other steps, or if bytes get no letters."""
    steps = described.get("pretokenizers") or [described]
    removes = steps[-1].get("behavior") == "Removed" and not steps[-1].get("invert")
    *steps, last = steps[:-1] if removes and len(steps) > 1 else steps
    found = []
    for step in steps:
        if step == {"type": "Digits", "individual_digits": True}:
            found.append(r"\p{N}")
        elif (step["type"], step.get("behavior"), step.get("invert")) in _SPLITS:
            found.append(step["pattern"].get("Regex"))
        else:
            return ()
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return ()
    return (*found, _GPT_2) if last.get("use_regex", True) else tuple(found)
