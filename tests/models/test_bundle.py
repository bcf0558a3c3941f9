from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from mmh_bids.errors import EXIT_USAGE, BundleError
from mmh_bids.models.bundle import CARD, open_bundle, shipped_names, write_bundle

FILE = "weights.safetensors"


def card(**changes):
    fields = {
        "name": "tiny",
        "license": "Apache-2.0",
        "methods": ["nyul"],
        "grid": {"shape": [4, 5, 6], "affine": np.eye(4).tolist()},
        "output_max": 1000,
        "targets": ["unified", "site:a"],
        "sequences": {"T1w": {"targets": {"unified": {}, "site:a": {}}}, "T2w": {"targets": {"unified": {}}}},
        "training": {"data": "none", "recipe": {}},
        "metrics": {},
    }
    return fields | changes


ARRAYS = {FILE: {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2)}}


@pytest.fixture
def folder(tmp_path):
    write_bundle(tmp_path / "tiny", card(), ARRAYS)
    return tmp_path / "tiny"


def edit(folder, **changes):
    path = folder / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read_back(folder):
    bundle = open_bundle(folder)
    assert bundle.name == "tiny"
    assert bundle.shape == (4, 5, 6)
    assert bundle.output_max == 1000.0
    assert bundle.targets() == ("unified", "site:a")
    assert bundle.targets("T2w") == ("unified",)
    assert bundle.sha256 == hashlib.sha256((folder / CARD).read_bytes()).hexdigest()
    np.testing.assert_array_equal(bundle.affine, np.eye(4))
    np.testing.assert_array_equal(bundle.arrays(FILE)["a"], ARRAYS[FILE]["a"])
    assert not list(folder.parent.glob(".*"))
    assert (folder / FILE).stat().st_mode == (folder / CARD).stat().st_mode


def test_two_writes_give_the_same_bytes(tmp_path):
    first, second = (write_bundle(tmp_path / name, card(), ARRAYS) for name in "ab")
    assert first.sha256 == second.sha256
    assert (first.folder / FILE).read_bytes() == (second.folder / FILE).read_bytes()


def test_unknown_fields_are_tolerated(folder):
    edit(folder, colour="green")
    assert open_bundle(folder).card["colour"] == "green"


def damage_missing(folder):
    (folder / FILE).unlink()


def damage_truncated(folder):
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-3])


def damage_altered(folder):
    raw = bytearray((folder / FILE).read_bytes())
    raw[-1] ^= 1
    (folder / FILE).write_bytes(raw)


def damage_newer(folder):
    edit(folder, format_version=99)


def damage_json(folder):
    (folder / CARD).write_text('{"format_version": 1,')


def damage_binary(folder):
    (folder / CARD).write_bytes(b"\xff\xfe\x00")


def damage_list(folder):
    (folder / CARD).write_text("[]")


def damage_no_card(folder):
    (folder / CARD).unlink()


def damage_field(folder):
    edit(folder, methods="nyul")


def damage_grid(folder):
    edit(folder, grid={"shape": [1, 2], "affine": [[1]]})


def damage_output_max(folder):
    edit(folder, output_max=0)


def damage_outside(folder):
    edit(folder, files={"../x.safetensors": {"sha256": "0"}})


def damage_pickle(folder):
    edit(folder, files={"weights.pt": {"sha256": "0"}})


def damage_no_hash(folder):
    edit(folder, files={FILE: {}})


def damage_not_safetensors(folder):
    (folder / FILE).write_bytes(b"not tensors")
    edit(folder, files={FILE: {"sha256": hashlib.sha256(b"not tensors").hexdigest()}})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, "missing"),
        (damage_truncated, "truncated"),
        (damage_altered, "altered, its sha256"),
        (damage_newer, "format 99 is newer"),
        (damage_json, "not valid JSON"),
        (damage_binary, "not valid JSON"),
        (damage_list, "format_version"),
        (damage_no_card, "no bundle.json"),
        (damage_field, "field methods"),
        (damage_grid, "grid"),
        (damage_output_max, "output_max"),
        (damage_outside, "plain name"),
        (damage_pickle, "plain name"),
        (damage_no_hash, "sha256"),
        (damage_not_safetensors, "cannot be read"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert caught.value.exit_code == EXIT_USAGE


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(BundleError, match=r"--model nonsense.*classic"):
        open_bundle("nonsense")


def test_every_shipped_bundle_opens_by_name():
    assert "classic" in shipped_names()
    for name in shipped_names():
        assert open_bundle(name).name == name


def test_a_method_the_bundle_does_not_serve_is_refused(folder):
    bundle = open_bundle(folder)
    bundle.require("nyul")
    with pytest.raises(BundleError, match=r"--method murd.*nyul"):
        bundle.require("murd")
    with pytest.raises(BundleError, match="no file other"):
        bundle.arrays("other.safetensors")


def test_an_existing_folder_is_kept_unless_a_bundle_is_to_be_replaced(folder, tmp_path):
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(folder, card(output_max=5), ARRAYS)
    assert open_bundle(folder).output_max == 1000
    assert write_bundle(folder, card(output_max=5), ARRAYS, overwrite=True).output_max == 5
    other = tmp_path / "precious"
    other.mkdir()
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(other, card(), ARRAYS, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "tiny"]


def test_a_bad_card_leaves_nothing_behind(tmp_path):
    with pytest.raises(BundleError, match="output_max"):
        write_bundle(tmp_path / "x", card(output_max=-1), ARRAYS)
    assert list(tmp_path.iterdir()) == []


def test_opening_imports_neither_torch_nor_nibabel():
    code = (
        "import sys; from mmh_bids.models.bundle import open_bundle; b = open_bundle('classic');"
        "[b.arrays(n) for n in b.card['files']];"
        "assert not {'torch', 'nibabel', 'SimpleITK', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
