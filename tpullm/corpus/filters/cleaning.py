"""What is changed in a document before it is judged: `clean` of its source, in the order of the recipe."""

import unicodedata
from collections.abc import Callable, Sequence

from tpullm.corpus.filters import japanese_text, line_noise, personal_data

STEPS: dict[str, Callable[[str], str]] = {
    "width": lambda text: unicodedata.normalize("NFKC", text),
    "ruby": japanese_text.without_ruby,
    "lines": line_noise.without_noise,
}


def cleaned(text: str, steps: Sequence[str]) -> tuple[str, int]:
    """`text` after the steps, and how many pieces of personal data were replaced in it."""
    replaced = 0
    for step in steps:
        if step == "personal_data":
            text, replaced = personal_data.replace(text)
        else:
            text = STEPS[step](text)
    return text, replaced
