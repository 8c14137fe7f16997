"""A MODEL that is named as on the Hugging Face hub: the command that downloads it, or its download.

Only weights in safetensors, one GGUF file, JSON and chat templates are downloaded: no pickles and no code.
"""

import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tpullm.system import storage
from tpullm.system.errors import UserError
from tpullm.system.log import one_line, say

_NAME = re.compile(
    r"(?P<host>(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)?"
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[\w.-]+)(?:/(?P<file>[\w.-]+\.gguf))?)?/?"
    r"(?::(?P<tag>[\w.-]+))?(?:\?.*)?"
)
_OF_FOLDER = ("*.safetensors", "*.json", "*.jinja")
_OURS = ("models", "runs")  # folders that the documentation uses: below them, a name is a path that is wrong


@dataclass(frozen=True)
class OnHub:
    """What a name means: a repository, its revision ("" is the newest), and a GGUF file or the type of one, or ""."""

    repository: str
    revision: str
    file: str

    @property
    def folder(self) -> Path:
        """Where it is downloaded to."""
        return Path("models") / self.repository

    @property
    def patterns(self) -> tuple[str, ...]:
        """Its files. A type (`Q4_K_M`) is a part of a file's name, written large or small."""
        kinds = (f"*{of}.gguf" for of in dict.fromkeys((self.file, self.file.upper(), self.file.lower())))
        return _OF_FOLDER if not self.file else (self.file,) if self.file.endswith(".gguf") else tuple(kinds)

    @property
    def path(self) -> Path:
        """The MODEL that its download makes: a folder, or a file in it."""
        return self.folder / self.file if self.file.endswith(".gguf") else self.folder

    def chosen(self, names: list[str]) -> list[str]:
        """Those of some files that are meant."""
        return [name for name in names if any(fnmatch(name, pattern) for pattern in self.patterns)]

    def downloaded(self) -> Path | None:
        """The MODEL that is there, if its download is complete and no revision is asked for: no file of it says one."""
        from tpullm.formats.huggingface.reading import WeightFiles

        folder = storage.path(self.folder)
        if self.revision not in ("", "main") or not folder.is_dir():
            return None
        names = self.chosen([path.name for path in folder.iterdir() if path.is_file()])
        if self.file:
            return self.folder / names[0] if len(names) == 1 else None
        if not {"config.json", "tokenizer.json"} <= set(names):
            return None
        with suppress(UserError), WeightFiles(folder):  # finds all files of the index
            return self.folder
        return None


def named(word: str) -> OnHub | None:
    """What a MODEL means on the hub; None if it is a path. A name without the hub's address is one if no path is."""
    found = _NAME.fullmatch(word)
    if not found or not found["host"] and (Path(word).exists() or Path(word.split("/")[0]).is_dir()):
        return None
    if not found["host"] and word.startswith(tuple(f"{folder}/" for folder in _OURS)):
        return None
    return OnHub(found["name"], found["revision"] or "", found["file"] or found["tag"] or "")


def located(word: str, downloads: bool = False, command: list[str] | None = None) -> str:
    """The path of a MODEL: itself, or where a model of the hub is downloaded to.

    Args:
        downloads: it may be downloaded; if not, a complete download is used as it is.
        command: the command line that has the word, for the error.

    Raises:
        UserError: it is a model of the hub, and not to be downloaded, or that failed.
    """
    if (found := named(word)) is None:
        return word
    if downloads:
        return str(_downloaded(found))
    if there := found.downloaded():
        return str(there)
    includes = "".join(f" --include {shlex.quote(pattern)}" for pattern in found.patterns)
    revision = f" --revision {found.revision}" if found.revision else ""
    then = ["tpullm", *(str(found.path) if part == word else part for part in command)] if command else []
    raise UserError(
        f"{word}: no such path; if it is a model of the Hugging Face hub: hf download {found.repository}{revision} "
        f"--local-dir {found.folder}{includes}" + (f", then {shlex.join(then)}; or add --download" if then else "")
    )


def _downloaded(found: OnHub) -> Path:
    """Download what is not there yet. Each file appears as a whole; the next call resumes what was interrupted."""
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    revision, wanted = found.revision or None, list(found.patterns)
    lists = f"https://huggingface.co/{found.repository}/tree/{found.revision or 'main'} lists its files"
    try:
        if found.file:  # a type may mean several files, of many GB each
            names = list_repo_files(found.repository, revision=revision)
            wanted = found.chosen([name for name in names if "/" not in name])
            if len(wanted) != 1:
                raise UserError(f"{found.repository}: {len(wanted)} of its files are {found.file}; name one, {lists}")
        say(f"download: {found.repository} to {found.folder}")
        options = {"local_dir": found.folder, "allow_patterns": wanted, "ignore_patterns": ["*/*"]}
        snapshot_download(found.repository, revision=revision, **options)
    except RepositoryNotFoundError:
        raise UserError(
            f"--download {found.repository}: the hub shows no such model; correct the name, or if it is private or "
            "gated, ask for access on its page and run `hf auth login`"
        ) from None
    except (*HfHubHTTPError.__bases__, ValueError) as error:  # any error of HTTP, or of the system
        cause = error.__cause__ or error if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(cause, HfHubHTTPError | ValueError) or isinstance(error, OSError) and error is cause:
            raise UserError(f"--download {found.repository}: {one_line(str(cause), 300)}") from None
        raise UserError(
            f"--download {found.repository}: the Hugging Face hub can't be reached; check the network (behind a proxy, "
            "set HTTPS_PROXY), and run the same command again"
        ) from None
    if found.file:
        return found.folder / wanted[0]
    if not any(path.suffix == ".safetensors" for path in storage.path(found.folder).iterdir()):
        raise UserError(f"{found.repository}: has no safetensors; for a GGUF file, add :FILE.gguf ({lists})")
    return found.folder
