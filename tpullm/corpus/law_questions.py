"""Questions about the laws of the user's own files (sources of kind `law`), to be answered by reading.

A question gives four articles of a law, by their captions, a sentence or a passage of each, and asks which of them it
is. The answer names the caption or the passage, and the article: 聴聞の再開（第二十五条）. Where the question gives
the same line, a model that copies what it reads answers rightly. The article alone is right too. Nothing is asked
that is not given: a model that is tuned to name articles by heart makes them up for a law that it does not know. Of
several laws some are held out with all questions about them. Of one law, articles are held out. Judgments are read
and not asked about.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import yaml

from tpullm.corpus.files import laws, opened
from tpullm.corpus.files.laws import Article, Law
from tpullm.corpus.question import Question, form_by_hash, number_by_hash, questions_of_lowest_hashes
from tpullm.system import storage

# The words of the questions, by kind.
FORMS = yaml.safe_load(resources.files(__package__).joinpath("law_questions.yaml").read_text("utf-8"))["forms"]
MOST = 8000  # questions of a kind
DRAWS = 8  # questions of a kind about an article, with other articles beside it
SENTENCE = range(20, 81)  # characters of a sentence that is asked for, or given: four are within `question.LONGEST`
PASSAGE = range(6, 17)
CHOICES = 4
UNITS = {"": 1, "十": 10, "百": 100, "千": 1000}


class _Entry(NamedTuple):
    """An article in a question: its title, what a question asks for, how it is given, and the answer."""

    title: str
    sought: str
    line: str
    answer: str


def questions(paths: Sequence[Path]) -> list[Question]:
    """Every question about the laws in these files, in the order of hashes; what can't be read is no law here."""
    found = []
    for path in paths:
        with storage.brief_copy(path) as local:
            try:
                law = laws.read(local)
            except opened.Unreadable:  # `collect` says which
                continue
            found += [law] if law else []
    return sorted(questions_about(found), key=lambda question: number_by_hash(f"order {question.question}"))


def questions_about(found: Sequence[Law]) -> list[Question]:
    """The questions about these laws: none about a law whose title another one has, or about what an article shares."""
    titled = Counter(law.title for law in found)
    asked = [law for law in found if titled[law.title] == 1]
    articles = [article for law in asked for article in law.articles]
    said = Counter(sentence for article in articles for sentence in _sentences(article))
    draws = min(DRAWS, 1 + MOST // max(1, sum(article.is_main for article in articles)))
    made = [question for law in asked for question in _questions_about_law(law, said, draws, len(asked) > 1)]
    kinds = dict.fromkeys(question.kind for question in made)
    of_kind = ([question for question in made if question.kind == kind] for kind in kinds)
    return [question for some in of_kind for question in questions_of_lowest_hashes(some, MOST)]


def _questions_about_law(law: Law, said: Counter, draws: int, holds_out_laws: bool) -> Iterator[Question]:
    for kind, pool in _entries(law, said, draws).items():
        enough = len({entry.title for entry in pool}) >= CHOICES
        for place, draw in itertools.product(
            range(len(pool) if enough else 0), range(1 if kind == "passage" else draws)
        ):
            entry, numbers = pool[place], itertools.count()
            seed, chosen = f"{kind} {draw} {law.title}{entry.title}{entry.sought}", {entry.title: place}
            while len(chosen) < CHOICES:
                other = int(number_by_hash(f"other {next(numbers)} {seed}") * len(pool))
                chosen.setdefault(pool[other].title, other)
            given = [pool[place] for place in sorted(chosen.values())]
            if kind == "passage" and sum(entry.sought in one.line for one in given) > 1:
                continue
            lines = "\n".join(one.line for one in given)
            names = (entry.title, _in_digits(entry.title), law.title + entry.title)
            alike = [len({*entry.sought} & {*one.line}) for one in given]
            yield Question(
                form_by_hash(FORMS[kind], seed).format(law=law.title, sought=entry.sought, lines=lines),
                (entry.answer, *(names if kind != "caption" else (entry.answer[len(entry.title) + 1 : -1],))),
                kind,
                law.title if holds_out_laws else law.title + entry.title,
                guess=given[alike.index(max(alike))].answer,
            )


def _entries(law: Law, said: Counter, draws: int) -> dict[str, list[_Entry]]:
    """What can be asked about a law, by kind."""
    articles = [article for article in law.articles if article.is_main and article.title]
    often = Counter(article.caption for article in articles)
    named = [article for article in articles if article.caption and often[article.caption] == 1]
    # The first sentence says most. Where an article repeats its caption, so does the question.
    first = {article: next((one for one in _sentences(article) if said[one] == 1), "") for article in named}
    made: dict[str, list[_Entry]] = {kind: [] for kind in FORMS}
    for title, caption, sentence in ((one.title, one.caption, first[one]) for one in named):
        heading, other_way = f"{caption}（{title}）", f"{title}（{caption}）"
        made["article"].append(_Entry(title, caption, heading, heading))
        made["caption"].append(_Entry(title, title, other_way, other_way))
        if sentence:
            made["sentence"].append(_Entry(title, sentence, heading, heading))
            made["reading"].append(_Entry(title, caption, f"{sentence}（{title}）", heading))
    for article in articles:
        lines = ((passage, f"{passage}（{article.title}）") for passage in dict.fromkeys(_passages(article, draws**2)))
        made["passage"] += [_Entry(article.title, passage, line, line) for passage, line in lines]
    return made


def _passages(article: Article, most: int) -> Iterator[str]:
    """Passages without a mark, cut anywhere by hash: so many that they are found by looking and not by heart."""
    parts = [part for part in re.split(r"[。、（）「」\s]", article.text) if len(part) in range(PASSAGE.start, 81)]
    for number in range(most if parts else 0):
        one, other, third = (number_by_hash(f"{what} {number} {article.title}{parts[0]}") for what in "abc")
        part, length = parts[int(one * len(parts))], PASSAGE[int(other * len(PASSAGE))]
        start = int(third * max(1, len(part) - length + 1))
        yield part[start : start + length]


def _sentences(article: Article) -> list[str]:
    """The sentences of an article that can be asked for, without marks before them."""
    found, parts, depth = [], [], 0
    for line in article.text.split("\n"):
        for part in re.findall(r"[^。]*。", re.sub(r"^[^　。]{1,8}　", "", line)):
            parts.append(part)
            depth += part.count("（") - part.count("）")
            if depth == 0:  # 。 may be in brackets
                found.append("".join(parts))
                parts = []
        parts, depth = [], 0
    return [sentence for sentence in found if len(sentence) in SENTENCE and not sentence.startswith("ただし")]


def _in_digits(title: str) -> str:
    """第29条の2 for 第二十九条の二."""

    def digits(number: re.Match) -> str:
        total = 0
        for digit, unit in re.findall("([一二三四五六七八九]?)([千百十]?)", number[0]):
            total += ("一二三四五六七八九".find(digit or "一") + 1) * UNITS[unit] if digit or unit else 0
        return str(total)

    return re.sub("[一二三四五六七八九十百千]+", digits, title)
