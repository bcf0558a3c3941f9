"""The errors a user can cause or meet, and the exit codes of the command line.

Every message is one line that names the file or flag and says what to do about it.
"""

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_NOTHING_TO_DO = 3
EXIT_INTERNAL = 70
#: Stopped by a signal with its state saved; the same command goes on (EX_TEMPFAIL of sysexits.h).
EXIT_INTERRUPTED = 75


class MmhError(Exception):
    """Base of all errors with a message meant for the user; ends the command with `exit_code`."""

    exit_code = EXIT_INTERNAL


class UsageError(MmhError):
    """A flag, a path or a dataset as a whole cannot be used: nothing was started."""

    exit_code = EXIT_USAGE


class NothingToDoError(MmhError):
    """The request is fine but selects no image."""

    exit_code = EXIT_NOTHING_TO_DO


class BundleError(UsageError):
    """A model bundle is missing, truncated, altered or of a newer format."""


class ImageError(MmhError):
    """One image (or a node working on it) failed; the other images go on."""

    exit_code = EXIT_SOME_FAILED
