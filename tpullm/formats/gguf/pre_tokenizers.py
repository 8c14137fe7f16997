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
        ignores_merges: a piece that is a token stays whole, whatever pairs it has.
        begins: a text begins with the first token, where the file does not say.
    """

    names: tuple[str, ...]
    splits: tuple[tuple[str, ...], ...]
    ignores_merges: bool = False
    begins: bool = False

    def described(self, missing: Collection[str] = ()) -> dict:
        """The same as `tokenizer.json` has it.

        Args:
            missing: letters of bytes that are no tokens; they are taken out.
        """
        steps = [_split("|".join(alternatives)) for alternatives in self.splits]
        letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        out = [_split(f"[{''.join(map(re.escape, missing))}]", "Removed")] if missing else []
        return {"type": "Sequence", "pretokenizers": [*steps, letters, *out]}

    def describes(self, described: dict) -> bool:
        """Whether that is how a tokenizer splits, whatever bytes are missing."""
        steps = described.get("pretokenizers") or [{}]
        if steps[-1].get("behavior") == "Removed":
            steps = steps[:-1]
        return {**described, "pretokenizers": steps} == self.described()


def _split(pattern: str, behavior: str = "Isolated") -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


(_KNOWN,) = read_tables(Path(__file__).with_suffix(".yaml"), pre_tokenizers=list[PreTokenizer])
PRE_TOKENIZERS = {name: one for one in _KNOWN for name in one.names}
