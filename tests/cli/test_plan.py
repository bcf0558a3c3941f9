"""What a call says it will do, what that may cost, and who is taken by ``--failed-only``."""

import dataclasses
import shutil
from types import SimpleNamespace

import pytest
from small_study import SOURCES, rows
from tiny import describe, image, mmh, save

from mmh_bids.bids.calls import Begun, noted
from mmh_bids.bids.dataset import ImageStatus, record_images
from mmh_bids.bids.derivatives import OutputPaths, harmonization_on_disk
from mmh_bids.bids.run import Run
from mmh_bids.cli.batches import forget_outdated
from mmh_bids.cli.plan import estimate
from mmh_bids.cli.records import fingerprint_on_disk
from mmh_bids.settings import Settings
from mmh_bids.workflows.base import Job
from mmh_bids.workflows.resources import image_gb, image_minutes


def test_a_dry_run_estimates_what_is_left_to_do(study, here):
    root, out, words, *_ = study
    call = here(root, out.parent / "none", *words, "-w", out.parent / "w", "--dry-run")
    found = rows(call)
    assert [row["action"] for row in found] == ["harmonize"] * 4
    assert all(0.3 <= float(row["minutes"]) < 2 and 1 < float(row["mem_gb"]) < 3 for row in found)
    minutes = sum(float(row["minutes"]) for row in found)
    assert f"estimate: 4 image(s) of 2 participant(s), about {minutes:.0f} minute(s) on one process" in call.err

    done = here(root, out, *words, "-w", out.parent / "w", "--dry-run")
    assert {(row["action"], row["minutes"], row["mem_gb"]) for row in rows(done)} == {("done", "n/a", "n/a")}
    assert "estimate: 0 image(s)" in done.err


def test_images_that_may_need_more_memory_than_there_is_are_named(study, here):
    root, out, words, *_ = study
    words = (*words, "-w", out.parent / "short", "--participant-label", "01", "--modalities", "T1w")
    call = mmh(root, out.parent / "short-out", *words, "--mem", "900M")
    assert call.code == 0 and call.err.count("2 image(s) may need more than the 0.9 GB that this call may use") == 1
    done = here(root, out.parent / "short-out", *words, "--mem", "900M")
    assert "0 image(s) to harmonize" in done.err and "may need more than" not in done.err


def test_larger_images_and_methods_cost_more():
    small, large = 0.02, 0.2
    for method in ("zscore", "mmh-light"):
        assert image_minutes(small, method, "T1w") < image_minutes(large, method, "T1w")
        assert image_minutes(small, method, "T1w") < image_minutes(small, method, "T2w")
        assert image_minutes(small, method, "T1w") < image_minutes(small, method, "T1w", spaces=2)
    assert image_minutes(small, "zscore", "T1w") < image_minutes(small, "mmh-light", "T1w")
    assert image_gb(small, 0.5) < image_gb(large, 0.5) and image_gb(small, 7.0) == 7.0


def test_a_time_that_nobody_knows():
    assert image_minutes(0.1, "of-somebody-else", "T1w") is None
    run = Run("/raw/sub-1/anat/sub-1_T1w.nii", "T1w", {"sub": "1"})
    assert "1 image(s) of 1 participant(s), nobody knows how long on one process" in estimate(
        [run], {run.key: (None, 2.0)}
    )


@pytest.fixture
def some_failed(brain, tmp_path):
    """A dataset of four people: 1 done, 2 failed, 3 unfinished by a killed call, 4 never tried."""
    data, affine = brain
    root, out = describe(tmp_path / "raw"), tmp_path / "out"
    runs = {}
    for label in "1234":
        path = save(image(data * 800, affine), root / f"sub-{label}/anat/sub-{label}_T1w.nii.gz")
        runs[label] = Run(path, "T1w", {"sub": label})
    settings = Settings(root, out)
    record_images(settings, [ImageStatus(runs["1"], "done"), ImageStatus(runs["2"], "failed", "why")])
    with noted(out, root, [Begun(runs["3"], "f")], ["3"]) as name:
        note = (out / f"logs/calls/{name}.json").read_bytes()
    (out / f"logs/calls/{name}.json").write_bytes(note)  # as if it had been killed
    (out / f"logs/calls/{name}.lock").touch()
    return root, out


def test_failed_only_takes_the_failed_and_the_unfinished(some_failed, here, tmp_path):
    root, out = some_failed
    words = (root, out, "participant", "-w", tmp_path / "work", "--failed-only", "--dry-run")
    call = here(*words)
    assert call.code == 0, call.err
    assert [row["file"] for row in rows(call)] == ["sub-2_T1w.nii.gz", "sub-3_T1w.nii.gz"]
    assert [row["file"] for row in rows(here(*words, "--participant-label", "3", "4"))] == ["sub-3_T1w.nii.gz"]
    nobody = here(*words, "--participant-label", "1", "4")
    assert nobody.code == 3 and f"--failed-only: nothing that was asked for has failed in {out}" in nobody.err
    assert len(list((out / "logs/calls").glob("*.json"))) == 1  # a dry run writes nothing


def test_failed_only_in_a_new_folder(study, here, tmp_path):
    root, _, words, *_ = study
    call = here(root, tmp_path / "out", *words, "-w", tmp_path / "work", "--failed-only")
    assert call.code == 3 and "--failed-only" in call.err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def finished(study, tmp_path):
    """A copy of the study's output of participant 02: (settings, job, paths)."""
    root, out, *_ = study
    again = tmp_path / "out"
    shutil.copytree(out / "sub-02", again / "sub-02")
    run = Run(root / SOURCES[3], "T2w", {"sub": "02"})
    paths = OutputPaths(again, run)
    return Settings(root, again), Job(run, harmonization_on_disk(paths)["Fingerprint"], ""), paths


def test_an_image_is_done_when_all_of_its_files_are_there(finished):
    _, job, paths = finished
    assert fingerprint_on_disk(paths) == job.fingerprint
    paths.features.unlink()  # the call was killed before it had measured them
    assert fingerprint_on_disk(paths) is None


def test_figures_and_features_of_other_settings_do_not_outlive_the_start(finished):
    """Else a call that is killed between the image and its figures would leave those of the former settings."""
    settings, job, paths = finished
    study = SimpleNamespace(settings=settings)
    forget_outdated([job], study)
    assert fingerprint_on_disk(paths) == job.fingerprint
    forget_outdated([dataclasses.replace(job, fingerprint="another")], study)
    assert list(paths.figures.iterdir()) == [] and not paths.features.exists()
    assert paths.harmonized().exists()


def test_the_page_shows_the_sessions_of_other_calls(study, here, tmp_path):
    root, out, words, *_ = study
    again = tmp_path / "out"
    shutil.copytree(out, again)
    (again / "sub-01.html").unlink()
    for words_of_session in (("--session-label", "B"), ("--session-label", "A", "--modalities", "T2w")):
        call = here(root, again, *words, "-w", tmp_path / "work", "--reports-only", "--participant-label", "01",
                    *words_of_session)  # fmt: skip
        assert call.code == 0, call.err
        assert (again / "sub-01.html").read_bytes() == (out / "sub-01.html").read_bytes()
