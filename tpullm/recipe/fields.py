"""What a field of `schema/` declares beside its type and its default: a range, and what another value changes.

A range is part of the type. pydantic checks it when a recipe is read (`parsing.py`), and nothing checks it when code
makes a settings object. What a value changes decides which stages are made again, which trainings resume, what an
export keeps, and what the reference and `plan` say. A key that declares nothing changes the result.
"""

import dataclasses
import math
from enum import Enum
from typing import Annotated, Any

from annotated_types import Ge, Interval

NonNegativeInt = Annotated[int, Ge(0)]
PositiveInt = Annotated[int, Ge(1)]
NonNegativeFloat = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Ge(1e-9)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Factor = Annotated[float, Interval(ge=0, lt=math.inf)]  # of a weight
Temperature = Annotated[float, Interval(ge=0.01, le=100)]


class Changes(Enum):
    """What another value of a key changes. Its value is the word in the reference.

    RESULT: the numbers of the stage, which is made again.
    TRAINING: of a model, the numbers of its training, which is made again; not what the model computes.
    ROUNDING: the order of sums. A training resumes, and its result is equal up to rounding.
    SKIPPED: which steps are skipped. A training resumes, and judges the steps to come by it.
    LENGTH: how far a training goes. It resumes (`training/resume.py` says from where).
    NOTHING: not one bit of the result. A training resumes.
    """

    RESULT = "again"
    TRAINING = "again (training)"
    ROUNDING = "roundings"
    SKIPPED = "skipped steps"
    LENGTH = "length"
    NOTHING = "same bits"

    @property
    def resumes(self) -> bool:
        """Whether a stage that is under way, or finished, stands with another value."""
        return self not in (Changes.RESULT, Changes.TRAINING)


def changing(what: Changes, default: Any = dataclasses.MISSING, factory: Any = dataclasses.MISSING) -> Any:
    """A field of a settings dataclass, with what its key changes."""
    return dataclasses.field(default=default, default_factory=factory, metadata={"changes": what})


def later(default: Any) -> Any:
    """A field that came after others: while it has this value, what stages are known by is what it was without it."""
    return dataclasses.field(default=default, metadata={"later": True})


def declared_change(field: dataclasses.Field) -> Changes:
    """What the key of a field changes."""
    return field.metadata.get("changes", Changes.RESULT)


def part(config: Any, *which: Changes) -> dict[str, Any]:
    """The keys of a settings dataclass and its nested dataclasses that change one of `which`; as plain values.

    A field that holds settings and declares something declares it for all keys in it.
    """
    found = {}
    for field in dataclasses.fields(config):
        value, own = getattr(config, field.name), declared_change(field)
        if field.metadata.get("later") and value == field.default:
            continue
        if dataclasses.is_dataclass(value) and own is Changes.RESULT:
            if inner := part(value, *which):
                found[field.name] = inner
        elif own in which:
            found[field.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return found


def result(config: Any) -> dict[str, Any]:
    """The keys that decide the numbers of a stage: what its identity is made of."""
    return part(config, Changes.RESULT, Changes.TRAINING)
