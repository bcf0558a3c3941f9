"""The command ``mmh``: parse, check, run, and decide the exit code in one place."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

from mmh_bids.bids.mirror_dataset import check_mirror
from mmh_bids.cli.environment import pin_linear_algebra, prepare_environment
from mmh_bids.cli.parser import parse
from mmh_bids.errors import EXIT_INTERNAL, EXIT_OK, EXIT_SOME_FAILED, MmhError, UsageError
from mmh_bids.settings import Settings

logger = logging.getLogger("mmh")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mmh`` and return its exit code; see `mmh_bids.errors` for what each means."""
    pin_linear_algebra()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logger.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a log on a full disk must not bury our message under tracebacks
    listening = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _end_as_interrupted()) if listening else None
    try:
        settings = parse(argv)
        for name in ("mmh", "mmh_bids"):
            logging.getLogger(name).setLevel(logging.DEBUG if settings.verbose else logging.INFO)
        code = _run(settings)
    except MmhError as error:
        logger.error("mmh: %s", error)
        code = error.exit_code
    except KeyboardInterrupt as interrupt:
        logger.error("mmh: interrupted; run the same command again to resume")
        code = 128 + (signal.SIGTERM if interrupt.args else signal.SIGINT)
    except PermissionError as error:
        logger.error("mmh: %s; give the user that mmh runs as permission there, or name another place", _told(error))
        code = UsageError.exit_code
    except OSError as error:
        logger.error("mmh: %s; free space or change the folder, then run the same command again", _told(error))
        code = EXIT_SOME_FAILED
    except Exception:  # noqa: BLE001  (the last resort: a bug of ours must still end with a line and its code)
        logger.error("%s", traceback.format_exc())
        logger.error("mmh: internal error; please report the lines above")
        code = EXIT_INTERNAL
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    logger.info("mmh: ends with exit code %d (%s)", code, _MEANING.get(code, "interrupted"))
    for handler in list(logger.handlers):  # the log file of this call
        logger.removeHandler(handler)
        handler.close()
    return code


def _told(error: OSError) -> str:
    """Which file, and what the system says of it."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _end_as_interrupted() -> Callable[..., None]:
    """A handler of SIGTERM that ends the call as Ctrl-C does: without one, worker processes would be left behind."""
    caller = os.getpid()

    def handler(number: int, _frame: object) -> None:
        if os.getpid() != caller:
            os._exit(128 + number)  # a worker, forked with this handler: the caller cleans up after it
        # a batch system sends it to the job's shell and its children, and the shell hands it on: once is enough
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    return handler


_MEANING = {
    EXIT_OK: "all done",
    EXIT_SOME_FAILED: "some image or report failed",
    2: "wrong usage",
    3: "nothing to do",
    EXIT_INTERNAL: "internal error",
}


def _run(settings: Settings) -> int:
    check_folders(settings)
    prepare_environment(settings.work_dir, settings.omp_nthreads)
    code = EXIT_OK
    if "participant" in settings.analysis_level:
        from mmh_bids.cli.participant import run_participants

        code = run_participants(settings)
        if code not in (EXIT_OK, EXIT_SOME_FAILED) or settings.dry_run or settings.boilerplate_only:
            return code
    if "group" in settings.analysis_level:
        from mmh_bids.cli.group import run_group

        code = max(code, run_group(settings))
    return code


def check_folders(settings: Settings) -> None:
    """Raise UsageError if the dataset is not there, or something would be written into it.

    ``BIDS_DIR/derivatives/NAME`` is where BIDS wants derivatives, so outputs may go there; nothing else may.
    """
    root, out, work = (path.resolve() for path in (settings.bids_dir, settings.output_dir, settings.work_dir))
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "does not exist"
        raise UsageError(f"{settings.bids_dir}: {what}; give the root of a BIDS dataset as first argument")
    inside = root == out or root in out.parents
    if inside and not (out != root / "derivatives" and root / "derivatives" in out.parents):
        raise UsageError(
            f"{settings.output_dir}: lies inside the dataset; choose a folder outside, or "
            f"{root / 'derivatives' / 'mmh'}"
        )
    if root == work or root in work.parents:
        raise UsageError(f"--work-dir {settings.work_dir}: lies inside the dataset; choose a folder outside")
    if out == work:
        raise UsageError(f"--work-dir {settings.work_dir}: is the output folder; choose another")
    check_mirror(settings)


if __name__ == "__main__":
    sys.exit(main())
