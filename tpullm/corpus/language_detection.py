"""Detects the language of a text by its script and its common words.

A trained classifier (fastText) knows more languages, but its weights would have to be downloaded. Japanese, English and
German texts can be told apart without it.
"""

import numpy as np

# Blocks of the Unicode standard, first and last code point.
SCRIPTS = {
    "latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF)),
    "kana": ((0x3041, 0x30FF), (0xFF66, 0xFF9F)),
    "han": ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
    "hangul": ((0x1100, 0x11FF), (0xAC00, 0xD7A3)),
    "cyrillic": ((0x400, 0x52F),),
    "greek": ((0x370, 0x3FF),),
    "arabic": ((0x600, 0x6FF),),
    "hebrew": ((0x590, 0x5FF),),
    "devanagari": ((0x900, 0x97F),),
    "thai": ((0xE00, 0xE7F),),
}
WRITTEN_IN = {
    "ja": ("kana", "han"),
    "zh": ("han",),
    "ko": ("hangul",),
    "ru": ("cyrillic",),
    "uk": ("cyrillic",),
    "bg": ("cyrillic",),
    "el": ("greek",),
    "ar": ("arabic",),
    "fa": ("arabic",),
    "he": ("hebrew",),
    "hi": ("devanagari",),
    "th": ("thai",),
}
# Words that are frequent in one of these languages only.
COMMON_WORDS = {
    "en": frozenset("the of and to is that it with for was are this be".split()),
    "fr": frozenset("le la les et des du est une dans qui pour au".split()),
    "de": frozenset("der die und das ist nicht den von mit ein eine zu".split()),
    "es": frozenset("el los las que una por con del se es y para".split()),
    "it": frozenset("il di che gli della per sono con non è una nel".split()),
    "pt": frozenset("os que uma não com para do da em é ao dos".split()),
    "nl": frozenset("het een van en niet op zijn dat voor met aan ook".split()),
}
SPACELESS = ("kana", "han", "thai")
DENSE = ("kana", "han", "hangul")
DENSITY = 3  # a syllable or an ideograph counts as three letters
SAMPLE_CHARACTERS = 20_000
LEAST_SHARE = 0.5
LEAST_KANA = 0.05  # a Chinese text has none, a Japanese one about half


def code_points(text: str) -> np.ndarray:
    """The Unicode code points of `text`: uint32 [characters]."""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def script_shares(text: str) -> dict[str, float]:
    """Share of each script in the letters at the beginning of a text, weighted by `DENSITY`; all 0 without letters."""
    points = code_points(text[:SAMPLE_CHARACTERS])
    counts = {
        name: sum(int(np.count_nonzero((points >= first) & (points <= last))) for first, last in blocks)
        for name, blocks in SCRIPTS.items()
    }
    counts |= {name: DENSITY * counts[name] for name in DENSE}
    letters = sum(counts.values()) or 1
    return {name: count / letters for name, count in counts.items()}


def is_spaceless(text: str) -> bool:
    """Whether `text` is mostly in scripts without spaces between words (Japanese, Chinese, Thai)."""
    shares = script_shares(text)
    return sum(shares[script] for script in SPACELESS) >= LEAST_SHARE


def is_language(text: str, language: str) -> bool:
    """Whether `text` can be in `language` (ISO 639-1), by its script; Latin texts by their common words too."""
    shares = script_shares(text)
    scripts = WRITTEN_IN.get(language, ("latin",))
    if sum(shares[script] for script in scripts) < LEAST_SHARE:
        return False
    if language in ("ja", "zh"):
        return (shares["kana"] >= LEAST_KANA) == (language == "ja")
    return scripts != ("latin",) or not _reads_like_another(text, language)


def _reads_like_another(text: str, language: str) -> bool:
    """Whether the common words of another language are over twice as frequent as those of `language`."""
    words = text[:SAMPLE_CHARACTERS].lower().split()
    counts = {name: sum(word in common for word in words) for name, common in COMMON_WORDS.items()}
    own = counts.pop(language, None)
    return own is not None and max(counts.values()) > 2 * own + 2


def guess(text: str) -> str:
    """The language of a text whose source names no language: `ja`, `en`, or `und` (undetermined, ISO 639-2)."""
    if is_language(text, "ja"):
        return "ja"
    words = text[:SAMPLE_CHARACTERS].lower().split()
    english = sum(word in COMMON_WORDS["en"] for word in words)
    return "en" if english >= 0.1 * len(words) > 0 and is_language(text, "en") else "und"
