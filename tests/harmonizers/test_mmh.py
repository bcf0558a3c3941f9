from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from mmh_bids.errors import BundleError, ImageError, UsageError
from mmh_bids.harmonizers import mmh
from mmh_bids.harmonizers.base import Harmonizer, Reference
from mmh_bids.harmonizers.mmh import WEIGHTS_FILE, Mmh
from mmh_bids.models import acceleration
from mmh_bids.models.acceleration import Acceleration
from mmh_bids.models.bundle import open_bundle, write_bundle
from mmh_bids.models.gradient import gradient_condition
from mmh_bids.models.sampler import make_sampler
from mmh_bids.models.unet import StyleUNet

SHAPE = (10, 12, 9)
NETWORK = {
    "channels": [4, 8],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "num_head_channels": [0, 4],
    "norm_num_groups": 4,
    "style_hidden": 8,
}
GRID = np.eye(4).tolist()
STYLES = {"T1w": (-0.2, 0.4), "T2w": (-0.5, 0.3)}


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    network = StyleUNet(**NETWORK)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return {name: value.numpy() for name, value in network.state_dict().items()}


@pytest.fixture
def make_bundle(tmp_path, weights):
    """``make_bundle(**changes of the card)``; arrays are the tiny network's unless given."""

    def make(arrays=None, drop=(), **changes):
        card = {
            "name": "tiny",
            "license": "Apache-2.0",
            "methods": ["mmh-diffusion"],
            "network": NETWORK,
            "sampler": {"name": "plain", "steps": 3, "top": 160},
            "grid": {"shape": list(SHAPE), "affine": np.eye(4).tolist()},
            "output_max": 1000,
            "targets": ["unified"],
            "sequences": {
                sequence: {"targets": {"unified": {"mean": mean, "std": std}}}
                for sequence, (mean, std) in STYLES.items()
            },
            "training": {},
            "metrics": {},
        } | changes
        card = {name: value for name, value in card.items() if name not in drop}
        return write_bundle(
            tmp_path / "tiny", card, {WEIGHTS_FILE: weights if arrays is None else arrays}, overwrite=True
        )

    return make


def head():
    """A ball in noise: volume (1, X, Y, Z) with something outside the mask too, and mask."""
    rng = np.random.default_rng(0)
    mask = np.linalg.norm(np.indices(SHAPE).T - [4.5, 5.5, 4], axis=-1).T < 4
    return rng.uniform(0.1, 0.9, (1, *SHAPE)).astype(np.float32), mask


def run(bundle, sequence="T1w", seed=0):
    volume, mask = head()
    return Mmh.load(bundle, "cpu").harmonize(volume, mask, sequence, "unified", seed)


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        ({"name": "plain", "steps": 3, "top": 160}, {"Inversion": 3, "Denoising": 3}),
        ({"name": "paper"}, {"Inversion": 34, "Denoising": 25}),
    ],
)
def test_it_does_what_network_and_sampler_of_the_card_do(make_bundle, weights, sampler, steps):
    bundle = make_bundle(sampler=sampler)
    volume, mask = head()
    given = volume.copy()
    result = Mmh.load(bundle, "cpu").harmonize(volume, mask, "T2w", "unified", 0)
    assert np.array_equal(volume, given)

    network = StyleUNet(**NETWORK).eval()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    image = torch.from_numpy(2 * volume * mask - 1)[None]
    condition, style = gradient_condition(image), torch.tensor([STYLES["T2w"]])
    loop = make_sampler(sampler)
    with torch.no_grad():

        def predict(x, t):
            return network(x, condition, t, torch.tensor([1]), style)

        signed = loop.denoise(predict, loop.invert(predict, image))
    expected = (signed[0].numpy() + 1).clip(0, 2) / 2 * mask
    np.testing.assert_allclose(result.volume, expected, atol=1e-5)

    assert result.volume.shape == volume.shape
    assert result.volume.dtype == np.float32
    assert not result.keeps_input_scale
    assert not result.volume[0][~mask].any()
    assert np.abs(result.volume - volume * mask).max() > 0.01
    details = json.loads(json.dumps(result.details))
    assert details["Sampler"]["name"] == sampler["name"]
    assert details["Steps"] == steps
    assert (details["DType"], details["Slabs"]) == ("float32", 8)
    assert (details["RunningMean"], details["RunningStandardDeviation"]) == (-0.5, 0.3)


def test_it_fits_the_protocol_and_is_deterministic(make_bundle):
    bundle = make_bundle()
    method = Mmh.load(bundle, "cpu")
    assert isinstance(method, Harmonizer)
    assert method.sequences == ("T1w", "T2w")
    assert 0.5 <= method.mem_gb < 1
    first = run(bundle)
    torch.manual_seed(99)
    assert np.array_equal(run(bundle, seed=1).volume, first.volume)
    assert np.abs(run(bundle, "T2w").volume - first.volume).max() > 1e-3


def test_what_lies_outside_the_brain_does_not_count(make_bundle):
    bundle = make_bundle()
    volume, mask = head()
    method = Mmh.load(bundle, "cpu")
    clean = method.harmonize(volume * mask, mask, "T1w", "unified", 0)
    assert np.array_equal(clean.volume, method.harmonize(volume, mask, "T1w", "unified", 0).volume)


def test_a_reference_image_lends_its_mean_and_spread(make_bundle):
    volume, mask = head()
    other = np.where(mask, 0.35 + 0.1 * volume, 0).astype(np.float32)
    method = Mmh.load(make_bundle(), "cpu")
    result = method.harmonize(volume, mask, "T1w", "image:/ref_T1w.nii.gz", 0, Reference(other, mask))
    brain = other[0][mask]
    assert result.volume[0][mask].mean() == pytest.approx(brain.mean(), abs=1e-3)
    assert result.volume[0][mask].std() == pytest.approx(brain.std(), rel=0.02)
    assert result.details["Stage"] == 1


def test_targets_and_sequences_it_does_not_know_are_refused(make_bundle):
    method = Mmh.load(make_bundle(sequences={"T1w": {"targets": {"unified": {"mean": 0, "std": 1}}}}), "cpu")
    assert method.sequences == ("T1w",)
    method.check_target("unified", "T1w")
    with pytest.raises(UsageError, match="--target site:a: unknown to model tiny for T1w"):
        method.check_target("site:a", "T1w")
    with pytest.raises(UsageError, match="knows T1w only"):
        method.check_target("unified", "T2w")
    volume, mask = head()
    with pytest.raises(ValueError, match="image:x.nii needs the reference"):
        method.harmonize(volume, mask, "T1w", "image:x.nii", 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["nyul"]}, "not made for --method mmh-diffusion"),
        ({"drop": ["sampler"]}, "card has no sampler"),
        ({"drop": ["network"]}, "card has no network"),
        ({"network": {}}, "no channels"),
        ({"sequences": {"T1w": {"targets": {"unified": {"mean": 0.1}}}}}, "no mean and std of T1w"),
    ],
)
def test_a_bundle_that_lacks_something_is_refused_before_any_image(make_bundle, changes, words):
    with pytest.raises(BundleError, match=f"--model tiny: .*{words}"):
        Mmh.load(make_bundle(**changes), "cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arrays": {"odd": np.zeros(3, np.float32)}}, "does not fit"),
        ({"network": NETWORK | {"norm_num_groups": 3}}, "does not fit"),
        ({"network": NETWORK | {"style": 3}}, "does not fit"),
        ({"sampler": {"name": "odd"}}, "'odd' is unknown"),
    ],
)
def test_weights_network_and_sampler_that_do_not_go_together_are_refused(make_bundle, changes, words):
    with pytest.raises(BundleError, match=words):
        run(make_bundle(**changes))


def test_images_it_cannot_work_on_are_refused(make_bundle):
    method = Mmh.load(make_bundle(), "cpu")
    volume, mask = head()
    with pytest.raises(ImageError, match="no brain"):
        method.harmonize(volume, np.zeros_like(mask), "T1w", "unified", 0)
    volume[0, 5, 5, 5] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        method.harmonize(volume, mask, "T1w", "unified", 0)
    with pytest.raises(ValueError, match="mask's shape"):
        method.harmonize(volume[:, 1:], mask, "T1w", "unified", 0)


def test_asking_what_it_can_do_does_not_load_torch(make_bundle):
    folder = make_bundle().folder
    code = (
        "import sys; from mmh_bids.harmonizers.mmh import Mmh; from mmh_bids.models.bundle import open_bundle; "
        f"Mmh.load(open_bundle({str(folder)!r}), 'cpu').check_target('unified', 'T1w'); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
    assert open_bundle(folder).name == "tiny"


def published(network, image, condition, label, style):
    """The authors' loop in float64: their schedule of 50 steps, the index as the time, 34 passes up, 25 down from 48.

    Written from the method's description; of the package it knows the network only, and gets the condition.
    """
    beta = torch.linspace(0.0005**0.5, 0.0195**0.5, 50, dtype=torch.float64) ** 2
    alpha = torch.cumprod(1 - beta, dim=0)

    def moved(x, index, here, there):
        noise = network(x, condition, torch.tensor([index]), label, style)
        clean = (x - (1 - here).sqrt() * noise) / here.sqrt()
        return there.sqrt() * clean + (1 - there).sqrt() * noise

    for index in range(34):
        image = moved(image, index, alpha[index], alpha[index + 1])
    for index in range(48, -1, -2):
        image = moved(image, index, alpha[index], alpha[index - 2] if index else torch.ones(()))
    return image


def test_the_paper_sampler_of_a_bundle_is_the_published_loop(make_bundle, weights):
    """From bundle to result, slabs and all, against float64; and no other sampler gives that."""
    volume, mask = head()
    network = StyleUNet(**NETWORK).eval()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    image = torch.from_numpy(2.0 * volume * mask - 1).double()[None]
    condition = gradient_condition(image.float()).double()
    with torch.no_grad():
        signed = published(
            network.double(), image, condition, torch.tensor([0]), torch.tensor([STYLES["T1w"]], dtype=torch.float64)
        )
    expected = (signed[0].numpy() + 1).clip(0, 2) / 2 * mask
    assert np.abs(expected - volume * mask).max() > 0.01
    cards = [{"name": "paper"}, {"name": "paper", "beta_start": 0.0015}, {"name": "plain", "steps": 10, "top": 160}]
    away = []
    for card in cards:
        found = run(make_bundle(sampler=card))
        away.append(float(np.abs(found.volume - expected).max()))
    assert away[0] < 1e-5
    assert min(away[1:]) > 1e-3


def test_nothing_but_the_card_chooses_the_sampler(make_bundle, monkeypatch):
    """Two cards that differ in the sampler alone give two results; the same card gives the same, whatever else is."""
    plain = run(make_bundle())
    again = run(make_bundle(name="other", metrics={"noise": 0.1}, training={"recipe": {"sampler": {"name": "paper"}}}))
    assert np.array_equal(again.volume, plain.volume)
    monkeypatch.setenv("MMH_SAMPLER", "paper")
    assert np.array_equal(run(make_bundle()).volume, plain.volume)
    assert np.abs(run(make_bundle(sampler={"name": "paper"})).volume - plain.volume).max() > 1e-3


def test_too_little_memory_is_said_before_the_first_pass(make_bundle, monkeypatch):
    monkeypatch.setattr(acceleration, "free_gb", lambda device: 0.0)
    monkeypatch.setattr(Mmh, "_loaded", lambda *given: pytest.fail("weights were read"))
    with pytest.raises(ImageError, match=r"model tiny needs about .* GB .* has 0.0 GB left: lower --nprocs"):
        run(make_bundle(network=NETWORK | {"channels": [64, 128]}, grid={"shape": [144, 184, 184], "affine": GRID}))


def test_weights_beyond_the_range_of_float16_are_computed_in_float32(make_bundle, weights, monkeypatch):
    """As on a GPU; the CPU stands in for one."""
    monkeypatch.setattr(mmh, "choose_acceleration", lambda *given: Acceleration("float16", None))
    assert run(make_bundle()).details["DType"] == "float16"
    wide = {name: value * (1e6 if "conv_in" in name else 1) for name, value in weights.items()}
    found = run(make_bundle(arrays=wide))
    assert found.details["DType"] == "float32"
    monkeypatch.undo()
    np.testing.assert_allclose(found.volume, run(make_bundle(arrays=wide)).volume, atol=1e-4)
