"""Check a directory in the format of Hugging Face for faults that load without a word and give wrong text.

Exit code 0: nothing found; 1: warnings; 3: errors.
"""

import json

from tpullm.log import progress, say


def add_arguments(parser) -> None:
    """The options of `tpullm doctor`."""
    parser.add_argument("folder", help="a directory with config.json, weights and a tokenizer")
    parser.add_argument("--json", action="store_true", help="print one JSON value and nothing else")


def main(arguments) -> int:
    """One line for each fault; the exit code says how grave they are."""
    from tpullm import storage
    from tpullm.huggingface import doctor, reading
    from tpullm.training.state import Architecture

    def shapes_of(config):
        architecture = Architecture(config)
        return architecture.shapes, architecture.axes

    folder = storage.local(arguments.folder)
    reading.read_json(folder / "config.json")
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with progress("doctor", size, "bytes") as advance:
        found = list(doctor.examine(folder, shapes_of, advance))
    if arguments.json:
        print(json.dumps([vars(finding) for finding in found], ensure_ascii=False))
    else:
        for finding in sorted(found, key=lambda finding: finding.severity):
            print(f"{finding.severity}: {finding.what}")
        say(f"{folder}: {len(found)} found" if found else f"{folder}: nothing found")
    severities = {finding.severity for finding in found}
    return 3 if "error" in severities else 1 if severities else 0
