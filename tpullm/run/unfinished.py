"""The parts of an unfinished stage, in `RUN/.VERB/KEY`: KEY is the hash of all that the parts depend on."""

from pathlib import Path
from typing import Any

from tpullm.system import errors, storage
from tpullm.system.errors import UnfitNode, UserError


class Unfinished:
    """The folder of a verb's unfinished work. A context manager.

    Nothing is left after success, nor after a user error, but for a node that is unfit. After that and any other
    exception, such as a full disk, the finished parts stay.

    Args:
        run: the run directory.
        verb: `collect` or `tokenize`.
    """

    def __init__(self, run: Path, verb: str):
        self._folder = run / f".{verb}"

    def __enter__(self) -> "Unfinished":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        told = errors.correctable(error) if error else None
        if not error or told and isinstance(error, UserError) and not isinstance(error, UnfitNode):
            return storage.remove_tree(self._folder)
        if told:
            for name in storage.names(self._folder):
                storage.remove_partials(self._folder / name)

    def folder(self, inputs: dict[str, Any]) -> Path:
        """The folder for parts made from these inputs; parts made from other inputs are removed."""
        folder = self._folder / storage.hash_json(inputs)[:16]
        for name in storage.names(self._folder) - {folder.name}:
            storage.remove_tree(self._folder / name)
        return folder
