"""The words of tenki and their probabilities: the tables that the grammar reads.

A template is a piece of a sentence with spaces between words ("友達 と"). A dictionary from templates to
probabilities is a choice; "" adds nothing. `grammar.py` says which kind of sentence follows which.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A verb in the forms that the grammar uses: 読む, 読み(ます), 読ん だ (a template)."""

    dictionary: str
    stem: str
    past: str


@dataclass(frozen=True)
class Thing:
    """An object: its topic, its share of that topic, its one verb, and the adjectives that describe it."""

    topic: str
    share: float
    verb: Verb
    adjectives: dict[str, float]


EAT = Verb("食べる", "食べ", "食べ た")
DRINK = Verb("飲む", "飲み", "飲ん だ")
READ = Verb("読む", "読み", "読ん だ")
HEAR = Verb("聞く", "聞き", "聞い た")
SEE = Verb("見る", "見", "見 た")
TAKE = Verb("撮る", "撮り", "撮っ た")
PLAY = Verb("弾く", "弾き", "弾い た")
WRITE = Verb("書く", "書き", "書い た")
LEARN = Verb("覚える", "覚え", "覚え た")
SEND = Verb("送る", "送り", "送っ た")
MAKE = Verb("作る", "作り", "作っ た")
HOLD = Verb("さす", "さし", "さし た")
CROWN = Verb("かぶる", "かぶり", "かぶっ た")
WEAR = Verb("着る", "着", "着 た")
STRIVE = Verb("頑張る", "頑張り", "頑張っ た")

_I_ADJECTIVES = (
    "寒い 暑い 暖かい 涼しい 悪い ひどい 甘い おいしい 大きい 辛い 熱い 苦い 面白い 難しい "
    "古い 長い 楽しい 重い 軽い 忙しい"
).split()
_NA_ADJECTIVES = "静か きれい 簡単 大切 便利 大変 久しぶり 好き 大好き".split()
# The past of each adjective, a template (甘かっ た); None for a na-adjective (静か だ, 静か だっ た).
ADJECTIVES: dict[str, str | None] = {
    "いい": "よかっ た",
    **{word: f"{word[:-1]}かっ た" for word in _I_ADJECTIVES},
    **dict.fromkeys(_NA_ADJECTIVES),
}

_SWEET = {"甘い": 0.5, "おいしい": 0.4, "大きい": 0.1}
_HOT_DISH = {"おいしい": 0.5, "辛い": 0.3, "熱い": 0.2}
_DRINK = {"おいしい": 0.45, "熱い": 0.3, "苦い": 0.25}
_READING = {"面白い": 0.6, "難しい": 0.25, "古い": 0.15}
_FILM = {"面白い": 0.7, "長い": 0.3}
_SOUND = {"きれい": 0.45, "静か": 0.35, "楽しい": 0.2}
_PICTURE = {"きれい": 0.75, "古い": 0.25}
_INSTRUMENT = {"きれい": 0.5, "古い": 0.3, "大きい": 0.2}
_STUDY = {"難しい": 0.6, "簡単": 0.25, "面白い": 0.15}
_PAPER = {"大切": 0.6, "長い": 0.4}
_PARCEL = {"重い": 0.6, "大きい": 0.3, "大切": 0.1}
_WARM = {"暖かい": 0.6, "軽い": 0.25, "きれい": 0.15}
_LIGHT = {"便利": 0.5, "軽い": 0.3, "きれい": 0.2}

THINGS = {
    "リンゴ": Thing("food", 0.22, EAT, _SWEET),
    "パン": Thing("food", 0.18, EAT, _SWEET),
    "カレー": Thing("food", 0.14, EAT, _HOT_DISH),
    "ラーメン": Thing("food", 0.10, EAT, _HOT_DISH),
    "ケーキ": Thing("food", 0.08, EAT, _SWEET),
    "お茶": Thing("food", 0.14, DRINK, _DRINK),
    "コーヒー": Thing("food", 0.08, DRINK, _DRINK),
    "紅茶": Thing("food", 0.06, DRINK, _DRINK),
    "本": Thing("reading", 0.45, READ, _READING),
    "新聞": Thing("reading", 0.20, READ, _READING),
    "漫画": Thing("reading", 0.20, READ, _READING),
    "雑誌": Thing("reading", 0.15, READ, _READING),
    "音楽": Thing("leisure", 0.24, HEAR, _SOUND),
    "歌": Thing("leisure", 0.12, HEAR, _SOUND),
    "映画": Thing("leisure", 0.22, SEE, _FILM),
    "ドラマ": Thing("leisure", 0.10, SEE, _FILM),
    "写真": Thing("leisure", 0.14, TAKE, _PICTURE),
    "ピアノ": Thing("leisure", 0.10, PLAY, _INSTRUMENT),
    "ギター": Thing("leisure", 0.08, PLAY, _INSTRUMENT),
    "漢字": Thing("school", 0.34, LEARN, _STUDY),
    "単語": Thing("school", 0.22, LEARN, _STUDY),
    "作文": Thing("school", 0.28, WRITE, _STUDY),
    "詩": Thing("school", 0.16, WRITE, _STUDY),
    "メール": Thing("work", 0.32, SEND, _PAPER),
    "荷物": Thing("work", 0.18, SEND, _PARCEL),
    "資料": Thing("work", 0.24, MAKE, _PAPER),
    "表": Thing("work", 0.10, MAKE, _PAPER),
    "手紙": Thing("work", 0.16, WRITE, _PAPER),
    "傘": Thing("clothes", 0.28, HOLD, _LIGHT),
    "帽子": Thing("clothes", 0.24, CROWN, _LIGHT),
    "コート": Thing("clothes", 0.20, WEAR, _WARM),
    "セーター": Thing("clothes", 0.16, WEAR, _WARM),
    "シャツ": Thing("clothes", 0.12, WEAR, _LIGHT),
}

# What the weather is: adjectives stand before 天気, nouns before です.
WEATHERS = {
    "いい": 0.24,
    "暑い": 0.14,
    "寒い": 0.13,
    "暖かい": 0.08,
    "涼しい": 0.06,
    "悪い": 0.04,
    "ひどい": 0.03,
    "雨": 0.12,
    "晴れ": 0.07,
    "雪": 0.05,
    "曇り": 0.04,
}
CLOTHES_FOR = {
    "いい": {"帽子": 0.8, "シャツ": 0.2},
    "暑い": {"帽子": 0.8, "シャツ": 0.2},
    "寒い": {"コート": 0.8, "セーター": 0.2},
    "暖かい": {"シャツ": 0.8, "帽子": 0.2},
    "涼しい": {"セーター": 0.8, "シャツ": 0.2},
    "悪い": {"傘": 0.8, "コート": 0.2},
    "ひどい": {"傘": 0.8, "コート": 0.2},
    "雨": {"傘": 0.9, "コート": 0.1},
    "晴れ": {"帽子": 0.8, "シャツ": 0.2},
    "雪": {"コート": 0.8, "帽子": 0.2},
    "曇り": {"傘": 0.8, "セーター": 0.2},
}
VERY = {"": 0.6, "とても": 0.4}
VERY_WEATHER = {"": 0.5, "とても": 0.5}

# The Markov chain over topics: from the topic of the last sentence to that of the next new thing.
NEXT_TOPIC = {
    "food": {"food": 0.60, "reading": 0.12, "leisure": 0.16, "school": 0.05, "work": 0.07},
    "reading": {"food": 0.16, "reading": 0.55, "leisure": 0.14, "school": 0.10, "work": 0.05},
    "leisure": {"food": 0.18, "reading": 0.12, "leisure": 0.60, "school": 0.05, "work": 0.05},
    "school": {"food": 0.10, "reading": 0.15, "leisure": 0.08, "school": 0.60, "work": 0.07},
    "work": {"food": 0.20, "reading": 0.06, "leisure": 0.08, "school": 0.06, "work": 0.60},
    "weather": {"food": 0.25, "reading": 0.30, "leisure": 0.30, "school": 0.07, "work": 0.08},
    "clothes": {"food": 0.20, "reading": 0.12, "leisure": 0.33, "school": 0.15, "work": 0.20},
}
FIRST_TOPIC = {"food": 0.32, "reading": 0.22, "leisure": 0.22, "school": 0.12, "work": 0.12}
FIRST_LIKED_TOPIC = {
    "food": 0.34, "reading": 0.18, "leisure": 0.22, "school": 0.08, "work": 0.08, "clothes": 0.10,
}  # fmt: skip

PLACES = {
    "food": {"": 0.45, "家 で": 0.25, "店 で": 0.20, "公園 で": 0.10},
    "reading": {"": 0.35, "家 で": 0.30, "公園 で": 0.20, "電車 で": 0.15},
    "leisure": {"": 0.45, "家 で": 0.30, "公園 で": 0.25},
    "school": {"": 0.25, "学校 で": 0.45, "教室 で": 0.30},
    "work": {"": 0.30, "会社 で": 0.60, "家 で": 0.10},
}
COMPANIONS = {
    "food": {"": 0.5, "友達 と": 0.2, "家族 と": 0.2, "母 と": 0.1},
    "reading": {"": 0.8, "友達 と": 0.2},
    "leisure": {"": 0.5, "友達 と": 0.35, "家族 と": 0.15},
    "school": {"": 0.6, "友達 と": 0.25, "先生 と": 0.15},
    "work": {"": 0.65, "同僚 と": 0.35},
}
# Times in a document about the past (True) and in one about habits and plans (False).
TIMES = {
    True: {"昨日 、": 0.50, "今朝 、": 0.20, "先週 、": 0.15, "おととい 、": 0.15},
    False: {"毎日 、": 0.35, "明日 、": 0.25, "時々 、": 0.20, "毎週 、": 0.12, "今日 、": 0.08},
}
LINKS = {"それから 、": 0.65, "そして 、": 0.35}
SUBJECTS = {"私": 0.70, "母": 0.18, "友達": 0.12}
LIKES = {"好き": 0.75, "大好き": 0.25}

# 「本を読むのは楽しかったです。」
FEELINGS = {
    "food": {"久しぶり": 0.6, "楽しい": 0.4},
    "reading": {"楽しい": 0.6, "久しぶり": 0.25, "大変": 0.15},
    "leisure": {"楽しい": 0.7, "久しぶり": 0.3},
    "school": {"難しい": 0.5, "大変": 0.3, "楽しい": 0.2},
    "work": {"大変": 0.65, "簡単": 0.35},
    "clothes": {"久しぶり": 0.6, "大変": 0.4},
}
# 「楽しい一日でした。」 and 「毎日が楽しいです。」
DAYS = {
    True: {
        **dict.fromkeys(("weather", "clothes"), {"いい": 0.5, "楽しい": 0.3, "忙しい": 0.2}),
        **dict.fromkeys(("food", "reading"), {"いい": 0.5, "楽しい": 0.4, "忙しい": 0.1}),
        "leisure": {"楽しい": 0.7, "いい": 0.2, "忙しい": 0.1},
        "school": {"忙しい": 0.5, "楽しい": 0.3, "いい": 0.2},
        "work": {"忙しい": 0.8, "いい": 0.2},
    },
    False: {
        **dict.fromkeys(("weather", "clothes"), {"楽しい": 0.6, "忙しい": 0.4}),
        **dict.fromkeys(("food", "reading"), {"楽しい": 0.8, "忙しい": 0.2}),
        "leisure": {"楽しい": 0.9, "忙しい": 0.1},
        "school": {"楽しい": 0.5, "忙しい": 0.5},
        "work": {"忙しい": 0.8, "楽しい": 0.2},
    },
}
STRIVES = {"food": 0.2, "reading": 0.2, "leisure": 0.2, "school": 0.6, "work": 0.6, "weather": 0.8, "clothes": 0.2}

# The mode of a document: (polite, past).
MODES = {(True, False): 0.32, (True, True): 0.28, (False, False): 0.18, (False, True): 0.22}
# The probability that the sentence at this position, counted from 1, closes the document.
CLOSING_AT = {1: 0.0, 2: 0.0, 3: 0.2, 4: 0.3, 5: 0.4, 6: 0.5, 7: 1.0}
WEATHER_LATER = 0.08
