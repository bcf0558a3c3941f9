"""A call that is killed outright at any place, and given again, ends at the bytes of one that was left alone.

`make kill-test` kills twenty times, `make test-long` three times: ``MMH_KILLS``. ``MMH_KILL_SEED`` chooses the places.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from small_study import SOURCES, files, harmonized, hashes
from tiny import leftovers, mmh

from mmh_bids.bids.tsv import read_tsv

KILLS = int(os.environ.get("MMH_KILLS", "3"))
SEED = int(os.environ.get("MMH_KILL_SEED", "0"))
#: So many calls are killed before one may end: the later ones are killed in what was left of the earlier.
KILLS_A_LIFE = 10


def count(*folders):
    """Number of files in the folders: how far a call has come, on any machine."""
    return sum(len(names) for folder in folders for _, _, names in os.walk(folder))


def killed_at(place, command, *folders):
    """Start a call, and kill its process group once there are `place` files; whether it was killed before its end."""
    log = folders[0].parent / "stderr.txt"
    with open(log, "ab") as stderr:
        call = subprocess.Popen(command, stdout=stderr, stderr=stderr, start_new_session=True)
    while call.poll() is None and count(*folders) < place:
        time.sleep(0.01)
    was_running = call.poll() is None
    try:
        os.killpg(call.pid, signal.SIGKILL)
    except ProcessLookupError:
        assert not was_running
    assert call.wait() == (-signal.SIGKILL if was_running else 0), log.read_text()
    return was_running


def wait_for_end_of(folder):
    """Wait until no process works in the folder: a kill is not over when it was sent."""
    for _ in range(100):
        if not any(str(folder) in " ".join(_words(process)) for process in psutil.process_iter()):
            return
        time.sleep(0.1)
    raise AssertionError(f"processes are left over in {folder}")


def _words(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.long
@pytest.mark.timeout(300 + 120 * KILLS)
def test_killed_and_given_again_it_ends_at_the_same_bytes(study, tmp_path):
    root, undisturbed, words, work, _ = study
    expected, total = hashes(undisturbed), count(undisturbed, work)
    links = json.loads((undisturbed / "dataset_description.json").read_text())
    choose, kills, lives, places = random.Random(SEED), 0, 0, []
    while kills < KILLS:
        lives += 1
        out, scratch = tmp_path / f"life-{lives}" / "out", tmp_path / f"life-{lives}" / "work"
        out.parent.mkdir()
        command = [sys.executable, "-m", "mmh_bids.cli.run", *map(str, (root, out, *words, "-w", scratch))]
        for _ in range(min(KILLS_A_LIFE, KILLS - kills)):
            before = count(out, scratch)
            place = before + choose.randint(1, max(1, (total - before) // 4))
            if not killed_at(place, command, out, scratch):
                break
            wait_for_end_of(out.parent)
            kills += 1
            places.append(f"{place}/{total}")
        last = mmh(root, out, *words, "-w", scratch)
        assert last.code == 0, last.err
        found = hashes(out)
        description = json.loads((out / "dataset_description.json").read_text())
        assert description.keys() == links.keys()
        assert {name: found[name] for name in found if name != "dataset_description.json"} == {
            name: expected[name] for name in expected if name != "dataset_description.json"
        }
        # the log of a call that was killed before its first line is empty
        assert [path for path in leftovers(out) if path.suffix != ".log"] == []
        assert list((out / "logs" / "calls").iterdir()) == []
        shutil.rmtree(out.parent)
    print(f"killed {kills} time(s) in {lives} life/lives, when so many files were there: {', '.join(places)}")
    assert kills == KILLS


@pytest.fixture
def killed(study, tmp_path):
    """A call killed when one image was written and others were not: (words to go on, out)."""
    root, _, words, *_ = study
    out, scratch = tmp_path / "out", tmp_path / "work"
    command = [sys.executable, "-m", "mmh_bids.cli.run", *map(str, (root, out, *words, "-w", scratch))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as call:
        while "derivatives written" not in call.stderr.readline():
            assert call.poll() is None
        os.killpg(call.pid, signal.SIGKILL)
    wait_for_end_of(tmp_path)
    return (root, out, *words, "-w", scratch), out


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_next_call_says_what_was_killed_and_only_that_is_done_again(killed):
    words, out = killed
    assert not (out / "participants.tsv").exists()
    (note,) = out.glob("logs/calls/*.json")
    half = out / "sub-01/ses-A/anat" / f".tmp-7-{json.loads(note.read_text())['token']}-00.nii.gz"
    half.write_text("half")
    done = [source for source in SOURCES if harmonized(out, source).with_suffix("").with_suffix(".json").exists()]
    assert done and len(done) < len(SOURCES)

    dry = mmh(*words, "--failed-only", "--dry-run")
    assert dry.code == 0 and note.exists(), dry.err

    group = mmh(*words[:2], "group", "-w", words[-1], "--nprocs", 1)
    assert group.code in (0, 1) and "was killed while it worked" in group.err, group.err
    assert not half.exists() and not note.exists()
    log = max((out / "logs").glob("mmh-*.log"))
    assert "most likely for lack of memory or time" in log.read_text()
    rows = {row["image"]: row for row in read_tsv(out / "logs/images.tsv", "image")[1]}
    assert {image for image, row in rows.items() if row["status"] == "done"} == set(done)
    assert {row["status"] for image, row in rows.items() if image not in done} == {"failed"}
    assert all("was killed" in rows[image]["message"] for image in set(SOURCES) - set(done))

    again = mmh(*words, "--failed-only")
    assert again.code == 0, again.err
    assert {row["status"] for row in read_tsv(out / "participants.tsv", "participant_id")[1]} == {"done"}
    nothing = mmh(*words, "--failed-only")
    assert nothing.code == 3 and "--failed-only: nothing that was asked for has failed" in nothing.err


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_its_processes_end_with_a_call_that_is_killed_alone(study, tmp_path):
    root, _, words, *_ = study
    command = [
        sys.executable,
        "-m",
        "mmh_bids.cli.run",
        *map(str, (root, tmp_path / "out", *words, "-w", tmp_path / "w")),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as call:
        while "read and checked" not in call.stderr.readline():
            assert call.poll() is None
        workers = psutil.Process(call.pid).children(recursive=True)
        assert workers
        call.kill()
        call.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert alive == []
    assert files(tmp_path / "out")
