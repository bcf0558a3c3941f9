import nibabel as nib
import numpy as np
import pytest

from mmh_bids.errors import UsageError
from mmh_bids.simulate.acquire import acquire, stored_bytes
from mmh_bids.simulate.phantom import head_from_labels, random_affine, transform_head
from mmh_bids.simulate.scanner import Protocol, load_scanners
from mmh_bids.simulate.tissues import INDEX

SCANNERS = load_scanners()


def coarse(name, **changes):
    return SCANNERS[name].changed(
        {"T1w": {"voxel": (4.0, 4.0, 5.0), **changes}, "T2w": {"voxel": (4.0, 4.0, 5.0), **changes}}
    )


@pytest.mark.parametrize("name", sorted(SCANNERS))
@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_image_is_what_the_scanner_file_says(head, name, sequence):
    scanner = coarse(name)
    protocol = scanner.protocol(sequence)
    image = nib.Nifti1Image.from_bytes(stored_bytes(acquire(head, scanner, sequence).image))
    assert image.get_data_dtype() == np.dtype(protocol.dtype)
    assert nib.aff2axcodes(image.affine) == tuple(protocol.axes)
    assert np.allclose(image.header.get_zooms(), protocol.voxel)
    assert float(image.dataobj.slope) == pytest.approx(protocol.slope)
    assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-3)
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1


def test_oblique_grid_is_tilted_and_plumb_one_is_not(head):
    tilted, plumb = (acquire(head, coarse(name), "T1w").image.affine for name in "CA")
    assert np.count_nonzero(np.abs(plumb[:3, :3]) > 1e-6) == 3
    assert np.count_nonzero(np.abs(tilted[:3, :3]) > 1e-6) == 9


@pytest.mark.parametrize("seed", range(4))
def test_no_brain_leaves_the_field_of_view(head, seed):
    placed = transform_head(head, random_affine(np.random.default_rng(seed), head.brain_centre))
    volume = head.mask.sum() * abs(np.linalg.det(placed.affine))
    for name in "ABCD":
        scan = acquire(placed, coarse(name), "T1w", neck=5.0)
        mask = np.asarray(scan.mask.dataobj)
        assert mask.sum() * np.prod(scan.mask.header.get_zooms()) == pytest.approx(volume, rel=0.03)
        edges = [np.take(mask, end, axis) for axis in range(3) for end in (0, -1)]
        assert not any(edge.any() for edge in edges)


def test_anatomy_lies_where_the_affine_says(head):
    placed = transform_head(head, random_affine(np.random.default_rng(2), head.brain_centre))
    scan = acquire(placed, coarse("C"), "T2w")
    for values, affine in ((placed.mask, placed.affine), (np.asarray(scan.mask.dataobj) > 0, scan.mask.affine)):
        centre = affine @ [*np.argwhere(values).mean(0), 1]
        # the ball is symmetric: centre of the mask = centre of the head
        assert np.linalg.norm(centre[:3] - placed.brain_centre) < 0.5
    fluid = np.asarray(scan.tissue.dataobj) == INDEX["fluid"]
    ventricle = (placed.first == INDEX["fluid"]) & (
        np.linalg.norm(np.indices(placed.first.shape).T - 20, axis=-1).T < 10
    )
    place = np.linalg.inv(scan.image.affine) @ placed.affine @ [*np.argwhere(ventricle).mean(0), 1]
    assert fluid[tuple(np.rint(place[:3]).astype(int))]
    bright = scan.noise_free[tuple(np.rint(place[:3]).astype(int))]
    assert bright > 1.5 * np.median(scan.noise_free[np.asarray(scan.tissue.dataobj) == INDEX["white_matter"]])


def test_contrast_level_and_noise(head):
    scanner = coarse("A")
    scan = acquire(head, scanner, "T1w", seed=1)
    tissue, values = np.asarray(scan.tissue.dataobj), scan.image.get_fdata()
    means = {name: values[tissue == INDEX[name]].mean() for name in ("white_matter", "cortex")}
    assert means["white_matter"] > 1.15 * means["cortex"]
    protocol = scanner.protocol("T1w")
    assert means["white_matter"] == pytest.approx(protocol.level, rel=0.3)
    inside = tissue == INDEX["white_matter"]
    assert (values - scan.noise_free)[inside].std() == pytest.approx(protocol.level / protocol.snr, rel=0.15)
    # Air holds the Rayleigh mean of the noise, not zero.
    air = scan.noise_free < 1e-3
    assert values[air].mean() == pytest.approx(np.sqrt(np.pi / 2) * protocol.level / protocol.snr, rel=0.1)


def test_same_seed_same_bytes_and_rescan_differs_in_noise_only(head):
    scanner = coarse("B")
    first, again, rescan = (acquire(head, scanner, "T1w", seed=5, noise_seed=noise) for noise in (0, 0, 1))
    assert stored_bytes(first.image) == stored_bytes(again.image)
    assert stored_bytes(first.image) != stored_bytes(rescan.image)
    assert np.array_equal(first.noise_free, rescan.noise_free)


def test_thick_slices_average_what_thin_ones_show(head):
    thin = SCANNERS["A"].changed({"T1w": {"voxel": (4.0, 4.0, 4.0), "axes": "RAS"}})
    thick = SCANNERS["A"].changed({"T1w": {"voxel": (4.0, 4.0, 16.0), "axes": "RAS"}})
    sums = []
    for scanner in (thin, thick):
        scan = acquire(head, scanner, "T1w", seed=1)
        sums.append(scan.noise_free.sum() * np.prod(scan.image.header.get_zooms()))
    assert sums[1] == pytest.approx(sums[0], rel=0.03)


def test_float_images_and_missing_protocols(head):
    scan = acquire(head, coarse("A", dtype="float32"), "T2w")
    assert scan.image.get_data_dtype() == np.float32
    only_t1w = SCANNERS["A"].__class__(**{**vars(SCANNERS["A"]), "protocols": {"T1w": SCANNERS["A"].protocol("T1w")}})
    with pytest.raises(UsageError, match="no T2w protocol"):
        acquire(head, only_t1w, "T2w")


def test_sidecar_holds_the_protocol():
    sidecar = SCANNERS["B"].sidecar("T2w")
    assert sidecar["Manufacturer"] == "GE" and sidecar["MagneticFieldStrength"] == 1.5
    assert sidecar["MRAcquisitionType"] == "2D" and "InversionTime" not in sidecar
    assert SCANNERS["A"].sidecar("T1w")["InversionTime"] == 0.9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ti: 0.2", "too short"), ("tr: 1.0", "too short"), ("dtype: int8", "dtype"), ("axes: RAA", "axes"),
        ("sequence: epi", "sequence"), ("voxel: [1, 0, 1]", "voxel"), ("colour: red", "colour"), ("snr: 0", "above 0"),
    ],
)  # fmt: skip
def test_faulty_scanner_files_are_refused_in_one_line(tmp_path, change, words):
    fields = {
        "sequence": "mprage", "tr": 2.3, "ti": 0.9, "te": 0.003, "flip": 9, "echo_spacing": 0.007, "echoes": 176,
        "voxel": "[1, 1, 1]",
    }  # fmt: skip
    key, value = change.split(": ")
    protocol = ", ".join(f"{name}: {entry}" for name, entry in {**fields, key: value}.items())
    shared = "manufacturer: M, model: N, institution: I, field: 3, bias: 0.1, transmit: 0.1"
    text = f"X: {{{shared}, T1w: {{{protocol}}}}}\n"
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        load_scanners(path)
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_protocol_defaults_are_plumb_int16():
    plain = Protocol("spin_echo", 3.0, 0.09, 90.0, (1.0, 1.0, 1.0))
    assert (plain.axes, plain.dtype, plain.slope) == ("RAS", "int16", 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("sequence", ["T1w", "T2w"])
def test_a_real_label_map_keeps_its_brain_wherever_it_is_moved(label_map, sequence):
    labels = np.asarray(nib.load(label_map).dataobj)
    truth = ((labels > 0) & (labels < 500)).sum() / 1000
    whole = head_from_labels(label_map, seed=1)
    still = np.asarray(acquire(whole, SCANNERS["A"], sequence).mask.dataobj).sum() / 1000
    assert still == pytest.approx(truth, rel=0.003)
    move = random_affine(np.random.default_rng(7), whole.brain_centre)
    scan = acquire(transform_head(whole, move), SCANNERS["A"], sequence)
    measured = np.asarray(scan.mask.dataobj).sum() / 1000
    assert measured == pytest.approx(truth * abs(np.linalg.det(move)), rel=0.003)
