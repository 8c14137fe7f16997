from tpullm.inference import generation
from tpullm.inference.decode import decode
from tpullm.inference.generation import answer, sampled
from tpullm.inference.sampling_options import Sampling


def test_each_question_gets_the_answer_it_gets_alone(session):
    questions = ["本?", "リンゴが好きですか。", "傘", "本をどうしますか。", "雪"]
    tokenizer = session.tokenizer
    for question, found in zip(questions, answer(session, questions, batch=2, tokens=5), strict=True):
        prompt, _ = tokenizer.chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        alone = decode(session, [prompt], 5, stop_ids=[tokenizer.end_id, tokenizer.eos_id])[0]
        assert found == tokenizer.decode(alone)


def test_a_sampled_text_continues_its_prompt_with_the_default_settings_and_the_seed(session, monkeypatch):
    asked = []

    def decoded(session, prompts, tokens, sampling, seeds):
        asked.append((prompts, tokens, sampling, seeds))
        return [session.tokenizer.encode("雨です。") for _ in prompts]

    monkeypatch.setattr(generation, "decode", decoded)
    tokenizer, prompts = session.tokenizer, ["今日は", "私は"]
    assert sampled(session, prompts, tokens=6, seed=3) == ["雨です。"] * 2
    ids = [[*tokenizer.begin, *tokenizer.encode(prompt)] for prompt in prompts]
    assert asked == [(ids, 6, Sampling(), range(3, 5))]
    assert sampled(session, [], tokens=6, seed=3) == [] and len(asked) == 1


def test_a_prompt_that_fills_the_context_leaves_room_for_a_token(session):
    (text,) = sampled(session, ["雨" * 99], tokens=6, seed=0)
    assert len(session.tokenizer.encode(text)) <= 1
