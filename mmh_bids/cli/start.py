"""How every call of ``mmh`` that writes begins: it says what it is about to do, and what others could not say."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

from mmh_bids.bids.calls import Begun, KilledCall, killed_calls, noted, remove_half_files
from mmh_bids.bids.dataset import ImageStatus, check_output_dir, record_images
from mmh_bids.bids.derivatives import OutputPaths, harmonization_on_disk
from mmh_bids.errors import UsageError
from mmh_bids.files import atomic_write
from mmh_bids.settings import Settings

logger = logging.getLogger("mmh")


@contextlib.contextmanager
def at_work(settings: Settings, images: Iterable[Begun] = (), participants: Iterable[str] = ()) -> Iterator[str]:
    """Note what the call is about to do while the block runs; yield its run id.

    Before the block, settings and log are kept in ``logs/``, and calls that were killed get their rows.

    Raises
    ------
    UsageError
        The output folder cannot be written to, or holds another program's dataset.
    """
    check_output_dir(settings.output_dir)
    with contextlib.ExitStack() as held:
        try:
            settings.output_dir.mkdir(parents=True, exist_ok=True)
            run_id = held.enter_context(noted(settings.output_dir, settings.bids_dir, images, participants))
            keep_records(settings, run_id)
            speak_for_killed_calls(settings)
        except OSError as error:
            raise no_room(settings, error) from None
        yield run_id


def keep_records(settings: Settings, run_id: str) -> None:
    """Write ``logs/config-<run>.toml`` and let what is said from now on go to ``logs/mmh-<run>.log`` too.

    Does nothing where a level before did it: both levels of one call share one log.

    Raises
    ------
    OSError
        The output folder cannot be written to; see `no_room`.
    """
    if any(isinstance(handler, logging.FileHandler) for handler in logger.handlers):
        return
    atomic_write(settings.output_dir / "logs" / f"config-{run_id}.toml", settings.to_toml())
    log = logging.FileHandler(settings.output_dir / "logs" / f"mmh-{run_id}.log", encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(log)


def speak_for_killed_calls(settings: Settings) -> None:
    """Say which calls were killed, clear away their half files, and record what became of their images.

    Images that were finished count as done, the others as failed.
    """
    with killed_calls(settings.output_dir, settings.bids_dir, take=True) as killed:
        for call in killed:
            remove_half_files(settings.output_dir, call)
            statuses = [_status(image, call, settings) for image in call.images]
            record_images(settings, statuses)
            left = [status.run.key for status in statuses if status.status == "failed"]
            if statuses:
                logger.warning(
                    "the call %s (%s) was killed while it worked; %d of its %d image(s) were not finished%s",
                    call.name, call.where, len(left), len(statuses), f": {', '.join(left)}" if left else "",
                )  # fmt: skip
            for status in statuses:
                if status.status == "failed":
                    logger.warning("%s: %s", status.run.key, status.message)


def _status(image: Begun, call: KilledCall, settings: Settings) -> ImageStatus:
    facts = harmonization_on_disk(OutputPaths(settings.output_dir, image.run))
    if facts.get("Fingerprint") == image.fingerprint:
        return ImageStatus(image.run, "done")
    return ImageStatus(image.run, "failed", why_killed(image, call))


def why_killed(image: Begun, call: KilledCall) -> str:
    """One line about an image that a killed call did not finish."""
    ask = f" (sacct -j {call.job} -o State,MaxRSS,Elapsed may tell)" if call.job else ""
    return (
        f"{image.run.path}: not finished, as the call that worked on it ({call.where}) was killed, most likely for "
        f"lack of memory or time{ask}: give the job more, and run the same command again"
    )


def no_room(settings: Settings, error: OSError) -> UsageError:
    """What to say when the output folder cannot be written to at the start."""
    return UsageError(
        f"{settings.output_dir}: cannot be written ({error.strerror or error}); choose another output folder, or "
        "make room and give yourself permission there"
    )
