"""A good GGUF file passes; each fault, put into a good one, is named; a hostile one costs nothing."""

import json
import random
import struct

import gguf
import numpy as np
import pytest

from tests.formats.gguf.small_gguf import config_of, tokenizer, write
from tests.formats.gguf.test_tokenizer_files import published, settings
from tpullm.cli.main import main
from tpullm.formats import doctor
from tpullm.formats.gguf import reading
from tpullm.formats.gguf.vocabulary import CONTROL
from tpullm.system.errors import UserError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    made = tokenizer(folder / "tokenizer")
    made.template = "{% for one in messages %}{{ one['role'] + ':' + one['content'] }}<|endoftext|>{% endfor %}"
    made.template += "{{ 'assistant:' if add_generation_prompt }}"
    config = config_of("llama-2", vocab_size=320, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    write(folder / "good.gguf", config, made, "q8_0")
    return folder / "good.gguf"


def found(file):
    return [(finding.severity, finding.what) for finding in doctor.examine(file, None, lambda size: None)]


def rewritten(good, path, settings=(), tensors=()):
    """The good file with other settings and tensors; None takes one out."""
    read, settings, tensors = gguf.GGUFReader(good), dict(settings), dict(tensors)
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in read.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            value = settings.pop(name, field.contents())
            if value is not None:
                writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in read.tensors:
        array = tensors.pop(tensor.name, tensor.data)
        if array is not None:
            writer.add_tensor(tensor.name, array, raw_dtype=tensor.tensor_type if array.dtype == np.uint8 else None)
    assert not settings and not tensors, "what is changed is there"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


FAULTS = {
    "nan": ({}, {"output_norm.weight": np.full(32, np.nan, np.float32)}, "output_norm.weight: 32 of 32 values are NaN"),
    "zero": ({}, {"blk.1.attn_q.weight": np.zeros((40, 34), np.uint8)}, "blk.1.attn_q.weight: all zero"),
    "no norm": ({}, {"output_norm.weight": None}, "output_norm.weight is missing"),
    "layers": ({"llama.block_count": 3}, {}, "says 3 layers, and 2 are there"),
    "width": ({"llama.embedding_length": 64}, {}, "embedding_length is 64, and token_embd.weight [320, 32]"),
    "no width": ({"llama.embedding_length": None}, {}, "no llama.block_count or embedding_length"),
    "fewer tokens": ({"tokenizer.ggml.tokens": ["a"]}, {}, "1 tokens and an embedding of 320 rows"),
    "kinds": ({"tokenizer.ggml.token_type": [1, 2]}, {}, "tokenizer.ggml.token_type: 2 for 320 tokens"),
    "end": ({"tokenizer.ggml.eos_token_id": 320}, {}, "eos_token_id: 320 is not a token"),
    "no end": ({"tokenizer.ggml.eos_token_id": None}, {}, "no end token"),
    "no pattern": ({"tokenizer.ggml.pre": "default"}, {}, "no tokenizer.ggml.pre"),
    "unknown pattern": ({"tokenizer.ggml.pre": "kimi-k2"}, {}, "its pre-tokenizer 'kimi-k2' is not known; known are"),
    "merge": ({"tokenizer.ggml.merges": ["zz q"]}, {}, "bad.gguf: has a merge 'zz q' of what is no token"),
    "template": ({"tokenizer.chat_template": "{{ no( }}"}, {}, "bad.gguf: its chat template"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, {}, "no tokenizer.ggml.tokens"),
}


def test_a_good_file_passes(good, capsys):
    assert found(good) == []
    assert main(["doctor", str(good)]) == 0
    assert "good.gguf: nothing found" in capsys.readouterr().err


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(good, tmp_path, fault):
    settings, tensors, what = FAULTS[fault]
    findings = found(rewritten(good, tmp_path / "bad.gguf", settings, tensors))
    assert [severity for severity, text in findings if what in text] == ["error"], findings


def test_a_missing_template_is_a_warning_and_json_has_the_same(good, tmp_path, capsys):
    bad = rewritten(good, tmp_path / "bad.gguf", {"tokenizer.chat_template": None})
    assert main(["doctor", str(bad), "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["severity"] == "warning" and finding["what"].startswith("no chat template")


def test_a_file_that_is_cut_off_anywhere_is_one_error(good, tmp_path):
    whole, cut = good.read_bytes(), tmp_path / "cut.gguf"
    for length in [*range(0, 60), *range(60, len(whole) - 32, 4_001)]:
        cut.write_bytes(whole[:length])
        ((severity, what),) = found(cut)
        assert severity == "error" and "fetch or export it again" in what and "\n" not in what


def test_no_byte_of_the_head_makes_more_than_findings(good, tmp_path):
    """60 files with 1 to 8 other bytes in the head: findings, and no other error."""
    whole, changed, chance = good.read_bytes(), tmp_path / "changed.gguf", random.Random(0)
    end = min(tensor.start for tensor in reading.read(good).tensors)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(end)] = chance.choice([0, 1, 127, 255, chance.randrange(256)])
        changed.write_bytes(data)
        found(changed)


def head(settings=0, tensors=0, after=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, settings) + after + bytes(64)


def text(words):
    return struct.pack("<Q", len(words)) + words


def tensor(name, shape, kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HOSTILE = {
    "other": (b"PK\3\4" + bytes(64), "is no GGUF file"),
    "version": (head(version=9), "is of version 9"),
    "tensors": (head(tensors=1 << 60), "at most 262,144 are read"),
    "name": (head(1, after=struct.pack("<Q", 1 << 62)), "has a text of 4,611,686,018,427,387,904 bytes"),
    "not UTF-8": (head(1, after=text(b"\xff\xfe")), "has a text that is no UTF-8"),
    "type": (head(1, after=text(b"a") + struct.pack("<I", 77)), "a value of the unknown type 77"),
    "list": (head(1, after=text(b"a") + struct.pack("<IIQ", 9, 0, 1 << 50)), "has a list of 1,125,899,906,842,624"),
    "list of lists": (head(1, after=text(b"a") + struct.pack("<IIQI", 9, 9, 1, 9)), "a value of the unknown type 9"),
    "two settings": (head(2, after=(text(b"a") + struct.pack("<IB", 0, 1)) * 2), "has two settings 'a'"),
    "dimensions": (head(tensors=1, after=tensor(b"a", [1] * 9)), "of 9 dimensions"),
    "large": (head(tensors=1, after=tensor(b"a", [1 << 62, 1 << 62])), "ends before the tensor 'a'"),
    "empty": (head(tensors=1, after=tensor(b"a", [0])), "of [0], which F32 can't hold"),
    "blocks": (head(tensors=1, after=tensor(b"a", [33], kind=8)), "of [33], which Q8_0 can't hold"),
    "kind": (head(tensors=1, after=tensor(b"a", [1], kind=99)), "of the unknown type 99"),
    "two tensors": (head(tensors=2, after=tensor(b"a", [1]) + tensor(b"a", [1], offset=32)), "has two tensors 'a'"),
    "overlap": (head(tensors=2, after=tensor(b"a", [9]) + tensor(b"b", [1], offset=32)), "lies on another one"),
    "alignment": (head(tensors=1, after=tensor(b"a", [1], offset=1)), "lies on another one"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_before_anything_is_read(tmp_path, kind):
    data, why = HOSTILE[kind]
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(UserError) as error:
        reading.read(tmp_path / "bad.gguf")
    assert why in str(error.value)


def test_lists_have_an_end_together(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_VALUES", 3)
    one = lambda name: text(name) + struct.pack("<IIQ2B", 9, 0, 2, 1, 2)  # noqa: E731
    (tmp_path / "bad.gguf").write_bytes(head(1, after=one(b"a")))
    assert reading.read(tmp_path / "bad.gguf").settings == {"a": [1, 2]}
    (tmp_path / "bad.gguf").write_bytes(head(2, after=one(b"a") + one(b"b")))
    with pytest.raises(UserError, match="a list of 2 values"):
        reading.read(tmp_path / "bad.gguf")


LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("pre", "numbers", "why"),
    [
        ("smollm", 0, None),
        ("gpt-2", 0, "no token has a digit and more"),
        ("gpt-2", 60, None),
        ("smollm", 20, None),
        ("smollm", 60, "the pre-tokenizer cuts 6% of the tokens, such as '10'"),
    ],
)
def test_a_pre_tokenizer_that_is_not_of_the_vocabulary_is_named(tmp_path, pre, numbers, why):
    texts = [a + b + c for c in ("", *LETTERS) for a in LETTERS for b in LETTERS][:1_000]
    texts += [str(number) for number in range(10, 10 + numbers)]
    merges = [f"{text[:-1]} {text[-1]}" for text in texts]
    made = published(tmp_path, settings(texts=["</s>", *texts], kinds=[CONTROL], pre=pre, merges=merges))
    assert [finding.what.startswith(why) for finding in doctor._cut_findings(made)] == [True] * bool(why)
