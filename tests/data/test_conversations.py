import json

import pytest

from tpullm.data import conversations
from tpullm.data.examples import Conversation, identity
from tpullm.data.stream import EvaluationBatches, Stream
from tpullm.recipe.schema import TokenizerConfig
from tpullm.system.errors import UserError
from tpullm.tokenizer import trainer as tokenizers

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
            assert (piece.start, piece.length) == (0, made.lengths[piece.document] - 1)
            assert int(piece.id, 16) == identity(CHATS[piece.document])


def test_long_conversations_are_left_out_and_that_is_said(characters, capsys):
    longest = say("次は?" * 40, "はい")
    made = conversations.tokenize([*TALKS, Conversation(longest)], characters, 64, "chats.jsonl")
    assert len(made.lengths) == len(CHATS) and made.lengths.max() <= 65
    assert "chats.jsonl: 1 of 61 conversations are longer than 64 tokens" in " ".join(capsys.readouterr().err.split())


def test_a_conversation_of_exactly_the_sequence_is_kept(characters):
    length = len(characters.chat_template(CHATS[0])[0])
    assert len(conversations.tokenize(TALKS[:1], characters, length - 1, "chats").lengths) == 1
    with pytest.raises(
        UserError, match=f"chats: no conversation of at most {length - 2} tokens .*longest has {length - 1}"
    ):
        conversations.tokenize(TALKS[:1], characters, length - 2, "chats")


def test_a_conversation_that_can_not_be_shown_is_named_by_its_beginning(characters):
    broken = [{"role": "user", "content": "一" * 15 + "二" * 15}, {"role": "robot", "content": "はい"}]
    with pytest.raises(
        UserError, match=f"chats: the conversation that begins with '{'一' * 15}{'二' * 5}': role 'robot'"
    ):
        conversations.tokenize([*TALKS, Conversation(broken)], characters, 64, "chats")
