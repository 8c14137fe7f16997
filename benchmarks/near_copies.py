"""Which near copies are dropped, and which of them are none: `tpullm collect` on texts of others, judged pair by pair.

    python benchmarks/near_copies.py FOLDER [FOLDER ...] [--plant 300] [--vary 34] [--show]

Each folder (or file of JSON Lines) is collected by itself. Of each document that was dropped as a near copy the Jaccard
similarity to the closest other document is counted exactly, over 5-grams of words or characters, without the lines that
stand in more than `MANY` different documents: those with no earlier one that is alike. Below `LEAST` it was dropped
falsely.

`--plant` takes so many documents of each, puts edited copies beside all, and says how many of the copies are found: of
each kind of edit, and by their similarity to the original. `--vary` does so with copies in another width (full-width
ASCII, half-width kana), in capitals, and with other marks and spaces. The code here shares nothing with what it judges.
"""

import argparse
import json
import math
import random
import re
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from tpullm.cli import collect
from tpullm.corpus import document_files
from tpullm.corpus.document_files import APART, EXACT, NEAR, USED
from tpullm.recipe.schema import CorpusConfig, Recipe, Source
from tpullm.system import log

MANY, LEAST = 10, 0.7
SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
UNIT = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+")
EDITS = ("0.01 of the units", "0.02 of the units", "0.05 of the units", "0.1 of the units", "0.2 of the units")
EDITS += ("another end", "another line in ten")


def units(text: str) -> list[str]:
    """Words, and each character of scripts without spaces."""
    return UNIT.findall(text.lower())


def shingles(text: str) -> set[tuple[str, ...]]:
    """The different runs of five units; all units of a shorter text."""
    own = units(text)
    return {tuple(own[start : start + 5]) for start in range(max(len(own) - 4, 1))}


def collected(path: Path) -> list[tuple[str, int]]:
    """The documents of a folder or a file that the filters kept, each with its mark."""
    kind = "files" if path.is_dir() else "jsonl"
    source = Source("s", kind, str(path), licence="x", rules=[])
    with tempfile.TemporaryDirectory() as run:
        collect.main(Recipe(corpus=CorpusConfig(sources=[source], workers=1)), Path(run))
        parts = document_files.parts(Path(run) / "documents")
        every = tuple(range(len(document_files.MARKS)))
        return [(row["text"], mark) for part in parts for row, mark in document_files.read_part(part, every)]


def lines(text: str) -> list[str]:
    """The lines of a text without the white space and the dates around them."""
    return [re.sub(r"[\W\d_]+", " ", line).strip().lower() for line in text.split("\n")]


def alike(sets: dict[int, set]) -> dict[int, set[int]]:
    """Of each document all others whose Jaccard similarity is at least `LEAST`: exactly, by their rarest shingles.

    Two such sets have one in common among the rarest 1 - LEAST of each (Chaudhuri et al. 2006, prefix filter).
    """
    counts = Counter(shingle for own in sets.values() for shingle in own)
    index, found = defaultdict(list), defaultdict(set)
    for number, own in sets.items():
        rarest = sorted(own, key=lambda one: (counts[one], one))[: len(own) - math.ceil(LEAST * len(own)) + 1]
        for other in {other for shingle in rarest for other in index[shingle]}:
            if len(own & sets[other]) >= LEAST * len(own | sets[other]):
                found[number].add(other)
                found[other].add(number)
        for shingle in rarest:
            index[shingle].append(number)
    return found


def without_shared_lines(texts: dict[int, str], counted: set[int]) -> dict[int, set]:
    """The shingles of texts without the lines that stand in more than `MANY` of the counted ones."""
    counts = Counter(line for number in counted for line in set(lines(texts[number])))
    found = {}
    for number, text in texts.items():
        kept = (line for line, key in zip(text.split("\n"), lines(text), strict=True) if counts[key] <= MANY)
        found[number] = shingles("\n".join(kept))
        if found[number] == {()}:
            found[number] = shingles(text)
    return found


def edited(text: str, edit: str, random_: random.Random) -> str:
    """A copy of a text, edited."""
    if edit == "another end":
        end = int(len(text) * random_.uniform(0.8, 1))
        return text[:end] + " " + "".join(random_.sample(text, len(text) - end))
    if edit == "another line in ten":
        rows = text.split("\n")
        return "\n".join("".join(random_.sample(row, len(row))) if random_.random() < 0.1 else row for row in rows)
    share = float(edit.split()[0])
    words = UNIT.findall(text)
    return UNIT.sub(lambda match: random_.choice(words) if random_.random() < share else match[0], text)


HALF_WIDTH = {unicodedata.normalize("NFKC", chr(point)): chr(point) for point in range(0xFF61, 0xFFA0)}
HALF_WIDTH |= {
    unicodedata.normalize("NFC", kana + mark): half + sign
    for kana, half in HALF_WIDTH.items()
    for mark, sign in (("\u3099", "\uff9e"), ("\u309a", "\uff9f"))
}
FULL_WIDTH = {chr(point): chr(point + 0xFEE0) for point in range(0x21, 0x7F)} | {" ": "\u3000"}
MARKS = dict(zip("、。「」『』・,.!?-'\"():;", "，．“”‘’·，．！？–’“（）：；", strict=True)) | {" ": "  ", "\n": " \n"}
VARIANTS: dict[str, Callable[[str], str]] = {
    "width": lambda text: "".join({**FULL_WIDTH, **HALF_WIDTH}.get(one, one) for one in text),
    "case": str.upper,
    "punctuation": lambda text: "".join(MARKS.get(one, one) for one in text),
}


def vary(path: Path, count: int) -> None:
    """Print how many copies in another width, case and punctuation are found as exact ones."""
    texts = [text for text, mark in collected(path) if mark in (USED, APART)]
    chosen = random.Random(0).sample(texts, min(count, len(texts)))
    for name, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "varied.jsonl"
            rows = [json.dumps({"text": text}) for text in [*chosen, *map(variant, chosen)]]
            file.write_text("\n".join(rows), encoding="utf-8")
            found = sum(mark == EXACT for _, mark in collected(file))
        print(f"{path.name}, another {name}: {found} of {len(chosen)} found", flush=True)


def measure(path: Path, show: bool) -> None:
    """Print one line for a folder."""
    documents = collected(path)
    texts = {number: text for number, (text, mark) in enumerate(documents) if mark != EXACT}
    dropped = [number for number in texts if documents[number][1] == NEAR]
    kept = {number for number in texts if documents[number][1] in (USED, APART)}
    whole = alike({number: shingles(text) for number, text in texts.items()})
    different = {number for number in texts if not any(other < number for other in whole[number])}
    copies, strict = (alike(without_shared_lines(texts, counted)) for counted in (different, set(texts)))
    false = [number for number in dropped if not copies[number]]
    counts = {
        "false": len(false),
        "by the closest kept one": sum(not copies[number] & kept for number in dropped),
        "with lines counted in copies too": sum(not strict[number] for number in dropped),
        "with all lines": sum(not whole[number] for number in dropped),
    }
    missed = sum(bool(copies[number] & kept) for number in kept)
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    exact = len(documents) - len(texts)
    print(f"{path.name}: {len(documents)} documents, {exact} exact and {len(dropped)} near copies, of these {told}")
    print(f"  {missed} of the documents that are kept are alike", flush=True)
    for number in false if show else ():
        print(f"  {len(texts[number])}: {texts[number][:200]!r}")


def plant(path: Path, count: int) -> None:
    """Print how many edited copies are found."""
    random_ = random.Random(0)
    texts = [text for text, mark in collected(path) if mark in (USED, APART) and len(shingles(text)) > 50]
    chosen = random_.sample(texts, min(count, len(texts)))
    copies = [(text, edited(text, edit, random_), edit) for text in chosen for edit in EDITS]
    found: dict[str, list[bool]] = defaultdict(list)
    for edit in EDITS:  # one copy of each document at once, after all others
        own = [(text, copy) for text, copy, kind in copies if kind == edit]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "planted.jsonl"
            rows = [json.dumps({"text": text}) for text in [*texts, *(copy for _, copy in own)]]
            file.write_text("\n".join(rows), encoding="utf-8")
            marks: dict[str, int] = {text: mark for text, mark in collected(file)}
        for text, copy in own:
            first, second = shingles(text), shingles(copy)
            alike = len(first & second) / len(first | second)
            # One of both is dropped: what is held out comes first.
            is_found = any(marks.get(one) in (EXACT, NEAR) for one in (text, copy))
            band = min(int(alike * 20) / 20, 0.95)
            found[edit].append(is_found)
            found[f"alike {band:.2f} to {band + 0.05:.2f}"].append(is_found)
    for what, hits in sorted(found.items()):
        print(f"{path.name}, {what}: {sum(hits)} of {len(hits)} found")


def main() -> None:
    """Measure each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--plant", type=int, default=0)
    parser.add_argument("--vary", type=int, default=0)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    log.speak_as("tpullm", only_warns=True)
    for path in arguments.paths:
        if arguments.plant:
            plant(path, arguments.plant)
        elif arguments.vary:
            vary(path, arguments.vary)
        else:
            measure(path, arguments.show)


if __name__ == "__main__":
    main()
