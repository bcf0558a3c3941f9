"""How fast and in how much memory training volumes are read: from the cache, and from their NIfTI files at every draw.

The volumes are the template's brain with noise on the model grid, a few files under many names. Both ways take turns in
one run, on one thread; what counts is their ratio.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import torch

from mmh_bids.image.grid import MODEL_AFFINE, MODEL_SHAPE, load_template, resample
from mmh_bids.training.cache import VolumeCache
from mmh_bids.training.standards import Sample
from mmh_bids.training.stream import Ahead, ShuffledOrder
from mmh_bids.training.volumes import Volume, prepare

FILES = 6


def make_samples(folder: Path, count: int) -> list[Sample]:
    """Some images, under as many names as asked for."""
    template = load_template()
    brain = resample(np.asarray(template.dataobj), template.affine, MODEL_SHAPE, MODEL_AFFINE)
    brain = np.where(brain > 0.05 * brain.max(), brain / brain.max(), 0)
    samples = []
    for number in range(count):
        path = folder / f"sub-{number:04d}_T1w.nii.gz"
        if number < FILES:
            noise = np.random.default_rng(number).normal(0, 0.02, brain.shape)
            data = np.where(brain > 0, np.clip(brain + noise, 0.01, 1), 0).astype(np.float32)
            nib.save(nib.Nifti1Image(data, MODEL_AFFINE), path)
        else:
            os.link(folder / f"sub-{number % FILES:04d}_T1w.nii.gz", path)
        samples.append(Sample(path, "T1w", None))
    return samples


def size_gb(volume: Volume) -> float:
    """Memory of a volume that is held."""
    return sum(tensor.nbytes for tensor in (volume.image, volume.condition, volume.mask)) / 1e9


def main() -> None:
    """Print a Markdown table, and what memory is taken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=240, help="images of the large dataset")
    parser.add_argument("--repeats", type=int, default=2, help="how often each of the files is read for the ratios")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = make_samples(folder, asked.volumes)
        print(
            "| shrunk by | from the NIfTI file (s a volume) | from the cache (s a volume) | times as many volumes/s |"
        )
        print("|---|---|---|---|")
        for factor in (1, 2, 4):
            few = samples[:FILES]
            cache = VolumeCache(folder / "few", factor)
            cache.fill(few, say=lambda line: None)
            seconds = {"file": 0.0, "cache": 0.0}
            for sample in few * asked.repeats:
                begun = time.perf_counter()
                prepare(sample, factor)
                middle = time.perf_counter()
                cache.read(sample)
                seconds["file"] += middle - begun
                seconds["cache"] += time.perf_counter() - middle
            old, new = (seconds[way] / (FILES * asked.repeats) for way in ("file", "cache"))
            print(f"| {factor} | {old:.3f} | {new:.4f} | {old / new:.1f} |")
        report_memory(samples, folder / "many")


def report_memory(samples: list[Sample], folder: Path, factor: int = 2) -> None:
    """Stream all volumes twice, as a training does, in a new process; say how much its memory grows."""
    cache = VolumeCache(folder, factor)
    begun = time.perf_counter()
    cache.fill(samples, say=lambda line: None)
    filled = time.perf_counter() - begun
    one = size_gb(cache.read(samples[0]))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        grown = pool.submit(stream, samples, folder, factor).result()
    held = one * len(samples)
    disk = sum(shard.stat().st_size for shard in folder.glob("*.safetensors")) / 1e9
    print(
        f"\n{len(samples)} volumes shrunk by {factor}: {held:.2f} GB if held in memory, {disk:.2f} GB in the cache "
        f"(filled in {filled:.0f} s; estimated before: {cache.gigabytes(samples):.2f} GB). Streaming them twice in "
        f"shuffled order raised resident memory by {1000 * grown:.0f} MB at most, {grown / one:.1f} volumes: "
        f"{grown / held:.1%} of all."
    )


def stream(samples: list[Sample], folder: Path, factor: int) -> float:
    """Read all volumes twice; by how many GB resident memory was larger than before the first, at most."""
    torch.set_num_threads(1)
    cache = VolumeCache(folder, factor)
    cache.fill(samples, say=print)
    order, ahead = ShuffledOrder([samples]), Ahead(cache.read, 1)
    process = psutil.Process()
    before, most = process.memory_info().rss, 0
    numbers = range(2 * len(samples))
    for number in numbers:
        following = (order.thing(0, later) for later in numbers[number + 1 :])
        ahead.get([order.thing(0, number)], following)
        most = max(most, process.memory_info().rss)
    return (most - before) / 1e9


if __name__ == "__main__":
    main()
