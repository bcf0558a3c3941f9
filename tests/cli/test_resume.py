"""Calls that go on from earlier ones: nothing is done twice, nothing lost, and an interrupted call resumes."""

import shutil
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from small_study import SOURCES, hashes, rows, sidecar, times
from tiny import describe, image, leftovers, mmh, save

from mmh_bids.bids.tsv import read_tsv
from mmh_bids.image.grid import open_nifti


def test_second_call_does_nothing(study):
    root, out, words, work, _ = study
    before = times(out)
    call = mmh(root, out, *words, "-w", work)
    assert call.code == 0, call.err
    assert "0 image(s) to harmonize, 4 done before" in call.err
    assert "]" not in call.err.replace("[Errno", "")
    changed = {name for name, time in times(out).items() if before.get(name) != time}
    assert changed <= {"sub-01.html", "sub-02.html"}


@pytest.mark.slow
def test_calls_with_empty_folders_give_the_same_bytes(study, tmp_path):
    root, out, words, *_ = study
    again = tmp_path / "out"  # the same name: reports and dataset_description.json tell the folders by name
    assert mmh(root, again, *words, "-w", tmp_path / "work").code == 0
    first, second = hashes(out), hashes(again)
    first.pop("dataset_description.json"), second.pop("dataset_description.json")
    assert first == second


@pytest.fixture(scope="module")
def life(study, tmp_path_factory):
    """The one T2w of participant 02, alone, in folders that tests may change: (call, out, work)."""
    root, _, words, *_ = study
    out = tmp_path_factory.mktemp("life") / "out"
    work = out.parent / "work"

    def call(*more):
        return mmh(root, out, *words, "-w", work, "--participant-label", "sub-02", *more)

    first = call()
    assert first.code == 0, first.err
    return call, out, work


def test_one_participant_alone_gives_the_same_bytes(study, life):
    _, out, *_ = study
    assert hashes(life[1], under="sub-02") == hashes(out, under="sub-02")
    assert not (life[1] / "sub-01").exists()


@pytest.mark.slow
def test_a_t2w_left_over_borrows_from_its_finished_t1w_as_before(study, tmp_path):
    """A call that died between T1w and T2w: the next one must not mask the T2w in another way."""
    root, out, words, *_ = study
    again = tmp_path / "out"
    shutil.copytree(out, again)
    for path in again.glob("sub-01/ses-A/**/*T2w*"):
        path.unlink()
    call = mmh(root, again, *words, "-w", tmp_path / "work", "--participant-label", "01", "--session-label", "A")
    assert call.code == 0, call.err
    assert "2 image(s) to harmonize, 0 done before" in call.err
    assert hashes(again, "sub-01/") == hashes(out, "sub-01/")


@pytest.mark.slow
def test_lost_figure_and_lost_image_are_made_again(life):
    call, out, _ = life
    before = hashes(out)
    (out / "sub-02/figures/sub-02_desc-mask_T2w.svg").unlink()
    (out / "sub-02/anat/sub-02_desc-harmonized_T2w.nii.gz").unlink()
    again = call()
    assert "1 image(s) to harmonize, 0 done before" in again.err
    # from the work directory: only what writes is run again
    steps = [line.split(": ", 1)[1].split(" (")[0] for line in again.err.splitlines() if line.startswith("[")]
    assert sorted(steps) == ["derivatives written", "figures drawn"]
    assert hashes(out) == before


def test_report_is_written_again_from_derivatives(life):
    call, out, _ = life
    before, page = times(out), (out / "sub-02.html").read_bytes()
    (out / "sub-02.html").unlink()
    again = call("--reports-only")
    assert again.code == 0, again.err
    assert (out / "sub-02.html").read_bytes() == page
    assert {name for name, time in times(out).items() if before[name] != time} == {"sub-02.html"}
    assert "]" not in again.err


def test_report_only_needs_derivatives(study, tmp_path, here):
    root, _, words, *_ = study
    call = here(root, tmp_path / "out", *words, "-w", tmp_path / "work", "--reports-only")
    assert call.code == 2 and "holds no derivatives of mmh; leave the flag out" in call.err
    assert not (tmp_path / "out").exists()


def test_configuration_file_of_an_earlier_call(study, life, here):
    root, _, _, work, _ = study
    config = min(life[1].glob("logs/config-*.toml"))
    same = here(root, life[1], "participant", "-w", work, "--config-file", config, "--dry-run")
    assert same.code == 0, same.err
    (row,) = rows(same)
    assert (row["file"], row["action"]) == ("sub-02_T2w.nii.gz", "done")
    other = here(root, life[1], "participant", "-w", work, "--config-file", config, "--dry-run", "--method", "nyul")
    assert [row["action"] for row in rows(other)] == ["harmonize"]


def test_dry_run_writes_nothing(study, tmp_path, here):
    root, _, words, *_ = study
    call = here(root, tmp_path / "out", *words, "-w", tmp_path / "work", "--dry-run", "--session-label", "ses-A")
    assert call.code == 0
    assert [tuple(row.values())[:6] for row in rows(call)] == [
        ("sub-01_ses-A_T1w.nii.gz", "T1w", "A", "A", "participants.tsv:site", "harmonize"),
        ("sub-01_ses-A_T2w.nii.gz", "T2w", "A", "A", "participants.tsv:site", "harmonize"),
    ]
    assert not (tmp_path / "out").exists()


def test_changed_setting_is_done_again(life):
    call, out, _ = life
    path = out / "sub-02/anat/sub-02_desc-harmonized_T2w.nii.gz"
    before = np.asanyarray(open_nifti(path).dataobj)
    again = call("--method", "nyul", "--clean-workdir", "--write-graph")
    assert again.code == 0, again.err
    steps = [line.split(": ", 1)[1].split(" (")[0] for line in again.err.splitlines() if line.startswith("[")]
    assert steps[0] == "harmonized"
    assert sidecar(out, SOURCES[3])["Harmonization"]["Method"] == "nyul"
    assert not np.array_equal(np.asanyarray(open_nifti(path).dataobj), before)
    assert not list(life[2].glob("mmh_wf/sub_02*"))
    (graph,) = out.glob("logs/graph-*.dot")
    assert "write_derivatives" in graph.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["MultiProc", "Linear"])
def test_stop_on_first_crash(brain, tmp_path, quick, plugin):
    data, affine = brain
    root, out = describe(tmp_path / "raw"), tmp_path / "out"
    for label in ("1", "2"):
        save(image(data * (label == "2"), affine), root / f"sub-{label}/anat/sub-{label}_T1w.nii.gz")
    words = ("--stop-on-first-crash", "--nprocs", 1, "--use-plugin", plugin, "-w", tmp_path / "work")
    call = mmh(root, out, "participant", *quick, *words)
    assert call.code == 1
    lines = [line for line in call.err.splitlines() if ": FAILED: " in line]
    assert len(lines) == 2
    assert "sub-1_T1w.nii.gz: every voxel is 0" in lines[0]
    assert "sub-2_T1w.nii.gz: was not processed, as the call stopped at the first error" in lines[1]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupted_call_leaves_nothing_behind_and_resumes(study, tmp_path, name):
    root, _, words, *_ = study
    command = [sys.executable, "-m", "mmh_bids.cli.run", root, tmp_path / "out", *words, "-w", tmp_path / "work"]

    # a shell that starts the tests in the background makes its children ignore SIGINT, and they hand that down
    def heed():
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, preexec_fn=heed) as running:
        while "bias field corrected" not in running.stderr.readline():
            pass
        workers = psutil.Process(running.pid).children(recursive=True)
        assert workers
        running.send_signal(getattr(signal, name))
        rest = running.stderr.read()
        assert running.wait(timeout=60) == 128 + getattr(signal, name)
    assert "mmh: interrupted; run the same command again to resume" in rest and "Traceback" not in rest
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    assert leftovers(tmp_path / "out") == []
    table = read_tsv(tmp_path / "out/participants.tsv", "participant_id")[1]
    assert any("the call was interrupted; run the same command again" in row["message"] for row in table)
    call = mmh(root, tmp_path / "out", *words, "-w", tmp_path / "work", "--participant-label", "02")
    assert call.code == 0, call.err
