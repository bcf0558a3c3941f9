"""How well a style encoder tells scanners apart: is the scan most like a given one, of another head, of its scanner?

Held-out label maps (04, 05, 09) are scanned on scanners that no training has drawn, at 1 mm, by the simulator of the
trainings. The most alike scan of another head is looked for by the encoder's vectors (cosine), and, for comparison, by
two distances of the brains' histograms: Wasserstein-1 of 256 quantiles, and Hellinger's of 50 bins, which makes more of
rare intensities. Simulated scans are kept in the work folder.

    python benchmarks/style_neighbours.py [--work FOLDER] [--scanners 32] [--encoder FOLDER] [--style-weights DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import label_maps
from safetensors.torch import load_file, save_file

from mmh_bids.image.intensity import quantile_function
from mmh_bids.models.encoders import load_style_encoder, read_small
from mmh_bids.models.light import SEQUENCES
from mmh_bids.simulate.modelhead import load_head, make_heads
from mmh_bids.training.contrast import nearest_share, share_of_nearest
from mmh_bids.training.scanners import draw_scans

HELD_OUT = ("head-04", "head-05", "head-09")
#: Of the scanners; the training's are others.
SEED = 90_001


def simulated(work: Path, scanners: int) -> list[Path]:
    """A file a scanner: by sequence (heads, 144, 184, 184) uint8."""
    labels = [path for path in label_maps() if path.name.startswith(HELD_OUT)]
    heads = [load_head(path) for path in make_heads(labels, work / "heads", 0, 1)]
    files = []
    for number in range(scanners):
        path = work / f"fine-{number:04d}.safetensors"
        files.append(path)
        if not path.exists():
            scans = draw_scans(heads, np.random.default_rng([SEED, number]), factor=1)
            save_file({name: (values * 255).round().to(torch.uint8) for name, values in scans.items()}, path)
            print(f"scanner {number + 1} of {scanners}", flush=True)
    return files


def described(
    files: list[Path], sequence: str, encoder: torch.nn.Module
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Style vectors, quantiles, roots of histograms: (scanners, heads, ...)."""
    vectors, quantiles, roots = [], [], []
    for path in files:
        volumes = load_file(path)[sequence].float() / 255
        with torch.no_grad():
            vectors.append(torch.cat([encoder(volume[None, None], 1.0) for volume in volumes]))
        brains = [volume[volume > 0] for volume in volumes]
        quantiles.append(torch.stack([torch.from_numpy(quantile_function(brain.numpy())) for brain in brains]))
        counts = torch.stack([torch.histc(brain, 50, 0, 1) / len(brain) for brain in brains])
        roots.append(counts.sqrt())
    return torch.stack(vectors), torch.stack(quantiles), torch.stack(roots)


def apart(values: torch.Tensor, power: float) -> torch.Tensor:
    """Distances (S, H, S, H) of vectors (S, H, D)."""
    flat = values.flatten(0, 1).double()
    return torch.cdist(flat, flat, p=power).unflatten(0, values.shape[:2]).unflatten(2, values.shape[:2])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/style-neighbours"))
    parser.add_argument("--scanners", type=int, default=32)
    parser.add_argument("--encoder", type=Path, help="folder of mmh-train encoder (default: the one that is shipped)")
    parser.add_argument("--style-weights", type=Path, help="folder of BiomedCLIP instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    encoder = read_small(options.encoder) if options.encoder else load_style_encoder(options.style_weights)
    files = simulated(options.work, options.scanners)
    rows: dict[str, Callable[..., float]] = {
        f"style encoder {encoder.card['name']}": lambda vectors, _, __: nearest_share(vectors),
        "histogram, Wasserstein-1": lambda _, quantiles, __: share_of_nearest(apart(quantiles, 1)),
        "histogram, Hellinger": lambda _, __, roots: share_of_nearest(apart(roots, 2)),
    }
    found = {sequence: described(files, sequence, encoder) for sequence in SEQUENCES}
    print(f"{options.scanners} scanners, {len(HELD_OUT)} held-out heads on each\n")
    print("| most alike by | T1w | T2w |\n|---|---|---|")
    for name, share in rows.items():
        print(f"| {name} | " + " | ".join(f"{share(*found[sequence]):.2f}" for sequence in SEQUENCES) + " |")
    print(f"| chance | {1 / options.scanners:.2f} | {1 / options.scanners:.2f} |")


if __name__ == "__main__":
    main()
