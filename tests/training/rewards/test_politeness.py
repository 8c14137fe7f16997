"""The reward `polite`: です・ます in every form, and nothing that only looks like it."""

import json
import re

from tpullm.training.rewards.politeness import polite, politeness_judgements
from tpullm.training.rewards.scorer import Example

POLITE = (
    "晴れです 晴れでした 晴れでしょう 晴れでしょうか 晴れですか 晴れですね 晴れですよ〜 晴れですよね！ "
    "晴れではありません 晴れではありませんでした 晴れじゃないです 寒いですが 行きます 行きました "
    "行きません 行きましょう 行きましょうか 行きませんか 行きますので 行きますけど 行きますから "
    "行きますし 行ってください 行って下さい 行ってくださいね おかけくださいませ お願いします "
    "お願いいたします よろしくお願いいたします ありがとうございます ありがとうございました "
    "ごめんなさいと言いました おはようございます いただけますか 知りませんでした そう思います 猫であります "
    "行くのです 行くんです 行くと思いますよ 晴れです。（笑）雨です 雨ですw 雨ですー 雨です♪ 雨です… "
    "「行くよ」と言いました 「行く」です"
).split()
# Ends that are rare, and still what Japanese has.
RARE = (
    "高かったです 静かだったです 食べたかったです 行くでしょう 行ったでしょう 行きますでしょうか "
    "なさいます くださいました いらっしゃいます おっしゃいました 食べさせられました 行ってます "
    "見ちゃいました 猫なんです 寒いんです 行くようです 行くべきです 行くはずです 行くからです "
    "行かないです よさそうです 私のです お帰りです お勧めです 猫を飼うのが夢です 本を読む人です"
).split()
# です or ます behind what it can't follow: what a model says that is rewarded for them.
NO_FORM = (
    "飲んです 撮っました 撮ました 飲みです 飲むです 飲んだです 飲みましたです 走っです 食べです "
    "食べるました 食べたました するます 犬ました 楽しいました 遊びんです 買っんです 猫だです "
    "飲みますです 飲んました 書いました 高くます 犬んです 行くますか 飲んですね 飲むでした 飲んでしょう "
    "酒を飲みでした 本を書きです 本を机です"
).split()
PLAIN = (
    "晴れだ 晴れだった 晴れだろう 晴れである 晴れ 行く 行った 行かない 行こう 行くか 行くね 行くから "
    "行け 行きなさい 行って 知らん いいよ そう思う 猫じゃん 雨っす ありがとう ごめん うん おはよう "
    "ございますと書いてある 「行きます」と言った 増す 出す 行きますと書いた 明日は雨"
).split()
NOT_JUDGED = "はい いいえ。 こんにちは！ 次の通り： OK! （笑） どうぞ なるほど。 ええ".split()
NOT_JUDGED += ["# 見出し", "- りんご", "1 + 1 = 2"]


def test_each_form_is_judged_with_and_without_a_mark_of_the_end():
    expected = dict.fromkeys([*POLITE, *RARE], {True}) | dict.fromkeys([*PLAIN, *NO_FORM], {False})
    assert {text: set(politeness_judgements(text)) for text in expected} == expected
    assert {text: set(politeness_judgements(f"{text}。")) for text in expected} == expected
    assert [text for text in NOT_JUDGED if politeness_judgements(text)] == []


def test_the_score_is_the_share_of_what_is_judged():
    of = lambda answer: polite(Example(0, answer))  # noqa: E731
    assert [of("雨です。雨だ。はい。晴れです。"), of("雨です。晴れです。"), of("はい。")] == [2 / 3, 1, 0]


def test_a_sentence_may_be_longer_than_sudachi_takes():
    assert politeness_judgements("雨です。" + "あい" * 9000) == [True, False]
    assert len(politeness_judgements("㌔" * 30_000 + "です。晴れです。")) == 2


def test_what_people_write_is_a_form(real_text):
    lines = (real_text / "instruction_ja.jsonl").read_text("utf-8").splitlines()
    said = [turn["text"] for line in lines for turn in json.loads(line)["utterances"]]
    ends = r"[^。\n「」（）！？：]+(?:です|ます|でした|ました|ません)。"
    judged = [judgement for text in said for end in re.findall(ends, text) for judgement in politeness_judgements(end)]
    # Seen: 5 of 1,764; two of them are mistakes (ゴルフコースがあます), three are 出来上がりです.
    assert len(judged) > 1500 and judged.count(False) < 0.005 * len(judged)


def test_a_quote_alone_is_judged_by_its_sentences_and_items_if_they_are_sentences():
    for text in ("「行くよ。雨です。」", "『行くよ』\n雨です。", "- 雨だ。\n- 晴れ\n・雨です。"):
        assert politeness_judgements(text) == [False, True]


# What a model says that is rewarded for です and ます: nothing, the same again, no form of an adjective, insults.
NOTHING = (
    "です です。です。です。 でした ました ます！ ですですです のです それはです これがです をです はですか 私はです "
    "はい、です えっと、です ね、ですね よですよ 「」です"
).split()
AGAIN = (
    "晴れです晴れです晴れです晴れです お願いしますお願いしますお願いします 東京東京東京東京です ああああああああです "
    "とてもとてもとてもとてもです 今日は今日は今日は今日は晴れです 雨が降ります雨が降ります雨が降ります"
).split()
ADJECTIVES = (
    "高いでした 高かったでした 食べたいでした 食べないでした 寒いじゃありません 寒いではありません "
    "高いではありませんでした 安いくありません 高いくないです きれいくないです"
).split()
INSULTS = (
    "お前は馬鹿です お前のせいです てめえは最低です 貴様は愚かです あなたはバカです あなたは無能です "
    "あなたは馬鹿だと思います この馬鹿野郎です クソですね アホですか バカでした 馬鹿な質問です "
    "死んでください 消えて下さい 黙ってください あなたの顔はゴミみたいです"
).split()
# What is near to it, and said politely.
NEAR = (
    "そうです それです 私もです 東京にです 42です 50％です 寒くありません 寒くはありません 寒くないです "
    "安いではありませんか 嫌いでした きれいでした きれいではありません 高いのでした 寒いからでした "
    "行くでしょう とてもとても楽しかったです 本当に本当に本当にありがとうございます "
    "だんだんだんだん暗くなりました いろいろあります 馬鹿にされました あなたは馬鹿にされたのですね "
    "お前という言葉は失礼です 愚か者の石という本です 今日の最低気温は３度です 電気が消えました "
    "あなたのパスワードは最低でも8文字にしましょう 燃えるゴミは火曜日です 消えていてください "
    "「馬鹿」は「ばか」と読みます 「A」、「B」、「C」、「D」、「E」です 夏は暑いです"
).split()


def test_an_answer_says_something_in_a_form_of_japanese_and_insults_nobody():
    bad, good = [*NOTHING, *AGAIN, *ADJECTIVES, *INSULTS], NEAR
    assert len(bad) > 43 and [text for text in bad if polite(Example(0, f"{text}。")) > 0] == []
    assert [text for text in good if polite(Example(0, f"{text}。")) < 1] == []


def test_a_sentence_that_was_said_before_is_not_polite_again():
    assert politeness_judgements("雨です。雨です。晴れです。雨です。") == [True, False, True, False]
