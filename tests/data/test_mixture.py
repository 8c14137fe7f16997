"""Weights by phase and by language, bounds of epochs: laws of the order of the data."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_batch import Numbered
from tests.data.test_stream import assert_same
from tpullm.data import mixture, token_store
from tpullm.data.mixture import Order, Schedule
from tpullm.data.stream import Stream, pretraining_stream
from tpullm.recipe.schema import CorpusConfig, MixtureConfig, Phase, Recipe, Source, TrainConfig
from tpullm.system.errors import UserError

B, T = 8, 32
WEIGHT = st.one_of(st.just(0.0), st.floats(0.05, 1))


@st.composite
def orders(draw):
    """Rows, shares and later shares of some sources; in each phase one at least is read."""
    count = draw(st.integers(1, 4))
    rows = draw(st.lists(st.integers(1, 30), min_size=count, max_size=count))
    weights = st.lists(WEIGHT, min_size=count, max_size=count).filter(any)
    shares = weights.map(lambda given: [weight / sum(given) for weight in given])
    lengths = draw(st.lists(st.integers(1, 80), max_size=3))
    firsts = np.cumsum(lengths).tolist()
    return rows, draw(shares), [(first, draw(shares)) for first in firsts]


@settings(deadline=None, max_examples=60)
@given(orders())
def test_each_source_goes_on_in_its_own_order_whatever_the_phases(order):
    """No row is repeated or lost where a phase begins: what is read of a source is what it alone would give."""
    rows, shares, later = order
    seeds = list(range(len(rows)))
    mixed = Order(rows, shares, seeds, later)
    found = np.stack(mixed.at(np.arange(400)), axis=1)
    for source, (count, seed) in enumerate(zip(rows, seeds, strict=True)):
        mine = found[found[:, 0] == source]
        alone = np.stack(Order([count], [1.0], [seed]).at(np.arange(len(mine))), axis=1)
        assert (mine[:, 1:] == alone[:, 1:]).all()


@settings(deadline=None, max_examples=60)
@given(orders(), st.lists(st.integers(0, 399), max_size=20))
def test_the_order_is_a_function_of_the_place_and_counts_what_was_read(order, places):
    rows, shares, later = order
    mixed = Order(rows, shares, [0] * len(rows), later)
    whole = np.stack(mixed.at(np.arange(400)), axis=1)
    assert (np.stack(mixed.at(np.array(places, np.int64)), axis=1) == whole[places]).all()
    for place in (0, *places, 399):
        assert mixed.read_before(place) == np.bincount(whole[:place, 0], minlength=len(rows)).tolist()


def test_places_of_many_rows_and_tiny_shares_do_not_overflow():
    """A share of 1e-12 counts as 1e-9: products of places and proportions fit 63 bits."""
    mixed = Order([10, 10**9], [1e-12, 1 - 1e-12], [0, 1])
    sources, epochs, _ = mixed.at(np.array([0, 5 * 10**9 + 7]))
    assert sources.tolist() == [0, 1] and epochs.tolist() == [0, 5]
    assert mixed.read_before(8 * 10**9)[0] == pytest.approx(8, abs=1)


def documents(count, seed):
    rng = np.random.default_rng(seed)
    found = Numbered(rng.integers(2, 60, count))
    found.ids = rng.integers(0, 2**63, count).astype(np.uint64)
    return found


SOURCES = {"a": documents(200, 0), "b": documents(300, 1), "c": documents(90, 2)}
PHASES = [(0, {"a": 1.0, "b": 3.0, "c": 0.0}), (12, {"a": 1.0, "b": 0.0, "c": 1.0}), (20, {"b": 1.0})]


def stream_of(schedule, sources=SOURCES, **options):
    return Stream(sources, schedule, B, T, 0, **options)


def tokens_of(stream, steps):
    counted = Counter()
    for step in steps:
        for piece in stream.documents_at(step):
            counted[piece.source] += piece.length
    return {name: count / counted.total() for name, count in counted.items()}


def test_a_weight_is_a_share_of_the_tokens_of_its_phase():
    phases = [(0, PHASES[0][1]), (100, PHASES[1][1]), (200, PHASES[2][1])]
    stream = stream_of(Schedule(phases))
    assert tokens_of(stream, range(100)) == pytest.approx({"a": 0.25, "b": 0.75}, abs=0.02)
    assert tokens_of(stream, range(100, 200)) == pytest.approx({"a": 0.5, "c": 0.5}, abs=0.02)
    assert tokens_of(stream, range(200, 210)) == {"b": 1.0}


@pytest.mark.parametrize("at_once", [1, 5])
def test_a_batch_at_a_border_does_not_depend_on_hosts_workers_or_restarts(at_once, monkeypatch):
    monkeypatch.setattr("tpullm.data.stream.TOKENS_AT_ONCE", at_once * B * T)
    stream, own = stream_of(Schedule(PHASES)), np.array([1, 2, 7])
    part = stream_of(Schedule(PHASES), own_rows=own)
    for step, batch in enumerate(stream.batches(9, 23, workers=2), start=9):
        assert_same(batch, stream_of(Schedule(PHASES)).batch_at(step))
        assert_same(part.batch_at(step), batch, own)


def test_epochs_are_the_rows_that_were_read():
    stream = stream_of(Schedule(PHASES))
    rows = {name: packed.rows for name, packed in stream.packings.items()}
    for step in (0, 5, 12, 16, 40):
        read = Counter()
        for before in range(step):
            read.update(source for source, _ in {(piece.source, piece.row) for piece in stream.documents_at(before)})
        assert stream.epoch_at(step) == {name: read[name] / count for name, count in rows.items()}
        assert stream.part_epoch_at(step) == stream.epoch_at(step)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.floats(0.05, 1), min_size=3, max_size=3), min_size=1, max_size=3),
    st.lists(st.one_of(st.none(), st.floats(0.2, 5)), min_size=3, max_size=3).filter(lambda each: None in each),
)
def test_no_part_is_read_more_often_than_it_may(weights, most):
    """Those without a bound get the rest, in the proportions of their weights."""
    bounds = {name: bound for name, bound in zip(SOURCES, most, strict=True) if bound}
    phases = [(20 * number, dict(zip(SOURCES, each, strict=True))) for number, each in enumerate(weights)]
    batches = 20 * len(phases) + 20
    stream = stream_of(Schedule(phases, bounds, batches))
    read, plain = stream.epoch_at(batches), stream_of(Schedule(phases)).epoch_at(batches)
    for name, bound in bounds.items():
        assert read[name] <= bound * 1.02 + 2 * len(phases) / stream.packings[name].rows
    if all(plain[name] <= 0.97 * bound for name, bound in bounds.items()):
        assert read == plain
    free = [name for name, bound in zip(SOURCES, most, strict=True) if not bound]
    for shares, asked in zip(stream._shares, weights, strict=True):
        fills = [packed.fill for packed in stream.packings.values()]
        tokens = dict(zip(SOURCES, np.multiply(shares, fills), strict=True))
        wanted = dict(zip(SOURCES, asked, strict=True))
        assert all(tokens[name] / wanted[name] == pytest.approx(tokens[free[0]] / wanted[free[0]]) for name in free)


def test_too_little_text_within_the_bounds_or_none_in_a_phase_is_refused():
    with pytest.raises(UserError, match=r"mixture.epochs: .* too little text .* lower pretrain.steps"):
        stream_of(Schedule([(0, {"a": 1.0, "b": 1.0})], {"a": 1.0, "b": 1.0}, 1000))

    with pytest.raises(UserError, match=r"from step 4 on empty would be read, which has no training documents"):
        stream_of(Schedule([(0, {"a": 1.0}), (4, {"empty": 1.0, "a": 0.0})]), SOURCES | {"empty": Numbered([])})


def store(path, lengths, languages=None, seed=0):
    rng = np.random.default_rng(seed)
    tokens, ids = rng.integers(0, 60_000, sum(lengths)), rng.integers(0, 2**63, len(lengths)).astype(np.uint64)
    part = (tokens, np.array(lengths), ids) + ((np.array(languages),) if languages else ())
    token_store.write_store(path, [part], np.dtype(np.uint16))
    return token_store.TokenStore(path)


def recipe_of(languages=("", ""), weights=(1.0, 3.0), steps=40, text="", **mixed):
    named = zip(("web", "books"), languages, weights, strict=True)
    sources = [Source(name, "text", ".", licence="x", language=own, weight=weight) for name, own, weight in named]
    train = TrainConfig(steps=steps, batch_size=B, sequence_length=T)
    corpus = CorpusConfig(sources=sources)
    return Recipe(seed=3, text=text, corpus=corpus, pretrain=train, mixture=MixtureConfig(**mixed))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Documents of two sources; every third one of `web` is Japanese and short, every third one has no language."""
    run = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(5)
    lengths = 2 + rng.integers(0, 58, 300) // np.tile([9, 1, 1], 100)
    store(run / "tokens" / "web" / "train", lengths, ["ja", "en", ""] * 100)
    store(run / "tokens" / "books" / "train", rng.integers(2, 60, 200), seed=1)
    store(run / "tokens" / "yours" / "train", rng.integers(2, 60, 100), seed=2)
    return run


def test_phases_of_a_recipe_begin_at_their_share_of_the_steps(run):
    phases = [Phase(0.25, {"books": 2.0}), Phase(0.8, {"web": 1.0, "books": 1.0})]
    stream = pretraining_stream(recipe_of(phases=phases), run)
    steps = recipe_of().pretrain.steps
    changes = [step for step in range(steps) if stream.changes(step)]
    assert changes == [round(0.25 * steps), round(0.8 * steps)]
    without = stream.without([[4, 20]])  # the first change is left out, so it is there
    assert [step for step in range(steps) if without.changes(step)] == [4, changes[1] - 20]
    stores = {name: token_store.TokenStore(run / "tokens" / name / "train") for name in ("web", "books")}
    given = [(0, {"web": 1.0, "books": 3.0}), (10, {"books": 2.0}), (32, {"web": 1.0, "books": 1.0})]
    expected = Stream(stores, Schedule(given), B, T, seed=3)
    for step in (0, 9, 10, 31, 32, 39):
        assert_same(stream.batch_at(step), expected.batch_at(step))
    assert set(tokens_of(stream, range(10, 32))) == {"books"}


def test_a_phase_that_does_not_name_your_own_text_gives_it_a_third(run):
    recipe = recipe_of(text="mine", phases=[Phase(0.5, {"web": 1.0, "books": 0.5})], steps=400)
    assert tokens_of(pretraining_stream(recipe, run), range(200, 400))["yours"] == pytest.approx(1 / 3, abs=0.01)
    named = recipe_of(text="mine", phases=[Phase(0.5, {"web": 1.0, "yours": 0.0})])
    assert set(tokens_of(pretraining_stream(named, run), range(20, 40))) == {"web"}


def test_a_factor_reads_the_documents_of_a_language_more_often(run):
    """All documents of a source are read as often without factors, so with one as much more often."""
    stream = pretraining_stream(with_factors({"ja": 3.0}), run)
    epochs = stream.part_epoch_at(2000)
    assert list(epochs) == ["web/others", "web/ja", "books"]
    assert epochs["web/ja"] / epochs["web/others"] == pytest.approx(3, rel=0.02)
    one = pretraining_stream(with_factors({"ja": 1.0}), run).part_epoch_at(2000)
    assert one["web/ja"] == pytest.approx(one["web/others"], rel=0.02)
    plain = pretraining_stream(recipe_of(("", "de")), run).epoch_at(2000)
    assert one["books"] == pytest.approx(plain["books"], rel=0.02)


def with_factors(factors, own=("", "de"), **options):
    return dataclasses.replace(recipe_of(own), mixture=MixtureConfig(languages=factors, **options))


def test_documents_of_a_language_are_those_of_the_store(run):
    stream = pretraining_stream(with_factors({"ja": 3.0, "en": 1.0}), run)
    whole = token_store.TokenStore(run / "tokens" / "web" / "train")
    thirds = {}
    for name, part in stream.sources.items():
        if name.startswith("web"):
            ranges = zip(part.lengths.firsts, part.lengths.firsts + part.lengths.counts, strict=True)
            own = np.concatenate([np.arange(first, end) for first, end in ranges])
            thirds[name] = sorted(set(part.identities(own)[0] % 3))
    assert thirds == {"web/others": [2], "web/ja": [0], "web/en": [1]}
    batch = stream.batch_at(3)
    for piece in stream.documents_at(3):
        own = whole if piece.source == "web" else stream.sources[piece.source]
        number = own.find(np.array([piece.document]))[piece.document]
        tokens = own.document(number)[piece.start : piece.start + piece.length]
        assert tokens.tobytes() in batch.inputs[piece.row].tobytes()
        assert int(piece.id, 16) == own.identities(np.array([number]))[1][0]


def test_a_factor_of_0_leaves_a_language_out_and_others_names_the_rest(run):
    stream = pretraining_stream(with_factors({"ja": 1.0, "others": 0.0}), run)
    assert list(stream.packings) == ["web/ja"], "the language of books, de, is one of the others"
    stream = pretraining_stream(with_factors({"ja": 0.0}), run)
    assert list(stream.packings) == ["web/others", "books"]
    # Factors of a phase replace those of the mixture.
    phases = [Phase(0.5, languages={"ja": 0.0})]
    stream = pretraining_stream(with_factors({"ja": 5.0}, phases=phases), run)
    epochs = [stream.part_epoch_at(step)["web/ja"] for step in (0, 20, 40)]
    assert epochs[0] < epochs[1] == epochs[2]


def test_a_source_whose_languages_nobody_knows_and_a_language_of_no_document_are_named(run):
    with pytest.raises(UserError, match=r"mixture.languages: .*books/train does not say .* the source books"):
        pretraining_stream(with_factors({"ja": 2.0}, ("", "")), run)
    with pytest.raises(UserError, match=r"mixture.languages: no training document is in jp; .*datacard.md"):
        pretraining_stream(with_factors({"jp": 2.0, "de": 1.0, "others": 1.0}), run)


def test_epochs_of_a_recipe_bound_each_part(run):
    recipe = recipe_of(steps=400, epochs={"books": 2.0})
    epochs = pretraining_stream(recipe, run).epoch_at(400)
    assert epochs["books"] == pytest.approx(2, rel=0.02) and epochs["web"] > 4


def test_what_will_be_read_is_said_and_what_is_read_too_often(capsys):
    mixture.tell_epochs({"web": 0.5, "books": 5.26})
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "pretrain: times that each source is read: web 0.50, books 5.26"
    assert said[1].startswith("pretrain: books is read 5.3 times: beyond about 4 times") and len(said) == 2
    mixture.tell_epochs({"web": 0.5, "books": 4.0})
    assert len(capsys.readouterr().err.splitlines()) == 1
