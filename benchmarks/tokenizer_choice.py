"""Which tokenizer is best for the same arithmetic? Bits a byte of small models that differ in their tokenizer alone.

    python benchmarks/tokenizer_choice.py --folder WORK --texts novels=ja=FOLDER --texts go=code=FOLDER

collects the texts once, then trains every tokenizer of `VARIANTS` and, with each seed, a model on its tokens: the same
shapes, vocabulary and steps, so the same FLOPs and the same time on an idle machine. What it finds goes to
`benchmarks/results/tokenizers.md`. Finished runs in WORK are kept, so it resumes.
"""

import argparse
import gzip
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import yaml

from tpullm.corpus import document_files
from tpullm.tokenizer import Tokenizer, japanese_words, load

VARIANTS = {
    f"{kind}, {words}": {"model_type": kind, "words": words}
    for kind, words in (
        ("unigram", "strict"),
        ("unigram", "soft"),
        ("unigram", "none"),
        ("bpe", "strict"),
        ("bpe", "soft"),
        ("bpe", "none"),
    )
}
DOCUMENT_CHARACTERS = 3000
RECIPE = {
    "name": "tokenizers",
    "tokenizer": {"sample_characters": 20_000_000},
    "model": {"layers": 4, "width": 128, "heads": 4, "context_length": 256},
    "pretrain": {
        "batch_size": 16,
        "sequence_length": 256,
        "evaluate_every": 0,
        "evaluate_rows": 0,
        "optimizer": {"peak_lr": 4.0e-3, "warmup_steps": 40},
    },
}
ENDINGS = (".txt", ".go", ".md", ".html")


def main() -> None:
    """Make what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are")
    parser.add_argument("--texts", action="append", required=True, metavar="NAME=LANGUAGE=PATH")
    parser.add_argument("--bytes", type=int, default=3_000_000, help="of each text at most")
    parser.add_argument("--vocabulary", type=int, default=8192, help="tokens of each tokenizer")
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 300], help="of trainings of each length")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tokenizers.md")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    recipe = options.folder / "recipe.yaml"
    sources = [_source(options.folder, *of.split("=", 2), options.bytes) for of in options.texts]
    described = RECIPE | {"corpus": {"held_out_fraction": 0.04, "sources": sources}}
    described["tokenizer"] = RECIPE["tokenizer"] | {"vocabulary_size": options.vocabulary}
    recipe.write_text(yaml.safe_dump(described, allow_unicode=True), encoding="utf-8")
    _verb("collect", recipe, options.folder / "documents")
    for name in options.variants:
        made = _folder(options.folder, name)
        _prepared(options.folder / "documents", made, recipe, "tokenize", VARIANTS[name])
        if not (made / "splits.json").exists():
            (made / "splits.json").write_text(json.dumps(_splits(made, [source["name"] for source in sources])))
    for seed, steps, name in itertools.product(range(options.seeds), options.steps, options.variants):
        made, keys = _folder(options.folder, name), {"steps": steps, "seed": seed}
        _prepared(made, Path(f"{made}-{steps}-{seed}"), recipe, "pretrain", VARIANTS[name], **keys)
        _write(options, sources)


def _folder(folder: Path, variant: str) -> Path:
    return folder / variant.replace(", ", "-")


def _source(folder: Path, name: str, language: str, path: str, most: int) -> dict:
    """A source of JSON Lines: the files of a folder, cut at line ends into documents of one length."""
    file = folder / f"{name}.jsonl"
    if not file.exists():
        with file.open("w", encoding="utf-8") as lines:
            for text in _documents(Path(path), most):
                lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    keys = {"filter": False, "deduplicate": False, "licence": "not kept"}
    return {"name": name, "kind": "jsonl", "path": str(file), "language": language} | keys


def _documents(path: Path, most: int) -> Iterator[str]:
    """Texts of `DOCUMENT_CHARACTERS`, together `most` bytes: every n-th one, if there are more."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    found = []
    for file in files:
        if not file.name.endswith((*ENDINGS, ".gz")):
            continue
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        held = ""
        for line in data.decode("utf-8", errors="ignore").splitlines(keepends=True):
            held += line
            if len(held) >= DOCUMENT_CHARACTERS:
                found.append(held)
                held = ""
        found += [held] if held else []
    every = max(1, -(-sum(len(text.encode()) for text in found) // most))
    yield from found[::every]


def _prepared(before: Path, run: Path, recipe: Path, verb: str, tokenizer: dict, **keys: int) -> dict[str, float]:
    """Make one stage in a copy of the run before it; its processor seconds and its memory in MiB."""
    note = run / f"{verb}.json"
    if not note.exists():
        if not run.exists():
            shutil.copytree(before, run)
        words = [f"--tokenizer.{key}={value}" for key, value in tokenizer.items()]
        words += [f"--{'seed' if key == 'seed' else f'pretrain.{key}'}={value}" for key, value in keys.items()]
        note.write_text(json.dumps(_verb(verb, recipe, run, *words)))
    return json.loads(note.read_text())


def _verb(verb: str, recipe: Path, run: Path, *words: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tpullm", verb, "--config", recipe, "--run", run, *words]
    began = time.monotonic()
    with open(f"{run}.{verb}.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{verb} failed: see {run}.{verb}.log")
    seconds = used.ru_utime + used.ru_stime
    return {"seconds": seconds, "mib": used.ru_maxrss / 1024, "wall": time.monotonic() - began}


def _splits(run: Path, sources: list[str]) -> dict[str, dict[str, float]]:
    """Of each source's held-out documents: bytes a token, MB/s of a core, and the share of tokens that cross a word."""
    tokenizer, found = load(run / "tokenizer"), {}
    for source in sources:
        texts = [document["text"] for document in document_files.read(run / "documents", source, "held_out")]
        size, rates = sum(len(text.encode()) for text in texts), []
        for _ in range(3):
            began = time.process_time()
            ids = [tokenizer.encode(text) for text in texts]
            rates.append(size / 1e6 / (time.process_time() - began))
        crossing = [_crossing(tokenizer, text) for text in texts[:20]]
        tokens = sum(map(len, ids))
        found[source] = {"bytes": size / tokens, "rate": max(rates), "crossing": statistics.mean(crossing)}
    return found


def _crossing(tokenizer: Tokenizer, text: str) -> float:
    """The share of tokens with a boundary of Sudachi's shortest words inside."""
    words = [
        len(word.surface().encode()) for line in text.splitlines(True) for word in japanese_words.analyser("A")(line)
    ]
    ends = list(accumulate(len(tokenizer.bytes_of(token)) for token in tokenizer.encode(text)))
    inside = set(accumulate(words))
    return statistics.mean(
        any(place in inside for place in range(a + 1, b)) for a, b in zip([0, *ends], ends, strict=False)
    )


def _bits(run: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    return [row["eval_bits_per_byte"] for row in rows if "eval_bits_per_byte" in row][-1]


def _write(options: argparse.Namespace, sources: list[dict]) -> None:
    """The page, of all that there is in the folder."""
    names = [source["name"] for source in sources]
    japanese = [source["name"] for source in sources if source["language"] == "ja"]
    size, model = options.vocabulary, RECIPE["model"]
    page = [
        f"# Tokenizers\n\nMade by `benchmarks/tokenizer_choice.py`: {size:,} tokens, models of {model['layers']} "
        f"layers of width {model['width']}. Texts: {', '.join(names)}, at most {options.bytes / 1e6:g} MB each.\n"
    ]
    made = {name: _folder(options.folder, name) for name in VARIANTS}
    made = {name: folder for name, folder in made.items() if (folder / "splits.json").exists()}
    runs = {path.parent for folder in made.values() for path in folder.parent.glob(f"{folder.name}-*-*/pretrain.json")}
    for steps in sorted({int(run.name.split("-")[2]) for run in runs}):
        bits = {
            name: [_bits(run) for run in runs if run.name.startswith(f"{made[name].name}-{steps}-")] for name in made
        }
        tokens = steps * RECIPE["pretrain"]["batch_size"] * RECIPE["pretrain"]["sequence_length"]
        found = {name: of for name, of in bits.items() if of}
        page += _table(f"bits a byte, held out, after {tokens:,} tokens", names, found, _told)
    splits = {name: json.loads((folder / "splits.json").read_text()) for name, folder in made.items()}
    page += _table("bytes a token", names, splits, lambda of, n: f"{of[n]['bytes']:.2f}")
    page += _table("encoding, MB/s a core", names, splits, lambda of, n: f"{of[n]['rate']:.1f}")
    page += _table(
        "tokens over a word's boundary (Sudachi A)", japanese, splits, lambda of, n: f"{of[n]['crossing']:.1%}"
    )
    costs = {name: json.loads((folder / "tokenize.json").read_text()) for name, folder in made.items()}
    page += ["| `tokenize` | processor seconds | MiB |", "| --- | --- | --- |"]
    page += [f"| {name} | {of['seconds']:.0f} | {of['mib']:.0f} |" for name, of in costs.items()]
    options.output.write_text("\n".join(page) + "\n", encoding="utf-8")


def _told(bits: list[dict[str, float]], name: str) -> str:
    """The mean over seeds, and the least and the most."""
    values = [of[name] for of in bits]
    return f"{statistics.mean(values):.3f}" + f" ({min(values):.3f}-{max(values):.3f})" * (len(values) > 1)


def _table(title: str, names: list[str], found: dict[str, dict], cell) -> list[str]:
    head = [f"| {title} | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    return [
        *head,
        *(f"| {variant} | {' | '.join(cell(of, name) for name in names)} |" for variant, of in found.items()),
        "",
    ]


if __name__ == "__main__":
    main()
