"""One part of a corpus, collected by one process: ours beside datatrove's own blocks, on the same file, in turns.

    python benchmarks/corpus.py --english TEXT --japanese FOLDER

Both read JSON Lines, judge each document by the rules of Gopher, C4 and FineWeb on the same words, replace personal
data, sign it (MinHash of 112 hashes) and write it with zstd. Ours also tells the language, and makes the hash and the
key of each document. Each turn is one call; the figures are processor time, and a ratio of two neighbouring turns.
"""

import argparse
import contextlib
import io
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from datatrove_words import fineweb, tokenizer

from tpullm.corpus import tasks
from tpullm.corpus.document_files import Part
from tpullm.corpus.files.source_files import File
from tpullm.corpus.filters import gopher, words
from tpullm.corpus.tasks import Task
from tpullm.recipe.schema import CorpusConfig, Source

TURNS = 5
RULES = ["gopher", "c4", "fineweb"]
PAGE_CHARACTERS = {"en": 2500, "ja": 1300}


def pages(path: Path, language: str) -> list[str]:
    """The text of a file or of the files of a folder, in pages."""
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    size = PAGE_CHARACTERS[language]
    texts = [file.read_text(encoding="utf-8") for file in files]
    return [text[start : start + size] for text in texts for start in range(0, len(text), size)]


def ours(file: Path, language: str, folder: Path) -> Callable[[], int]:
    """Make a part as a worker of `collect` does; it returns how many documents were kept."""
    source = Source("pages", "jsonl", str(file), licence="x", language=language, rules=RULES, clean=["personal_data"])
    part = Part(folder / "ours", "0" * 32, source.name, source.licence)
    task = Task(part, source, (File(file, "jsonl", file.stat().st_size),), 0, CorpusConfig(), 0)

    def run() -> int:
        words.words_of.cache_clear()
        tasks.run(task)
        return tasks.part_summary(task)["documents"]

    return run


def theirs(file: Path, language: str, folder: Path) -> Callable[[], int]:
    """The same by datatrove's blocks, one after the other, as its executor calls them."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter
    from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import ParquetWriter

    limit, own = gopher.limits(language), tokenizer(language)
    lines, paragraphs = limit.lines, limit.paragraphs
    loose = {"min_words_per_line": -1, "max_word_length": -1} if language == "ja" else {}
    blocks = [
        GopherRepetitionFilter(
            language=own,
            dup_line_frac=lines[0] % 1,
            dup_line_char_frac=lines[1] % 1,
            dup_para_frac=paragraphs[0] % 1,
            dup_para_char_frac=paragraphs[1] % 1,
            top_n_grams=limit.top,
            dup_n_grams=limit.repeated,
        ),
        GopherQualityFilter(
            language=own,
            min_avg_word_length=limit.mean_length[0],
            max_avg_word_length=limit.mean_length[1],
            stop_words=list(limit.stop_words),
            max_non_alpha_words_ratio=limit.letters,
        ),
        C4QualityFilter(language=own, filter_no_terminal_punct=False, **loose),
        fineweb(language),
        PIIFormatter(),
    ]

    def run() -> int:
        words.words_of.cache_clear()
        reader = JsonlReader(str(file.parent), glob_pattern=file.name)
        writer = ParquetWriter(str(folder / "theirs"), compression="zstd")
        signer = MinhashDedupSignature(str(folder / "signatures"), MinhashConfig(), language=own)
        stream, kept = reader.run(), []
        for block in [*blocks, writer]:
            stream = block.run(stream, 0, 1)
        with contextlib.redirect_stderr(io.StringIO()):
            kept = list(stream)
            signer.run(iter(kept), 0, 1)
        return len(kept)

    return run


def turns(first: Callable[[], int], second: Callable[[], int]) -> Iterator[tuple[float, float]]:
    """Processor seconds of both in each turn, after one turn that is not counted."""
    for turn in range(TURNS + 1):
        seconds = []
        for run in (first, second):
            began = time.process_time()
            run()
            seconds.append(time.process_time() - began)
        if turn:
            yield seconds[0], seconds[1]


def measure(language: str, texts: list[str]) -> None:
    """Print one line for a language."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / f"{language}.jsonl"
        file.write_text("".join(json.dumps({"text": text, "id": ""}) + "\n" for text in texts), encoding="utf-8")
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        both = ours(file, language, folder), theirs(file, language, folder)
        kept = [run() for run in both]
        pairs = list(turns(*both))
        mine, peer = (megabytes / statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(theirs / own for own, theirs in pairs)
        print(
            f"{language}: {len(texts)} documents, {megabytes:.2f} MB; kept {kept[0]} and {kept[1]}; "
            f"ours {mine:.2f} MB/s, datatrove {peer:.2f} MB/s a core: {ratio:.2f} times as fast"
        )


def main() -> None:
    """Measure both languages."""
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--english", type=Path)
    parser.add_argument("--japanese", type=Path)
    arguments = parser.parse_args()
    for language, path in (("en", arguments.english), ("ja", arguments.japanese)):
        if path:
            measure(language, pages(path, language))


if __name__ == "__main__":
    main()
