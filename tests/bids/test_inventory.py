"""Which images an output folder holds: by its list, by its sidecars, whatever their names."""

import json

import pytest

from mmh_bids.bids.dataset import ImageStatus, record_images
from mmh_bids.bids.derivatives import OutputPaths, sidecar_path
from mmh_bids.bids.discovery import discover
from mmh_bids.bids.inventory import find_images, with_facts
from mmh_bids.errors import ImageError

IMAGES = ["sub-1_T1w.nii.gz", "sub-2_ses-A_acq-x_T1w.nii.gz", "sub-2_ses-A_T2w.nii.gz", "sub-10_T1w.nii.gz"]
FACTS = {"Site": "Genève", "SiteSource": "session", "QC": {"Finite": True}}


@pytest.fixture
def outputs(make_dataset, settings):
    """Settings and runs; the output folder lists them all as done, but sub-10 as failed."""
    asked = settings(make_dataset(IMAGES))
    runs = {run.key: run for run in discover(asked)}
    for run in runs.values():
        path = sidecar_path(OutputPaths(asked.output_dir, run).harmonized())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"Harmonization": FACTS}))
    failed = runs["sub-10_T1w"]
    record_images(asked, [ImageStatus(run, "done") for run in runs.values() if run is not failed])
    record_images(asked, [ImageStatus(failed, "failed", "broken")])
    return asked, runs


def keys(asked, *sequences):
    found = find_images(asked.bids_dir, asked.output_dir, sequences or ("T1w", "T2w"))
    return [(image.key, image.status) for image in found]


def test_images_come_as_people_count_with_their_status(outputs):
    asked, runs = outputs
    assert keys(asked, "T1w") == [("sub-1_T1w", "done"), ("sub-2_ses-A_acq-x_T1w", "done"), ("sub-10_T1w", "failed")]
    assert keys(asked, "T2w") == [("sub-2_ses-A_T2w", "done")]
    image = find_images(asked.bids_dir, asked.output_dir, ["T2w"])[0]
    assert (image.run.path, image.run.entities) == (runs[image.key].path, runs[image.key].entities)


def test_without_the_list_sidecars_tell(outputs):
    asked, _ = outputs
    (asked.output_dir / "logs" / "images.tsv").unlink()
    assert len(keys(asked)) == 4 and {status for _, status in keys(asked)} == {"done"}
    space = asked.output_dir / "sub-1/anat/sub-1_space-MNI_res-1_desc-harmonized_T1w.json"
    space.write_text("{}")
    assert len(keys(asked)) == 4
    image = find_images(asked.bids_dir, asked.output_dir, ["T1w"])[0]
    assert image.image == "sub-1/anat/sub-1_T1w.nii.gz"


def test_skipped_images_are_no_rows(outputs):
    asked, runs = outputs
    record_images(asked, [ImageStatus(runs["sub-1_T1w"], "skipped", "a phase image")])
    assert [key for key, _ in keys(asked, "T1w")] == ["sub-2_ses-A_acq-x_T1w", "sub-10_T1w"]


def test_of_an_excluded_image_what_was_kept_is_read(outputs):
    asked, runs = outputs
    run = runs["sub-1_T1w"]
    paths = OutputPaths(asked.output_dir, run)
    record_images(asked, [ImageStatus(run, "excluded", "beyond use")])
    sidecar_path(paths.harmonized()).unlink()
    (image, *_) = find_images(asked.bids_dir, asked.output_dir, ["T1w"])
    assert (image.status, with_facts(image, asked.output_dir).facts) == ("excluded", {})
    paths.excluded.parent.mkdir(parents=True)
    paths.excluded.write_text(json.dumps({"Reason": "beyond use", "Harmonization": FACTS}))
    assert with_facts(image, asked.output_dir).facts == FACTS


def test_site_is_that_of_the_sidecar(outputs):
    asked, _ = outputs
    image = with_facts(find_images(asked.bids_dir, asked.output_dir, ["T1w"])[0], asked.output_dir)
    assert (image.run.site, image.run.site_source, image.facts) == ("Genève", "session", FACTS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[1]", "has no Harmonization object"),
        ('{"Harmonization": {"QC": 3}}', "has no Harmonization object with QC"),
        (None, "no such file"),
    ],
)
def test_a_broken_sidecar_is_named_with_what_to_do(outputs, content, words):
    asked, runs = outputs
    path = sidecar_path(OutputPaths(asked.output_dir, runs["sub-1_T1w"]).harmonized())
    path.unlink() if content is None else path.write_text(content)
    image = find_images(asked.bids_dir, asked.output_dir, ["T1w"])[0]
    with pytest.raises(ImageError) as caught:
        with_facts(image, asked.output_dir)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and words in text and "run the participant level again" in text
    assert "\n" not in text
