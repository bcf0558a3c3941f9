"""Calls that share an output folder: notes of what they do, locks, and what the next call makes of a killed one."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmh_bids.bids.calls import Begun, killed_calls, locked, noted, remove_half_files, sessions_locked
from mmh_bids.bids.run import Run
from mmh_bids.files import CALL_VARIABLE, atomic_path, atomic_write

RAW = Path("/raw")
RUN = Run(RAW / "sub-01/ses-A/anat/sub-01_ses-A_T1w.nii.gz", "T1w", {"sub": "01", "ses": "A"}, {}, "Bonn", "sidecar")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    monkeypatch.delenv(CALL_VARIABLE, raising=False)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def calls(out, take=False):
    with killed_calls(out, RAW, take=take) as found:
        return found


#: A call that begins, leaves a half file, and waits to be killed.
DIE = """
import sys, time
from pathlib import Path
from mmh_bids.bids.calls import Begun, noted
from mmh_bids.bids.run import Run
from mmh_bids.files import atomic_path
out, raw = Path(sys.argv[1]), Path("/raw")
path = raw / "sub-01/ses-A/anat/sub-01_ses-A_T1w.nii.gz"
run = Run(path, "T1w", {"sub": "01", "ses": "A"}, {}, "Bonn", "sidecar")
with noted(out, raw, [Begun(run, "f" * 16)], ["01"]) as name, atomic_path(out / "sub-01/ses-A/anat/a.nii.gz") as half:
    half.write_text("half")
    print(name, flush=True)
    time.sleep(60)
"""


def test_a_call_is_no_killed_one_while_it_lives_and_one_that_ended_leaves_nothing(tmp_path):
    with noted(tmp_path, RAW, [Begun(RUN, "f")], ["01"]):
        assert len(list((tmp_path / "logs/calls").glob("*.json"))) == 1
        assert calls(tmp_path) == []
    assert list((tmp_path / "logs/calls").iterdir()) == []
    with pytest.raises(KeyboardInterrupt), noted(tmp_path, RAW):
        raise KeyboardInterrupt
    assert list((tmp_path / "logs/calls").iterdir()) == []


def test_a_killed_call_is_found_once_with_all_that_it_was_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with subprocess.Popen([sys.executable, "-c", DIE, str(tmp_path)], stdout=subprocess.PIPE, text=True) as call:
        name = call.stdout.readline().strip()
        assert calls(tmp_path) == []
        call.send_signal(signal.SIGKILL)
    (found,) = calls(tmp_path)
    assert (found.name, found.job, found.participants) == (name, "12_3", ("01",))
    assert found.where.startswith("Slurm job 12_3 on ")
    assert found.images == (Begun(RUN, "f" * 16),)

    others = tmp_path / "sub-01/ses-A/anat/.tmp-7-other-00.nii.gz"
    others.write_text("of a call that lives")
    assert len(list(tmp_path.rglob(".tmp-*.nii.gz"))) == 2
    remove_half_files(tmp_path, found)
    assert list(tmp_path.rglob(".tmp-*.nii.gz")) == [others]

    with killed_calls(tmp_path, RAW, take=True) as first:
        assert [call.name for call in first] == [name]
        seen = []
        other = threading.Thread(target=lambda: seen.extend(calls(tmp_path)))  # another call that looks meanwhile
        other.start()
        other.join()
        assert seen == []
    assert calls(tmp_path) == []
    assert list((tmp_path / "logs/calls").iterdir()) == []


def test_a_call_that_fails_to_speak_for_a_killed_one_leaves_it_to_the_next(tmp_path):
    with subprocess.Popen([sys.executable, "-c", DIE, str(tmp_path)], stdout=subprocess.PIPE, text=True) as call:
        call.stdout.readline()
        call.kill()
    with pytest.raises(OSError), killed_calls(tmp_path, RAW, take=True):
        raise OSError(28, "No space left on device")
    assert len(calls(tmp_path)) == 1


@pytest.mark.parametrize("note", [None, "{", '{"token": "a", "images": [{"image": "x"}]}'])
def test_a_call_that_was_killed_as_it_began_leaves_nothing(tmp_path, note):
    folder = tmp_path / "logs/calls"
    folder.mkdir(parents=True)
    (folder / "20260101-000000-0000.lock").touch()
    if note is not None:
        (folder / "20260101-000000-0000.json").write_text(note)
    assert calls(tmp_path) == [] and len(list(folder.iterdir())) > 0
    assert calls(tmp_path, take=True) == []
    assert list(folder.iterdir()) == []


def test_no_two_calls_have_the_same_name(tmp_path, monkeypatch):
    class Stopped:
        """A clock that stands still for the first looks."""

        def __init__(self):
            self.looks = 0

        def now(self, zone):
            import datetime

            self.looks += 1
            return datetime.datetime(2026, 1, 2, 3, 4, 5, 600 if self.looks < 5 else 900, tzinfo=zone)

    monkeypatch.setattr("mmh_bids.bids.calls.datetime", Stopped())
    with noted(tmp_path, RAW) as first, noted(tmp_path, RAW) as second:
        assert (first, second) == ("20260102-030405-0006", "20260102-030405-0009")


def test_half_files_carry_the_name_of_their_call(tmp_path):
    with noted(tmp_path, RAW), atomic_path(tmp_path / "a.json") as path:
        assert f"-{os.environ[CALL_VARIABLE]}-" in path.name
        path.touch()


def in_session(folder, label):
    return Run(folder / "x", "T1w", {"sub": "01", "ses": label})


def test_a_session_has_one_call_at_a_time_and_nothing_stays_of_the_locks(tmp_path, caplog):
    """Eight threads, each with its own locks as processes have, in two folders, some sessions shared."""
    folders, inside, most, order = (tmp_path / "work", tmp_path / "out"), {"A": 0, "B": 0}, {"A": 0, "B": 0}, []
    guard = threading.Lock()

    def work(labels):
        with sessions_locked(folders, [in_session(tmp_path, label) for label in labels]):
            with guard:
                for label in labels:
                    inside[label] += 1
                    most[label] = max(most[label], inside[label])
                order.append(labels)
            time.sleep(0.02)
            with guard:
                for label in labels:
                    inside[label] -= 1

    caplog.set_level("INFO", "mmh")
    threads = [threading.Thread(target=work, args=(labels,)) for labels in ("AB", "BA", "A", "B")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(order) == 4 and most == {"A": 1, "B": 1}
    assert any("another call works on it; waiting" in line for line in caplog.messages)
    assert [path for folder in folders for path in folder.iterdir()] == []


def test_a_lock_goes_with_the_process_that_held_it(tmp_path):
    code = "import sys, time\nfrom pathlib import Path\nfrom mmh_bids.bids.calls import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "l")], stdout=subprocess.PIPE, text=True) as call:
        assert call.stdout.readline() == "held\n"
        call.kill()
    with locked(tmp_path / "l"):
        atomic_write(tmp_path / "mine", "x")
