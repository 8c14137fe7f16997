"""What is decided of the parts before documents are compared: limits, and what is held out."""

import dataclasses

import numpy as np

from tpullm.corpus import reduce, tasks
from tpullm.corpus.document_files import APART, BEYOND, USED, Part
from tpullm.corpus.tasks import Task
from tpullm.recipe.schema import CorpusConfig, Source

SOURCE = Source("s", "text", licence="CC0-1.0")
CONFIG = CorpusConfig(held_out_fraction=0.1)
LOW, HIGH = 100, 1 << 63  # below and above a tenth of 2^64


def placed(monkeypatch, parts, config=CONFIG):
    """The places and marks of parts, each (source, ids, names of those that the recipe holds out)."""
    facts, done = {}, []
    for number, (source, ids, named) in enumerate(parts):
        part = Part("documents", str(number), source.name, source.licence)
        ids, held_out = np.array(ids, np.uint64), np.isin(np.arange(len(ids)), named)
        facts[part.key] = (ids, held_out)
        done.append(Task(part, source, (), 0, config, 0))

    def summary(task):
        ids, held_out = facts[task.part.key]
        free = [(int(ids[row]), row) for row in np.flatnonzero(~held_out).tolist()]
        return {"documents": len(ids), "lines": 0, "held_out": int(held_out.sum()), "lowest": min(free, default=None)}

    monkeypatch.setattr(tasks, "part_summary", summary)
    monkeypatch.setattr(tasks, "arrays_of_part", lambda part, *names: facts[part.key])
    sources = list({source.name: source for source, *_ in parts}.values())
    found = reduce.placed_parts(sources, done, config)
    return found, [one.marks(*facts[one.part.key]).tolist() for one in found]


def test_a_source_of_twenty_documents_is_held_out_by_hash_and_one_of_fewer_is_left_to_be_cut(monkeypatch):
    ids = [LOW, HIGH] * 5
    twenty, nineteen = dataclasses.replace(SOURCE, name="a"), dataclasses.replace(SOURCE, name="b")
    parts = [(twenty, ids, []), (twenty, ids, []), (nineteen, ids, []), (nineteen, ids[:9], [])]
    found, marks = placed(monkeypatch, parts)
    assert [one.few for one in found] == [False, False, True, True]
    starts = [("a", 0, 10), ("a", 10, 10), ("b", 20, 10), ("b", 30, 9)]  # numbered through all sources
    assert [(one.source.name, one.start, one.documents) for one in found] == starts
    assert marks[:2] == [[APART, USED] * 5] * 2 and marks[2:] == [[USED] * 10, [USED] * 9]


def test_where_the_fraction_catches_none_the_lowest_hash_is_held_out(monkeypatch):
    ids = [HIGH + 9] * 15
    found, marks = placed(monkeypatch, [(SOURCE, ids, []), (SOURCE, [*ids[:6], HIGH, *ids], [])])
    assert marks == [[USED] * 15, [USED] * 6 + [APART] + [USED] * 15]
    config = dataclasses.replace(CONFIG, held_out_fraction=0.0)
    found, marks = placed(monkeypatch, [(SOURCE, ids, []), (SOURCE, ids, [])], config)
    assert marks == [[USED] * 15] * 2 and not any(one.few for one in found)


def test_the_first_documents_are_taken_and_what_the_recipe_holds_out_does_not_count(monkeypatch):
    source = dataclasses.replace(SOURCE, documents=22, held_out="b")
    _, marks = placed(monkeypatch, [(source, [LOW] * 15, [0, 1, 2]), (source, [LOW] * 15, [14])])
    assert marks == [[APART] * 3 + [USED] * 12, [USED] * 10 + [BEYOND] * 4 + [APART]]
    # The lowest hash is that of a document within the limit.
    source = dataclasses.replace(SOURCE, documents=25)
    ids = [HIGH + number for number in range(20, 0, -1)]
    found, marks = placed(monkeypatch, [(source, ids, []), (source, ids, [])])
    assert marks == [[USED] * 19 + [APART], [USED] * 5 + [BEYOND] * 15]
    _, marks = placed(monkeypatch, [(source, [HIGH + 99] * 20, []), (source, ids, []), (source, [LOW], [])])
    assert marks == [[USED] * 20, [USED] * 4 + [APART] + [BEYOND] * 15, [BEYOND]]
