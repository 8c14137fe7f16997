"""Tenki (天気, weather): a probabilistic grammar of everyday Japanese whose true distribution is known exactly.

A document has three to seven sentences about weather, food, reading, free time, school, work and clothes. Its style
(polite です/ます or plain だ/る) and its tense do not change. Topics and things carry over from sentence to sentence.
Each thing takes one verb (リンゴを食べる, 本を読む). The probability of every document is known, and so is the least
loss that a model can reach: the entropy. All logarithms are natural, and all entropies are in nats.
"""

from tpullm.corpus.tenki.blanks import BLANKS, Swap, blank, swaps, words
from tpullm.corpus.tenki.conversation_set import conversations
from tpullm.corpus.tenki.distribution import VERSION, documents, entropy, log_probability
from tpullm.corpus.tenki.question_set import split_casual, split_questions

__all__ = ["BLANKS", "Swap", "VERSION", "blank", "documents", "entropy", "log_probability"]
__all__ += ["conversations", "split_casual", "split_questions", "swaps", "words"]
