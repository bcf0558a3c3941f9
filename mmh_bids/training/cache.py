"""Prepared training volumes on disk, so that a training reads each image's NIfTI file once and holds none in memory.

Shards of some volumes each, in safetensors; of a volume the brain's voxels as 16-bit fixed-point numbers, the brain as
bits, and what the gradient condition divides by. A shard is whole or not there, several processes may share the folder,
and what an interrupted filling made is kept. Rounding is at most 1.3e-5 of the range [0, 1]; half precision, as large,
would round by 2.4e-4 where the image is bright.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mmh_bids.errors import ImageError, UsageError
from mmh_bids.files import atomic_path
from mmh_bids.models.gradient import gradient_condition, gradient_scale
from mmh_bids.models.unet import SEQUENCE_CLASS, from_signed, to_signed
from mmh_bids.training.standards import Sample
from mmh_bids.training.volumes import Volume, prepare

#: Part of every key: another one, and older shards are not read.
_FORMAT = "mmh-volumes-1"
#: Volumes a shard; numbers that stand for an intensity of 1, of which 1.5 is the largest.
SHARD, _ONE = 16, 40_000
#: Bytes a voxel of the grid: a bit of mask, two bytes where there is brain, which is at most half.
_BYTES = 1 / 8 + 2 * 0.5


class VolumeCache:
    """The volumes of `volumes.prepare`, read many times faster.

    Parameters
    ----------
    folder
        Of the shards; made when it is filled. Several trainings may share it.
    factor
        See `volumes.prepare`.
    """

    def __init__(self, folder: Path, factor: int = 1) -> None:
        self._folder, self._factor = Path(folder), factor
        self._places: dict[Sample, tuple[Path, str]] = {}

    def fill(
        self,
        samples: Sequence[Sample],
        workers: int = 1,
        say: Callable[[str], None] = print,
        check: Callable[[str], None] = lambda doing: None,
    ) -> None:
        """Prepare what is not there yet; other processes that ask for the same wait meanwhile.

        Parameters
        ----------
        samples
            What `read` will be asked for. A file of another size or time of change is prepared anew.
        workers
            Threads.
        say
            Gets a line a shard.
        check
            Called now and then with what is going on; may raise to stop.

        Raises
        ------
        ImageError
            An image cannot be used; names the file.
        UsageError
            The disk is too small; nothing was written.
        """
        keys = {sample: self._key(sample) for sample in samples}
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._folder / ".lock", check):
            there = self._scan()
            missing = [sample for sample in keys if keys[sample] not in there]
            self._require_disk(missing)
            with ThreadPoolExecutor(workers) as pool:
                for begin in range(0, len(missing), SHARD):
                    check("preparing images")
                    some = missing[begin : begin + SHARD]
                    shard = self._write(dict(zip((keys[one] for one in some), pool.map(self._make, some), strict=True)))
                    there |= {keys[one]: shard for one in some}
                    say(f"{begin + len(some)}/{len(missing)} images prepared")
        self._places = {sample: (there[key], key) for sample, key in keys.items()}

    def read(self, sample: Sample) -> Volume:
        """Return one volume that `fill` was asked for, as `volumes.prepare` does.

        Raises
        ------
        UsageError
            Somebody deleted or damaged the shard.
        """
        shard, key = self._places[sample]
        try:
            with safe_open(shard, framework="np") as stored:
                arrays = {name: stored.get_tensor(f"{key}.{name}") for name in ("shape", "mask", "values", "scale")}
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{shard}: cannot be read ({error}); start the same command again") from None
        shape = tuple(arrays["shape"].tolist())
        mask = np.unpackbits(arrays["mask"], count=math.prod(shape)).astype(bool)
        volume = np.zeros(mask.size, np.float32)
        volume[mask] = arrays["values"] * np.float32(1 / _ONE)
        image = to_signed(torch.from_numpy(volume).reshape(1, 1, *shape))
        return Volume(
            image,
            gradient_condition(image, torch.from_numpy(arrays["scale"])),
            torch.from_numpy(mask).reshape(1, 1, *shape),
            torch.tensor([SEQUENCE_CLASS[sample.sequence]]),
        )

    def _make(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """Arrays of one volume by name."""
        volume = prepare(sample, self._factor)
        image, mask = from_signed(volume.image)[0, 0].numpy(), volume.mask[0, 0].numpy()
        values = np.rint(image[mask] * _ONE).clip(0, np.iinfo(np.uint16).max).astype(np.uint16)
        rounded = np.zeros(image.shape, np.float32)
        rounded[mask] = values * np.float32(1 / _ONE)
        return {
            "shape": np.array(image.shape, np.int64),
            "mask": np.packbits(mask),
            "values": values,
            "scale": gradient_scale(to_signed(torch.from_numpy(rounded)[None, None])).numpy(),
        }

    def _write(self, volumes: dict[str, dict[str, NDArray[Any]]]) -> Path:
        shard = self._folder / f"{hashlib.sha256(''.join(volumes).encode()).hexdigest()[:16]}.safetensors"
        arrays = {f"{key}.{name}": array for key, named in volumes.items() for name, array in named.items()}
        try:
            with atomic_path(shard) as temporary:
                save_file(arrays, temporary, {"format": _FORMAT})
        except OSError as error:
            raise UsageError(f"{shard}: cannot be written ({error.strerror}); choose another folder") from None
        return shard

    def _key(self, sample: Sample) -> str:
        try:
            status = sample.path.stat()
        except OSError as error:
            raise ImageError(f"{sample.path}: cannot be read ({error.strerror}); is it there still?") from None
        facts = _FORMAT, sample.path.resolve(), status.st_size, status.st_mtime_ns, self._factor
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]

    def _scan(self) -> dict[str, Path]:
        """Which shard holds which volume; a damaged shard is deleted."""
        found: dict[str, Path] = {}
        for shard in sorted(self._folder.glob("*.safetensors")):
            try:
                with safe_open(shard, framework="np") as stored:
                    names = list(stored.keys())
            except (OSError, SafetensorError):
                shard.unlink(missing_ok=True)
                continue
            found |= {name.partition(".")[0]: shard for name in names}
        return found

    def _require_disk(self, missing: Sequence[Sample]) -> None:
        """Raise UsageError if the folder's disk has too little room for the `missing` volumes."""
        if not missing:
            return
        needed = self.gigabytes(missing)
        free = shutil.disk_usage(self._folder).free / 1e9
        if needed > free:
            raise UsageError(
                f"{self._folder}: {len(missing)} prepared images take about {needed:.1f} GB, the disk has {free:.1f} "
                "GB free: choose another folder with --cache, or shrink the images more with --factor"
            )

    def gigabytes(self, samples: Sequence[Sample]) -> float:
        """About how much of the disk `samples` take, all of the first one's grid."""
        import nibabel as nib

        shape = nib.Nifti1Image.from_filename(samples[0].path).shape[:3]
        return len(samples) * _BYTES * math.prod(size // self._factor for size in shape) / 1e9


@contextmanager
def _locked(path: Path, check: Callable[[str], None]) -> Iterator[None]:
    """Hold a file lock; wait for it in pieces, so that a wish to stop is heard."""
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            check("waiting for another process to prepare images")
    try:
        yield
    finally:
        lock.release()
