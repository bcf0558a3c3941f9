"""Brain extraction on simulated heads: Dice with the true mask (brain and fluid, labels 1 to 499).

Beside each value stands that of deepbet as it is, which is shown every contrast as it comes.
"""

from __future__ import annotations

import argparse

import numpy as np
from common import canonical_arrays, dice, label_maps
from deepbet.bet import BrainExtraction

from mmh_bids.image.brainmask import volume_ml
from mmh_bids.models.brain import extract_brain
from mmh_bids.simulate.acquire import acquire
from mmh_bids.simulate.phantom import head_from_labels
from mmh_bids.simulate.scanner import load_scanners


def plain_deepbet(data: np.ndarray) -> np.ndarray:
    """The mask of deepbet as its package runs it."""
    network = BrainExtraction(no_gpu=True)
    return network.postprocess(network.run_model(data.copy()) > 0.5).astype(bool)


def main() -> None:
    """Print one line an image and the least Dice per sequence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=int, nargs="+", default=[0, 1, 2, 3, 4, 8, 12], help="indices of label maps")
    parser.add_argument("--scanners", nargs="+", default=["A", "B", "C", "D"])
    asked = parser.parse_args()
    scanners, least = load_scanners(), {"T1w": 1.0, "T2w": 1.0}
    for index in asked.heads:
        path = label_maps()[index]
        head = head_from_labels(path, seed=index)
        for name in asked.scanners:
            for sequence in least:
                scan = acquire(head, scanners[name], sequence, index)
                data, affine = canonical_arrays(scan.image)
                truth = canonical_arrays(scan.mask)[0] > 0.5
                mask = extract_brain(data)
                value, plain = dice(mask, truth), dice(plain_deepbet(data), truth)
                least[sequence] = min(least[sequence], value)
                sizes = f"{volume_ml(mask, affine):.0f} mL, truth {volume_ml(truth, affine):.0f} mL"
                label = f"{path.name[:7]} scanner {name} {sequence}"
                print(f"{label}: Dice {value:.4f}, deepbet as it is {plain:.4f} ({sizes})", flush=True)
    print("least Dice: " + ", ".join(f"{sequence} {value:.4f}" for sequence, value in least.items()))


if __name__ == "__main__":
    main()
