"""`python -m tpullm` is `tpullm`."""

import sys

from tpullm.cli import entry

sys.exit(entry())
