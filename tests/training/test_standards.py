from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from mmh_bids.cli.train import main
from mmh_bids.errors import EXIT_NOTHING_TO_DO, EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, UsageError
from mmh_bids.harmonizers.classic import Nyul
from mmh_bids.harmonizers.standard import Standard, bundle_standards
from mmh_bids.models.bundle import open_bundle
from mmh_bids.training.standards import find_samples, keep_sites

NAME = "sub-{}_space-MNI152NLin2009aSym_desc-model_{}"


def brain(level, seed=0):
    """A cube of two tissues around `level`, zero outside."""
    rng = np.random.default_rng(seed)
    data = np.zeros((20, 20, 20), np.float32)
    data[4:16, 4:16, 4:16] = np.clip(level + rng.normal(0, 0.03, (12, 12, 12)), 0.01, 1)
    data[8:12, 4:16, 4:16] = np.clip(level + 0.3 + rng.normal(0, 0.03, (4, 12, 12)), 0.01, 1)
    return data


def write(folder, label, level, site=None, sequence="T1w", seed=0):
    path = folder / f"sub-{label}" / "anat" / (NAME.format(label, sequence) + ".nii.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(brain(level, seed), np.eye(4)).to_filename(path)
    if site is not None:
        sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
        sidecar.write_text(json.dumps({"Harmonization": {"Site": site}}))
    return path


@pytest.fixture
def derivative(tmp_path):
    """Three images of a dark site, one of a bright one, one T2w without a site."""
    folder = tmp_path / "derivative"
    for label in ("01", "02", "03"):
        write(folder, label, 0.2, "dark", seed=int(label))
    write(folder, "04", 0.6, "bright", seed=4)
    write(folder, "05", 0.4, None, "T2w", seed=5)
    (folder / "sub-01_desc-harmonized_T1w.nii.gz").write_bytes(b"not for us")
    return folder


def test_images_are_found_with_their_sites(derivative):
    samples = find_samples([derivative, derivative])
    assert [(one.sequence, one.site) for one in samples] == [
        ("T1w", "dark"),
        ("T1w", "dark"),
        ("T1w", "dark"),
        ("T1w", "bright"),
        ("T2w", None),
    ]


def test_the_command_writes_a_bundle_in_which_every_site_weighs_the_same(derivative, tmp_path, capsys):
    out = tmp_path / "mine"
    assert main(["standards", str(derivative), "--output", str(out), "--name", "mine"]) == EXIT_OK
    assert "5/5" in capsys.readouterr().out
    bundle = open_bundle(out)
    assert bundle.targets("T1w") == ("unified", "site:bright", "site:dark")
    assert bundle.targets("T2w") == ("unified",)
    standards = bundle_standards(bundle)
    dark, bright = standards["T1w"]["site:dark"], standards["T1w"]["site:bright"]
    volume = brain(0.6, 4)
    np.testing.assert_allclose(bright.quantiles, Standard.measure(volume, volume > 0, "T1w").quantiles, atol=1e-6)
    for field in ("zscore", "whitestripe", "nyul", "quantiles", "histogram", "range"):
        expected = (getattr(dark, field) + getattr(bright, field)) / 2
        np.testing.assert_allclose(getattr(standards["T1w"]["unified"], field), expected, atol=1e-12)
    facts = bundle.card["sequences"]["T1w"]["targets"]["unified"]
    assert facts["images"] == 4
    assert facts["sites"] == 2
    np.testing.assert_allclose(facts["quantiles"], standards["T1w"]["unified"].quantiles, rtol=1e-5)
    assert bundle.card["training"]["recipe"]["command"] == "mmh-train standards"
    assert "4 T1w, 1 T2w" in bundle.card["training"]["data"]


def test_the_bundle_works_and_training_twice_gives_the_same(derivative, tmp_path):
    for name in "ab":
        assert main(["standards", str(derivative), "--output", str(tmp_path / name)]) == EXIT_OK
    first, second = (open_bundle(tmp_path / name) for name in "ab")
    assert first.sha256 == second.sha256
    volume = brain(0.2, 9)
    out = Nyul.load(first, "cpu").harmonize(volume[np.newaxis], volume > 0, "T1w", "site:bright", 0).volume[0]
    assert np.median(out[9, 5:15, 5:15]) == pytest.approx(0.9, abs=0.05)


def test_overwriting_is_asked_for(derivative, tmp_path, capsys):
    command = ["standards", str(derivative), "--output", str(tmp_path / "a")]
    assert main(command) == EXIT_OK
    assert main(command) == EXIT_USAGE
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == EXIT_OK


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (lambda folder: folder.mkdir(), EXIT_NOTHING_TO_DO, "--method none"),
        (lambda folder: None, EXIT_USAGE, "no such folder"),
        (lambda folder: write(folder, "01", 0.5).write_text("text"), EXIT_SOME_FAILED, "sub-01.*cannot be read"),
        (lambda folder: write(folder, "01", 0.5, "x").with_name(NAME.format("01", "T1w") + ".json").write_text("["),
         EXIT_USAGE, "not a valid JSON"),
    ],
)  # fmt: skip
def test_bad_input_is_named_with_its_exit_code(tmp_path, capsys, make, code, message):
    import re

    folder = tmp_path / "in"
    make(folder)
    assert main(["standards", str(folder), "--output", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_image_of_another_scale_is_refused(tmp_path, capsys):
    path = write(tmp_path / "in", "01", 0.5)
    nib.Nifti1Image(1000 * brain(0.5), np.eye(4)).to_filename(path)
    assert main(["standards", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == EXIT_SOME_FAILED
    assert "no model-grid image" in capsys.readouterr().err


def test_a_name_that_is_a_path_is_refused(derivative, tmp_path, capsys):
    assert main(["standards", str(derivative), "--output", str(tmp_path / "o"), "--name", "../x"]) == EXIT_USAGE
    assert "--name ../x" in capsys.readouterr().err


def test_wrong_flags_end_with_the_usage_code():
    with pytest.raises(SystemExit) as caught:
        main(["standards"])
    assert caught.value.code == EXIT_USAGE


def test_kept_sites_leave_unified_as_it_is():
    learned = {"T1w": {"unified": 1, "site:a": 2, "site:b": 3}, "T2w": {"unified": 4, "site:b": 5}}
    assert keep_sites(learned, ["a"]) == {"T1w": {"unified": 1, "site:a": 2}, "T2w": {"unified": 4}}
    assert keep_sites(learned, []) == {"T1w": {"unified": 1}, "T2w": {"unified": 4}}
    with pytest.raises(UsageError, match="--site-targets c: no image of such a site; there are a, b"):
        keep_sites(learned, ["c"])
