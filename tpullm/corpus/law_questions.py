"""Questions about the laws of the user's own files (sources of kind `law`), made of their structure.

Which article has a caption, which caption an article has, which article says a sentence, and which of four articles it
is: the answer is an article of the main provisions (第二十九条), and is right if it is exactly that one. Of several
laws some are held out with all questions about them: tuning never asks about them, and their documents have the
answers. Of one law, articles are held out. Judgments are read and not asked about.
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
SENTENCE = range(20, 161)  # characters of a sentence that is asked for
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
    made = [question for law in asked for question in _questions_about_law(law, said, len(asked) > 1)]
    kinds = dict.fromkeys(question.kind for question in made)
    of_kind = ([question for question in made if question.kind == kind] for kind in kinds)
    return [question for some in of_kind for question in questions_of_lowest_hashes(some, MOST)]


def _questions_about_law(law: Law, said: Counter, holds_out_laws: bool) -> Iterator[Question]:
    articles = [article for article in law.articles if article.is_main and article.title]
    often = Counter(article.caption for article in articles)
    named = [article for article in articles if article.caption and often[article.caption] == 1]

    def ask(kind: str, article: Article, answers: tuple[str, ...], **words: str) -> Question:
        form = form_by_hash(FORMS[kind], f"{law.title}{article.title}")
        words = {"law": law.title, "article": article.title, "caption": article.caption} | words
        return Question(form.format(**words), answers, kind, law.title if holds_out_laws else law.title + article.title)

    places = {article.caption: place for place, article in enumerate(named)}
    for article in articles:
        names = (article.title, _in_digits(article.title), law.title + article.title)
        if article.caption in places:
            yield ask("article", article, names)
            yield ask("caption", article, (article.caption,))
        # The first sentence says most. Where an article repeats its caption, so does the question.
        sentence = next((one for one in _sentences(article) if said[one] == 1), "")
        if sentence:
            yield ask("sentence", article, names, sentence=sentence)
        if sentence and article.caption in places and len(named) >= CHOICES:
            chosen, draws = {places[article.caption]}, itertools.count()
            while len(chosen) < CHOICES:
                chosen.add(int(number_by_hash(f"other {next(draws)} {sentence}") * len(named)))
            listed = "\n".join(f"{named[place].title}（{named[place].caption}）" for place in sorted(chosen))
            yield ask("choice", article, names, sentence=sentence, listed=listed)


def _sentences(article: Article) -> list[str]:
    """The sentences of an article that can be asked for, without marks before them."""
    plain = (re.sub(r"^[^　。]{1,8}　", "", line) for line in article.text.split("\n"))
    found = (sentence for line in plain for sentence in re.findall(r"[^。]+。", line))
    whole = (sentence for sentence in found if sentence.count("（") == sentence.count("）"))  # 。 may be in brackets
    return [sentence for sentence in whole if len(sentence) in SENTENCE and not sentence.startswith("ただし")]


def _in_digits(title: str) -> str:
    """第29条の2 for 第二十九条の二."""

    def digits(number: re.Match) -> str:
        total = 0
        for digit, unit in re.findall("([一二三四五六七八九]?)([千百十]?)", number[0]):
            total += ("一二三四五六七八九".find(digit or "一") + 1) * UNITS[unit] if digit or unit else 0
        return str(total)

    return re.sub("[一二三四五六七八九十百千]+", digits, title)
