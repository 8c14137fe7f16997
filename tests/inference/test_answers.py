from types import SimpleNamespace

import numpy as np

from tpullm.inference import answers
from tpullm.inference.answers import answer, counterfactual
from tpullm.inference.decode import decode


def test_each_question_gets_the_answer_it_gets_alone(session):
    questions = ["本?", "リンゴが好きですか。", "傘", "本をどうしますか。", "雪"]
    tokenizer = session.tokenizer
    for question, found in zip(questions, answer(session, questions, batch=2, tokens=5), strict=True):
        prompt, _ = tokenizer.chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        alone = decode(session, [prompt], 5, stop_ids=[tokenizer.end_id, tokenizer.eos_id])[0]
        assert found == tokenizer.decode(alone)


def swap(thing, verb, other, other_verb):
    return SimpleNamespace(
        prefix=f"私は{thing}を",
        object=thing,
        verb=verb,
        other_prefix=f"私は{other}を",
        other_object=other,
        other_verb=other_verb,
    )


def test_a_swap_is_right_if_both_verbs_are(session, monkeypatch):
    likely = {"私は本を読む", "私はリンゴを食べる", "私は歌を読む"}
    scored = []

    def score(session, texts):
        scored.extend(texts)
        return [float(np.log(0.8 if text in likely else 0.1)) for text in texts]

    monkeypatch.setattr(answers, "text_log_probabilities", score)
    words = [("本", "読む"), ("リンゴ", "食べる"), ("歌", "聞く")]
    swaps = [swap(*a, *b) for a in words for b in words if a != b]
    found = counterfactual(session, swaps)
    assert found.share == 2 / 6
    assert sorted(scored) == sorted({f"私は{thing}を{verb}" for thing, _ in words for _, verb in words})
    assert {e.object: e.likeliest for e in found.expectations} == {"本": "読む", "リンゴ": "食べる", "歌": "読む"}
    assert all(abs(e.probability - 0.8) < 1e-9 for e in found.expectations)
