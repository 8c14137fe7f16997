"""Run the command line as one of several hosts: on host 1 the batch of step 9 never comes."""

import sys
import threading

from tpullm.cli import main
from tpullm.data.stream import Stream
from tpullm.system.cluster import hosts

BATCHES = Stream.batches


def _hanging(self, start, stop, workers):
    for step, batch in enumerate(BATCHES(self, start, stop, workers), start + 1):
        if step == 9 and hosts.index() == 1:
            threading.Event().wait()
        yield batch


if __name__ == "__main__":
    Stream.batches = _hanging
    sys.exit(main.main())
