"""Check a model for silent faults: those that load without an error and give wrong text.

MODEL is a folder in the format of Hugging Face, a GGUF file, or a run, which is checked as `tpullm export` would write
it. Exit code 0: no faults. 1: warnings. 3: errors.
"""

import tempfile
from pathlib import Path

from tpullm.cli.options import add_json, print_json
from tpullm.system.log import one_line, progress, say


def add_arguments(parser) -> None:
    """The options of `tpullm doctor`."""
    parser.add_argument(
        "model",
        help="a folder with config.json, weights and a tokenizer; a GGUF file; a run directory, a stage, a checkpoint",
    )
    add_json(parser)


def main(arguments) -> int:
    """Print one line for each fault. The exit code is that of the gravest."""
    from tpullm.formats import publish
    from tpullm.formats.models import find
    from tpullm.system import storage
    from tpullm.tokenizer.json_files import read_json

    path = storage.path(arguments.model)
    names = ("checkpoints", "pretrain", "base")
    ours = path.parent.name == "checkpoints" or any((path / name).is_dir() for name in names)
    if ours and not (path / "config.json").exists():
        with tempfile.TemporaryDirectory(prefix="tpullm-") as folder:
            publish.write(find(path), Path(folder), path.name)
            return _examine(Path(folder), str(path), arguments.json)
    here = storage.local_copy(path)
    if here.is_file():
        return _examine_file(here, str(path), arguments.json)
    read_json(here / "config.json")
    return _examine(here, str(path), arguments.json)


def _examine(folder: Path, name: str, as_json: bool) -> int:
    from tpullm.formats import doctor
    from tpullm.model.architecture import Architecture

    def shapes_of(config):
        architecture = Architecture(config)
        return architecture.shapes, architecture.axes

    size = sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())
    with progress("doctor", size, "bytes") as advance:
        found = list(doctor.examine(folder, shapes_of, advance))
    return _told(found, name, as_json)


def _examine_file(file: Path, name: str, as_json: bool) -> int:
    from tpullm.formats import doctor
    from tpullm.formats.gguf import writing

    writing.check_installed()
    with progress("doctor", file.stat().st_size, "bytes") as advance:
        return _told(list(doctor.examine_gguf(file, advance)), name, as_json)


def _told(found: list, name: str, as_json: bool) -> int:
    """Print the findings; the exit code is that of the gravest."""
    if as_json:
        print_json([vars(finding) for finding in found])
    else:
        for finding in sorted(found, key=lambda finding: finding.severity):
            print(one_line(f"{finding.severity}: {finding.what}"))
        say(f"{name}: {len(found)} found" if found else f"{name}: nothing found")
    severities = {finding.severity for finding in found}
    return 3 if "error" in severities else 1 if severities else 0
