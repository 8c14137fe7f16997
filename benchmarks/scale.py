"""Collect of growing corpora by one worker: processor time and peak memory for each megabyte of text.

    python benchmarks/scale.py text 100 1000 10000 --english TEXT --japanese FOLDER --folder /tmp/scale
    python benchmarks/scale.py template 2000 20000 200000 --english TEXT --japanese FOLDER --folder /tmp/scale

`text` makes so many megabytes of documents: sentences of the given texts in a random order, one document in ten a near
copy of an earlier one. `template` makes so many pages that are equal but for a name and a number. The folder needs
twice the size of the text.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from tpullm.corpus.characters import cut

FILE_BYTES = 50_000_000
SENTENCES = {"en": 20, "ja": 20}
RECENT = 1000  # documents of which a near copy is made


def sentences(path: Path) -> list[str]:
    """The lines of a file or of the files of a folder, cut into passages of at most 120 characters."""
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    lines = (line for file in files for line in file.read_text(encoding="utf-8").split("\n"))
    return [piece for line in lines if line.strip() for piece in cut(line, 120)]


def texts(pools: dict[str, list[str]], generator: random.Random) -> Iterator[tuple[str, str]]:
    """Documents with their language, without end."""
    recent: list[tuple[str, list[str]]] = []
    while True:
        language = generator.choice(list(pools))
        if recent and generator.random() < 0.1:
            language, chosen = generator.choice(recent)
            chosen = [*chosen[:-1], generator.choice(pools[language])]
        else:
            chosen = generator.choices(pools[language], k=SENTENCES[language])
        recent.append((language, chosen))
        del recent[:-RECENT]
        yield language, "\n".join(chosen)


def pages(pools: dict[str, list[str]], generator: random.Random) -> Iterator[tuple[str, str]]:
    """200 other documents, then pages of one template, without end."""
    yield from itertools.islice(texts(pools, generator), 200)
    body = "\n".join(generator.choices(pools["en"], k=SENTENCES["en"]))
    number = 0
    while True:
        number += 1
        yield "en", f"Offer {number}: {generator.choice(pools['en'])}\n{body}"


def make(folder: Path, documents: Iterator[tuple[str, str]], least_bytes: float, count: float) -> float:
    """Write JSON Lines files until there are enough documents or bytes; the megabytes of their text."""
    written = number = 0
    while written < least_bytes and number < count:
        with (folder / f"{number:010}.jsonl").open("w", encoding="utf-8") as file:
            while written < least_bytes and number < count and file.tell() < FILE_BYTES:
                language, text = next(documents)
                file.write(json.dumps({"text": text, "language": language}, ensure_ascii=False) + "\n")
                written, number = written + len(text.encode()), number + 1
    return written / 1e6


def collect(folder: Path, rules: list[str]) -> tuple[float, float]:
    """Processor seconds and peak MiB of a process, of `tpullm collect` over `folder/text` by one worker."""
    source = {"name": "pages", "kind": "jsonl", "path": str(folder / "text"), "licence": "x", "rules": rules}
    recipe = {
        "name": "scale",
        "run": str(folder / "run"),
        "corpus": {"workers": 1, "sources": [source | {"clean": ["personal_data"]}]},
    }
    (folder / "scale.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    process = os.posix_spawn(
        sys.executable, [sys.executable, "-m", "tpullm", "collect", str(folder / "scale.yaml")], dict(os.environ)
    )
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(os.waitstatus_to_exitcode(status))
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Make each corpus, collect it, print a line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("text", "template"))
    parser.add_argument("sizes", type=int, nargs="+", help="megabytes of text, or pages of the template")
    parser.add_argument("--english", type=Path, required=True)
    parser.add_argument("--japanese", type=Path, required=True)
    parser.add_argument("--rules", nargs="*", default=[])
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    pools = {"en": sentences(given.english), "ja": sentences(given.japanese)}
    for size in given.sizes:
        shutil.rmtree(given.folder, ignore_errors=True)
        (given.folder / "text").mkdir(parents=True)
        generator = random.Random(0)
        if given.kind == "text":
            megabytes = make(given.folder / "text", texts(pools, generator), 1e6 * size, float("inf"))
        else:
            megabytes = make(given.folder / "text", pages(pools, generator), float("inf"), size)
        seconds, most = collect(given.folder, given.rules)
        card = json.loads((given.folder / "run" / "documents" / "datacard.json").read_text(encoding="utf-8"))
        print(
            f"{given.kind} {size:,}: {megabytes:,.0f} MB, processor {seconds:,.1f} s, {megabytes / seconds:.2f} MB/s, "
            f"{seconds / megabytes:.3f} s a MB, at most {most:,.0f} MiB a process; "
            f"{card['documents']}, dropped {card['dropped']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
