"""Files that are either whole or not there: written, linked or copied under a temporary name and renamed; hashes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

#: Extensions of two parts, which a writer such as nibabel needs to see whole.
_DOUBLE_EXTENSIONS = (".nii.gz", ".tar.gz")
_CHUNK = 1 << 20
#: Time stamps (s) that differ less are the same: some file systems keep even seconds only.
_SAME_TIME = 2
#: Names the call of the program that a process works for, in all of its processes; process ids say less, as containers
#: on one machine have the same.
CALL_VARIABLE = "MMH_CALL"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well.

    The temporary name is hidden (leading dot), lies in the folder of `path` (a rename never crosses a file
    system) and has the extension of `path`, so that writers that look at the extension do the right thing.
    Missing folders are made. On any error, a keyboard interrupt included, the temporary file is removed,
    `path` stays what it was before, and the error goes on to the caller (`OSError` with ``errno.ENOSPC`` when
    the disk is full).

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "a.nii.gz") as temporary:
    ...     temporary.name.endswith(".nii.gz"), temporary.parent == folder, temporary.write_text("x")
    (True, True, 1)
    >>> [file.name for file in folder.iterdir()]
    ['a.nii.gz']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f"{temporary_prefix(os.getpid())}{os.environ.get(CALL_VARIABLE, '')}-{secrets.token_hex(4)}{extension(path)}"
    temporary = path.with_name(name)
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
        temporary.unlink(missing_ok=True)  # POSIX renames nothing where both names are one file already
    except BaseException:
        # The error in flight is what the user needs; a failing removal (folder gone) must not hide it.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def temporary_prefix(pid: int) -> str:
    """Start of the names of the temporary files that the process `pid` makes."""
    return f".tmp-{pid}-"


def remove_temporary(folder: Path, call: str) -> None:
    """Remove the temporary files in `folder`, not below it, of a call that is no more.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in (".tmp-7-ab12-00.json", ".tmp-7-cd34-00.json", "ab12.json"):
    ...     (folder / name).touch()
    >>> remove_temporary(folder, "ab12")
    >>> sorted(file.name for file in folder.iterdir())
    ['.tmp-7-cd34-00.json', 'ab12.json']
    """
    for path in folder.glob(f".tmp-*-{call}-*"):
        path.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write text (as UTF-8, line ends untouched) or bytes to `path` in one step; return the path.

    >>> import tempfile
    >>> atomic_write(Path(tempfile.mkdtemp()) / "new" / "a.txt", "é").read_bytes()
    b'\\xc3\\xa9'
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def place(source: Path, target: Path, how: str = "auto") -> Literal["linked", "copied", "there"]:
    """Let `target` have the content of `source`, in one step; say what it took.

    Parameters
    ----------
    how
        ``auto``: a hard link, which takes no space and is a file like any other in every container; a copy where the
        file system or its owner allows none. ``copy``: always a copy, with the time stamp of `source`. ``symlink``: the
        absolute path of what `source` is in the end.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> source = atomic_write(folder / "a", "x")
    >>> place(source, folder / "b", "copy"), place(source, folder / "b", "copy"), (folder / "b").samefile(source)
    ('copied', 'there', False)
    """
    source = Path(os.path.realpath(source))
    if how == "symlink":
        if target.is_symlink() and os.readlink(target) == str(source):
            return "there"
        with atomic_path(target) as temporary:
            temporary.symlink_to(source)
        return "linked"
    own = target.is_file() and not target.is_symlink()
    same = own and target.samefile(source)
    if (same and how == "auto") or (own and not same and _is_copy(source, target)):
        return "there"
    if how == "auto":
        with contextlib.suppress(OSError), atomic_path(target) as temporary:
            os.link(source, temporary)
            return "linked"
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        _stamp(source, temporary)
    return "copied"


def unpack(source: Path, target: Path) -> Literal["copied", "there"]:
    """Let `target` be the unpacked ``.gz`` file `source`, with its time stamp."""
    if target.is_file() and abs(target.stat().st_mtime - source.stat().st_mtime) < _SAME_TIME:
        return "there"
    with atomic_path(target) as temporary:
        with gzip.open(source) as packed, open(temporary, "wb") as plain:
            shutil.copyfileobj(packed, plain, _CHUNK)
        _stamp(source, temporary)
    return "copied"


def _is_copy(source: Path, target: Path) -> bool:
    one, other = source.stat(), target.stat()
    return one.st_size == other.st_size and abs(one.st_mtime - other.st_mtime) < _SAME_TIME


def _stamp(source: Path, target: Path) -> None:
    times = source.stat()
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def extension(path: str | os.PathLike[str]) -> str:
    """Extension with the dot, both parts of a double one.

    >>> extension("sub-01_T1w.nii.gz"), extension("a.b.json"), extension(".bidsignore")
    ('.nii.gz', '.json', '')
    """
    name = Path(path).name
    for double in _DOUBLE_EXTENSIONS:
        if name.endswith(double):
            return double
    return Path(name).suffix


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in pieces.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     sha256_file(Path(file.name))[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    """Force the bytes out before the rename: some file systems (NFS, quotas) report a full disk only then."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
