"""Calls of ``mmh`` that share an output folder: who works on what, and which of them were killed.

A call notes the images it is about to make in ``logs/calls/<run>.json``, and holds the lock beside that note as long as
it lives. At its end it takes the note away. So a note whose lock nobody holds is that of a call that was killed
(``kill -9``, a memory limit, a node that went down) and could not say so itself: the next one says it.

While it works on a session it holds the session's lock, in the output folder and in the work directory: two calls that
are asked for the same session work on it in turn, and the second finds it done.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmh_bids.bids.derivatives import plain
from mmh_bids.bids.run import Run
from mmh_bids.files import CALL_VARIABLE, remove_temporary
from mmh_bids.machine import available_gb, slurm_job

logger = logging.getLogger("mmh")

#: How often a call that waits for another looks again, seconds.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Begun:
    """An image that a call is about to make, and the hash of all that decides its outputs."""

    run: Run
    fingerprint: str


@dataclass(frozen=True)
class KilledCall:
    """A call that was killed.

    Attributes
    ----------
    name
        Its run id.
    token
        Part of the names of its temporary files.
    where
        Host, Slurm job and memory, for people.
    job
        Number of the Slurm job, or nothing.
    participants
        Labels of those whose folders it may have written to.
    images
        Those it was to make.
    """

    name: str
    token: str
    where: str
    job: str
    participants: tuple[str, ...]
    images: tuple[Begun, ...]


def calls_dir(output_dir: Path) -> Path:
    """Where the notes are."""
    return output_dir / "logs" / "calls"


@contextlib.contextmanager
def noted(
    output_dir: Path, bids_dir: Path, images: Iterable[Begun] = (), participants: Iterable[str] = ()
) -> Iterator[str]:
    """Let others know, while the block runs, that this call is to make `images`; yield its run id, no other call's.

    The run id is the time; of two calls of an array that begin in the same tenth of a millisecond one takes a later.

    Parameters
    ----------
    participants
        Labels of those whose folders the call may write to.
    """
    from filelock import FileLock

    folder = calls_dir(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    run_id = _reserve(folder)
    os.environ[CALL_VARIABLE] = secrets.token_hex(4)
    content = {
        "token": os.environ[CALL_VARIABLE],
        "host": platform.node(),
        "job": slurm_job(),
        "memory_gb": available_gb(),
        "participants": sorted(set(participants)),
        "images": [_of_image(image, bids_dir) for image in images],
    }
    note, lock = folder / f"{run_id}.json", FileLock(folder / f"{run_id}.lock")
    with lock:
        # not by a temporary file, which would stay if this were the moment: nobody reads it while the lock is held
        note.write_text(json.dumps(plain(content), indent=1) + "\n", encoding="utf-8")
        try:
            yield run_id
        finally:
            note.unlink(missing_ok=True)
            Path(lock.lock_file).unlink(missing_ok=True)


def _reserve(folder: Path) -> str:
    """A run id of which there is no lock file in `folder` yet; there is one now."""
    while True:
        run_id = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S-%f")[:-2]
        with contextlib.suppress(FileExistsError):
            if not (folder.parent / f"config-{run_id}.toml").exists():
                os.close(os.open(folder / f"{run_id}.lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                return run_id
        time.sleep(0.0001)


@contextlib.contextmanager
def killed_calls(output_dir: Path, bids_dir: Path, *, take: bool) -> Iterator[list[KilledCall]]:
    """The calls that were killed; with `take` their notes are gone when the block ends well.

    Whoever takes them has them alone: another call that looks meanwhile finds none.
    """
    from filelock import FileLock, Timeout

    found: list[KilledCall] = []
    over = []
    with contextlib.ExitStack() as held:
        for file in sorted(calls_dir(output_dir).glob("*.lock")):
            try:
                held.enter_context(FileLock(file, timeout=0))
            except Timeout:
                continue  # at work
            over.append(file)
            call = _read(file.with_suffix(".json"), bids_dir)
            if call is not None:  # else it was killed before it had begun anything
                found.append(call)
        yield found
        for file in over if take else ():
            file.with_suffix(".json").unlink(missing_ok=True)
            file.unlink(missing_ok=True)


def remove_half_files(output_dir: Path, call: KilledCall) -> None:
    """Remove the half files that a killed call left in the output folder."""
    for participant in call.participants:
        for name, _, _ in os.walk(output_dir / f"sub-{participant}"):
            remove_temporary(Path(name), call.token)
    for folder in (output_dir, output_dir / "logs", calls_dir(output_dir)):
        remove_temporary(folder, call.token)


@contextlib.contextmanager
def sessions_locked(folders: Sequence[Path], runs: Iterable[Run]) -> Iterator[None]:
    """Hold the locks of the runs' sessions in each of `folders`; wait for calls that hold them.

    All calls take the locks in one order, so that no two wait for each other.
    """
    with contextlib.ExitStack() as held:
        for name in sorted({_session(run) for run in runs}):
            for folder in folders:
                held.enter_context(locked(folder / f"{name}.lock", say=name))
        yield


@contextlib.contextmanager
def locked(path: Path, say: str = "") -> Iterator[None]:
    """Hold the lock `path`, of which nothing stays; with `say`, waiting for another call's is told."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if say:
            logger.info("%s: another call works on it; waiting (%s)", say, path)
        lock.acquire(poll_interval=_LOOK_SECONDS)
    try:
        yield
    finally:
        # while it is held: filelock sees that what it waited for is gone, and makes it anew
        path.unlink(missing_ok=True)
        lock.release()


def _session(run: Run) -> str:
    """Name of the run's session: what one image borrows from another never leaves it.

    >>> _session(Run(Path("a"), "T1w", {"sub": "01", "ses": "A", "run": "1"}))
    'sub-01_ses-A'
    """
    return f"sub-{run.participant}" + (f"_ses-{run.session}" if run.session else "")


def _of_image(image: Begun, bids_dir: Path) -> dict[str, Any]:
    run = image.run
    return {
        "image": Path(os.path.relpath(run.path, bids_dir)).as_posix(),
        "sequence": run.sequence,
        "entities": dict(run.entities),
        "site": run.site,
        "site_source": run.site_source,
        "fingerprint": image.fingerprint,
    }


def _read(note: Path, bids_dir: Path) -> KilledCall | None:
    """What a note says; None if there is none (its call ended just now) or only half of one."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        images = tuple(
            Begun(
                Run(
                    bids_dir / row["image"], row["sequence"], dict(row["entities"]), {}, row["site"],
                    str(row["site_source"]),
                ),
                str(row["fingerprint"]),
            )
            for row in content["images"]
        )  # fmt: skip
        participants = tuple(map(str, content["participants"]))
        return KilledCall(note.stem, str(content["token"]), _where(content), str(content["job"]), participants, images)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _where(content: Mapping[str, Any]) -> str:
    """Host, job and memory of a call.

    >>> _where({"host": "node7", "job": "12_3", "memory_gb": 2.1})
    'Slurm job 12_3 on node7, 2.1 GB'
    """
    job = f"Slurm job {content['job']} on " if content["job"] else "on "
    return f"{job}{content['host']}, {content['memory_gb']:g} GB"
