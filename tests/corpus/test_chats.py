"""Exported chats are `name: text`; the days on which the assistant answers are conversations."""

import pytest

from tests.corpus.desktop_files import read

LINE_JA = """[LINE] 花子とのトーク履歴
保存日時：2024/05/02 12:34

2024/05/01(水)
12:30\t花子\tおはよう
12:31\t太郎\t"二行
の文"
12:32\t花子\t[スタンプ]
12:33\t花子がメッセージの送信を取り消しました

2024/05/02(木)
9:00\t花子\t☎ 通話時間 1:23
9:05\t花子\t元気？
9:06\t太郎\t元気！
9:07\t太郎\tまたね
"""
LINE_EN = """[LINE] Chat history with Hanako
Saved on: 5/2/2024, 12:34 PM

Wed, 5/1/2024
12:30 PM\tHanako\tGood morning
12:31PM\tTaro\t"Two
lines"

Thu, 5/2/2024
9:00 AM\tHanako\t[Sticker]
9:05 AM\tHanako\tAll well?
9:06 AM\tTaro\tYes
"""
LINE_PC = """[LINE] 花子とのトーク履歴
保存日時：2024/05/02 12:34

2024.05.01 水曜日
12:30 花子 おはよう
12:31 太郎 二行
の文
12:32 花子 スタンプ
2024.05.02 木曜日
09:05 花子 元気？
09:06 太郎 元気！
"""
WHATSAPP = {
    "iOS": """\u200e[01/05/2024, 12:30:00] Trip: \u200eMessages and calls are end-to-end encrypted.
[01/05/2024, 12:30:15] Hanako: Good morning
\u200e[01/05/2024, 12:30:20] Hanako: \u200eimage omitted
[01/05/2024, 12:31:15] Taro: Two
lines
[02/05/2024, 09:05:00] Hanako: All well?
[02/05/2024, 09:06:00] Taro: Yes
""",
    "Android": """5/1/24, 12:30\u202fPM - Messages and calls are end-to-end encrypted. Tap to learn more.
5/1/24, 12:30\u202fPM - Hanako: Good morning
5/1/24, 12:30\u202fPM - Hanako: <Media omitted>
5/1/24, 12:31\u202fPM - Taro: Two
lines
5/2/24, 9:05\u202fAM - Hanako: All well?
5/2/24, 9:06\u202fAM - Taro: Yes
""",
    "Android in Japan": """2024/05/01 12:30 - メッセージは暗号化されています。
2024/05/01 12:30 - Hanako: Good morning
2024/05/01 12:31 - Taro: Two
lines
2024/05/02 9:05 - Hanako: All well?
2024/05/02 9:06 - Taro: Yes
""",
}
ENGLISH = "Hanako: Good morning\nTaro: Two\nlines\n\nHanako: All well?\nTaro: Yes\n"
JAPANESE = "花子: おはよう\n太郎: 二行\nの文\n\n花子: 元気？\n太郎: 元気！\n"
TEXTS = {
    "LINE": (LINE_JA, JAPANESE + "太郎: またね\n"),
    "LINE on a PC": (LINE_PC, JAPANESE),
    "in English": (LINE_EN, ENGLISH),
}
TEXTS |= {name: (text, ENGLISH) for name, text in WHATSAPP.items()}


@pytest.mark.parametrize("form", TEXTS)
@pytest.mark.parametrize("name", ["_chat.txt", "history"])
def test_a_chat_is_what_people_say(tmp_path, form, name):
    exported, text = TEXTS[form]
    (tmp_path / name).write_text(exported)
    (raw,) = read(tmp_path / name)
    assert raw.text == text and raw.talks == ()
    assert raw.noted in ("a chat of 花子, 太郎", "a chat of 太郎, 花子", "a chat of Hanako, Taro")


def test_the_days_on_which_the_assistant_answers_are_conversations(tmp_path):
    (tmp_path / "a.txt").write_text(LINE_JA)
    (raw,) = read(tmp_path / "a.txt", assistant="太郎")
    first = [{"role": "user", "content": "おはよう"}, {"role": "assistant", "content": "二行\nの文"}]
    second = [{"role": "user", "content": "元気？"}, {"role": "assistant", "content": "元気！\n\nまたね"}]
    assert raw.talks == (first, second)
    assert read(tmp_path / "a.txt", assistant="花子")[0].talks == ()  # nobody asks her anything


@pytest.mark.parametrize("text", ["2024-05-01 12:30:15 INFO: started\n", "[2024-05-01] x: y\n", "LINE is an app.\n"])
def test_a_log_is_no_chat(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert [(raw.text, raw.noted) for raw in read(tmp_path / "a.txt")] == [(text, "")]
