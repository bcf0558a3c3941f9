"""Stage 2 end to end on tiny brains: images, training, bundle, and the app with the site as its target."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_study import SOURCES, harmonized, sidecar
from tiny import mmh

import mmh_bids.training  # noqa: F401 (mends torchvision, which Lightning imports)
from mmh_bids.cli.train import main
from mmh_bids.image.grid import open_nifti
from mmh_bids.models.bundle import open_bundle, shipped_folder
from mmh_bids.models.tower import CONFIG, SAFE_WEIGHTS

pytest.importorskip("lightning.fabric")
pytestmark = pytest.mark.slow

TARGETS = SOURCES[:3]  # of sub-01, whose site is A; sub-02 is of site B


@pytest.fixture(scope="module")
def style_weights(tmp_path_factory):
    """A small image tower with random weights, as a folder in open_clip's form."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("tower")
    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32}
    text = {"layers": 1, "width": 8, "heads": 1}
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(16, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text))
    save_file({f"visual.{name}": value for name, value in model.visual.state_dict().items()}, folder / SAFE_WEIGHTS)
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config}))
    return folder


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """The shipped light bundle on a grid of 4 mm, whose sizes divide by 8."""
    folder = tmp_path_factory.mktemp("light") / "light"
    shutil.copytree(shipped_folder() / "mmh-light", folder)
    card = json.loads((folder / "bundle.json").read_text())
    affine = [[4.0, 0, 0, -78.0], [0, 4.0, 0, -111.5], [0, 0, 4.0, -87.5], [0, 0, 0, 1]]
    card["grid"] = {"shape": [40, 48, 48], "affine": affine}
    card["targets"] = ["unified"]  # the shipped one knows sites
    del card["files"]["looks.safetensors"]
    for one in card["sequences"].values():
        one["targets"] = {"unified": one["targets"]["unified"]}
    (folder / "bundle.json").write_text(json.dumps(card))
    return folder


def plain(study, model, base):
    """Preprocessing only, on the model's grid; the folder of the derivatives."""
    root, _, words, *_ = study
    call = mmh(root, base / "none", *words, "--method", "none", "--model", model, "-w", base / "work")
    assert call.code == 0, call.err
    return base / "none"


def applied(study, model, base, method, target):
    """The app with a target: exit code, and folder of the derivatives."""
    root, _, words, *_ = study
    more = ("--method", method, "--model", model, "--target", target, "-w", base / "work")
    call = mmh(root, base / "out", *words, *more)
    return call, base / "out"


@pytest.fixture(scope="module")
def looked(study, light, style_weights, tmp_path_factory):
    base = tmp_path_factory.mktemp("look")
    images = plain(study, light, base)
    words = ["target", images, "--target-site", "A", "--bundle", light, "--output", base / "bundle"]
    words += ["--work", base / "w", "--steps", "20", "--validate-every", "10", "--device", "cpu", "--label", "ours"]
    words += ["--style-weights", style_weights]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmh_bids.harmonizers.people.FEWEST", 1)  # each site has one person with a T2w
        assert main([str(word) for word in words]) == 0
    return base, words


def test_a_light_bundle_learns_a_site(looked, light):
    base, _ = looked
    bundle, before = open_bundle(base / "bundle"), open_bundle(light)
    assert bundle.targets("T1w") == ("unified", "site:ours") == bundle.targets("T2w")
    assert bundle.card["files"]["light.safetensors"] == before.card["files"]["light.safetensors"]
    training = bundle.card["training"]["targets"]["site:ours"]
    assert training["site"] == "A" and training["style_encoder"]["name"]
    assert len(training["train"]) == 3 and len(training["sources"]) == 1
    assert "displacement" in (base / "w" / "log.csv").read_text()
    assert (
        set(bundle.card["sequences"]["T2w"]["sites"]) == {"A", "B"} and "sites" not in bundle.card["sequences"]["T1w"]
    )


def test_the_app_brings_a_light_look_to_every_image(looked, study):
    base, _ = looked
    call, out = applied(study, base / "bundle", base, "mmh-light", "site:ours")
    assert call.code == 0, call.err
    for source in SOURCES:
        facts = sidecar(out, source)["Harmonization"]
        assert facts["Target"] == "site:ours" and facts["Details"]["Stage"] == 2
        assert facts["QC"]["ReferenceDistanceAfter"] < 0.07
        # who is the site's only person is its average one: training and app measure the same
        own = facts["Details"]["OwnTissues"]
        assert own == pytest.approx([0, 0], abs=1e-4) if "T2w" in source else own is None
        assert np.isfinite(open_nifti(harmonized(out, source)).get_fdata()).all()


def test_a_site_the_bundle_does_not_know_is_refused(looked, study):
    base, _ = looked
    call, _ = applied(study, base / "bundle", base, "mmh-light", "site:theirs")
    assert call.code == 2 and "--target site:theirs: unknown to model" in call.err and "site:ours" in call.err


def test_a_second_site_is_added_to_the_first(looked, study):
    base, words = looked
    more = [*words, "--no-transfer", "--no-sites"]
    for flag, value in (("--target-site", "B"), ("--bundle", base / "bundle"), ("--label", "other"),
                        ("--output", base / "both"), ("--work", base / "w2"), ("--steps", "2")):  # fmt: skip
        more[more.index(flag) + 1] = value
    assert main([str(word) for word in more]) == 0
    bundle = open_bundle(base / "both")
    assert bundle.targets("T2w") == ("unified", "site:other", "site:ours")
    assert bundle.targets("T1w") == ("unified", "site:ours")  # site B has no T1w
    first, both = (open_bundle(base / name).arrays("looks.safetensors") for name in ("bundle", "both"))
    assert all(np.array_equal(both[name], values) for name, values in first.items())
    assert bundle.card["sequences"]["T2w"]["sites"] == open_bundle(base / "bundle").card["sequences"]["T2w"]["sites"]


@pytest.fixture(scope="module")
def fine_tuned(study, bundle, style_weights, tmp_path_factory):
    """Stage 1 and stage 2 of the diffusion at 16 mm, some steps each."""
    base = tmp_path_factory.mktemp("diffusion")
    images = plain(study, bundle, base)
    words = ["global", images, "--method", "mmh-diffusion", "--held-out", "sub-02", "--factor", "4", "--steps", "4"]
    words += ["--sampler", "3", "--validate-every", "4", "--output", base / "one", "--work", base / "w1"]
    words += ["--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    words = ["target", images, "--target-site", "A", "--bundle", base / "one", "--output", base / "two"]
    words += ["--style-weights", style_weights, "--work", base / "w2", "--steps", "30", "--last", "2"]
    words += ["--learning-rate", "1e-3", "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    return base


def test_a_diffusion_learns_a_site(fine_tuned):
    one, two = (open_bundle(fine_tuned / name) for name in ("one", "two"))
    assert two.targets("T1w") == ("unified", "site:A")
    facts = two.card["sequences"]["T1w"]["targets"]
    assert facts["site:A"]["weights"] == "unet-site-A.safetensors"
    assert facts["site:A"]["mean"] != facts["unified"]["mean"]  # the running statistics moved
    before, after = one.arrays("unet.safetensors"), two.arrays("unet-site-A.safetensors")
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert "displacement" in (fine_tuned / "w2" / "log.csv").read_text()


def test_the_app_applies_both_stages(fine_tuned, study):
    call, out = applied(study, fine_tuned / "two", fine_tuned, "mmh-diffusion", "site:A")
    assert call.code == 0, call.err
    for source in SOURCES:
        details = sidecar(out, source)["Harmonization"]["Details"]
        assert details["Stage"] == 2 and details["Sampler"]["name"] == "plain"


def test_a_reference_image_is_reached_by_its_statistics(fine_tuned, study):
    root = study[0]
    target = f"image:{root / SOURCES[0]}"
    call, out = applied(study, fine_tuned / "two", fine_tuned, "mmh-diffusion", target)
    assert call.code == 0, call.err
    details = sidecar(out, SOURCES[2])["Harmonization"]["Details"]
    name = SOURCES[0].replace("_T1w", "_space-MNI152NLin2009aSym_desc-model_T1w")
    brain = open_nifti(fine_tuned / "none" / name).get_fdata()
    brain = brain[brain > 0]
    assert details["Stage"] == 1
    # those are at 4 mm; the network's grid has 16 mm, where the rim's voxels are darker
    matching = details["StatisticsMatching"]
    assert (matching["Mean"], matching["StandardDeviation"]) == pytest.approx((brain.mean(), brain.std()), rel=0.2)
