"""`python -m tpullm` is `tpullm`."""

import sys


def entry() -> int:
    """The program `tpullm`. Ctrl-C while its modules are imported ends it without a traceback."""
    try:
        from tpullm.cli.verb_table import VERBS
        from tpullm.system.process import allocator

        verb = VERBS.get(sys.argv[1] if len(sys.argv) > 1 else "")
        if verb and verb.computes:  # before all else is imported, which would be imported again
            allocator.start_again()
        from tpullm.cli import main

        return main.entry()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(entry())
