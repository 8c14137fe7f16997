"""A published tokenizer: the `tokenizers` library splits text, and the template of the model shows conversations.

It implements `tpullm.tokenizer.Tokenizer`. Its files are foreign: a child with limits tries the tokenizer before this
process loads it, and runs the template.
"""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tpullm.system.errors import UserError
from tpullm.system.log import one_line
from tpullm.system.process.limited import Limited
from tpullm.system.storage import check_file, hash_code, hash_file, hash_json, kept
from tpullm.tokenizer.byte_pairs import byte_letters
from tpullm.tokenizer.chat_template import (
    CLOSE,
    OPEN,
    Answer,
    EarlierAnswersChangeError,
    Messages,
    TemplateChild,
    Tools,
    Weighted,
)
from tpullm.tokenizer.json_files import MOST_BYTES, read_json, read_optional, read_text

MOST_TOKENS = 1 << 22  # the largest known have 0.3 M
_TRIED: set[str] = set()  # hashes of what this process has tried: workers load the same tokenizer many times


class PublishedTokenizer:
    """The tokenizer in a directory of Hugging Face.

    Attributes:
        begin: the ids that a text begins with: `<s>`, or none.
        stop_ids: the ids that end a text or an answer.
        named_end, file_ends: the end token that the tokenizer names, and the end tokens in the model's files.
        needed_size: the rows of an embedding of all tokens of text; special tokens may lie beyond them (Gemma 3).
        silent: the tokens that are not special and stand for no bytes.
        template: the chat template, or None.
    """

    def __init__(self, folder: Path, template: str | None = None, is_tried: bool = False):
        """Read `tokenizer.json`, `tokenizer_config.json` and the other files that name special tokens.

        Args:
            template: a chat template to use instead of the one in the folder.
            is_tried: whether a child with limits has loaded it before, or this is the child.

        Raises:
            UserError: a file is missing, the bytes of the tokens are not known, or the tokenizer costs too much.
        """
        from tokenizers import Tokenizer

        self.folder, path = folder, folder / "tokenizer.json"
        if not path.exists():
            raise UserError(f"{path}: no such file; a tokenizer in another format is not read (convert it first)")
        described = read_json(path)
        if not is_tried:
            self._try()
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(described))
        except Exception as error:  # the library raises bare exceptions
            why = one_line(str(error), 200)
            raise UserError(f"{path}: not a tokenizer of the `tokenizers` library ({why})") from None
        try:
            self._understand(described, template)
        except UserError:
            raise
        except Exception as error:  # foreign files: any value may have another type
            why = one_line(str(error), 200)
            raise UserError(f"{folder}: the files of its tokenizer can't be read ({why}); fetch them again") from None

    def _try(self) -> None:
        """Have a child do first what this process will do, unless one did so with the same files and the same code."""
        import tokenizers

        names = ("tokenizer", "special_tokens_map", "tokenizer_config", "generation_config", "config")
        found = [path for name in names if (path := self.folder / f"{name}.json").exists()]
        content = hash_json({path.name: hash_file(path) for path in found if check_file(path) <= MOST_BYTES})

        def check() -> bytes:
            with contextlib.closing(Limited()) as child:
                child.call(f"{self.folder}/tokenizer.json", "tpullm.tokenizer.trial:check", str(self.folder))
            return b""

        if content not in _TRIED:
            kept("tokenizers", [content, tokenizers.__version__, hash_code(__file__)], check)
            _TRIED.add(content)

    def _understand(self, described: dict, template: str | None) -> None:
        folder, path = self.folder, str(self.folder / "tokenizer.json")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        names = ("special_tokens_map.json", "tokenizer_config.json")
        self._config = {key: value for name in names for key, value in read_optional(folder / name).items()}
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token for token, added_token in added.items() if added_token.special}
        normalizer, names = self._tokenizer.normalizer, [str(added[token].content) for token in self._special]
        self._normalized = normalizer.normalize_str if normalizer else str
        self._ends_of_names = {name[place] for name in names for place in (0, -1) if name}
        # A character that no name of a special token has, nor the normalizer changes.
        self._between = next(one for one in "·¦§¶†‡※" if one not in "".join(names) and one in self._normalized(one))
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if (most := max(ids.values(), default=-1)) >= MOST_TOKENS:
            raise UserError(f"{path}: has a token {most}; no known model has more than {MOST_TOKENS:,} tokens")
        self.vocabulary_size = max(ids.values()) + 1
        present = set(ids.values()) - self._special
        self.needed_size = max(present) + 1
        self._joins_bytes = _decoder_kinds(described) == {"ByteLevel"}
        self._bytes = all_bytes(described, ids, self._special, set(added), path)
        plain, with_special = (self._tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
        self.begin = with_special[: with_special.index(plain[0])]
        self.bos_id = self._named("bos_token")
        self.named_end = self._named("eos_token")
        files = (read_optional(folder / file) for file in ("generation_config.json", "config.json"))
        ends = (found.get("eos_token_id") for found in files)
        found = [end for some in ends for end in (some if isinstance(some, list) else [some]) if end is not None]
        self.file_ends = list(dict.fromkeys(found))
        if wrong := [end for end in found if not isinstance(end, int) or not 0 <= end < self.vocabulary_size]:
            raise UserError(f"{folder}: end token {wrong[0]!r} is not a token; correct eos_token_id")
        # Those of generation come first: engines stop at them.
        self.stop_ids = list(dict.fromkeys([*self.file_ends, *([] if self.named_end is None else [self.named_end])]))
        if not self.stop_ids:
            raise UserError(f"{folder}: no file names a token that ends a text; set eos_token_id in config.json")
        self.silent = [token for token in sorted(present) if not self._bytes[token]]
        self.eos_id = self.stop_ids[0]
        pad = self._named("pad_token")
        self.pad_id = self.eos_id if pad is None else pad
        self.template = _published_chat_template(folder, self._config) if template is None else template
        self.has_template = self.template is not None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without begin tokens. The name of a special token in `text` becomes that token."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    encode_marked = encode

    def document(self, text: str) -> list[int]:
        """Ids of a whole document with its begin and end tokens. No text in it becomes a special token."""
        self._tokenizer.encode_special_tokens = True
        try:
            return [*self.begin, *self.encode(text), self.eos_id]
        finally:
            self._tokenizer.encode_special_tokens = False

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Special tokens have no text.

        The library would read an added token of DeepSeek, such as `ö`, as a letter that stands for a byte.
        """
        if self._joins_bytes:
            return b"".join(map(self.bytes_of, ids)).decode("utf-8", errors="replace")
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def serialized(self) -> bytes:
        """The tokenizer, as `tokenizer.json` has it."""
        return self._tokenizer.to_str().encode()

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of one token; none for a special token, or for an id beyond the vocabulary."""
        return self._bytes[token] if token < len(self._bytes) else b""

    def bytes_per_token(self) -> np.ndarray:
        """The UTF-8 bytes that each token stands for, `[V]`."""
        return np.array(list(map(len, self._bytes)), np.float64)

    def piece(self, token: int) -> str:
        """One token for display: its text, `<0x..>` for part of a character, or the name of a special token."""
        held = self.bytes_of(token)
        text = held.decode("utf-8", errors="replace")
        if text.strip("\ufffd"):
            return text
        return "".join(f"<0x{byte:02X}>" for byte in held) or str(self._tokenizer.id_to_token(token))

    def pieces(self, text: str) -> list[tuple[str, int]]:
        """The tokens of `text` for display: (piece, id)."""
        return [(self.piece(token), token) for token in self.encode(text)]

    def learned_texts(self) -> list[str]:
        """The texts of the tokens that pairs of bytes were joined to, none for a tokenizer of another kind."""
        if not self._joins_bytes or self._tokenizer.pre_tokenizer is None:
            return []
        apart, found = set(self._tokenizer.get_added_tokens_decoder()), []
        for token, held in enumerate(self._bytes):
            with contextlib.suppress(UnicodeDecodeError):
                if held and token not in apart:
                    found.append(held.decode())
        return found

    def cut(self, text: str) -> list[str]:
        """The pieces of a text within which pairs are joined, for a tokenizer with learned texts."""
        letters = byte_letters()
        found = self._tokenizer.pre_tokenizer.pre_tokenize_str(text)
        return [bytes(letters[letter] for letter in piece).decode("utf-8", "replace") for piece, _ in found]

    def chat_template(self, messages: Messages, add_generation_prompt: bool = False, tools: Tools = None) -> Weighted:
        """The ids of a conversation by the model's own template, and weights: 1 on each answer and its end.

        The template marks the answers (`{% generation %}`), or an answer is what the template adds to the conversation
        before it.

        Raises:
            UserError: there is no template, it refuses the messages, or the answers can't be found.
        """
        return self._with_weights(*self._show("prompt" if add_generation_prompt else "answers", messages, tools))

    def prompt_text(self, messages: Messages, tools: Tools = None) -> str:
        """A conversation up to where the model answers, as text, with the names of special tokens."""
        return self._show("prompt", messages, tools)[0]

    def answers_text(self, messages: Messages) -> str:
        """A conversation that ends with an answer, as text."""
        return self._show("answers", messages)[0]

    def last_answer(self, messages: Messages, tools: Tools = None) -> Weighted:
        """The same with weights on the last answer alone, which any template shows as the model will write it."""
        return self._with_weights(*self._show("last", messages, tools))

    def _with_weights(self, text: str, answers: list[Answer]) -> Weighted:
        ids = self.encode(text)
        weights = [0.0] * len(ids)
        for answer in answers:
            first, after = self._length(text[: answer.start], ids), self._length(text[: answer.end], ids)
            if first == after:
                raise UserError(f"{self.folder}: its chat template shows nothing of an answer; give it some text")
            last = self._end(ids, first, after, answer)
            weights[first:last] = [1.0] * (last - first)
        return ids, weights

    def _end(self, ids: list[int], first: int, after: int, answer: Answer) -> int:
        """Where the answer ends: after the special token that follows its content, else at the end of what is shown.

        A template may put white space or the beginning of the next turn after an answer: these are not part of it. The
        template of a base model may end an answer with a special token that no file names as an end token. Calls of
        functions have special tokens of their own (Mistral, DeepSeek), so only an end token ends them.
        """
        special, content = [n for n in range(first, after) if ids[n] in self._special], answer.content
        ends = [n for n in special if ids[n] in self.stop_ids] if answer.calls else special
        for n in ends if content else []:
            if content in self._tokenizer.decode(ids[first:n], skip_special_tokens=True):
                return n + 1
        rest = self._tokenizer.decode(ids[special[-1] + 1 : after], skip_special_tokens=False) if special else "said"
        return after if rest.strip() else special[-1] + 1

    def _length(self, beginning: str, ids: list[int]) -> int:
        """How many of the ids of a conversation are the ids of its beginning.

        Raises:
            UserError: a token spans the end of the beginning. When the model is asked for an answer, it would see other
                tokens before it than in training.
        """
        found = self.encode(beginning)
        if ids[: len(found)] != found:
            raise UserError(
                f"{self.folder}: in its chat template, {beginning[-12:]!r} and what follows it share a token, so an "
                "answer has no clear beginning or end; put a special token or a line's end there (and no white space "
                "where the answer begins)"
            )
        return len(found)

    @functools.cached_property
    def _chat(self) -> TemplateChild:
        if self.template is None:
            raise UserError(f"{self.folder}: has no chat template; it is not a model for conversations")
        tokens = {key: _token_content(value) for key, value in self._config.items() if key.endswith("_token") and value}
        return TemplateChild(self.template, tokens, str(self.folder))

    def _show(self, what: str, messages: Messages, tools: Tools = None) -> tuple[str, list[Answer]]:
        """A conversation as `ChatTemplate.show` shows it.

        Messages that forge a turn are refused: the library turns the name of a special token into that token. So each
        text is tokenized by itself, since a normalizer may make a name of it (NFKC, lower case, removed characters). A
        template may make one too, by what it strips or joins: it then shows other special tokens where the texts of
        others than the model have a character more between their characters.
        """
        whose = [(f"a message of the {message['role']}", message) for message in messages]
        for who, said in [*whose, ("a description of the tools", tools)]:
            for text in _texts_in_json(said):
                if found := [mark for mark in (OPEN, CLOSE) if mark in text] or self._special_in(text):
                    held = f"{who} holds {found[0]!r}"
                    raise UserError(f"{held}, which this model reads as a special token and not as text; take it out")
        shown = self._chat.show(what, messages, tools)
        spaced = [message if message["role"] == "assistant" else self._spaced(message) for message in messages]
        if spaced != list(messages):
            with contextlib.suppress(EarlierAnswersChangeError):
                wanted, found = (self._special_in(of[0]) for of in (self._chat.show(what, spaced, tools), shown))
                if wanted != found:
                    raise UserError(
                        f"{self.folder}: its chat template makes other special tokens of the messages than of the same "
                        f"ones with {self._between} between their characters, so they are not read as text; take out "
                        "what looks like a special token, or give another template"
                    )
        return shown

    def _special_in(self, text: str) -> list[str]:
        """The names of the special tokens that a text becomes."""
        return [str(self._tokenizer.id_to_token(token)) for token in self.encode(text) if token in self._special]

    def _spaced(self, value: Any, key: str = "content") -> Any:
        """A message, with a character between those of its texts if they can be a part of a special token's name."""
        if isinstance(value, dict):
            return {name: self._spaced(of, name) if name in ("content", "text") else of for name, of in value.items()}
        if isinstance(value, list):
            return [self._spaced(item) for item in value]
        if not isinstance(value, str) or self._ends_of_names.isdisjoint(self._normalized(value)):
            return value
        return self._between.join(value)

    def _named(self, name: str) -> int | None:
        text = _token_content(self._config.get(name))
        return None if text is None else self._tokenizer.token_to_id(text)


def _texts_in_json(value: Any) -> Iterator[str]:
    """All texts in a value of JSON, keys too."""
    if isinstance(value, str):
        yield value
    for item in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from _texts_in_json(item)


def _token_content(token) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _published_chat_template(folder: Path, config: dict) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    if found is not None and not isinstance(found, str):
        raise UserError(f"{folder}: its chat template is no text; fetch tokenizer_config.json again")
    return found


def all_bytes(described: dict, ids: dict[str, int], special: set[int], added: set[int], where: str) -> list[bytes]:
    """The bytes of each token, by how the decoder of the tokenizer joins pieces; `UserError` if it is not known."""
    kinds = _decoder_kinds(described)
    if not {"ByteLevel", "ByteFallback", "Metaspace"} & kinds:
        raise UserError(f"{where}: a decoder of {sorted(kinds)} is not known; known are ByteLevel and Metaspace")
    letters = byte_letters() if "ByteLevel" in kinds else None
    found = [b""] * (max(ids.values()) + 1)
    for piece, token in ids.items():
        if token in special:
            continue
        try:
            if token in added:
                found[token] = piece.encode()
            elif letters:
                found[token] = bytes(map(letters.__getitem__, piece))
            elif len(piece) == 6 and piece.startswith("<0x"):
                found[token] = bytes([int(piece[3:5], 16)])
            else:
                found[token] = piece.replace("\u2581", " ").encode()
        except (KeyError, ValueError):  # what is not written so stands for itself
            found[token] = piece.encode()
    return found


def _decoder_kinds(described: dict) -> set[str]:
    """The types of all decoders."""
    kinds, decoders = set(), [described.get("decoder")]
    for decoder in decoders:
        if decoder:
            kinds.add(decoder["type"])
            decoders += decoder.get("decoders", [])
    return kinds
