"""A question is found where a document holds a window of it, and nowhere else."""

import itertools
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from tpullm.corpus import question_windows
from tpullm.corpus.characters import normal
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
    one."""
    parts, made = units(text), []
    for first in range(len(parts)):
        for last in range(first + 1, len(parts) + 1):
            of_it = parts[first:last]
            if sum(part[1] for part in of_it) >= 390 and sum(part[2] for part in of_it) >= 32:
                made.append("".join(part[0] for part in of_it))
                break
    is_enough = sum(part[1] for part in parts) >= 208 and sum(part[2] for part in parts) >= 32
    return made or ["".join(part[0] for part in parts)] * is_enough


WORDS = st.sampled_from(["a", "to", "cat", "lamp", "Ｒｏｏｆ", "猫", "本を", "読む", "3", "、", "ﾃﾞｰﾀ"])
TEXTS = st.lists(WORDS, min_size=1, max_size=40).map(" ".join)


@settings(max_examples=100)
@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS, st.data())
def test_it_is_a_search_for_each_window_in_the_folded_text(questions, noise, data):
    question = data.draw(st.sampled_from(questions))
    cut = [data.draw(st.integers(0, len(question))) for _ in range(2)]
    document = noise + " " + question[min(cut) : max(cut)] + data.draw(st.sampled_from(["", " ", "z"])) + noise
    held = "".join(filter(str.isalnum, normal(document)))
    expected = [number for number, text in enumerate(questions) if any(one in held for one in passages(text))]
    assert found(looked_for(*questions), document) == [(0, number) for number in expected]


def test_thirteen_words_or_thirty_characters_are_found_and_fewer_are_not():
    letters = JAPANESE.replace("、", "").replace("。", "")
    for question, parts, space, length in ((ENGLISH, ENGLISH.split(), " ", 13), (JAPANESE, letters, "", 30)):
        windows = looked_for(question)
        for start in range(len(parts) - length):
            own = [space.join(parts[start : start + count]) for count in (length, length - 1)]
            assert [found(windows, f"{OTHER}\n{text} {OTHER}") for text in own] == [[(0, 0)], []]


def test_a_question_that_says_too_little_is_not_looked_for():
    for text in ("高い山の名前は何ですか", "how many legs has a cat", "a b c d e f g h i j k l m n o", "", "、。"):
        windows = looked_for(text)
        assert found(windows, f"{text} {text}") == [] and windows.totals.tolist() == [[0, 0, 0]]


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
    began = time.process_time()
    assert (0, 20) in found(windows, "ばか" * 50_000 + ENGLISH)
    assert time.process_time() - began < 20  # 2 s on two cores of 2026; the pairs of places would take hours


def test_comparisons_are_made_in_bounded_parts(monkeypatch):
    monkeypatch.setattr(question_windows, "AT_A_TIME", 3)
    questions = [ENGLISH + f" {number}" for number in range(9)]
    assert found(looked_for(*questions), ENGLISH + ENGLISH) == [(0, number) for number in range(9)]
