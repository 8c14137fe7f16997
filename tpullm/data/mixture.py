"""What is read when: the infinite order of the rows of all sources, and the weights of the sources in each phase.

The rows are mixed by the shares of their sources, as grain's `MapDataset.mix` does, and shuffled anew in each epoch.
The row at a place is computed from the place alone, for many places at once. Where a phase begins the shares change,
and every source goes on in its own order where it was. In pretraining, a weight of a source is multiplied by one of a
language.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tpullm.corpus.sources import YOURS
from tpullm.corpus.sources import sources as corpus_sources
from tpullm.data.batch import Documents
from tpullm.data.packing import Packing
from tpullm.data.permutation import hashed, permuted
from tpullm.data.token_store import TokenStore
from tpullm.recipe.schema import Recipe, Source
from tpullm.system.errors import UserError
from tpullm.system.log import say

FINEST = 10**9  # the most that proportions add up to, about: with places below 9e9, their products fit 63 bits


class Order:
    """Which row of which source is read at each place 0, 1, 2, ..."""

    def __init__(
        self,
        rows: Sequence[int],
        shares: Sequence[float],
        seeds: Sequence[int],
        later: Sequence[tuple[int, Sequence[float]]] = (),
    ):
        """Take of each source its number of rows, its share of the rows that are read, and a seed of 32 bits.

        Args:
            later: other shares, each with the place from which they count; places ascend. A share of 0 is not read.
        """
        self._rows, self._seeds = np.array(rows), np.array(seeds)
        self._firsts = np.array([0, *(first for first, _ in later)])
        self._proportions = [_whole_proportions(each) for each in (shares, *(each for _, each in later))]
        self._before = [[0] * len(rows)]  # rows of each source that are read before each phase
        for phase, first in enumerate(self._firsts[1:].tolist()):
            self._before.append(self._counted(phase, first))

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, epoch and row (in the source) at each of `places`; int64 `[places]` each."""
        phases = np.searchsorted(self._firsts, places, side="right") - 1
        sources, numbers = np.zeros((2, len(places)), np.int64)  # of each place, the rows of its source before it
        for phase in np.unique(phases).tolist():
            here = phases == phase
            sources[here], within = _sources_at_places(places[here] - self._firsts[phase], self._proportions[phase])
            numbers[here] = within + np.array(self._before[phase])[sources[here]]
        counts = self._rows[sources]
        epochs, within = np.divmod(numbers, counts)
        return sources, epochs, permuted(within, counts, hashed(epochs, self._seeds[sources]))

    def read_before(self, place: int) -> list[int]:
        """How many rows of each source are read before `place`."""
        return self._counted(int(np.searchsorted(self._firsts, place, side="right")) - 1, place)

    def _counted(self, phase: int, place: int) -> list[int]:
        """`read_before` of a place in a phase, or at its end."""
        here = _rows_of_each_source(place - int(self._firsts[phase]), self._proportions[phase])
        return [before + count for before, count in zip(self._before[phase], here, strict=True)]


def _whole_proportions(shares: Sequence[float]) -> list[int]:
    """Whole numbers in the proportion of the shares, exact to 1 % of the smallest one above 0."""
    finest = min(100 / min(share for share in shares if share > 0), FINEST)
    return [max(int(share * finest), int(share > 0)) for share in shares]


def _sources_at_places(places: np.ndarray, proportions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The source at each place, and how many rows of that source come before the place.

    Of the first n rows the first source has its share, rounded up. The other sources are mixed into the other rows in
    the same way.
    """
    sources, numbers, total = np.full(len(places), -1), places, sum(proportions)
    for source, proportion in enumerate(proportions):
        if not proportion:
            continue
        undecided = sources < 0
        others, others_after = (count * (total - proportion) // total for count in (numbers, numbers + 1))
        here = undecided & (others == others_after)
        sources[here] = source
        numbers = np.where(here, numbers - others, np.where(undecided, others, numbers))
        total -= proportion
    return sources, numbers


def _rows_of_each_source(places: int, proportions: Sequence[int]) -> list[int]:
    """How many of the first `places` places each source has."""
    counts, total = [], sum(proportions)
    for proportion in proportions:
        others = places * (total - proportion) // total if proportion else places
        counts.append(places - others)
        places, total = others, total - proportion
    return counts


OTHERS = "others"  # all languages that have no factor of their own
OFTEN = 4  # epochs; up to about 4, repeated text is worth almost what new text is (Muennighoff et al. 2023)
ROUNDS = 2_000  # of lowering shares; a recipe that needs more asks for all that its sources may give
EXACT = 1e-3  # of the most epochs of a source


@dataclass(frozen=True)
class Schedule:
    """The weights of parts over a training. A part is a source, or its documents in one language.

    Args:
        phases: each with the number of its first batch, which ascend from 0, and a weight for each part: its share of
            the tokens, relative to the others.
        epochs: by part, how often it is read at most in `batches` batches.
        batches: of the training, if there are `epochs`.
    """

    phases: Sequence[tuple[int, Mapping[str, float]]]
    epochs: Mapping[str, float] = field(default_factory=dict)
    batches: int = 0

    def reads(self, part: str) -> bool:
        """Whether a part is ever read."""
        return any(weights.get(part, 0) > 0 for _, weights in self.phases)

    def row_shares(self, packings: Mapping[str, Packing], batch_size: int) -> list[list[float]]:
        """Of each phase, the share that each part has of the rows: a weight is a share of tokens, and rows are mixed.

        Raises:
            UserError: nothing is read in a phase, or the parts would have to be read more often than they may.
        """
        found = []
        for first, weights in self.phases:
            shares = [weights.get(name, 0) / packed.fill for name, packed in packings.items()]
            if not any(shares):
                names = ", ".join(name for name, weight in weights.items() if weight > 0) or "no source"
                raise UserError(
                    f"mixture.phases: from step {first:,} on {names} would be read, which has no training documents; "
                    "give a source that has some a weight"
                )
            total = sum(shares)
            found.append([share / total for share in shares])
        if not self.epochs:
            return found
        firsts = [first for first, _ in self.phases] + [self.batches]
        read = [(after - first) * batch_size for first, after in itertools.pairwise(firsts)]
        most = [self.epochs.get(name, math.inf) * packed.rows for name, packed in packings.items()]
        return _shares_within_most_rows(found, read, most)


def _shares_within_most_rows(shares: list[list[float]], read: list[int], most: list[float]) -> list[list[float]]:
    """Multiply the shares of each part by one factor of at most 1, so that the part gives at most `most` rows.

    Phases read `read` rows. This is UniMax (Chung et al. 2023) for several phases. Sums are rounded once (`fsum`), so
    all machines find the same.
    """
    parts, factors = range(len(most)), [1.0] * len(most)
    for _ in range(ROUNDS):
        scaled = [[share * factor for share, factor in zip(phase, factors, strict=True)] for phase in shares]
        totals = [math.fsum(phase) for phase in scaled]
        if min(totals) < 1e-9:
            break
        scaled = [[share / total for share in phase] for phase, total in zip(scaled, totals, strict=True)]
        given = [math.fsum(rows * phase[part] for rows, phase in zip(read, scaled, strict=True)) for part in parts]
        over = [max(rows / bound, 1.0) for rows, bound in zip(given, most, strict=True)]
        if max(over) <= 1 + EXACT:
            return scaled if min(factors) < 1 else shares
        factors = [factor / each for factor, each in zip(factors, over, strict=True)]
    raise UserError(
        "mixture.epochs: the sources have too little text to train that long within so many epochs; raise them, lower "
        "pretrain.steps, or collect more"
    )


def of_recipe(recipe: Recipe, run: Path) -> tuple[dict[str, Documents], Schedule]:
    """What pretraining reads of RUN/tokens, by part, and when.

    A source is one part. If languages have factors, its documents in each of them are a part of their own,
    `SOURCE/LANGUAGE`.
    """
    phases, sources = _phase_weights(recipe), corpus_sources(recipe)
    named = list(dict.fromkeys(language for _, _, factors in phases for language in factors))
    parts: dict[str, Documents] = {}
    weights: list[dict[str, float]] = [{} for _ in phases]
    epochs, seen = {}, {OTHERS}
    for source in sources:
        if not any(of_source.get(source.name, 0) > 0 for _, of_source, _ in phases):
            continue
        store = TokenStore(run / "tokens" / source.name / "train")
        for part, language, documents, share in _parts_by_language(source, store, named):
            parts[part] = documents
            seen.add(language)
            for (_, of_source, factors), into in zip(phases, weights, strict=True):
                into[part] = of_source.get(source.name, 0) * share * factors.get(language, factors.get(OTHERS, 1))
            if source.name in recipe.mixture.epochs:
                epochs[part] = recipe.mixture.epochs[source.name]
    if missing := [language for language in named if language not in seen]:
        raise UserError(
            f"mixture.languages: no training document is in {', '.join(missing)}; {run / 'documents' / 'datacard.md'} "
            "has the languages that there are"
        )
    firsts = [first for first, _, _ in phases]
    return parts, Schedule(list(zip(firsts, weights, strict=True)), epochs, recipe.pretrain.steps)


def _phase_weights(recipe: Recipe) -> list[tuple[int, dict[str, float], dict[str, float]]]:
    """Of each phase that has a batch, the first one, the weights of sources, and the factors of languages."""
    own = {source.name: source.weight for source in corpus_sources(recipe)}
    found = [(0, own, recipe.mixture.languages)]
    for phase in recipe.mixture.phases:
        weights = dict(phase.weights) or own
        if recipe.text and YOURS not in weights:
            weights[YOURS] = sum(weights.values()) / 2
        found.append((round(phase.start * recipe.pretrain.steps), weights, phase.languages or recipe.mixture.languages))
    after = [first for first, _, _ in found[1:]] + [recipe.pretrain.steps]
    return [phase for phase, end in zip(found, after, strict=True) if phase[0] < end]


def _parts_by_language(
    source: Source, store: TokenStore, named: Sequence[str]
) -> Iterable[tuple[str, str, Documents, float]]:
    """The parts of a source: name, language, documents, and share of its predictions."""
    if not named or source.language:
        return [(source.name, source.language, store, 1.0)]
    found = store.languages()
    if found is None:
        raise UserError(
            f"mixture.languages: {store.path} does not say the languages of its documents; name the `language` of the "
            f"source {source.name}, or remove {store.path.parent.parent} and run `tpullm tokenize` again"
        )
    names, codes = found
    parts = [OTHERS, *(language for language in named if language in names)]
    part_of = np.array([parts.index(name) if name in parts else 0 for name in names] or [0])[codes]
    stores = [store.only(np.flatnonzero(part_of == part)) for part in range(len(parts))]
    return [
        (f"{source.name}/{language}", language, own, own.lengths.total / store.lengths.total)
        for language, own in zip(parts, stores, strict=True)
        if own.lengths.documents and store.lengths.total
    ]


def tell_epochs(epochs: Mapping[str, float]) -> None:
    """Say before pretraining how often each part will be read, and which of them too often."""
    told = ", ".join(f"{part} {often:.2f}" for part, often in epochs.items())
    say(f"pretrain: times that each source is read: {told}")
    if often_read := [f"{part} is read {often:.1f} times" for part, often in epochs.items() if often > OFTEN]:
        say(
            f"pretrain: {', '.join(often_read)}: beyond about {OFTEN} times, text teaches little that is new "
            "(Muennighoff et al. 2023); lower its weight, bound it with mixture.epochs, or collect more"
        )
