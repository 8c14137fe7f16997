"""What a user did wrong, told in one line."""


class UserError(Exception):
    """A mistake that the user can correct: the message says what, where (file, key, line) and what to do.

    The command line prints it without a traceback and exits with `code`.
    """

    code = 2


TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing was wrong here, the same command may go on


class TryAgain(UserError):
    """Something outside failed for a while, the storage say: the same command may go on later."""

    code = TRY_AGAIN


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived and the work was saved: the command line prints the message and exits with 130."""


class HostFailed(UserError):
    """Another host failed or is gone; the command line ends with its exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
