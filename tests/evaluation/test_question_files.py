import json

import pytest

from tests.evaluation.problems import write
from tpullm.evaluation.question_files import MOST_BYTES, TOKENS, Item, is_question_file, read_questions
from tpullm.system.errors import UserError

ASKED = {"question": "どれ？", "choices": ["い", "ろ", "は"]}
ARC = {"question": "どれ？", "choices": {"text": ["one", "two"], "label": ["1", "2"]}, "answer": "2"}
INSTRUCTION = {"instruction": "訳せ", "input": "cat", "output": "猫"}


@pytest.mark.parametrize(
    ("row", "item"),
    [
        *((ASKED | {"answer": answer}, Item("どれ？", ("ろ",), ("い", "ろ", "は"))) for answer in (1, "ろ", "B")),
        # The text of a choice goes before its letter.
        (ASKED | {"choices": ["B", "A"], "answer": "A"}, Item("どれ？", ("A",), ("B", "A"))),
        (ARC, Item("どれ？", ("two",), ("one", "two"))),
        ({"question": "2 + 2", "answer": 4}, Item("2 + 2", ("4",))),
        ({"question": "色", "answer": ["赤", "あか"]}, Item("色", ("赤", "あか"))),
        (INSTRUCTION, Item("cat", ("猫",), instruction="訳せ")),
        (INSTRUCTION | {"input": ""}, Item("", ("猫",), instruction="訳せ")),
    ],
)
def test_the_shapes_of_rows(tmp_path, row, item):
    found = read_questions(write(tmp_path / "own.jsonl", [row]))
    assert found.items == (item,) and (found.name, found.file, found.tokens) == ("own", "own.jsonl", TOKENS)


# As their pages show them (github.com/yahoojapan/JGLUE).
JCOMMONSENSEQA = {
    "q_id": 3016, "question": "会社の最高責任者を何というか？", "choice0": "社長", "choice1": "教師", "choice2": "部長",
    "choice3": "バイト", "choice4": "部下", "label": 0,
}  # fmt: skip
JNLI = {
    "sentence_pair_id": "1157", "yjcaptions_id": "127202-129817-129818",
    "sentence1": "街中の道路を大きなバスが走っています。", "sentence2": "道路を大きなバスが走っています。",
    "label": "entailment",
}  # fmt: skip
MARC = {"review_id": "R2", "text": "とても良い。", "label": "positive"}
ASKED_OF = {"question": "最高速度は？", "id": "a0", "answers": [{"text": "285 km/h", "answer_start": 3}]}
JSQUAD = {
    "version": "1.3",
    "data": [{"title": "新幹線", "paragraphs": [{"qas": [ASKED_OF], "context": "新幹線 [SEP] 時速は285 km/hだ。"}]}],
}


def test_jglue(tmp_path):
    """Its files end in .json and have an object a line."""
    (item,) = read_questions(write(tmp_path / "valid-v1.3.json", [JCOMMONSENSEQA, JCOMMONSENSEQA])).items[:1]
    assert item == Item("会社の最高責任者を何というか？", ("社長",), ("社長", "教師", "部長", "バイト", "部下"))
    item = read_questions(write(tmp_path / "jnli.json", [JNLI, JNLI])).items[0]
    assert item.answers == ("entailment",) and item.choices == ("entailment", "contradiction", "neutral")
    assert JNLI["sentence1"] in item.text and JNLI["sentence2"] in item.text and item.instruction
    assert read_questions(write(tmp_path / "marc.json", [MARC, MARC])).items[0].answers == ("positive",)


@pytest.mark.parametrize("indent", [None, 2])
def test_jsquad(tmp_path, indent):
    (tmp_path / "jsquad.json").write_text(json.dumps(JSQUAD, ensure_ascii=False, indent=indent), encoding="utf-8")
    (item,) = read_questions(str(tmp_path / "jsquad.json")).items
    assert item == Item("新幹線\n時速は285 km/hだ。\n質問: 最高速度は？", ("285 km/h",))


def test_llm_jp_eval(tmp_path):
    whole = {"instruction": "答えよ", "output_length": 15, "metrics": ["char_f1"]}
    whole |= {"few_shots": [{"input": "い", "output": "ろ"}], "samples": [{"input": "は", "output": "に"}] * 2}
    (tmp_path / "niilc.json").write_text(json.dumps(whole), encoding="utf-8")
    found = read_questions(str(tmp_path / "niilc.json"))
    assert found.items == (Item("は", ("に",), instruction="答えよ"),) * 2 and found.tokens == 15
    assert found.examples == (Item("い", ("ろ",), instruction="答えよ"),)


def test_a_version_is_of_the_questions(tmp_path):
    one = read_questions(write(tmp_path / "one.jsonl", [ASKED | {"answer": 0}]))
    same = read_questions(write(tmp_path / "two.jsonl", [ASKED | {"answer": "A"}]))
    other = read_questions(write(tmp_path / "two.jsonl", [ASKED | {"answer": "B"}]))
    assert one.version == same.version != other.version


NO_CHOICES = "line 2: 'choices' is not a list of 2 to 26 different texts"


@pytest.mark.parametrize(
    "row, says",
    [
        (ASKED | {"answer": "E"}, "line 2: 'answer' is 'E' and no choice; write the text of a choice, its number"),
        (ASKED | {"answer": 3}, "line 2: 'answer' is 3 and no choice"),
        (ASKED | {"answer": True}, "line 2: 'answer' is True and no choice"),
        *(
            (ASKED | {"choices": own, "answer": 0}, NO_CHOICES)
            for own in (["い"] * 2, ["い"], [1, 2], ["", "い"], "いろ")
        ),
        ({"question": " ", "answer": "x"}, "line 2: 'question' is ' ' and no text"),
        ({"question": "x", "answer": []}, "line 2: 'answer' is []; write a text, or a list"),
        (JNLI | {"label": "true"}, "line 2: 'answer' is 'true' and no choice"),
        (JCOMMONSENSEQA | {"label": 5}, "line 2: 'answer' is 5 and no choice"),
        ({"paragraphs": [{"context": "x"}]}, "line 2: 'paragraphs' are not those of SQuAD's form"),
        ({"q": 1}, "line 2: has the keys q; a question has one of these sets: question, choices, answer; "),
        ([1], "line 2: is not an object"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, says):
    with pytest.raises(UserError, match="own.jsonl: ") as refused:
        read_questions(write(tmp_path / "own.jsonl", [ASKED | {"answer": 0}, row]))
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("own.jsonl", b"", "has no question"),
        ("own.jsonl", b"\n\n", "has no question"),
        ("own.jsonl", b'{"question": "q", "answer": "\xff"}', "line 1: is not UTF-8"),
        ("own.jsonl", b'{"question": "q", "answer": "a"', "line 1: is not JSON"),
        ("own.jsonl", b'{"question": "' + b"x" * (5 << 20), "line 1: is longer than 4 MiB"),
        ("own.json", b'{"instruction": "x", "samples": [{"input": "y"}]}', "samples: row 1: is no object with input"),
        ("own.json", b'{"instruction": "x", "output_length": 0, "samples": []}', "its instruction or output_length is"),
        ("own.json", b'{"data": "' + b"x" * MOST_BYTES, "is one object of more than 64 MiB"),
    ],
    ids=range(8),
)
def test_a_broken_file_is_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: {says}"):
        read_questions(str(tmp_path / name))


def test_which_words_are_files(tmp_path):
    words = ("a.jsonl", "b.json", "c.parquet", "d.yaml", "hellaswag")
    assert [is_question_file(word) for word in words] == [True, True, True, False, False]
    with pytest.raises(UserError, match="gone.jsonl: no such file of questions"):
        read_questions(str(tmp_path / "gone.jsonl"))


def test_questions_come_with_tpullm_and_each_has_one_right_choice():
    found = read_questions("everyday")
    assert is_question_file("everyday") and (found.name, found.file) == ("everyday", "everyday")
    assert len({item.text for item in found.items}) == len(found.items) == 48
    assert all(len(item.choices) == 4 and item.answers[0] in item.choices for item in found.items)
    places = [item.choices.index(item.answers[0]) for item in found.items]
    assert all(6 <= places.count(place) <= 18 for place in range(4)), "no letter is right more often by far"
