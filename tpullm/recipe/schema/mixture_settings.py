"""Settings of what pretraining reads when, beyond the weights of the sources."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Phase:
    """Other weights from some step of pretraining on.

    Args:
        start: where it begins, as a share of the steps of pretraining. 0.8 begins after 80 % of them. 0 replaces the
            weights of the sources from the first step on, and leaves the tokenizer as it is.
        weights: by source, its share of the training tokens in this phase. A source that is not named is not read.
            Your own text (`yours`), if it is not named, has half the weight of all others. Empty keeps the weights of
            the sources.
        languages: factors of languages in this phase, in place of those of `mixture`. Empty keeps those.
    """

    start: float
    weights: dict[str, float] = field(default_factory=dict)
    languages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MixtureConfig:
    """How pretraining mixes the sources, beyond their weights.

    Args:
        languages: factors of the weights of languages, such as `{ja: 2}`. Then a Japanese document is read twice as
            often, compared with the others, as without. `others` is all languages that are not named; else their factor
            is 1. 0 leaves a language out. The language is that of the source, or that of the document if the source
            names none.
        epochs: by source, how often it is read at most, such as `{books: 4}`. If its weight asks for more, it gets
            less, and the other sources get the rest by their weights.
        phases: other weights from some step on, such as for the end of a training. Each has the keys of
            mixture.phases.
    """

    languages: dict[str, float] = field(default_factory=dict)
    epochs: dict[str, float] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
