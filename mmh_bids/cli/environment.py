"""What must be set before the heavy libraries are imported: caches under the work directory, no network."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from mmh_bids.errors import UsageError


def pin_linear_algebra() -> None:
    """Let OpenBLAS take one code path on every processor with AVX2; to be called before numpy is imported.

    It has one for each kind of processor, and their last digits differ: a registration carries those into the images.
    A choice that somebody made stays.
    """
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return
    if flags and {"avx2", "fma"} <= set(flags[1].split()):
        os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")


def prepare_environment(work_dir: Path, threads: int = 1) -> None:
    """Point every library's cache into `work_dir`, switch network lookups off, limit the threads of a process.

    A container's root may be read-only, its user unknown, HOME and /tmp missing; nothing may depend on them. A
    TEMPLATEFLOW_HOME that is set stays. CUDA_VISIBLE_DEVICES is never touched.
    """
    caches = work_dir / "caches"
    try:
        caches.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--work-dir {work_dir}: cannot be written ({error.strerror}); name a folder that can"
        ) from None
    for name, folder in (
        ("MPLCONFIGDIR", "matplotlib"), ("TORCH_HOME", "torch"), ("HF_HOME", "huggingface"), ("XDG_CACHE_HOME", "xdg"),
        ("NIPYPE_CONFIG_DIR", "nipype"), ("NUMBA_CACHE_DIR", "numba"),
    ):  # fmt: skip
        os.environ[name] = str(caches / folder)
        (caches / folder).mkdir(exist_ok=True)
    os.environ.setdefault("TEMPLATEFLOW_HOME", str(caches / "templateflow"))
    os.environ.update(
        NIPYPE_NO_ET="1", NO_ET="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TEMPLATEFLOW_AUTOUPDATE="0",
        MPLBACKEND="Agg",
    )  # fmt: skip
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    os.environ.setdefault("LOGNAME", str(os.getuid()))  # Nipype's SLURM plugin names jobs after it, and fails without
    if not os.access(os.environ.get("HOME", ""), os.W_OK):
        os.environ["HOME"] = str(caches)
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # a read-only Docker container has no /tmp to write to
        os.environ["TMPDIR"] = str(caches)
