from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from mmh_bids.errors import BundleError, ImageError, UsageError
from mmh_bids.harmonizers.base import Harmonizer
from mmh_bids.harmonizers.mmh import WEIGHTS_FILE, Mmh
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
        return write_bundle(tmp_path / "tiny", card, {WEIGHTS_FILE: weights if arrays is None else arrays})

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
    assert details["DType"] == "float32"
    assert (details["RunningMean"], details["RunningStandardDeviation"]) == (-0.5, 0.3)


def test_it_fits_the_protocol_and_is_deterministic(make_bundle):
    bundle = make_bundle()
    method = Mmh.load(bundle, "cpu")
    assert isinstance(method, Harmonizer)
    assert method.sequences == ("T1w", "T2w")
    assert 0.5 < method.mem_gb < 1
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


def test_targets_and_sequences_it_does_not_know_are_refused(make_bundle):
    method = Mmh.load(make_bundle(sequences={"T1w": {"targets": {"unified": {"mean": 0, "std": 1}}}}), "cpu")
    assert method.sequences == ("T1w",)
    method.check_target("unified", "T1w")
    with pytest.raises(UsageError, match="--target site:a: unknown to model tiny for T1w"):
        method.check_target("site:a", "T1w")
    with pytest.raises(UsageError, match="knows T1w only"):
        method.check_target("unified", "T2w")
    volume, mask = head()
    with pytest.raises(UsageError, match="image:x"):
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
