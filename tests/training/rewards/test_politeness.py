"""です・ます is found in every form, and nothing else passes for it."""

import json
import re

import pytest

from tpullm.training.rewards.form import judgements, polite
from tpullm.training.rewards.scorer import Example

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
# Ends that are rare, and still what Japanese has.
POLITE += (
    "高かったです 静かだったです 食べたかったです 行くでしょう 行ったでしょう 行きますでしょうか "
    "なさいます くださいました いらっしゃいます おっしゃいました 食べさせられました 行ってます "
    "見ちゃいました 猫なんです 寒いんです 行くようです 行くべきです 行くはずです 行くからです "
    "行かないです よさそうです 私のです お帰りです お勧めです 猫を飼うのが夢です 本を読む人です"
).split()
# です or ます behind what it can't follow: what a model says that is rewarded for them.
NO_FORM = (
    "飲んです 撮っました 撮ました 飲みです 飲むです 飲んだです 飲みましたです 走っです 食べです "
    "食べるました 食べたました するます 犬ました 楽しいました 遊びんです 買っんです 猫だです 飲みますです "
    "飲んました 書いました 高くます 犬んです 行くますか 飲んですね 飲むでした 飲んでしょう 酒を飲みでした "
    "本を書きです 本を机です"
).split()
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


def test_the_score_is_the_share_of_what_is_judged():
    of = lambda answer: polite(Example(0, answer))  # noqa: E731
    assert [of("雨です。雨だ。はい。雨です。"), of("雨です。雨です。"), of("はい。")] == [2 / 3, 1, 0]


@pytest.mark.parametrize("text", NO_FORM)
def test_what_no_verb_has_is_not_polite(text):
    assert judgements(text) == judgements(f"{text}。") == [False]


def test_what_people_write_is_a_form(real_text):
    lines = (real_text / "instruction_ja.jsonl").read_text("utf-8").splitlines()
    said = [turn["text"] for line in lines for turn in json.loads(line)["utterances"]]
    ends = r"[^。\n「」（）！？：]*(?:です|ます|でした|ました|ません)。"
    judged = [judgement for text in said for end in re.findall(ends, text) for judgement in judgements(end)]
    # Seen: 5 of 1,764; two of them are mistakes (ゴルフコースがあます), three are 出来上がりです.
    assert len(judged) > 1500 and judged.count(False) < 0.005 * len(judged)


@pytest.mark.parametrize("text", NOT_JUDGED)
def test_not_judged(text):
    assert judgements(text) == []


def test_a_quote_alone_is_judged_by_its_sentences():
    assert judgements("「行くよ。雨です。」") == [False, True]
    assert judgements("『行くよ』\n雨です。") == [False, True]


def test_items_count_if_they_are_sentences():
    assert judgements("- 雨だ。\n- 晴れ\n・雨です。") == [False, True]
