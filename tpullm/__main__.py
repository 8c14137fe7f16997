"""`python -m tpullm` is `tpullm`."""

import sys


def entry() -> int:
    """The program `tpullm`. Ctrl-C while its modules are imported ends it without a traceback."""
    try:
        from tpullm.cli import main

        return main.entry()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(entry())
