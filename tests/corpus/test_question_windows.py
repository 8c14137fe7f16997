"""A question is found where a document holds a window of it, and nowhere else."""

import itertools
import json
import os
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.corpus import question_windows
from tpullm.corpus.characters import normal
from tpullm.corpus.old_spelling import new_spelling
from tpullm.corpus.question_windows import TaskQuestions, Wording, windows_of

ENGLISH = "what did the old keeper of the lighthouse say to the two sailors who came at night with a broken lamp"
JAPANESE = "主に子ども向けのもので、イラストのついた物語が書かれていて、寝る前に読むことが多いものはどれですか。"
SHORT = "日本でいちばん高い山の名前は何ですか"  # 18 characters
OTHER = "the weather was fine and nobody remembered where the road had been before the flood came down the valley"


def looked_for(*questions, name="task"):
    return windows_of([TaskQuestions(name, "1", [Wording((text,)) for text in questions])])


def found(windows, text):
    return [(leak.task, leak.question) for leak in windows.find(text)]


def units(text):
    """The words and characters of a text, (letters, weight) each: by their definition, one after the other."""
    tables = question_windows._spaceless_characters()
    whole = []
    for is_letter, run in itertools.groupby(normal(text), str.isalnum):
        for spaceless, part in itertools.groupby(run, lambda one: bool(tables[ord(one)])) if is_letter else ():
            letters = "".join(part)
            whole += [(one, 13, 2) for one in letters] if spaceless else [(letters, 30, len(letters))]
    return whole


def passages(text):
    """All windows of a question: 13 words or 30 characters, from each word or character on; or the whole of a short
    one, and True."""
    parts, made = units(text), []
    for first in range(len(parts)):
        for last in range(first + 1, len(parts) + 1):
            of_it = parts[first:last]
            if sum(part[1] for part in of_it) >= 390 and sum(part[2] for part in of_it) >= 32:
                made.append((spelled("".join(part[0] for part in of_it)), False))
                break
    is_enough = sum(part[1] for part in parts) >= 208 and sum(part[2] for part in parts) >= 32
    return made or [(spelled("".join(part[0] for part in parts)), True)] * is_enough


def spelled(text):
    codes, _ = new_spelling(np.array([*map(ord, text)], np.uint32))
    return "".join(map(chr, codes))


def holds(document, window, is_whole):
    """Whether a document holds a window, whole or but for one letter, next to one of its ends."""
    return is_at(document, window, is_whole) or is_at(document[::-1], window[::-1], is_whole)


def is_at(document, window, is_whole):
    size, length = (6 if is_whole else 16), len(window)
    for place in (match.start() for match in re.finditer(f"(?={window[:size]})", document)):
        here = document[place:]
        same = len(os.path.commonprefix([window, here]))
        if same == length:
            return True
        rest = window[same + 1 :]
        is_near = (rest or is_whole) and (rest == here[same + 1 : length] or rest == here[same : length - 1])
        is_near = is_near or window[same:] == here[same + 1 : length + 1]
        if length >= 16 and is_near and not set(window[same] + here[same : same + 1]) & set("0123456789"):
            return True
    return False


WORDS = st.sampled_from(["a", "to", "cat", "lamp", "Ｒｏｏｆ", "猫", "本を", "読む", "3", "、", "ﾃﾞｰﾀ"])
TEXTS = st.lists(WORDS, min_size=1, max_size=40).map(" ".join)


@settings(max_examples=100)
@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS, st.data())
def test_it_is_a_search_for_each_window_in_the_folded_text(questions, noise, data):
    question = data.draw(st.sampled_from(questions))
    cut = [data.draw(st.integers(0, len(question))) for _ in range(2)]
    left = question[min(cut) : max(cut)]
    place = data.draw(st.integers(0, len(left)))
    left = left[:place] + data.draw(st.sampled_from(["", "猫", "5"])) + left[place + data.draw(st.integers(0, 1)) :]
    document = noise + " " + left + data.draw(st.sampled_from(["", " ", "z"])) + noise
    held = spelled("".join(filter(str.isalnum, normal(document))))
    expected = [number for number, text in enumerate(questions) if any(holds(held, *one) for one in passages(text))]
    assert found(looked_for(*questions), document) == [(0, number) for number in expected]


def test_thirteen_words_or_thirty_characters_are_found_and_fewer_are_not():
    letters = JAPANESE.replace("、", "").replace("。", "")
    for question, parts, space, length in ((ENGLISH, ENGLISH.split(), " ", 13), (JAPANESE, letters, "", 30)):
        windows = looked_for(question)
        for start in range(len(parts) - length):
            own = [space.join(parts[start : start + count]) for count in (length, length - 1)]
            assert [found(windows, f"{OTHER}\n9 {text} 9 {OTHER}") for text in own] == [[(0, 0)], []]


def test_a_question_that_says_too_little_is_not_looked_for():
    for text in ("高い山の名前は何ですか", "how many legs has a cat", "a b c d e f g h i j k l m n o", "", "、。"):
        windows = looked_for(text)
        assert found(windows, f"{text} {text}") == [] and windows.totals.tolist() == [[0, 0, 0]]


ASKED, CHOICES = "水を出すときに捻るものは？", ("蛇口", "ハンドル", "流し", "釘", "食器棚")
LAYOUTS = {
    "JGLUE": lambda asked, own: json.dumps(
        {"question": asked} | {f"choice{n}": one for n, one in enumerate(own)}, ensure_ascii=False
    ),
    "lines": lambda asked, own: "\n".join((asked, *own)),
    "numbers": lambda asked, own: f"問題：{asked}\n選択肢：" + "、".join(f"{n}.{one}" for n, one in enumerate(own, 1)),
    "other order": lambda asked, own: f"{asked}（ア）{own[4]}（イ）{'（ウ）'.join(own[:4])}",
}


def with_choices(asked, *choices):
    return windows_of([TaskQuestions("task", "1", [Wording((asked,), (), own) for own in choices])])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_question_that_says_too_little_is_looked_for_with_its_choices(layout):
    windows, document = with_choices(ASKED, CHOICES), LAYOUTS[layout](ASKED, CHOICES)
    assert windows.totals.tolist() == [[0, 0, 1]]
    assert found(windows, f"{JAPANESE}\n{document}\n{JAPANESE}") == [(0, 0)]
    others = (*CHOICES[:4], "茶碗")
    assert found(windows, LAYOUTS[layout](ASKED, others)) == found(windows, LAYOUTS[layout](JAPANESE, CHOICES)) == []
    assert found(windows, f"{ASKED}{JAPANESE * 6}{CHOICES}") == [], "they stand too far behind"
    assert found(with_choices(ASKED, others, CHOICES), document) == [(0, 1)]


def test_choices_tell_nothing_where_they_are_few_or_those_of_every_question():
    assert with_choices("捻るものは何ですか", ("はい", "いえ")).totals[0, 2] == 0
    assert with_choices("楽器は？", CHOICES * 3).totals[0, 2] == 0
    labels = ("entailment", "contradiction", "neutral")
    asked = [Wording((f"{one}が野原を走っている",), (), labels) for one in "犬猫馬牛羊虎鹿熊豚鳥"]
    assert not windows_of([TaskQuestions("task", "1", asked)]).totals[:, 2].any()
    assert windows_of([TaskQuestions("task", "1", asked[:9])]).totals[:, 2].all()


@pytest.mark.parametrize("question", [SHORT, JAPANESE, ENGLISH])
def test_one_letter_may_be_another_one_or_missing_or_too_many_but_no_digit(question):
    windows, letters = looked_for(question), [place for place, one in enumerate(question) if one.isalnum()]
    # A change in the middle of 18 characters leaves no 6 at an end; and a passage has to be whole at both ends.
    places = letters[:11] + letters[-11:] if question is SHORT else letters[16:-16]
    for place in places:
        for changed in ("", "Q", "Q" + question[place]):
            assert found(windows, question[:place] + changed + question[place + 1 :]) == [(0, 0)], (place, changed)
    for text in (question[1:], question[:-1]) if question is SHORT else ():
        assert [leak.passage for leak in windows.find(text)] == [text]
    middle = letters[len(letters) // 2]
    numbers = looked_for(question[:middle] + "3" + question[middle:])
    assert found(numbers, question[:middle] + "4" + question[middle:]) == []
    apart = set(letters[4:-4:5])
    assert found(windows, "".join("Q" if place in apart else one for place, one in enumerate(question))) == []


def test_a_passage_has_its_first_and_its_last_letter():
    passage = "".join(filter(str.isalnum, JAPANESE))[:30]
    windows = looked_for(passage)
    for place in range(30):
        document = f"{OTHER}{passage[:place]}猫{passage[place + 1 :]}{OTHER}"
        # A change in the middle leaves no 16 characters at an end.
        assert found(windows, document) == ([] if place in (0, 14, 15, 29) else [(0, 0)]), place


def test_an_end_that_many_questions_share_is_looked_up_only_where_there_is_no_rarer_one():
    asked = [f"{chr(0x4E00 + 97 * number) * 10}の行き方を教えてください" for number in range(40)]
    windows = looked_for(*asked)
    assert (len(looked_for(*asked[:30]).anchors_A), len(windows.anchors_A)) == (60, 40)
    assert [found(windows, f"{OTHER}{text}{OTHER}") for text in asked] == [[(0, number)] for number in range(40)]


def test_an_answer_is_looked_for_by_whole_windows_alone():
    made = [Wording(("?",), (SHORT,)), Wording(("?",), (JAPANESE,))]
    windows = windows_of([TaskQuestions("task", "1", made)])
    assert found(windows, f"{SHORT}\n{JAPANESE}") == [(0, 1)]


def test_a_text_of_several_questions_is_one_of_each():
    made = [Wording((JAPANESE, f"{number}番目の文に出てくるものは何と呼ばれていますか")) for number in range(3)]
    windows = windows_of([TaskQuestions("a", "1", []), TaskQuestions("b", "1", made)])
    assert found(windows, JAPANESE) == [(1, 0), (1, 1), (1, 2)]
    assert found(windows, made[2].texts[1]) == [(1, 2)]


def test_the_form_of_a_task_is_no_question():
    form = "次の文章を読んで、その内容に合うものを以下の四つの選択肢から一つだけ選んで答えなさい"
    own = [f"{form}。{number}番の文章の主題は{chr(0x4E00 + 50 * number) * 40}についてです" for number in range(12)]
    windows = looked_for(*own)
    assert found(windows, form) == [] and found(windows, own[3]) == [(0, 3)]
    assert found(looked_for(*own[:9]), form) == [(0, number) for number in range(9)], "so few may be a coincidence"
    # The share says how much of a question is there.
    whole = JAPANESE.replace("、", "").replace("。", "")
    (leak,) = looked_for(JAPANESE).find("猫" + whole[:34])
    assert leak.share == 5 / (len(whole) - 29) and leak.passage == whole[:30]


def test_what_is_saved_is_what_was_made(tmp_path):
    windows = looked_for(ENGLISH, JAPANESE)
    for name in ("a.npz", "b.npz"):
        windows.save(tmp_path / name)
    read = question_windows.load(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes(), "every share writes the same"
    assert read.identity == windows.identity != looked_for(ENGLISH).identity
    assert found(read, ENGLISH + JAPANESE) == [(0, 0), (0, 1)]


def test_texts_that_repeat_themselves_cost_no_more_than_others():
    """A thousand places of a question are the same, and a hundred thousand of a document."""
    questions = ["ばか" * 500 + str(number) for number in range(20)]
    windows = looked_for(*questions, ENGLISH)
    began = time.thread_time()
    assert (0, 20) in found(windows, "ばか" * 50_000 + ENGLISH)
    assert time.thread_time() - began < 20  # 2 s on two cores of 2026; the pairs of places would take hours


def test_comparisons_are_made_in_bounded_parts(monkeypatch):
    monkeypatch.setattr(question_windows, "AT_A_TIME", 3)
    questions = [ENGLISH + f" {number}" for number in range(9)]
    assert found(looked_for(*questions), ENGLISH + ENGLISH) == [(0, number) for number in range(9)]
