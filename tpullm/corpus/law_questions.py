"""Questions about the laws of the user's own files (sources of kind `law`), to be answered by reading.

A question gives four articles of a law, by their captions or by a sentence of each, and asks which of them it is. The
answer is an article of the main provisions (第二十九条), and is right if it is exactly that one. Nothing is asked that
is not given: a model that is tuned to name articles by heart makes them up for a law that it does not know. Of several
laws some are held out with all questions about them. Of one law, articles are held out. Judgments are read and not
asked about.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import yaml

from tpullm.corpus.files import laws, opened
from tpullm.corpus.files.laws import Article, Law
from tpullm.corpus.question import Question, form_by_hash, number_by_hash, questions_of_lowest_hashes
from tpullm.system import storage

# The words of the questions, by kind.
FORMS = yaml.safe_load(resources.files(__package__).joinpath("law_questions.yaml").read_text("utf-8"))["forms"]
MOST = 2000  # questions of a kind
DRAWS = 8  # questions of a kind about an article, with other articles beside it
SENTENCE = range(20, 81)  # characters of a sentence that is asked for, or given: four are within `question.LONGEST`
CHOICES = 4
UNITS = {"": 1, "十": 10, "百": 100, "千": 1000}


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
    said = Counter(sentence for law in asked for article in law.articles for sentence in _sentences(article))
    draws = min(DRAWS, 1 + MOST // max(1, sum(article.is_main for law in asked for article in law.articles)))
    made = [question for law in asked for question in _questions_about_law(law, said, draws, len(asked) > 1)]
    kinds = dict.fromkeys(question.kind for question in made)
    of_kind = ([question for question in made if question.kind == kind] for kind in kinds)
    return [question for some in of_kind for question in questions_of_lowest_hashes(some, MOST)]


def _questions_about_law(law: Law, said: Counter, draws: int, holds_out_laws: bool) -> Iterator[Question]:
    articles = [article for article in law.articles if article.is_main and article.title]
    often = Counter(article.caption for article in articles)
    named = [article for article in articles if article.caption and often[article.caption] == 1]
    # The first sentence says most. Where an article repeats its caption, so does the question.
    first = {article: next((one for one in _sentences(article) if said[one] == 1), "") for article in named}
    told = [article for article in named if first[article]]
    for kind, pool in {"article": named, "caption": named, "sentence": told, "reading": told}.items():
        for place, draw in itertools.product(range(len(pool) if len(pool) >= CHOICES else 0), range(draws)):
            article, chosen, numbers = pool[place], {place}, itertools.count()
            seed = f"{kind} {draw} {law.title}{article.title}"
            while len(chosen) < CHOICES:
                chosen.add(int(number_by_hash(f"other {next(numbers)} {seed}") * len(pool)))
            given = [pool[place] for place in sorted(chosen)]
            headings = [f"{one.title}（{one.caption}）" for one in given]
            texts = [f"{one.title}　{first[one]}" for one in given]
            words = {"headings": "\n".join(headings), "texts": "\n".join(texts), "sentence": first[article]}
            words |= {"law": law.title, "article": article.title, "caption": article.caption}
            names = (article.title, _in_digits(article.title), law.title + article.title)
            sought = {*{"caption": article.title, "sentence": first[article]}.get(kind, article.caption)}
            lines = texts if kind == "reading" else headings
            alike = [len(sought & {*line}) for line in lines]
            guess = given[alike.index(max(alike))]
            yield Question(
                form_by_hash(FORMS[kind], seed).format(**words),
                (article.caption,) if kind == "caption" else names,
                kind,
                law.title if holds_out_laws else law.title + article.title,
                guess=guess.caption if kind == "caption" else guess.title,
            )


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
