"""The container that this process runs in: which one, and what is different there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

#: Set by our container image: its name and version.
CONTAINER_VARIABLE = "MMH_CONTAINER_IMAGE"

_HEX_ID = re.compile(r"/(?:docker|overlay)-containers/([0-9a-f]{64})/|/containers/([0-9a-f]{64})/")


def default_work_dir(output_dir: Path) -> Path:
    """The work directory where none is named: ``work``, here.

    In our image nothing but the mounted folders is sure to be writable, to have room and to be there the next time:
    ``work`` in the output folder.
    """
    return output_dir / "work" if os.environ.get(CONTAINER_VARIABLE) else Path("work").absolute()


def container_id(root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> str | None:
    """Which container this process runs in, as ``kind:name``, or None outside any.

    Looks at, in this order: our image's own variable, Apptainer's and Singularity's variables,
    ``/run/.containerenv`` (Podman) and ``/.dockerenv``. Without a name the container's id stands in, and
    ``unknown`` where that cannot be read either.

    Parameters
    ----------
    root
        Root of the file system to look at.
    environ
        Variables, those of the process by default.
    """
    environ = os.environ if environ is None else environ
    if environ.get(CONTAINER_VARIABLE):
        return f"image:{environ[CONTAINER_VARIABLE]}"
    for variable in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        if environ.get(variable):
            return f"{variable.split('_')[0].lower()}:{environ[variable]}"
    podman = root / "run" / ".containerenv"
    if podman.exists():
        named = re.search(r'^image="([^"]+)"', _read(podman), re.MULTILINE)
        return f"podman:{named.group(1) if named else _id_in_mounts(root)}"
    if (root / ".dockerenv").exists():
        return f"docker:{_id_in_mounts(root)}"
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _id_in_mounts(root: Path) -> str:
    """The engines mount files such as /etc/hostname out of a folder that is named after the container."""
    found = _HEX_ID.search(_read(root / "proc" / "self" / "mountinfo"))
    return next(name for name in found.groups() if name) if found else "unknown"
