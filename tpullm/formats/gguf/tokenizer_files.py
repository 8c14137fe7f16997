"""Reads the tokenizer of a GGUF file, as the files that a folder in the format of Hugging Face has.

A text gets the ids that llama.cpp gives it. What differs there from the `tokenizers` library:

- Its `llama` joins the pair of the highest score, the first one in the text if scores are equal. The library joins by
  the order of a list. Equal scores are of runs of one character (Llama 2's spaces): the longest comes first there.
- What a token is may follow from its text: the names in `_ENDS` end a text.
"""

import math
from typing import Any

from tpullm.formats.gguf.pre_tokenizers import PRE_TOKENIZERS
from tpullm.formats.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from tpullm.system.errors import UserError
from tpullm.tokenizer.byte_pairs import byte_letters
from tpullm.tokenizer.json_files import MOST_TEXT_BYTES
from tpullm.tokenizer.sentence_pieces import SPACE

_MOST_LETTERS = 1_000  # of a token; known are 128 spaces
_ENDS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<｜end▁of▁sentence｜> [e~[".split()
)


def tokenizer_files(settings: dict[str, Any], rows: int, where: str) -> dict[str, Any]:
    """The files of a tokenizer as a folder in the format of Hugging Face has them.

    Args:
        settings: of the GGUF file (`reading.read`): bounded, but of any type and any value.
        rows: of the embedding.
        where: the file, for errors.

    Returns:
        `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` → the content. All end tokens are in the
        last, the one of a document first.

    Raises:
        UserError: the tokenizer is of a kind that is not read, or a setting can't be true; one line.
    """
    return _Reader(settings, rows, where).files()


class _Reader:
    """The settings of one file."""

    def __init__(self, settings: dict[str, Any], rows: int, where: str):
        self._settings, self._where = settings, where
        self._model = self._one("model", str)
        if self._model not in ("gpt2", "llama", "gemma4"):
            raise self._wrong(
                f"llama.cpp's tokenizer {self._model!r:.40} is not read, only gpt2, llama and gemma4; give the model "
                "in the format of Hugging Face"
            )
        texts = self._list("tokens", str)
        if not 0 < len(texts) <= rows:
            raise self._wrong(f"has {len(texts):,} tokens and an embedding of {rows:,} rows; export it again")
        self._texts = [text or f"[EMPTY_{token}]" for token, text in enumerate(texts)]
        self._ids = {text: token for token, text in enumerate(self._texts)}
        if len(self._ids) < len(texts):
            raise self._wrong("has two tokens of the same text; export it again")
        if max(map(len, self._texts)) > _MOST_LETTERS:
            raise self._wrong(f"has a token of more than {_MOST_LETTERS:,} letters; it is broken or hostile")
        self._kinds = self._list("token_type", int, size=len(texts)) or [NORMAL] * len(texts)
        self._ends = self._end_tokens()

    def files(self) -> dict[str, Any]:
        """What `tokenizer_files` returns."""
        made = self._byte_level() if self._model == "gpt2" else self._of_pieces()
        begins = self._one("add_bos_token", bool, made.pop("begins"))
        bos = self._token("bos_token_id")
        # llama.cpp takes white space away after Phi-3's special tokens.
        strips = any(name in str(self._settings.get("general.name")).lower() for name in ("phi-3", "phi3"))
        special, after = (CONTROL, UNKNOWN), {"single_word": False, "lstrip": False, "normalized": False}
        added = [
            {"id": token, "content": text, "special": kind in special, **after, "rstrip": strips and _is_stripped(text)}
            for token, (text, kind) in enumerate(zip(self._texts, self._kinds, strict=True))
            if kind in (*special, USER_DEFINED)
        ]
        if begins and bos is None:
            raise self._wrong("says that a text begins with a token, and has no bos_token_id; export it again")
        names = {"bos_token": bos, "eos_token": self._ends[0] if self._ends else None}
        names |= {f"{short}_token": self._token(f"{long}_token_id") for short, long in _OTHERS.items()}
        config = {name: self._texts[token] for name, token in names.items() if token is not None}
        if (template := self._template(config["bos_token"] if begins else "")) is not None:
            config["chat_template"] = template
        described = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **made}
        described["post_processor"] = _beginning(config["bos_token"], bos) if begins else None
        return {
            "tokenizer.json": described,
            "tokenizer_config.json": config | {"tokenizer_class": "PreTrainedTokenizerFast"},
            "generation_config.json": {"eos_token_id": self._ends},
        }

    def _end_tokens(self) -> list[int]:
        """The tokens that end a text; those that are known by their text become special."""
        named = _ENDS & self._ids.keys()
        if named >= {"<|return|>", "<|call|>"} or named >= {"<|calls|>", "<|flush|>"}:
            named -= {"<|end|>"}  # it ends a part of an answer
        if "</s>" in named and self._kinds[self._ids["</s>"]] == NORMAL:
            named -= {"</s>"}  # a tag of HTML, as in Qwen and Gemma 4; llama.cpp has it as an end of Qwen's
        of_names = sorted(self._ids[text] for text in named)
        for token in of_names:
            self._kinds[token] = CONTROL
        said = [self._token(f"{name}_token_id") for name in ("eos", "eot", "eom")]
        return list(dict.fromkeys([*(token for token in said if token is not None), *of_names]))

    def _byte_level(self) -> dict[str, Any]:
        """Byte-level BPE, by the list of merges."""
        name = self._one("pre", str, "default")
        if (before := PRE_TOKENIZERS.get(name)) is None:
            raise self._wrong(f"its pre-tokenizer {name!r:.40} is not known; known are {', '.join(PRE_TOKENIZERS)}")
        model = {"type": "BPE", "vocab": self._ids, "merges": self._merges(), "ignore_merges": before.ignores_merges}
        letters = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        # llama.cpp joins no pair over a byte that is no token, and leaves the byte out at the end.
        missing = [letter for letter in byte_letters() if letter not in self._ids]
        steps = {"normalizer": None, "pre_tokenizer": before.described(missing), "decoder": letters}
        return {**steps, "model": model, "begins": before.begins}

    def _of_pieces(self) -> dict[str, Any]:
        """BPE of characters, with bytes for characters that are no tokens: by scores, or by merges (Gemma 4)."""
        has_merges = self._model == "gemma4"
        spaced = self._one("add_space_prefix", bool, not has_merges) and not has_merges
        to_pieces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        to_spaces = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        steps = [{"type": "Prepend", "prepend": SPACE}] if spaced else []
        lines = {"type": "Split", "pattern": {"Regex": r"[^\n]+|\n+"}, "behavior": "Isolated", "invert": False}
        decoders = [to_spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if spaced else []
        merges = self._merges() if has_merges else self._merges_of_scores()
        model = {"type": "BPE", "vocab": self._ids, "merges": merges, "byte_fallback": True, "fuse_unk": True}
        if (unknown := self._token("unknown_token_id")) is not None:
            model["unk_token"] = self._texts[unknown]
        return {
            "normalizer": {"type": "Sequence", "normalizers": [*steps, to_pieces]},
            "pre_tokenizer": lines if has_merges else None,
            "decoder": {"type": "Sequence", "decoders": [*decoders, *strip]},
            "model": model,
            "begins": True,
        }

    def _merges(self) -> list[list[str]]:
        """The pairs to join, the first ones first."""
        found = {}
        for merge in self._list("merges", str):
            left, _, right = merge[1:].partition(" ")
            left = merge[:1] + left
            if not all(text in self._ids for text in (left, right, left + right)):
                raise self._wrong(f"has a merge {merge!r:.80} of what is no token; export it again")
            if self._kinds[self._ids[left + right]] not in (CONTROL, UNKNOWN):  # no text becomes one of these
                found[left, right] = None
        return [[left, right] for left, right in found]

    def _merges_of_scores(self) -> list:
        """The pairs that make a token, by the scores of the tokens."""
        scores = self._list("scores", int, float, size=len(self._texts)) or [0.0] * len(self._texts)
        if not all(map(math.isfinite, scores)):
            raise self._wrong("has a score that is no number; export it again")
        apart = (CONTROL, UNKNOWN, BYTE)  # no pair makes one of these, nor one with a space: spaces are replaced before
        all_tokens = zip(self._texts, self._kinds, scores, strict=True)
        score_of = {text: score for text, kind, score in all_tokens if kind not in apart and " " not in text}
        order = sorted(sorted(score_of, key=len, reverse=True), key=score_of.__getitem__, reverse=True)
        pairs = [
            f"{left} {right}"
            for text in order
            for cut in range(len(text) - 1, 0, -1)
            if (left := text[:cut]) in score_of and (right := text[cut:]) in score_of
        ]
        # Texts are read in two thirds of the time of lists, but the library leaves out the one that begins like this.
        return [pair.split(" ") for pair in pairs] if any(pair.startswith("#version") for pair in pairs) else pairs

    def _template(self, begin: str) -> str | None:
        """The chat template. llama.cpp puts the first token before what a template shows, if the template lacks it."""
        found = self._settings.get("tokenizer.chat_template")
        if found is None:
            return None
        if not isinstance(found, str) or len(found.encode()) > MOST_TEXT_BYTES:
            raise self._wrong("its chat template is no text of at most 1 MiB; export it again")
        return found if not begin or begin in found or "bos_token" in found else "{{ bos_token }}" + found

    def _token(self, name: str) -> int | None:
        """The id in a setting, if there is one; llama.cpp's own for Llama 2's kind."""
        found = self._one(name, int, _LLAMA_2.get(name) if self._model == "llama" else None)
        if found is not None and not 0 <= found < len(self._texts):
            raise self._wrong(f"its {name} {found} is not a token; export it again")
        return found

    def _one(self, name: str, kind: type, default: Any = None) -> Any:
        found = self._settings.get(f"tokenizer.ggml.{name}", default)
        if type(found) is not kind and found is not default:
            raise self._wrong(f"its tokenizer.ggml.{name} is {found!r:.40}; export it again")
        return found

    def _list(self, name: str, *kinds: type, size: int | None = None) -> list:
        found = self._settings.get(f"tokenizer.ggml.{name}", [])
        is_list = isinstance(found, list) and {*map(type, found)} <= {*kinds}
        if not is_list or (found and size not in (None, len(found))):
            raise self._wrong(f"its tokenizer.ggml.{name} is no list of the right length and type; export it again")
        return list(found)

    def _wrong(self, what: str) -> UserError:
        return UserError(f"{self._where}: {what}")


_LLAMA_2 = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
_OTHERS = {"unk": "unknown", "pad": "padding"}


def _is_stripped(text: str) -> bool:
    return text not in ("<unk>", "<s>", "<|endoftext|>")


def _beginning(text: str, token: int) -> dict[str, Any]:
    """A post-processor that puts a token before each text."""
    first, one, two = (
        {"SpecialToken": {"id": text, "type_id": 0}},
        *({"Sequence": {"id": x, "type_id": 0}} for x in "AB"),
    )
    special = {text: {"id": text, "ids": [token], "tokens": [text]}}
    return {"type": "TemplateProcessing", "single": [first, one], "pair": [first, one, two], "special_tokens": special}
