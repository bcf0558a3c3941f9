"""Starting 1 of 5,000 participants neither takes long nor looks into the folders of the others."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

# A child process, so that the time holds the imports and the audit hook goes away with it.
CHILD = """
import os, sys
seen = []
def watch(event, args):
    if event in ("os.listdir", "os.scandir", "open") and isinstance(args[0], (str, os.PathLike)):
        seen.append(os.fspath(args[0]))
sys.addaudithook(watch)
from pathlib import Path
from mmh_bids.bids.discovery import discover
from mmh_bids.settings import Settings
root = Path(sys.argv[1])
runs = discover(Settings(root, root.parent / "out", participant_label=("00417",)))
print([run.key for run in runs], [run.site for run in runs])
for path in sorted({str(path) for path in seen if str(path).startswith(str(root))}):
    print(path)
"""


def make_tree(root: Path, participants: int) -> None:
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "big", "BIDSVersion": "1.10.0"}')
    labels = [f"{number:05d}" for number in range(participants)]
    rows = "".join(f"sub-{label}\ts{int(label) % 7}\n" for label in labels)
    (root / "participants.tsv").write_text("participant_id\tsite\n" + rows)
    for label in labels:
        for session in ("A", "B"):
            folder = root / f"sub-{label}" / f"ses-{session}" / "anat"
            folder.mkdir(parents=True)
            for suffix in ("T1w", "T2w"):
                (folder / f"sub-{label}_ses-{session}_{suffix}.nii.gz").touch()
    (root / "sub-00417" / "ses-A" / "func").mkdir()
    (root / "derivatives" / "fmriprep" / "sub-00417" / "anat").mkdir(parents=True)


@pytest.mark.parametrize("participants", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_one_participant_of_many(tmp_path, participants):
    root = tmp_path / "raw"
    make_tree(root, participants)
    start = time.perf_counter()
    child = subprocess.run([sys.executable, "-c", CHILD, root], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 10

    first, *seen = child.stdout.splitlines()
    keys = [f"sub-00417_ses-{session}_{suffix}" for session in "AB" for suffix in ("T1w", "T2w")]
    assert first == f"{keys} {['s4'] * 4}"
    own = root / "sub-00417"
    folders = {str(path) for path in [root, own, *own.rglob("*")] if path.name != "func"}
    files = {str(root / name) for name in ("dataset_description.json", "participants.tsv")}
    assert folders <= set(seen)
    assert set(seen) <= folders | files
