"""The proof of a recipe: its very step, compiled for a slice that is not here, and what the compiler says of it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tpullm.config import Recipe
from tpullm.topology import Topology


@dataclass(frozen=True)
class Traffic:
    """What one kind of collective moves in a step, on one device.

    Args:
        axes: the mesh axes that its devices differ in, such as `fsdp` or `fsdp+tensor`; `slices` is the data center's
            network.
        kind: one of `hlo.KINDS`.
        bytes: of all that come out of it.
        seconds: of the links.
        exposed_seconds: of these, in which the device does nothing else.
    """

    axes: str
    kind: str
    bytes: int
    seconds: float
    exposed_seconds: float


@dataclass(frozen=True)
class Finding:
    """Something in the program that should be otherwise.

    Args:
        kind: a short name of what it is: a key of `findings.KINDS`.
        text: one sentence: what, how much, where, what to do.
        place: in our code, as the traced function names it.
        bytes: that it concerns in a step, on one device.
        seconds: that it costs in a step; 0 where only memory is concerned.
    """

    kind: str
    text: str
    place: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Proof:
    """What the compiler says of a recipe's step. Plain values only: `to_json` and `from_json` are each other's inverse.

    Args:
        recipe: its name.
        topology: as `str(Topology)`.
        mesh: devices along each axis.
        program: hash of the program before it is compiled; two recipes of one hash are one program.
        versions: of `jax` and `libtpu`.
        date: of the compilation, ISO 8601.
        refused: why the compiler gave no program, in one line that says which key to change; then all below is 0 but
            `peak_bytes`, where the compiler said what it would need. Empty if there is a program.
        limit_bytes: memory of one device that a program may use.
        peak_bytes: most that is held at once.
        state_bytes: of these, parameters and what the optimizer keeps.
        tokens: of one step, all devices together.
        step_seconds: predicted.
        seconds: the same by part (`attention`, `feed-forward`, `loss`, `optimizer`, ..., `waiting` for collectives).
        traffic: collectives, those that cost most first.
        findings: what should be otherwise, what costs most first.
        compile_seconds: that the compilation took.
    """

    recipe: str
    topology: str
    mesh: dict[str, int]
    program: str
    versions: dict[str, str]
    date: str
    refused: str
    limit_bytes: int
    peak_bytes: int
    state_bytes: int
    tokens: int
    step_seconds: float
    seconds: dict[str, float]
    traffic: tuple[Traffic, ...]
    findings: tuple[Finding, ...]
    compile_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Dicts, lists, strings and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Proof":
        """What `to_json` gave, after a way through JSON."""
        lists = {
            "traffic": tuple(Traffic(**one) for one in fields["traffic"]),
            "findings": tuple(Finding(**one) for one in fields["findings"]),
        }
        return cls(**dict(fields) | lists)


def prove(recipe: Recipe, topology: Topology, tell: Callable[[str], None] = lambda line: None) -> Proof:
    """Compile the step of a recipe for a topology, in a process of its own, or find that it was.

    Args:
        recipe: its `mesh`, `model` and `pretrain` are used; its own `topology` is not.
        tell: is given a line for people when a compilation begins, and with its seconds when it ends.

    Raises:
        UserError: the TPU compiler is missing, or the compilation was killed for want of memory.
    """
    raise NotImplementedError
