"""`python -m tpullm` is `tpullm`."""

import sys

from tpullm.cli import main

sys.exit(main())
