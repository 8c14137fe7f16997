"""です・ます is found in every form, and nothing else passes for it."""

import pytest

from tpullm.rewards.politeness import judgements

POLITE = """
晴れです
晴れでした
晴れでしょう
晴れでしょうか
晴れですか
晴れですね
晴れですよ〜
晴れですよね！
晴れではありません
晴れではありませんでした
晴れじゃないです
寒いですが
行きます
行きました
行きません
行きましょう
行きましょうか
行きませんか
行きますので
行きますけど
行きますから
行きますし
行ってください
行って下さい
行ってくださいね
おかけくださいませ
お願いします
お願いいたします
よろしくお願いいたします
ありがとうございます
ありがとうございました
ごめんなさいと言いました
おはようございます
いただけますか
知りませんでした
そう思います
猫であります
行くのです
行くんです
行くと思いますよ
です。（笑）雨です
雨ですw
雨ですー
雨です♪
雨です…
「行くよ」と言いました
「行く」です
""".split("\n")[1:-1]
PLAIN = """
晴れだ
晴れだった
晴れだろう
晴れである
晴れ
行く
行った
行かない
行こう
行くか
行くね
行くから
行け
行きなさい
行って
知らん
いいよ
そう思う
猫じゃん
雨っす
ありがとう
ごめん
うん
おはよう
ございますと書いてある
「行きます」と言った
増す
出す
行きますと書いた
明日は雨
""".split("\n")[1:-1]
NOT_JUDGED = [
    "はい",
    "いいえ。",
    "こんにちは！",
    "# 見出し",
    "次の通り：",
    "- りんご",
    "OK!",
    "1 + 1 = 2",
    "（笑）",
    "どうぞ",
    "なるほど。",
    "ええ",
]


@pytest.mark.parametrize("text", POLITE)
def test_polite(text):
    assert set(judgements(text)) == set(judgements(f"{text}。")) == {True}


@pytest.mark.parametrize("text", PLAIN)
def test_plain(text):
    assert judgements(text) == judgements(f"{text}。") == [False]


@pytest.mark.parametrize("text", NOT_JUDGED)
def test_not_judged(text):
    assert judgements(text) == []


def test_a_quote_alone_is_judged_by_its_sentences():
    assert judgements("「行くよ。雨です。」") == [False, True]
    assert judgements("『行くよ』\n雨です。") == [False, True]


def test_items_count_if_they_are_sentences():
    assert judgements("- 雨だ。\n- 晴れ\n・雨です。") == [False, True]
