"""Texts that test what a model has learned of tenki: blanks to fill, and objects to swap."""

from dataclasses import dataclass

from tpullm.corpus.tenki import vocabulary as w

# Each asks for another piece of knowledge. In several of them only the text on the right decides.
BLANKS = (
    "今日はとても【?】天気ですね。",
    "今日は【?】なので、傘をさします。",
    "今日は【?】ので、セーターを着ます。",
    "昨日は暑かったので、【?】をかぶりました。",
    "私は【?】を読むのが好きです。",
    "私は【?】を飲むのが好きです。",
    "私はリンゴを【?】のが好きです。",
    "私はリンゴ【?】食べるのが好きです。",
    "昨日、リンゴを食べました。その【?】はとても甘かったです。",
    "毎日、コーヒーを飲む。そのコーヒーはとても【?】。",
    "昨日、友達と【?】で本を読んだ。",
    "明日、会社で手紙を書きます。その手紙は大切【?】。",
)


@dataclass(frozen=True)
class Swap:
    """A counterfactual: when `object` in the prefix becomes `other_object`, the next word must change too."""

    prefix: str
    object: str
    other_object: str
    other_prefix: str
    verb: str
    other_verb: str


def swaps() -> list[Swap]:
    """All ordered pairs of objects that take different verbs: 私はリンゴを(食べる) → 私は本を(読む)."""
    verbs = {name: thing.verb.dictionary for name, thing in w.THINGS.items()}
    return [
        Swap(f"私は{name}を", name, other, f"私は{other}を", verb, other_verb)
        for name, verb in verbs.items()
        for other, other_verb in verbs.items()
        if verb != other_verb
    ]
