"""Check a model for silent faults: those that load without an error and give wrong text.

MODEL is a folder in the format of Hugging Face, a GGUF file, or a run, which is checked as `tpullm export` would write
it. Exit code 0: no faults. 1: warnings. 3: errors.
"""

import contextlib
import tempfile
from pathlib import Path

from tpullm.cli.options import add_json, add_model, print_json
from tpullm.system.language import spoken
from tpullm.system.log import one_line, progress, say


def add_arguments(parser) -> None:
    """The options of `tpullm doctor`."""
    add_model(parser)
    add_json(parser)


def main(arguments) -> int:
    """Print one line for each fault. The exit code is that of the gravest."""
    from tpullm.formats import doctor, publish
    from tpullm.formats.gguf.reading import check_installed
    from tpullm.formats.models import find
    from tpullm.model.architecture import Architecture
    from tpullm.system import storage
    from tpullm.tokenizer.json_files import read_json

    def shapes_of(config):
        architecture = Architecture(config)
        return architecture.shapes, architecture.axes

    path = storage.path(arguments.model)
    names = ("checkpoints", "pretrain", "base")
    ours = path.parent.name == "checkpoints" or any((path / name).is_dir() for name in names)
    with contextlib.ExitStack() as closing:
        if ours and not (path / "config.json").exists():
            here = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="tpullm-")))
            publish.write(find(path), here, path.name)
        elif (here := storage.local_copy(path)).is_file():
            check_installed()
        else:
            read_json(here / "config.json")
        files = [here] if here.is_file() else [file for file in here.glob("*.safetensors") if file.is_file()]
        advance = closing.enter_context(progress("doctor", sum(file.stat().st_size for file in files), "bytes"))
        found = list(doctor.examine(here, shapes_of, advance))
    if arguments.json:
        print_json([vars(finding) for finding in found])
    else:
        for finding in sorted(found, key=lambda finding: finding.severity):
            print(one_line(f"{spoken(finding.severity)}: {spoken(finding.what)}"))
        say(f"{path}: {len(found)} found" if found else f"{path}: nothing found")
    severities = {finding.severity for finding in found}
    return 3 if "error" in severities else 1 if severities else 0
