"""What ``mmh-train target`` refuses before anything is trained, and which images it takes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mmh_bids.errors import UsageError
from mmh_bids.models.bundle import open_bundle
from mmh_bids.training import target
from mmh_bids.training.target import TargetRequest, train_target


@pytest.fixture
def images(make_nifti, tmp_path):
    """Two people on the sites A and B, T1w; one of them T2w on A."""
    for sub, site, sequence in (("1", "A", "T1w"), ("2", "A", "T1w"), ("1", "B", "T1w"), ("1", "A", "T2w")):
        stem = f"pre/sub-{sub}_ses-{site}_space-MNI152NLin2009aSym_desc-model_{sequence}"
        make_nifti(f"{stem}.nii.gz", dtype=np.float32, data=np.full((4, 4, 4), 0.5), affine=np.eye(4))
        (tmp_path / f"{stem}.json").write_text(json.dumps({"Harmonization": {"Site": site}}))
    return tmp_path / "pre"


@pytest.fixture
def request_(images, tmp_path):
    return TargetRequest(
        (images,), "A", "mmh-light", (), tmp_path / "bundle", tmp_path / "work", "b", "A", "", overwrite=False
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_site": "C"}, "--target-site C: no image of such a site; there is A, B"),
        ({"held_out": ("sub-9",)}, "--held-out sub-9: unknown; there are sub-1, sub-2"),
        ({"held_out": ("sub-1", "sub-2")}, "--held-out: leaves no image of A to train on"),
        ({"bundle": "classic"}, "--bundle classic: no stage 1 of MMH; make one with mmh-train global"),
        ({"bundle": "nowhere"}, "--bundle nowhere: neither a shipped bundle"),
        ({"steps": 0}, "--steps 0: must be 1 or more"),
        ({"learning_rate": -1.0}, "--learning-rate must be above 0"),
        ({"seed": -1}, "--learning-rate must be above 0, --seed 0 or more"),
    ],
)
def test_refusals(request_, change, message):
    with pytest.raises(UsageError) as caught:
        train_target(replace(request_, transfer=False, **change))
    assert str(caught.value).startswith(message)
    assert not request_.work.exists()


def test_a_bundle_that_is_there_is_not_written_over(request_):
    request_.output.mkdir()
    with pytest.raises(UsageError, match="exists already; choose another folder or give --overwrite"):
        train_target(request_)


def test_images_of_the_site_teach_others_serve_transfer(request_):
    chosen = target._images(replace(request_, held_out=("sub-2",)), open_bundle("mmh-light"))
    names = {part: sorted(s.path.name[:11] + s.sequence for s in getattr(chosen, part)) for part in
             ("target", "sources", "validation")}  # fmt: skip
    assert names == {
        "target": ["sub-1_ses-AT1w", "sub-1_ses-AT2w"], "sources": ["sub-1_ses-BT1w"], "validation": ["sub-2_ses-AT1w"],
    }  # fmt: skip
    assert target._images(replace(request_, transfer=False), open_bundle("mmh-light")).sources == []


def test_the_small_encoder_stands_in_and_is_named(request_, tmp_path):
    said = []
    assert target._encoder(request_, said.append).card["name"] == "small"
    assert said == ["style encoder: small"]
    assert target._encoder(replace(request_, transfer=False), said.append) is None
    with pytest.raises(UsageError, match="style-weights|open_clip"):
        target._encoder(replace(request_, style_weights=tmp_path / "none"), said.append)


def test_what_stage_one_took_off_does_not_depend_on_other_sites():
    """Two bundles with one stage 1 share their images without style; another stage 1 does not."""
    base = open_bundle("mmh-light")
    key = target._stage_one_key(base)
    bare = {**base.card, "targets": ["unified"], "name": "other", "sequences": {
        name: {"targets": {"unified": one["targets"]["unified"]}} for name, one in base.card["sequences"].items()
    }}  # fmt: skip
    assert target._stage_one_key(replace(base, card=bare)) == key
    assert target._stage_one_key(replace(base, card={**bare, "network": {}})) != key
