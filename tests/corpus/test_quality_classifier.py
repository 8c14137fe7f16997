"""A classifier learns from examples what is good, says how well, and is the same on every machine and in every run."""

import json
import random
import re

import numpy as np
import pytest

from tpullm.corpus.document import Raw
from tpullm.corpus.filters import quality, quality_classifier, verdicts
from tpullm.recipe.schema import ClassifierConfig, CorpusConfig, Source
from tpullm.system.errors import UserError

GOOD = """朝の窓を開けて外を見る。夜の雨が庭の石を黒く光らせていた。台所では母が味噌汁を作っている。
橋のたもとで友人に会う。桜はとうに散った。若い葉が風に揺れていた。""".replace("\n", "").split("。")[:-1]
BAD = "今だけ無料!! 登録はこちら→ 送料０円！ 限定クーポン配布中★ クリックして応援してね♪ 最安値に挑戦!!".split()


def texts(pieces, separator, count, seed):
    chosen = random.Random(seed)
    return [separator.join(chosen.choices(pieces, k=8)) + str(number) for number in range(count)]


def written(folder, good, bad):
    for name, found in (("good", good), ("bad", bad)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in found))
    return ClassifierConfig(str(folder / "good.jsonl"), str(folder / "bad.jsonl"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return written(tmp_path_factory.mktemp("examples"), texts(GOOD, "。", 60, 1), texts(BAD, " ", 80, 2))


def test_it_tells_good_from_bad_and_how_well(config):
    model = quality_classifier.learned(config)
    assert all(model.score(text) > 0.5 for text in texts(GOOD, "。", 50, 3))
    assert all(model.score(text) < 0.5 for text in texts(BAD, " ", 50, 4))
    assert all(0 <= model.score(text) <= 1 for text in ("", "あ", "ab"))
    told = "learned from 112 examples; of 28 others it keeps 100.0% of the good and drops 100.0% of the bad"
    assert model.said == told


def test_what_cannot_be_told_apart_is_told(tmp_path):
    model = quality_classifier.learned(written(tmp_path, texts(GOOD, "。", 60, 1), texts(GOOD, "。", 60, 2)))
    assert sum(map(float, re.findall(r"([0-9.]+)%", model.said))) < 150  # 100 by chance


def test_the_same_examples_give_the_same_bits(config):
    first = quality_classifier.learned(config)
    quality_classifier.learned.cache_clear()
    again = quality_classifier.learned(config)
    assert again is not first and np.array_equal(again.weights_B, first.weights_B) and again.bias == first.bias


def test_held_out_examples_are_of_other_documents():
    examples = {f"piece {document} {part}": str(document) for document in range(40) for part in range(3)}
    held = quality_classifier._held_out_examples(examples)
    learned = {document for piece, document in examples.items() if piece not in held}
    assert len(held) == 24 and learned.isdisjoint(examples[piece] for piece in held)
    assert len(quality_classifier._held_out_examples({f"piece {part}": "one book" for part in range(40)})) == 8


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(quality_classifier, "MOST_EXAMPLES", 30)
    monkeypatch.setattr(quality_classifier, "MOST_READ", 60_000)
    (tmp_path / "a.txt").write_text("".join(f"{number} " for number in range(30_000)))
    (tmp_path / "b.txt").write_text("never read\n" * 2000)
    found = quality_classifier._example_pieces(str(tmp_path), "good")
    assert len(found) == 30 and not any("never" in piece for piece in found)


def test_a_source_with_the_rule_drops_low_scores(config):
    source = Source("s", "text", licence="x", language="ja", rules=["classifier"])
    settings = CorpusConfig(sources=[source], classifier=config, minimum_characters=10)
    quality.check(settings)
    good, bad = texts(GOOD, "。", 1, 5)[0], texts(BAD, " ", 1, 6)[0]
    assert verdicts.judge(Raw(good), source, settings).reason == ""
    assert verdicts.judge(Raw(bad), source, settings).reason == "low score"
    assert verdicts.judge(Raw(bad), source, settings, held_out=True).reason == ""


def test_a_classifier_that_is_not_whole_or_has_too_few_examples_is_refused(tmp_path):
    (tmp_path / "good.txt").write_text("only one")
    with pytest.raises(UserError, match="corpus.classifier.good: .* holds 1 examples .* give 20 at least"):
        quality_classifier.learned(ClassifierConfig(str(tmp_path / "good.txt"), str(tmp_path / "good.txt")))
    cases = [("classifier", ClassifierConfig("a"), "corpus.classifier: good and bad must name examples")]
    cases.append(("gopher", ClassifierConfig("a", "b"), "no source has the rule classifier"))
    for rule, given, mistake in cases:
        with pytest.raises(UserError, match=mistake):
            quality.check(CorpusConfig(sources=[Source("s", "text", rules=[rule])], classifier=given))
