"""Medicine: phenotypes (the Human Phenotype Ontology) and diagnoses (ICD-10-CM), one file of data each."""

from collections.abc import Iterator
from pathlib import Path

from tpullm.corpus.document import Raw
from tpullm.corpus.domains import diagnoses, phenotypes
from tpullm.corpus.question import Question

PARTS = {"hpo": phenotypes, "icd10": diagnoses}
PACKAGES = {part: (module.PACKAGE,) for part, module in PARTS.items()} | {
    "": tuple(module.PACKAGE for module in PARTS.values())
}


def documents(path: Path) -> Iterator[Raw]:
    """The documents of one of the two files."""
    return (phenotypes if path.suffix == ".obo" else diagnoses).documents(path)


def questions() -> list[Question]:
    """Every question, in a fixed order: those about phenotypes, then those about diagnoses."""
    found = []
    for module in PARTS.values():
        [path] = module.PACKAGE.files()
        found += module.questions_about(module.read(path))
    return found
