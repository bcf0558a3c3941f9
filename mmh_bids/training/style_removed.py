"""Training images of stage 2 as stage 1 leaves them ("style-removed"), made once and kept in the work folder.

One safetensors file an image; a training that was interrupted, or another one from the same stage 1, finds it there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmh_bids.files import atomic_path, sha256_file
from mmh_bids.training.standards import Sample


@dataclass(frozen=True)
class StyleRemoved:
    """Files of images without style, under names that stand for all they depend on.

    Attributes
    ----------
    folder
        Of the files.
    facts
        JSON-ready: what the content depends on beside the image, such as the hash of stage 1's bundle.
    make
        Returns the tensors of one image by name.
    say
        Gets one line an image that is made.
    """

    folder: Path
    facts: Mapping[str, Any]
    make: Callable[[Sample], dict[str, torch.Tensor]]
    say: Callable[[str], None] = print

    def prepare(self, samples: Sequence[Sample]) -> dict[Sample, Path]:
        """Make what is not there; return the file of each sample. Several processes may call it at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files: dict[Sample, Path] = {}
        for number, sample in enumerate(samples, 1):
            path = self._path(sample)
            with FileLock(path.with_suffix(".lock")):
                if not _readable(path):
                    tensors = {name: value.cpu().contiguous() for name, value in self.make(sample).items()}
                    with atomic_path(path) as temporary:
                        save_file(tensors, temporary)
                    self.say(f"{number}/{len(samples)} {sample.path.name}: style removed")
            files[sample] = path
        return files

    def _path(self, sample: Sample) -> Path:
        key = json.dumps({**self.facts, "image": sha256_file(sample.path)}, sort_keys=True)
        stem = sample.path.name.removesuffix(".nii.gz")
        return self.folder / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def _readable(path: Path) -> bool:
    """Whether the file is there and whole; a damaged one is made again."""
    if not path.is_file():
        return False
    try:
        load_file(path)
    except (SafetensorError, OSError):
        return False
    return True
