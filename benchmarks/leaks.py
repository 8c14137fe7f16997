"""Questions planted among 100,000 documents of real text: how many `collect` finds, its false alarms, its cost.

    python benchmarks/leaks.py [--documents 100000] [--text ../shared/data]

The documents are cut at random from three novels by Soseki and the first nine tenths of tiny Shakespeare, 300 to 1,000
characters each. Questions are what these don't hold: paragraphs of a fourth novel, the last tenth of tiny Shakespeare,
and what people ask in `instruction_ja.jsonl`, of which many are shorter than a window. Some are planted in a document
each: whole; one half; with other white space, also within words of Japanese; in full width, with half-width kana; in
capitals; with other punctuation; with ruby; with another letter. Everything goes through `collect`, with a source that
keeps all that it reads.
"""

import argparse
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tpullm.cli import collect as command
from tpullm.corpus import datacard, question_windows, tasks
from tpullm.corpus.dedup import text_hash
from tpullm.corpus.document_files import Part
from tpullm.corpus.files.source_files import File
from tpullm.corpus.question_windows import TaskQuestions, Wording
from tpullm.corpus.tasks import Task
from tpullm.recipe.schema import CorpusConfig, LeaksConfig, Recipe, Source

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PLANTED_EACH = 100  # of a language, in each way
TURNS, TIMED_DOCUMENTS = 7, 3000
HALF_WIDTH = dict(zip("アイウエオカキクケコサシスセソタチツテトナニヌネノ", "ｱｲｳｴｵｶｷｸｹｺｻｼｽｾｿﾀﾁﾂﾃﾄﾅﾆﾇﾈﾉ", strict=True))
HALF_WIDTH |= dict(zip("ハヒフヘホマミムメモヤユヨラリルレロワヲン", "ﾊﾋﾌﾍﾎﾏﾐﾑﾒﾓﾔﾕﾖﾗﾘﾙﾚﾛﾜｦﾝ", strict=True))


def wide(text: str) -> str:
    """ASCII in full width, katakana in half width."""
    return "".join(chr(ord(one) + 0xFEE0) if "!" <= one <= "~" else HALF_WIDTH.get(one, one) for one in text)


def spaced(text: str, draw: random.Random) -> str:
    """With other white space: in Japanese anywhere, else between words."""
    if text.isascii():
        return re.sub(r"\s+", lambda _: draw.choice(["  ", "\n", "\t", " \n "]), text)
    return "".join(one + draw.choice(["", "", "", " ", "\n", "　"]) for one in text)


def half(text: str, draw: random.Random) -> str:
    """Its first half or its second one, cut between words."""
    middle = len(text) // 2
    if text.isascii():
        middle = text.index(" ", middle)
    return draw.choice([text[:middle], text[middle:]])


def changed(text: str, draw: random.Random) -> str:
    """With one letter replaced."""
    place = draw.choice([place for place, one in enumerate(text) if one.isalpha()])
    return text[:place] + draw.choice("いqん猫") + text[place + 1 :]


WAYS: dict[str, Callable[[str, random.Random], str]] = {
    "whole": lambda text, _: text,
    "half": half,
    "white space": spaced,
    "width": lambda text, _: wide(text),
    "capitals": lambda text, _: text.upper(),
    "punctuation": lambda text, draw: re.sub(r"[、。,.;:!?]", lambda _: draw.choice(["", "…", "―", "，", "!"]), text),
    "ruby": lambda text, _: re.sub("[一-鿿]+", r"\g<0>《よみ》", text),
    "one letter": changed,
    "half, width, white space": lambda text, draw: wide(spaced(half(text, draw), draw)),
}


def questions(folder: Path) -> dict[str, list[str]]:
    """The questions of each task."""
    neko = [line.strip() for line in (folder / "soseki" / "neko.txt").read_text("utf-8").splitlines()]
    words = (folder / "tinyshakespeare.txt").read_text("utf-8")[-111_540:].split()
    english = [" ".join(words[start : start + 60]) for start in range(0, len(words) - 60, 60)]
    lines = (folder / "instruction_ja.jsonl").read_text("utf-8").splitlines()
    asked = [one["text"] for line in lines for one in json.loads(line)["utterances"] if one["name"] == "user"]
    return {"ja": [line[:300] for line in neko if len(line) > 130], "en": english, "asked": list(dict.fromkeys(asked))}


def documents(folder: Path, count: int, draw: random.Random) -> Iterator[str]:
    """Documents without a question."""
    novels = "".join(path.read_text("utf-8") for path in sorted(folder.glob("soseki/*.txt")) if path.stem != "neko")
    english = (folder / "tinyshakespeare.txt").read_text("utf-8")[:1_003_854]
    for number in range(count):
        text, size = (novels, english)[number % 2], draw.randrange(300, 1000)
        start = draw.randrange(len(text) - size)
        yield text[start : start + size]


def planted(asked: dict[str, list[str]], texts: list[str], draw: random.Random) -> dict[int, tuple[str, int, str]]:
    """Put questions into documents: by the number of the document the task, the question and the way."""
    free = iter(draw.sample(range(len(texts)), len(texts)))
    done = {}
    for task in ("ja", "en"):
        chosen = draw.sample(range(len(asked[task])), min(PLANTED_EACH, len(asked[task])))
        for way, change in WAYS.items():
            for question in chosen:
                number = next(free)
                text, place = texts[number], draw.randrange(len(texts[number]))
                texts[number] = f"{text[:place]}\n{change(asked[task][question], draw)}\n{text[place:]}"
                done[number] = (task, question, way)
    return done


def write_lines(path: Path, rows: list[dict]) -> Path:
    """A file of JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def found(folder: Path, asked: dict[str, list[str]], texts: list[str]) -> dict[int, set[tuple[str, int]]]:
    """What `collect` finds: by the number of the document the questions."""
    source = Source(
        "all",
        "jsonl",
        str(write_lines(folder / "all.jsonl", [{"text": text} for text in texts])),
        licence="see shared/data",
        filter=False,
        deduplicate=False,
    )
    files = [
        str(write_lines(folder / f"{task}.jsonl", [{"question": text, "answer": "-"} for text in own]))
        for task, own in asked.items()
    ]
    command.main(Recipe(corpus=CorpusConfig(sources=[source], leaks=LeaksConfig(files))), folder)
    numbers = {text_hash(text): number for number, text in enumerate(texts)}
    held: dict[int, set[tuple[str, int]]] = {}
    with (folder / "documents" / datacard.FILE).open(encoding="utf-8") as file:
        for line in map(json.loads, file):
            held.setdefault(numbers[line["hash"]], set()).add((line["task"], line["question"]))
    return held


def cost(folder: Path, asked: dict[str, list[str]], texts: list[str]) -> None:
    """Print the processor time of a worker without and with questions to look for, in turns, as MB/s of text."""
    made = [TaskQuestions(task, "", [Wording((text,)) for text in own]) for task, own in asked.items()]
    windows = question_windows.windows_of(made)
    windows.save(folder / "windows.npz")
    for language, own in (("ja", texts[0:TIMED_DOCUMENTS:2]), ("en", texts[1:TIMED_DOCUMENTS:2])):
        file = write_lines(folder / f"timed-{language}.jsonl", [{"text": text} for text in own])
        source = Source("timed", "jsonl", str(file), licence="x", language=language)
        part, files = Part(folder / "timed", "0" * 32, "timed", "x"), (File(file, "jsonl", file.stat().st_size),)
        size, seconds = sum(len(text.encode()) for text in own), {"without": [], "with": []}
        for _ in range(TURNS):
            for name, path in (("without", None), ("with", folder / "windows.npz")):
                task = Task(part, source, files, 0, CorpusConfig(), 0, path)
                began = time.process_time()
                tasks.run(task)
                seconds[name].append(time.process_time() - began)
        rates = {name: size / 1e6 / min(own) for name, own in seconds.items()}
        print(f"{language}: {rates['without']:.2f} MB/s without questions, {rates['with']:.2f} MB/s with")


def main() -> None:
    """Plant, collect, compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--text", type=Path, default=DATA)
    options = parser.parse_args()
    draw, asked = random.Random(0), questions(options.text)
    texts = list(documents(options.text, options.documents, draw))
    clean = list(texts)
    done = planted(asked, texts, draw)
    with tempfile.TemporaryDirectory() as folder:
        held = found(Path(folder), asked, texts)
        right, all_ = Counter(), Counter()
        for number, (task, question, way) in done.items():
            all_[task, way] += 1
            right[task, way] += (task, question) in held.get(number, ())
        for (task, way), count in all_.items():
            print(f"{task}, {way}: {right[task, way]} of {count} found")
        alarms = {number: own for number, own in held.items() if number not in done}
        by_task = Counter(task for own in alarms.values() for task, _ in own)
        print(f"false alarms: {len(alarms)} of {len(texts) - len(done):,} documents without a question {dict(by_task)}")
        for own in list(alarms.values())[:20]:
            task, question = sorted(own)[0]
            print(f"  {task}: {asked[task][question][:60]!r}")
        cost(Path(folder), asked, clean)


if __name__ == "__main__":
    main()
