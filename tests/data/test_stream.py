import hashlib
import threading
import time
from collections import Counter

import numpy as np
import pytest

from tests.data.test_batch import Numbered
from tpullm.data import stream as streams
from tpullm.data import token_store
from tpullm.data.stream import EvaluationBatches, Stream, pretraining_stream
from tpullm.recipe.schema import CorpusConfig, Recipe, Source, TrainConfig
from tpullm.system.errors import UserError

B, T = 8, 32
FIELDS = ("inputs", "targets", "segment_ids", "positions", "weights")


def make_store(path, seed, documents, longest=60):
    """Documents of random tokens; the first token of each tells its number."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest, documents)
    tokens = rng.integers(10_000, 60_000, lengths.sum())
    tokens[np.cumsum(lengths) - lengths] = np.arange(documents)
    ids = rng.integers(0, 2**63, documents).astype(np.uint64)
    token_store.write_store(path, [(tokens, lengths, ids)], np.dtype(np.uint16))
    return token_store.TokenStore(path)


def lengths_of(store):
    """In tokens, by the numbers of the documents in the corpus."""
    lengths = np.repeat(store.lengths.tokens, store.lengths.counts)
    return lengths[np.argsort(store.identities(np.arange(len(lengths)))[0])]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return {"a": make_store(folder / "a", 0, 200), "b": make_store(folder / "b", 1, 300)}


def stream_of(sources, seed=0, weights=None, **options):
    return Stream(sources, weights or dict.fromkeys(sources, 1.0), B, T, seed, **options)


def assert_same(left, right, rows=slice(None)):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name)[rows])


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_do_not_depend_on_workers_nor_on_where_they_begin(sources, workers, at_once, monkeypatch):
    monkeypatch.setattr("tpullm.data.stream.TOKENS_AT_ONCE", at_once * B * T)
    stream = stream_of(sources)
    found = list(stream_of(sources).batches(4, 11, workers))
    assert len(found) == 7
    for step, batch in enumerate(found, start=4):
        assert_same(batch, stream.batch_at(step))


def test_threads_end_with_the_iterator(sources):
    before = set(threading.enumerate())  # a thread of another test may still be ending
    batches = stream_of(sources).batches(0, 1_000_000, workers=2)
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


# Neighbours, hosts that need the same rows (they hold other times of them), and rows that lie apart.
SHARED = [np.arange(0, 4), np.arange(0, 4), np.array([0, 1, 6, 7])]


@pytest.mark.parametrize("own_rows", SHARED)
def test_a_host_builds_its_rows_of_the_same_batch_and_no_others(sources, own_rows, monkeypatch):
    whole, built = stream_of(sources).batch_at(7), []
    build = streams.build
    monkeypatch.setattr(streams, "build", lambda parts, rows, length: built.append(rows) or build(parts, rows, length))
    part = stream_of(sources, own_rows=own_rows).batch_at(7)
    assert built == [len(own_rows)]
    assert_same(part, whole, own_rows)


# SHA-256 of the batches below. Another version of tpullm has to read the same tokens in the same order: else a training
# that resumes reads some documents twice and others never, and losses of two versions can't be compared.
RECORDED = "71b5294e8d9caa783f6f47b34003f80ce6a9510dcb6c01bac056063277c03324"


def test_the_data_order_is_that_of_earlier_versions():
    texts = Numbered([2 + (number * 37) % 90 for number in range(200)])
    texts.read = lambda *pieces, read=texts.read: (read(*pieces)[0], np.ones_like(read(*pieces)[1]))
    books = Numbered([400, 331, 650])
    books.read = lambda *pieces, read=books.read: (read(*pieces)[0], np.ones_like(read(*pieces)[1]))
    stream = Stream({"texts": texts, "books": books}, {"texts": 2.0, "books": 1.0}, B, T, seed=5)
    batches = [stream.batch_at(step) for step in (0, 1, 2, 50, 1000)]
    batches += EvaluationBatches(texts, B, T, rows=20)
    content = b"".join(getattr(batch, name).tobytes() for batch in batches for name in FIELDS)
    assert hashlib.sha256(content).hexdigest() == RECORDED


def epoch_of(stream, name, epoch):
    """The rows of one source in one epoch, each as its pieces (document, start, length)."""
    rows, found = stream.packings[name].rows, []
    for step in range((epoch + 1) * rows // stream.batch_size + 1):
        by_row = {}
        for piece in stream.documents_at(step):
            by_row.setdefault(piece.row, []).append((piece.document, piece.start, piece.length))
        found += [tuple(by_row[row]) for row in sorted(by_row)]
    return found[epoch * rows : (epoch + 1) * rows]


def test_each_epoch_reads_everything_once_in_another_order(sources):
    stream = stream_of({"a": sources["a"]})
    epochs = [epoch_of(stream, "a", epoch) for epoch in range(3)]
    lengths = lengths_of(sources["a"])
    for epoch in epochs:
        read = Counter((document, start + n) for row in epoch for document, start, count in row for n in range(count))
        assert read == Counter((document, place) for document in range(200) for place in range(lengths[document] - 1))
    documents = [[[document for document, _, _ in row] for row in epoch] for epoch in epochs]
    assert documents[0] != documents[1] != documents[2]
    assert stream.epoch_at(0) == {"a": 0} and 0.9 < stream.epoch_at(stream.packings["a"].rows // B)["a"] <= 1


def test_documents_at_says_what_is_in_the_batch(sources):
    stream = stream_of(sources)
    batch, pieces = stream.batch_at(3), stream.documents_at(3)
    assert {piece.source for piece in pieces} == {"a", "b"}
    for row in range(B):
        column = 0
        for piece in (piece for piece in pieces if piece.row == row):
            source = sources[piece.source]
            number = source.find(np.array([piece.document]))[piece.document]
            tokens = source.document(number)[piece.start : piece.start + piece.length + 1]
            here = np.s_[row, column : column + piece.length]
            np.testing.assert_array_equal(batch.inputs[here], tokens[:-1])
            np.testing.assert_array_equal(batch.targets[here], tokens[1:])
            assert int(piece.id, 16) == source.identities(np.array([number]))[1][0]
            column += piece.length
        assert not batch.segment_ids[row, column:].any()


def test_a_corpus_of_exactly_one_batch_is_enough():
    exact = Numbered([T + 1] * B)
    assert stream_of({"exact": exact}).batch_at(0).segment_ids.all()
    told = rf"corpus too small: {(B - 1) * T} training tokens fill {B - 1} rows, a batch is 8 rows .*256 tokens"
    with pytest.raises(UserError, match=told):
        stream_of({"small": Numbered([T + 1] * (B - 1))})


def test_pretraining_reads_the_training_documents_of_each_source_with_a_weight(tmp_path):
    named = [("a", 0.5), ("none", 0.0), ("b", 2.0)]
    sources = [Source(name, "text", ".", licence="CC0-1.0", weight=weight) for name, weight in named]
    train = TrainConfig(steps=1, batch_size=B, sequence_length=T)
    recipe = Recipe(seed=3, corpus=CorpusConfig(sources=sources), pretrain=train)
    stores = {name: make_store(tmp_path / "tokens" / name / "train", 9, 100) for name in ("a", "b")}
    stream = pretraining_stream(recipe, tmp_path)
    for step in (0, 5):
        assert_same(stream.batch_at(step), Stream(stores, {"a": 0.5, "b": 2.0}, B, T, seed=3).batch_at(step))
    assert len(pretraining_stream(recipe, tmp_path, np.arange(2)).batch_at(0).inputs) == 2


def test_evaluation_reads_every_held_out_prediction_once_and_documents_that_fit_from_their_beginning(sources):
    documents, begun = sources["a"], Counter()
    batches = list(EvaluationBatches(documents, B, T))
    targets = Counter(int(target) for batch in batches for target in batch.targets[batch.weights > 0])
    expected = Counter(int(token) for index in range(200) for token in documents.document(index)[1:])
    assert targets == expected
    assert {batch.inputs.shape for batch in batches} == {(B, T)}
    for batch in batches:
        begun.update(batch.inputs[(batch.positions == 0) & (batch.segment_ids > 0)].tolist())
    assert all(begun[index] == 1 for index in range(200))  # the first token of a document is its number
    pieces = np.ceil((lengths_of(documents) - 1) / T)
    assert begun.total() == pieces.sum()


def test_evaluation_of_some_rows_is_a_part_of_all(sources):
    some = list(EvaluationBatches(sources["b"], B, T, rows=2 * B))
    for part, whole in zip(some, EvaluationBatches(sources["b"], B, T), strict=False):
        assert_same(part, whole)
    assert len(some) == 2
    (few,) = EvaluationBatches(sources["b"], B, T, rows=3)
    assert few.weights[:3].any(axis=1).all() and not few.weights[3:].any()


@pytest.mark.parametrize("own_rows", SHARED)
def test_a_host_evaluates_its_rows(sources, own_rows):
    whole = list(EvaluationBatches(sources["b"], B, T))
    parts = list(EvaluationBatches(sources["b"], B, T, own_rows=own_rows))
    for batch, part in zip(whole, parts, strict=True):
        assert_same(part, batch, own_rows)
