"""Affine registration of simulated heads moved by known transforms: mean brain-surface error against the truth.

Each label map is scanned once where it lies and once moved (up to 25 degrees, 30 mm, 10 % scale). Brain extraction,
bias correction and registration run as in the app. If A0 and A1 map the template to the unmoved and moved head and M
is the known movement, the error at a template surface point x is |M A0 x - A1 x|.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from common import canonical_arrays, label_maps
from nibabel.affines import apply_affine
from scipy.ndimage import binary_erosion

from mmh_bids.image.bias import n4
from mmh_bids.image.grid import load_template
from mmh_bids.image.registration import Volume, register_affine
from mmh_bids.models.brain import extract_brain
from mmh_bids.simulate.acquire import acquire
from mmh_bids.simulate.phantom import head_from_labels, random_affine, transform_head
from mmh_bids.simulate.scanner import load_scanners


def prepared(head, scanner, sequence: str, seed: int) -> Volume:
    """Scan, extract, correct: what the app registers."""
    data, affine = canonical_arrays(acquire(head, scanner, sequence, seed).image)
    mask = extract_brain(data)
    return Volume(np.where(mask, n4(data, mask, affine), 0), mask, affine)


def main() -> None:
    """Print one line a trial and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--sequence", default="T1w")
    parser.add_argument("--scanner", default="A")
    parser.add_argument("--json", help="also write the figures to this file")
    asked = parser.parse_args()
    scanner = load_scanners()[asked.scanner]
    template = load_template()
    brain = np.asanyarray(template.dataobj)
    fixed = Volume(brain, brain > 0, template.affine)
    edge = fixed.mask & ~binary_erosion(fixed.mask, border_value=1)
    surface = apply_affine(template.affine, np.argwhere(edge)[::37])
    maps, still, errors = label_maps(), {}, []
    for trial in range(asked.trials):
        path = maps[trial % len(maps)]
        head = head_from_labels(path, seed=trial % len(maps))
        if path not in still:
            still[path] = register_affine(fixed, prepared(head, scanner, asked.sequence, 0))[0]
        move = random_affine(np.random.default_rng(trial), head.brain_centre)
        volume = prepared(transform_head(head, move), scanner, asked.sequence, 1)
        start = time.perf_counter()
        found, quality = register_affine(fixed, volume)
        seconds = time.perf_counter() - start
        truth = apply_affine(move @ still[path], surface)
        error = float(np.linalg.norm(truth - apply_affine(found, surface), axis=1).mean())
        errors.append(error)
        print(f"{trial:2d} {path.name[:7]} {error:6.2f} mm  {quality}  {seconds:.1f} s", flush=True)
    good = sum(error < 2.5 for error in errors)
    print(f"below 2.5 mm: {good} of {len(errors)}; median {np.median(errors):.2f}, worst {max(errors):.2f} mm")
    if asked.json:
        with open(asked.json, "w") as stream:
            json.dump({"sequence": asked.sequence, "errors_mm": [round(e, 3) for e in errors]}, stream, indent=1)


if __name__ == "__main__":
    main()
