"""The answers of a model, each kept at once, so that an evaluation that was killed can resume.

`answers.jsonl` grows by a line for each answer: the key of its request, and the answer. A line that was cut off is not
read. On `gs://` the file is sent every few seconds (`storage/mirror.py`).
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpullm import storage
from tpullm.cluster import hosts
from tpullm.errors import UserError
from tpullm.storage.mirror import mirrored

FILE = "answers.jsonl"
AT_A_TIME = 100  # answers in a message between hosts, which are of bounded length


def key_of(parameters: str, request: Sequence[Any]) -> str:
    """The key of a request (JSON) to a model of the hash `parameters`: all that the answer depends on."""
    return hashlib.sha256(json.dumps([parameters, *request]).encode()).hexdigest()[:32]


class KeptAnswers:
    """The answers in a folder. Host 0 reads and writes them; `found` tells all hosts."""

    def __init__(self, folder: Path):
        self._answers: dict[str, Any] = {}
        self._file = None
        if hosts.is_first():
            self._open(folder)

    def _open(self, folder: Path) -> None:
        storage.check_writable(folder)
        self._grows = mirrored(folder)
        file = self._grows.folder / FILE
        if storage.is_remote(folder) and (folder / FILE).exists():
            file.write_bytes((folder / FILE).read_bytes())
        if file.exists():
            text = file.read_bytes()
            self._answers = dict(_lines(text, folder / FILE))
            if text and not text.endswith(b"\n"):  # cut off in the middle of a line
                file.write_bytes(text[: text.rfind(b"\n") + 1])
        self._file = open(file, "ab", buffering=0)

    def found(self, keys: Sequence[str]) -> list[Any]:
        """The answer of each key, None where there is none; on all hosts the same."""
        found: list[Any] = []
        for first in range(0, len(keys), AT_A_TIME):
            part = keys[first : first + AT_A_TIME]
            found += hosts.broadcast("kept answers", lambda part=part: [self._answers.get(key) for key in part])
        return found

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep answers (JSON) by their keys."""
        if self._file:
            self._answers |= answers
            lines = [json.dumps({"key": key, "answer": answer}) + "\n" for key, answer in answers.items()]
            storage.append(self._file, "".join(lines).encode())
            self._grows.changed()

    def close(self) -> None:
        """All that was added is written."""
        if self._file:
            self._file.close()
            self._grows.close()
            self._file = None


def _lines(text: bytes, where: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = json.loads(line)
            yield str(found["key"]), found["answer"]
            continue
        raise UserError(f"{where}: line {number}: is not an answer; remove the file, and all is asked again")
