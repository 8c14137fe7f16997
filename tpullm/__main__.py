"""`python -m tpullm` is `tpullm`."""

import sys

from tpullm.cli.main import entry

sys.exit(entry())
