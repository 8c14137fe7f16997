"""One text in the spellings of before and after 1946 is one folded text, and readings do not count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpullm.corpus.characters import folded
from tpullm.corpus.old_spelling import NEW, OLD, new_spelling, respelled, without_readings
from tpullm.corpus.question_windows import TaskQuestions, Wording, windows_of


def spelled(text):
    return new_spelling(folded(without_readings(text)))[0].tolist()


# By hand, as editions have them: old, new.
PAIRS = """\
けふはきのふよりよほど寒いでせう／今日はどうですか。
ちやうど學校へ行かうとしてゐるところでした
蝶々はてふてふと書いたのださうです
日本國憲法の廣い意味はどう讀めばよいのでせうか
こゝろもち顏を上げて、たゞ默つてゐた
さういふわけで、かうして會ふことになつたのです
何といふ名前の魚が一番うまいと思ひますか
あふぎを持つた女が、をとこの前にすわつてゐる
體の具合が惡いときは、どうすればよいでせう
ちよつとお待ち下さいと言ひながら戸を閉ぢた
それはまことに美しうございますと答へました
吾が輩は猫である。名はまだ無いのださうだ
水の上にうかぶ舟のことを、何といひますか
或る晩の事、一疋の蠶が絲を吐いて繭を作らうとしてゐた
讀書をするのに適した燈りはどんなものでせう
縣廳の所在地はどこにありますか、敎へて下さい
みづうみのほとりに、ひとりのおぢいさんが住んでゐました
鐵道の驛で賣つてゐる辨當を何と呼びますか
ゑんぴつで繪をゑがくのは樂しいですね
あのひとは歸らうとはしませんでした"""
MODERN = """\
きょうはきのうよりよほど寒いでしょう／今日はどうですか。
ちょうど学校へ行こうとしているところでした
蝶々はちょうちょうと書いたのだそうです
日本国憲法の広い意味はどう読めばよいのでしょうか
こころもち顔を上げて、ただ黙っていた
そういうわけで、こうして会うことになったのです
何という名前の魚が一番うまいと思いますか
おうぎを持った女が、おとこの前にすわっている
体の具合が悪いときは、どうすればよいでしょう
ちょっとお待ち下さいと言いながら戸を閉じた
それはまことに美しゅうございますと答えました
吾が輩は猫である。名はまだ無いのだそうだ
水の上にうかぶ舟のことを、何といいますか
或る晩の事、一疋の蚕が糸を吐いて繭を作ろうとしていた
読書をするのに適した灯りはどんなものでしょう
県庁の所在地はどこにありますか、教えて下さい
みずうみのほとりに、ひとりのおじいさんが住んでいました
鉄道の駅で売っている弁当を何と呼びますか
えんぴつで絵をえがくのは楽しいですね
あのひとは帰ろうとはしませんでした"""


@pytest.mark.parametrize(("old", "new"), list(zip(PAIRS.split("\n"), MODERN.split("\n"), strict=True)))
def test_an_old_spelling_is_the_new_one(old, new):
    assert spelled(old) == spelled(new)


def test_each_old_kanji_has_its_new_form():
    assert len(OLD) == len(NEW) == len(set(OLD)) and set(OLD).isdisjoint(NEW)
    assert spelled("國鐵辨當") == spelled("国鉄弁当") != spelled("国鉄弁明")


RUBY = [
    "吾輩《わがはい》は｜高い山《たかいやま》を見る",
    "吾輩（わがはい）は高い山（たかいやま）を見る",
    "吾輩は高い［＃注記］山を見る",
]


@pytest.mark.parametrize("text", RUBY)
def test_readings_and_notes_do_not_count(text):
    assert spelled(text) == spelled("吾輩は高い山を見る") != spelled("吾輩は高い山を見た")
    windows = windows_of([TaskQuestions("task", "1", [Wording((f"{text}ことがよくありますか",))])])
    assert windows.find("吾輩は高い山を見ることがよくありますか") and windows.find(f"{text}ことがよくありますか")


def test_words_that_sound_otherwise_differ():
    for one, other in (("かき", "がぎ"), ("さくら", "さかな"), ("パン", "バン"), ("ねこ", "いぬ"), ("学校", "学級")):
        assert spelled(one) != spelled(other)


@given(st.text("㍻ﾞｶかうけふせよゝゞ國学a1《》（）きょ猫、"))
def test_what_is_left_is_in_its_order_and_stays_as_it_is(text):
    written = folded(without_readings(text))
    left, is_left = new_spelling(written)
    assert is_left.sum() == len(left) and len(is_left) == len(written)
    again, _ = new_spelling(left)
    assert np.array_equal(again, left) and np.array_equal(respelled(text), left)
