"""Tenki (天気, weather): a probabilistic grammar of everyday Japanese whose true distribution is known exactly.

A document is three to seven sentences about weather, food, reading, free time, school, work and clothes. It keeps
its style (polite です/ます or plain だ/る) and its tense; topics and things carry over from sentence to sentence; each
thing takes one verb (リンゴを食べる, 本を読む). Because the probability of every document is known, so is the
least loss that any model can reach on it: the entropy. All logarithms are natural, all entropies in nats.
"""

from tpullm.corpus.tenki.blanks import blank, continuations, words
from tpullm.corpus.tenki.distribution import (
    VERSION,
    documents,
    entropy,
    expected_sentences,
    log_probability,
    parse,
    prefix_log_probability,
    sample_document,
    sentences,
)
from tpullm.corpus.tenki.probes import BLANKS, Swap, swaps
from tpullm.corpus.tenki.question_set import Question, conversations, questions, split_questions

__all__ = [
    "BLANKS",
    "Question",
    "Swap",
    "VERSION",
    "blank",
    "continuations",
    "conversations",
    "documents",
    "entropy",
    "expected_sentences",
    "log_probability",
    "parse",
    "prefix_log_probability",
    "questions",
    "sample_document",
    "sentences",
    "split_questions",
    "swaps",
    "words",
]
