"""Show a run while it learns: its report, as a page that grows, at an address of this machine alone.

It reads the files of the run, so it shows any run: one that trains here, on other machines, or on gs://. The losses of
further runs are drawn over those of the first. Ctrl-C ends it; the run does not notice. `tpullm run` starts it by
itself, unless the variable TPULLM_WATCH is off.
"""

import threading

from tpullm.report import watching
from tpullm.system import storage
from tpullm.system.cluster import hosts
from tpullm.system.errors import Interrupted, UserError
from tpullm.system.log import say


def add_arguments(parser) -> None:
    """The options of `tpullm watch`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory; further ones: their losses beside it")
    parser.add_argument("--port", type=int, help=f"the port; default: {watching.PORT}, or one that is free; 0: any")


def main(arguments) -> None:
    """Answer until Ctrl-C."""
    for name in arguments.runs:
        run = storage.path(name)
        if not storage.is_remote(run) and not run.is_dir():
            raise UserError(f"{name}: no such run directory; `tpullm run RECIPE --run {name}` makes one")
    if arguments.port is not None and not 0 <= arguments.port < 1 << 16:
        raise UserError(f"--port: {arguments.port} is not from 0 to 65535; use such a number")
    with watching.listen(arguments.port) as listener:
        server = watching.Server(listener, watching.Pages(arguments.runs))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        say(f"watch: {watching.address(listener)} shows {arguments.runs[0]}, on this machine only; Ctrl-C ends it")
        try:
            hosts.wait_for(threading.Event())
        except KeyboardInterrupt:
            raise Interrupted("watch: stopped; the run goes on") from None
