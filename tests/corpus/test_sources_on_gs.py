"""Sources on `gs://` are copied while they are read: the disk never holds more of them than a file for each process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.corpus.test_collect import _story
from tpullm.system import storage

# Small parts, so that worker processes have something to share; the large file is cut.
PROGRAM = """
import sys
from tpullm.cli import main as cli
from tpullm.corpus import collect
from tpullm.corpus.files import source_files
source_files.BUNDLE_BYTES, source_files.RANGE_BYTES, collect.PARALLEL_BYTES = 1, 10_000, 0
if __name__ == "__main__":
    sys.exit(cli.main(["collect", *sys.argv[1:]]))
"""
SMALL, LARGE = 10, 200  # documents in a file
FILES = 11


def bytes_in(folder: Path) -> int:
    """The bytes of all files, while some come and go."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


@pytest.mark.ci  # a whole collect in a process; `system/storage` has the quick tests of brief copies
@pytest.mark.parametrize("workers", [1, 2])
def test_the_cache_holds_one_file_for_each_worker_at_most(bucket, storage_server, tmp_path, workers):
    sizes = []
    for number in range(FILES):
        count = LARGE if number == 5 else SMALL
        texts = [_story(number * 1000 + index) for index in range(count)]
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        storage.write_text(bucket / "in" / f"{number:02}.jsonl", lines)
        sizes.append(len(lines.encode()))
    source = {"name": "s", "kind": "jsonl", "path": f"{bucket}/in", "licence": "CC0-1.0", "language": "ja"}
    corpus = {"sources": [source], "workers": workers, "near_duplicates": False}
    recipe, program = tmp_path / "recipe.yaml", tmp_path / "program.py"
    recipe.write_text(json.dumps({"name": "gs", "corpus": corpus}))
    program.write_text(PROGRAM)
    own = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program), "--config", str(recipe), "--run", str(tmp_path / "run")]
    before, most = len(storage_server.log()), []
    with subprocess.Popen(command, env=os.environ | own, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            time.sleep(0.001)
            most.append(bytes_in(tmp_path / "cache" / "tpullm" / "brief"))
        assert process.returncode == 0, process.stderr.read()
    card = json.loads((tmp_path / "run/documents/datacard.json").read_text(encoding="utf-8"))
    assert card["documents"] == LARGE + (FILES - 1) * SMALL
    assert max(sizes) <= max(most) <= workers * max(sizes)
    assert list((tmp_path / "cache/tpullm/brief").iterdir()) == [], "the last copies go, too"
    fetched = [line for line in storage_server.log()[before:] if "/in%2F05.jsonl?alt=media" in line]
    ranges = len(list((tmp_path / "run/documents/parts").glob("*.json"))) - FILES + 1
    assert ranges > 4 and 1 <= len(fetched) < ranges
    assert len(fetched) == 1 or workers > 1, "two may both be between two parts when one of them needs another file"
