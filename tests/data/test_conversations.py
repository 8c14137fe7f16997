"""Examples as tokens: only what the assistant says has weight, and an answer is a part of its whole conversation."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats.huggingface.published import CHATML, change, directory
from tests.tokenizer.test_published import CALLED, CALLING, MARKED, THINKING, TOOLS
from tpullm.data import conversations
from tpullm.data.conversations import answer_ids, preference_ids
from tpullm.data.examples import Conversation, Judged, Preference, identity
from tpullm.data.stream import EvaluationBatches, Stream
from tpullm.recipe.schema import TokenizerConfig
from tpullm.system.errors import UserError
from tpullm.tokenizer import trainer as tokenizers
from tpullm.tokenizer.published import PublishedTokenizer

NUMBERS = "〇一二三四五六七八九"


def say(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]


def written(number):
    return "".join(NUMBERS[int(digit)] for digit in str(number))


CHATS = [say(f"{written(n)}の次は?", f"{written(n + 1)}です。" * (1 + n % 3)) for n in range(60)]
TALKS = [Conversation(chat) for chat in CHATS]


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    texts = [("ja", message["content"]) for chat in CHATS for message in chat]
    config = TokenizerConfig(model_type="char", vocabulary_size=0)
    return tokenizers.train(texts, config, tmp_path_factory.mktemp("characters") / "tokenizer.model")


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def test_only_what_the_assistant_says_has_weight(characters):
    made = conversations.tokenize(TALKS, characters, 64, "chats")
    batches = list(EvaluationBatches(made, 8, 64))
    learnt = []
    for batch in batches:
        for row, numbers in enumerate(batch.segment_ids):
            for number in range(1, numbers.max() + 1):
                here = numbers == number
                inputs, targets, weights = (array[row][here] for array in (batch.inputs, batch.targets, batch.weights))
                assert inputs[0] == characters.bos_id
                said = targets[weights == 1]
                assert inputs[weights == 1][0] == characters.assistant_id and said[-1] == characters.end_id
                learnt.append(characters.decode(said.tolist()))
    assert sorted(learnt) == sorted(chat[1]["content"] for chat in CHATS)


def test_conversations_are_whole_segments(characters):
    made = conversations.tokenize(TALKS, characters, 64, "chats")
    stream = Stream({"chats": made}, {"chats": 1.0}, 4, 64, seed=0)
    assert stream.packings["chats"].rows < len(CHATS)  # several in a row
    for step in range(10):
        for piece in stream.documents_at(step):
            assert (piece.start, piece.length) == (0, np.diff(made.offsets)[piece.document] - 1)
            assert int(piece.id, 16) == identity(CHATS[piece.document])


def test_longer_conversations_than_the_sequence_are_left_out_and_that_is_said(characters, capsys):
    longest = Conversation(say("次は?" * 40, "はい"))
    assert len(conversations.tokenize([*TALKS, longest], characters, 64, "chats.jsonl").ids) == len(CHATS)
    assert "chats.jsonl: 1 of 61 conversations are longer than 64 tokens" in " ".join(capsys.readouterr().err.split())


def test_a_conversation_that_is_too_long_is_learned_exchange_by_exchange(characters, capsys):
    system, first, second = {"role": "system", "content": "短く。"}, say("本は?" * 8, "はい"), say("次は?" * 8, "ええ")
    made = conversations.tokenize([Conversation([system, *first, *second])], characters, 64, "chats")
    alone = [
        conversations.tokenize([Conversation([system, *part])], characters, 64, "chats") for part in (first, second)
    ]
    assert made.ids.tolist() == [one.ids[0] for one in alone] == [identity([system, *part]) for part in (first, second)]
    assert made.tokens.tolist() == [token for one in alone for token in one.tokens.tolist()]
    assert "1 conversations are longer than 64 tokens and cut into their exchanges" in " ".join(
        capsys.readouterr().err.split()
    )
    most = len(characters.chat_template(CHATS[0])[0]) - 1
    assert len(conversations.tokenize(TALKS[:1], characters, most, "chats").ids) == 1
    with pytest.raises(UserError, match=f"chats: no conversation of at most {most - 1} tokens .*longest has {most}"):
        conversations.tokenize(TALKS[:1], characters, most - 1, "chats")
    # One that can't be shown is named by its beginning.
    broken = [{"role": "user", "content": "一" * 15 + "二" * 15}, {"role": "robot", "content": "はい"}]
    told = f"chats: the conversation that begins with '{'一' * 15}{'二' * 5}': role 'robot'"
    with pytest.raises(UserError, match=told):
        conversations.tokenize([*TALKS, Conversation(broken)], characters, 64, "chats")


TEMPLATES = {
    "added": CHATML,
    "marked": MARKED,
    "thinking": THINKING,
    "calling": CALLING,
    "more after it": CHATML.replace("<|im_end|>", "<|im_end|>\n--"),
}


@pytest.fixture(scope="module", params=["trained", *TEMPLATES])
def tokenizer(request, tmp_path_factory, characters):
    if request.param == "trained":
        return characters
    return with_template(tmp_path_factory.mktemp(request.param), TEMPLATES[request.param])


def with_template(folder, template):
    directory(folder / "model")
    change(folder / "model" / "tokenizer_config.json", chat_template=template)
    return PublishedTokenizer(folder / "model", is_tried=True)


SAID = st.text(NUMBERS + "猫です。は？\n ", min_size=1, max_size=9).filter(lambda text: text == text.strip())


@settings(max_examples=25)
@given(st.lists(SAID, min_size=1, max_size=3).filter(lambda said: len(said) % 2), SAID, SAID)
def test_both_conversations_begin_with_the_prompt_that_the_model_is_asked(tokenizer, asked, chosen, other):
    asked, answers = say(*asked), [say("", said)[1] for said in (chosen, f"{other}{chosen}")]
    prompt, *both = preference_ids(Preference(asked, *answers), tokenizer, "talk")
    assert prompt == tokenizer.chat_template(asked, add_generation_prompt=True)[0]
    for said, ids in zip(answers, both, strict=True):
        whole, weights = tokenizer.last_answer([*asked, said])
        assert whole[: len(prompt) + len(ids)] == prompt + ids
        assert weights == [0.0] * len(prompt) + [1.0] * len(ids) + [0.0] * (len(whole) - len(prompt + ids))
        assert ids[-1] in tokenizer.stop_ids and said["content"] in tokenizer.decode(ids)
        assert answer_ids(Judged(asked, said, True), said, tokenizer, "talk") == (prompt, ids)


def test_the_answer_to_a_longer_talk_is_the_last_alone(tokenizer):
    talk = [*CHATS[3], *CHATS[5]]
    prompt, said = answer_ids(Judged(talk[:3], talk[3], False), talk[3], tokenizer, "talk")
    shown = tokenizer.decode(prompt)
    assert CHATS[3][1]["content"] in shown and CHATS[5][0]["content"] in shown
    assert tokenizer.decode(said).strip().removeprefix("<think>\n\n</think>").strip() == talk[3]["content"]


def test_a_pair_may_call_tools(tmp_path):
    tokenizer = with_template(tmp_path, CALLING)
    prompt, chosen, _ = preference_ids(Preference(CALLED[:1], CALLED[1], CALLED[3], TOOLS), tokenizer, "talk")
    assert "sky" in tokenizer.decode(prompt) and "東京" in tokenizer.decode(chosen)
    assert prompt + chosen == tokenizer.last_answer(CALLED[:2], TOOLS)[0][: len(prompt + chosen)]


HIDING = {
    "no end": (CHATML.replace("<|im_end|>\n{%", "\n{%"), "hides where an answer ends"),
    "both alike": (CHATML.replace("message['content']", "message['content'] | upper"), "shows both answers alike"),
    "grows": (CHATML.replace("<|im_start|>{{", "<|im_start|>{{ messages | length }}{{"), "as it grows"),
    "no answer": (
        MARKED.replace("{{ message['content'] }}<|im_end|>{% endgen", "{% endgen"),
        "shows nothing of (an|the) answer",
    ),
    "another prompt": (
        MARKED.replace("{% for message", "{{ messages[-1]['content'][0] }}{% for message", 1),
        "shows the prompt otherwise before its other answer",
    ),
}


@pytest.mark.parametrize("fault", HIDING)
def test_a_template_that_hides_an_answer_is_refused(tmp_path, fault):
    template, told = HIDING[fault]
    preference = Preference(say("What? " + "x" * 40), say("", "a cat")[1], say("", "A CAT")[1])
    with pytest.raises(UserError, match=f"^talk: the prompt that begins with 'What\\? x{{14}}': .*{told}"):
        preference_ids(preference, with_template(tmp_path, template), "talk")


def test_the_template_of_a_trained_tokenizer_shows_no_tools(characters):
    for messages, tools in ((CALLED[:2], None), (CALLED[2:], None), (CHATS[0], TOOLS)):
        for show in (characters.chat_template, characters.last_answer):
            with pytest.raises(UserError, match="the chat template of this model shows no tools"):
                show(messages, tools=tools)
