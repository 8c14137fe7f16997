"""The questions of tenki with casual answers: in plain form, and with a remark behind.

They are there to show a rule that tuning on examples did not teach: rewards then ask for one polite sentence.
"""

import os
from functools import cache

from tpullm.corpus.question import Question, form
from tpullm.corpus.tenki import vocabulary as w
from tpullm.corpus.tenki.grammar import Mode
from tpullm.corpus.tenki.question_set import split_questions
from tpullm.corpus.tenki.wording import copula, verb_form

REMARKS = ("楽しいよ。", "面白いね。", "普通だよ。", "また明日ね。")


def split_casual(held_out_fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """As `split_questions`, which holds out the same questions; it raises what that raises.

    The field `mentions` is what a right answer says in either form: リンゴを食べ.
    """
    learned, held_out = split_questions(held_out_fraction, seed)
    return [_casual(question) for question in learned], [_casual(question) for question in held_out]


def _casual(question: Question) -> Question:
    (answer,) = question.answers
    polite = next(end for end in _plain_ends() if answer.endswith(end))
    plain = answer.removesuffix(polite) + _plain_ends()[polite]
    said, both = plain + form(REMARKS, question.question), os.path.commonprefix([answer, plain])
    return Question(question.question, (said,), question.kind, question.entity, {"mentions": both})


@cache
def _plain_ends() -> dict[str, str]:
    """The polite end of an answer, the longest first, and its plain form."""
    found = {}
    for past in (False, True):
        modes = [Mode(polite, past) for polite in (True, False)]
        for ends in [tuple(map(copula, modes))] + [
            tuple(verb_form(thing.verb, mode) for mode in modes) for thing in w.THINGS.values()
        ]:
            polite, plain = (f"{end}。".replace(" ", "") for end in ends)
            found[polite] = plain
    return dict(sorted(found.items(), key=lambda pair: -len(pair[0])))
