"""A round: each share does its own items that are missing, and goes on when those of all shares are there."""

import time
from concurrent.futures import ThreadPoolExecutor

from tpullm.cluster import shares
from tpullm.cluster.place import ALONE, Place
from tpullm.cluster.shares import SharedWork
from tpullm.process.rounds import Rounds


def do(folder, place=ALONE, is_finished=lambda: False):
    """What this share did, of ten files whose third is there, and what it asked the size of."""
    folder.mkdir(exist_ok=True)
    (folder / "2").touch()
    done, asked = [], []

    def make(file):
        time.sleep(place.index / 20)  # so that share 0 has to wait
        done.append(int(file.name))
        file.touch()

    files = [folder / str(number) for number in range(10)]
    rounds = Rounds(1, SharedWork(folder.parent, "collect", place), is_finished)
    rounds.do("test", make, files, files, lambda file: asked.append(int(file.name)) or 1, 0)
    assert all(file.exists() for file in files) or is_finished()
    return done, asked


def test_one_process_does_what_is_missing(tmp_path):
    missing = [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert do(tmp_path / "parts") == (missing, missing)
    assert do(tmp_path / "parts") == ([], [])


def test_shares_do_their_own_and_wait_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "SECONDS_BETWEEN_LOOKS", 0.1)
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda index: do(tmp_path / "parts", Place(index, 2)), (0, 1))
    assert one == ([0, 4, 6, 8],) * 2 and other == ([1, 3, 5, 7, 9],) * 2


def test_nothing_is_done_or_waited_for_in_a_finished_stage(tmp_path):
    assert do(tmp_path / "parts", is_finished=lambda: True) == ([], [])
