import re
import xml.etree.ElementTree as ElementTree
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mmh_bids.errors import ImageError
from mmh_bids.reports.figures import draw_figures
from mmh_bids.reports.histogram import Intensities, histogram_svg
from mmh_bids.reports.participant import is_harmless_svg

SVG = "{http://www.w3.org/2000/svg}"
MAP = {
    "Input": [0.0, 0.5, 1.0], "Output": [0.0, 0.6, 1.0], "SlopeBelow": 1.0, "SlopeAbove": 1.0,
    "InputScale": [0.0, 1000.0], "OutputScale": [0.0, 100.0],
}  # fmt: skip
QUANTILES = np.linspace(0.05, 0.95, 64)


def head(shape=(36, 44, 40), seed=0):
    """An egg-shaped brain in a larger head, brighter to the right, front and top."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    mask = (grid**2).sum(0) < 0.45
    image = np.where((grid**2).sum(0) < 0.8, 400 + 200 * grid[0] + 100 * grid[1] + 50 * grid[2], 0)
    noise = np.random.default_rng(seed).normal(0, 10, shape)
    return (image + noise * (image > 0)).astype(np.float32), mask


def save(folder, image, mask, affine, axes="RAS"):
    """Before, after and mask files, stored with the axes in the given order."""
    folder.mkdir(exist_ok=True)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    paths = []
    after = np.where(mask, image / 10, 0).astype(np.float32)
    for name, data in (("before", image), ("after", after), ("mask", mask.astype(np.uint8))):
        paths.append(folder / f"{name}.nii")
        nib.Nifti1Image(data, affine).as_reoriented(turn).to_filename(paths[-1])
    return paths


def draw(paths, folder, **changes):
    arguments = {
        "stem": "sub-01", "sequence": "T1w", "intensity_map": MAP, "reference_quantiles": QUANTILES,
    } | changes  # fmt: skip
    return draw_figures(*paths, folder, **arguments)


def tiles(file):
    """Place and size of the rasters of a figure, in mm."""
    return [
        tuple(float(image.get(name)) for name in ("x", "y", "width", "height"))
        for image in ElementTree.parse(file).iter(f"{SVG}image")
    ]


AFFINE = nib.affines.from_matvec(np.diag([4.0, 4.0, 4.0]), [-70, -90, -60])


def test_all_figures_are_small_whole_and_the_same_twice(tmp_path):
    template = Path(str(files("nilearn"))) / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    paths = save(tmp_path / "in", *head(), AFFINE)
    first = draw(paths, tmp_path / "a", registration=template)
    second = draw(paths, tmp_path / "b", registration=template)
    kinds = ("mask", "beforeafter", "difference", "histogram", "registration")
    assert [file.name for file in first] == [f"sub-01_desc-{kind}_T1w.svg" for kind in kinds]
    for file, again in zip(first, second, strict=True):
        text = file.read_text()
        assert again.read_text() == text
        assert 2_000 < len(text) < 400_000
        ElementTree.fromstring(text)
        assert not re.findall(r'(?:href|src)="(?!data:|#)', text)
        assert "<!DOCTYPE" not in text
    assert sorted((tmp_path / "a").iterdir()) == sorted(first)
    assert is_harmless_svg(first[1].read_text())


@pytest.mark.parametrize("axes", ["LPS", "PIR", "SAL"])
def test_the_order_of_the_axes_in_the_file_changes_nothing(tmp_path, axes):
    image, mask = head()
    plain = draw(save(tmp_path / "ras", image, mask, AFFINE), tmp_path / "a")
    turned = draw(save(tmp_path / "other", image, mask, AFFINE, axes), tmp_path / "b")
    for one, other in zip(plain, turned, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_thick_slices_keep_their_shape(tmp_path):
    image, mask = head((36, 44, 12))
    affine = np.diag([4.0, 4.0, 14.0, 1])
    mask[:] = False
    mask[10:20, 10:30, 3:9] = True  # 40 x 80 x 84 mm, margins of 6 mm are 2, 2 and 0 voxels
    file = draw(save(tmp_path / "in", image, mask, affine), tmp_path / "out")[0]
    sizes = {size[2:] for size in tiles(file)}
    assert sizes == {(96.0, 84.0), (56.0, 84.0), (56.0, 96.0)}  # sagittal, coronal, axial


def test_the_outline_is_around_the_mask(tmp_path):
    image, mask = head()
    mask[:] = False
    mask[10:20, 10:30, 8:28] = True
    root = ElementTree.parse(draw(save(tmp_path / "in", image, mask, AFFINE), tmp_path / "out")[0])
    found = set()
    for path in root.iter(f"{SVG}path"):
        numbers = [float(word) for word in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", path.get("d"))]
        points = np.cumsum(np.reshape(numbers, (-1, 2)), axis=0)
        found.add((*points.min(axis=0).round(1), *points.max(axis=0).round(1)))
    # 2 voxels of 4 mm of margin all around; width 10, 20 and height 20, 20 voxels
    assert found == {(8.0, 8.0, 88.0, 88.0), (8.0, 8.0, 48.0, 88.0)}


def test_both_pictures_follow_one_rule_for_black_and_white(tmp_path):
    image, mask = head()
    paths = save(tmp_path / "in", image, mask, AFFINE)
    masked = nib.Nifti1Image(np.where(mask, image, 0).astype(np.float32), AFFINE)
    masked.to_filename(paths[0])  # after is before / 10: once black and white are set, the same picture
    root = ElementTree.parse(draw(paths, tmp_path / "out")[1])
    rasters = {"before": [], "after": []}
    for group in root.iter(f"{SVG}g"):
        rasters[group.get("data-show")] += [raster.get("href") for raster in group.iter(f"{SVG}image")]
    assert len(rasters["before"]) == 14 and rasters["before"] == rasters["after"]
    white = np.percentile(image[mask], 99.5)
    labels = [text.text for text in root.iter(f"{SVG}text")]
    assert f"axial, before: black 0, white {white:.4g}" in labels
    assert f"axial, after: black 0, white {white / 10:.4g}" in labels


def test_registration_shows_a_shift_as_a_shift(tmp_path):
    image, mask = head()
    paths = save(tmp_path / "in", image, mask, AFFINE)
    moved = AFFINE.copy()
    moved[2, 3] += 20
    nib.Nifti1Image(np.where(mask, image, 0).astype(np.float32), moved).to_filename(tmp_path / "moved.nii")
    here = tiles(draw(paths, tmp_path / "a", registration=paths[1], sloppy=True)[4])[0]
    there = tiles(draw(paths, tmp_path / "b", registration=tmp_path / "moved.nii", sloppy=True)[4])[0]
    bottoms = [tile[1] + tile[3] for tile in (here, there)]
    assert bottoms[0] - bottoms[1] == pytest.approx(20, abs=4)  # up, to a voxel


@pytest.mark.parametrize("kind", ["nan", "negative", "empty mask", "constant", "sloppy", "no map"])
def test_odd_images_are_drawn_all_the_same(tmp_path, kind):
    image, mask = head()
    changes = {}
    if kind == "nan":
        image[5:15] = np.nan
    elif kind == "negative":
        image = (image - image[mask].mean()) / image[mask].std()
    elif kind == "empty mask":
        mask[:] = False
    elif kind == "constant":
        image[:] = 7
    elif kind == "sloppy":
        changes = {"sloppy": True}
    else:
        changes = {"intensity_map": None, "reference_quantiles": None}
    drawn = draw(save(tmp_path / "in", image, mask, AFFINE), tmp_path / "out", **changes)
    words = [re.sub('base64,[^"]*', "", file.read_text()) for file in drawn]  # a picture's bytes may spell it
    assert all("NaN" not in each for each in words)
    if kind == "sloppy":
        assert len(tiles(drawn[0])) == 6
    if kind == "negative":
        low = re.search(r"sagittal, before: black (-[\d.]+)", drawn[1].read_text())
        assert float(low.group(1)) == pytest.approx(np.percentile(image[mask], 0.5), rel=1e-3)


def test_files_on_two_grids_are_refused_by_name(tmp_path):
    paths = save(tmp_path / "in", *head(), AFFINE)
    small, _ = head((10, 10, 10))
    nib.Nifti1Image(small, AFFINE).to_filename(paths[1])
    with pytest.raises(ImageError, match=r"after\.nii: not on the grid of its mask .*mask\.nii"):
        draw(paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_reference_is_drawn_in_the_units_of_the_output():
    values = np.linspace(0, 1000, 5000)
    shown = Intensities(values, values / 10, MAP, QUANTILES)
    np.testing.assert_allclose(shown.reference, QUANTILES * 100)
    without = {key: value for key, value in MAP.items() if not key.endswith("Scale")}
    both = [histogram_svg(each, "T1w") for each in (shown, Intensities(values, values / 10, without, QUANTILES))]
    assert ["stroke-dasharray" in svg.split('id="axes_3"')[0] for svg in both] == [True, False]
