"""Toy trainings on several processes: run as a script by test_distributed.py, which compares with one process.

Fabric starts the other processes as it does for a user: by running this script again.
"""

import os
import signal
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from mmh_bids.simulate.tissues import GREY, INDEX, WHITE
from mmh_bids.training.diffusion import DiffusionRecipe
from mmh_bids.training.distributed import make_fabric
from mmh_bids.training.light import LightRecipe
from mmh_bids.training.loop import Plan, fit
from mmh_bids.training.requeue import Interrupted
from mmh_bids.training.standards import find_samples

NETWORK = {
    "channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "num_head_channels": [0, 8],
    "norm_num_groups": 4,
    "style_hidden": 8,
}
STEPS = 20


def make_images(folder):
    """Three T1w brains of 12 x 12 x 10 and two T2w, balls of two tissues, and the same heads as label arrays."""
    for number, (sequence, level) in enumerate([("T1w", 0.2), ("T1w", 0.35), ("T1w", 0.5), ("T2w", 0.4), ("T2w", 0.6)]):
        radius = np.linalg.norm(np.indices((12, 12, 10)).T - [5.5, 5.5, 4.5], axis=-1).T
        values = np.where(radius < 3, level + 0.3, level) + np.random.default_rng(number).normal(0, 0.02, radius.shape)
        image = np.where(radius < 5, np.clip(values, 0.02, 1), 0).astype(np.float32)
        name = f"sub-{number}_space-MNI152NLin2009aSym_desc-model_{sequence}.nii.gz"
        nib.save(nib.Nifti1Image(image, np.diag([2.0, 2, 2, 1])), folder / name)
    for number in range(2):
        radius = np.linalg.norm(np.indices((36, 46, 46)).T - [17.5, 22.5, 22.5], axis=-1).T
        tissue = np.full(radius.shape, INDEX["air"], np.uint8)
        for outer, kind in ((16, INDEX["fluid"]), (14, GREY), (10 + number, WHITE)):
            tissue[radius <= outer] = kind
        np.savez(
            folder / f"head-{number}_model.npz",
            tissue=tissue,
            texture=np.zeros(radius.shape, np.float16),
            mask=radius <= 16,
            rim=(radius <= 16) & (radius > 15),
            from_model=np.diag([0.25, 0.25, 0.25, 1]),
            centre=np.array([17.5, 22.5, 22.5]),
            spacing=np.array(4.0),
        )


class Diffusion(DiffusionRecipe):
    """The last of several processes alone is told, once, that its time is up."""

    stop_at = None

    def losses(self, network, rng, device):
        if rng.step == self.stop_at and rng.rank == rng.world - 1 and rng.is_first:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().losses(network, rng, device)


def diffusion(folder, batch=4, stop_at=None):
    """The toy diffusion on the images of `folder`; its histogram loss reaches its full weight soon."""
    samples = find_samples([folder])
    recipe = Diffusion(
        samples, samples[3:4], NETWORK, {"name": "plain", "steps": 2, "top": 100}, batch=batch, ramp_images=9
    )
    recipe.stop_at = stop_at
    return recipe


class Light(LightRecipe):
    """Not validated: that is done on whole brains and takes longer than all the rest."""

    def validate(self, network, device, folder, step):
        return {"bias": float(network.everywhere.bias.abs().mean())}


def light(folder):
    """The toy light network: four persons twice, and three persons for the curve, which four cannot share evenly."""
    heads = sorted(folder.glob("*.npz"))
    return Light(heads, heads[:1], filters=4, knots=4, patch=16, batch=8, curves=6)


def train(recipe, folder, fabric, said, accumulate=1, steps=STEPS):
    """Fit a recipe; the network with averaged weights."""
    plan = Plan(steps, 2e-3, warmup=2, validate_every=steps, accumulate=accumulate, average=0.5)
    return fit(recipe, plan, folder, fabric, {}, said)


def gradient_norms(fabric):
    """Fill the list that is returned when gradients are clipped: Adam takes those of any scale for the same."""
    found, clip = [], fabric.clip_gradients

    def look(network, optimizer, max_norm):
        weights = network.parameters()
        found.append(float(sum(weight.grad.square().sum() for weight in weights if weight.grad is not None)) ** 0.5)
        return clip(network, optimizer, max_norm=max_norm)

    fabric.clip_gradients = look
    return found


def compare(folder):
    """On two processes, to be compared with one."""
    fabric = make_fabric("cpu", devices=2)
    fabric.launch()
    norms = gradient_norms(fabric)
    train(diffusion(folder), folder / "diffusion", fabric, print)
    np.savetxt(folder / f"norms-{fabric.global_rank}.txt", norms)
    train(diffusion(folder), folder / "accumulated", fabric, print, accumulate=2)
    train(light(folder), folder / "light", fabric, print, steps=10)


def interrupt(folder):
    """On three processes: from that number on the order of a sum matters."""
    fabric = make_fabric("cpu", devices=3)
    fabric.launch()
    train(diffusion(folder, 3), folder / "whole", fabric, print)
    try:
        train(diffusion(folder, 3, stop_at=6), folder / "cut", fabric, print)
    except Interrupted as stopped:
        (folder / f"stopped-{fabric.global_rank}").write_text(f"{stopped} {stopped.time_is_up}")
    train(diffusion(folder, 3), folder / "cut", fabric, print)


if __name__ == "__main__":
    {"compare": compare, "interrupt": interrupt}[sys.argv[1]](Path(sys.argv[2]))
