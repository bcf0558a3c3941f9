import errno
import hashlib
import os
import subprocess

import nibabel as nib
import numpy as np
import pytest

from mmh_bids.files import atomic_path, atomic_write, place, sha256_file


def test_nibabel_writes_through_it(tmp_path):
    target = tmp_path / "deep" / "sub-01_T1w.nii.gz"
    with atomic_path(target) as temporary:
        nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), temporary)
        assert not target.exists()
    assert nib.load(target).shape == (8, 8, 8)
    assert target.read_bytes()[:2] == b"\x1f\x8b"
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    target = atomic_write(tmp_path / "a.txt", "old")
    with pytest.raises(type(error)) as caught, atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass
    assert not list(tmp_path.iterdir())


def test_bytes_and_line_ends_are_kept(tmp_path):
    assert atomic_write(tmp_path / "a", b"\r\n\x00").read_bytes() == b"\r\n\x00"
    assert atomic_write(tmp_path / "a", "a\nb\n").read_bytes() == b"a\nb\n"


def test_disk_full_on_a_small_tmpfs(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        kept = atomic_write(disk / "a.bin", b"old")
        with pytest.raises(OSError) as caught:
            atomic_write(kept, bytes(1 << 20))
        assert caught.value.errno == errno.ENOSPC
        assert kept.read_bytes() == b"old"
        assert os.listdir(disk) == ["a.bin"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_sha256_of_a_file_larger_than_a_piece(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_a_temporary_link_to_what_is_there_already_does_not_stay(tmp_path):
    """POSIX renames nothing where both names are one file: two jobs may link the same file at the same time."""
    (tmp_path / "source").write_text("x")
    os.link(tmp_path / "source", tmp_path / "target")
    with atomic_path(tmp_path / "target") as temporary:
        os.link(tmp_path / "source", temporary)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


@pytest.mark.parametrize(("how", "said"), [("auto", "linked"), ("copy", "copied"), ("symlink", "linked")])
def test_what_is_in_its_place_is_left_alone(tmp_path, how, said):
    source, target = atomic_write(tmp_path / "a", "x"), tmp_path / "b"
    assert [place(source, target, how), place(source, target, how)] == [said, "there"]
    atomic_write(source, "longer")
    assert place(source, target, how) == ("there" if how == "symlink" else said)
    assert target.read_text() == "longer"
