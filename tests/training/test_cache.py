"""Tests of mmh_bids.training.cache: prepared volumes are read as they would be made, made once, and not held."""

import gc
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from filelock import FileLock
from workout import NETWORK

from mmh_bids.errors import ImageError, UsageError
from mmh_bids.training import cache as cache_module
from mmh_bids.training.cache import SHARD, VolumeCache
from mmh_bids.training.diffusion import DiffusionRecipe
from mmh_bids.training.share import Share
from mmh_bids.training.standards import Sample
from mmh_bids.training.volumes import prepare

SHAPE = (10, 12, 9)


@pytest.fixture
def make_samples(make_nifti):
    """``make_samples(n)``: brains of random intensities up to 1.4, every third of them T2w."""

    def make(count, start=0):
        found = []
        for number in range(start, start + count):
            sequence = "T2w" if number % 3 == 2 else "T1w"
            data = np.zeros(SHAPE, np.float32)
            data[2:8, 2:10, 1:8] = np.random.default_rng(number).uniform(1e-6, 1.4, (6, 8, 7))
            found.append(
                Sample(make_nifti(f"sub-{number}_{sequence}.nii.gz", dtype=np.float32, data=data), sequence, None)
            )
        return found

    return make


@pytest.fixture
def prepared(monkeypatch):
    """Names of the images that were prepared, in order."""
    names = []

    def counted(sample, factor):
        names.append(sample.path.name)
        return prepare(sample, factor)

    monkeypatch.setattr(cache_module, "prepare", counted)
    return names


def quiet(line):
    del line


def filled(folder, samples, factor=1):
    cache = VolumeCache(folder, factor)
    cache.fill(samples, workers=2, say=quiet)
    return cache


@pytest.mark.parametrize("factor", [1, 2])
def test_what_is_read_is_what_would_be_prepared_but_for_rounding(make_samples, tmp_path, factor):
    samples = make_samples(5)
    cache = filled(tmp_path / "cache", samples, factor)
    for sample in samples:
        found, expected = cache.read(sample), prepare(sample, factor)
        assert found.image.shape == expected.image.shape and found.image.dtype == torch.float32
        assert torch.equal(found.mask, expected.mask)
        assert torch.equal(found.label, expected.label)
        torch.testing.assert_close(found.image, expected.image, rtol=0, atol=2 * 1.3e-5)
        torch.testing.assert_close(found.condition, expected.condition, rtol=0, atol=1e-4)
        assert bool((found.image[~found.mask] == -1).all())


def test_every_image_is_prepared_once_and_read_from_then_on(make_samples, tmp_path, prepared):
    samples = make_samples(SHARD + 3)
    filled(tmp_path / "cache", samples)
    assert len(prepared) == SHARD + 3
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    more = [*make_samples(2, start=SHARD + 3), *samples]
    again = filled(tmp_path / "cache", more)
    assert prepared[SHARD + 3 :] == [sample.path.name for sample in more[:2]]
    assert all(again.read(sample).mask.any() for sample in more)


def test_a_changed_image_and_another_factor_are_prepared_anew(make_samples, tmp_path, prepared):
    samples = make_samples(3)
    before = filled(tmp_path / "cache", samples).read(samples[1]).image
    shutil.copyfile(samples[0].path, samples[1].path)
    os.utime(samples[2].path, ns=(1, 1))  # the same size
    cache = filled(tmp_path / "cache", samples)
    assert prepared[3:] == [samples[1].path.name, samples[2].path.name]
    assert not torch.equal(cache.read(samples[1]).image, before)
    assert torch.equal(cache.read(samples[1]).image, cache.read(samples[0]).image)
    assert filled(tmp_path / "cache", samples, factor=2).read(samples[0]).image.shape == (1, 1, 5, 6, 4)
    assert len(prepared) == 8


def test_an_interrupted_filling_goes_on_after_the_last_whole_shard(make_samples, tmp_path, prepared):
    samples = make_samples(2 * SHARD)
    asked = []

    def stop(doing):
        asked.append(doing)
        if len(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        VolumeCache(tmp_path / "cache").fill(samples, 1, quiet, stop)
    assert len(prepared) == SHARD
    cache = filled(tmp_path / "cache", samples)
    assert len(prepared) == 2 * SHARD
    assert cache.read(samples[-1]).mask.any()


def test_a_damaged_shard_is_made_again(make_samples, tmp_path, prepared):
    samples = make_samples(4)
    cache = filled(tmp_path / "cache", samples)
    shard = next((tmp_path / "cache").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UsageError, match="cannot be read .*start the same command again"):
        cache.read(samples[0])
    assert filled(tmp_path / "cache", samples).read(samples[0]).mask.any()
    assert len(prepared) == 8


def test_several_that_fill_at_once_prepare_every_image_once(make_samples, tmp_path, prepared):
    samples = make_samples(12)
    caches = [VolumeCache(tmp_path / "cache") for _ in range(3)]
    threads = [threading.Thread(target=cache.fill, args=(samples, 1, quiet)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(prepared) == sorted(sample.path.name for sample in samples)
    assert all(cache.read(sample).mask.any() for cache in caches for sample in samples)


def test_a_wish_to_stop_is_heard_while_waiting_for_another_process(make_samples, tmp_path):
    def stop(doing):
        assert "waiting" in doing
        raise KeyboardInterrupt

    (tmp_path / "cache").mkdir()
    with FileLock(tmp_path / "cache" / ".lock"), pytest.raises(KeyboardInterrupt):
        VolumeCache(tmp_path / "cache").fill(make_samples(1), 1, quiet, stop)


def test_too_little_disk_is_said_before_anything_is_written(make_samples, tmp_path, monkeypatch, prepared):
    samples = make_samples(8)
    cache = VolumeCache(tmp_path / "cache")
    needed = cache.gigabytes(samples)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(needed * 1e9) - 1))
    with pytest.raises(UsageError, match=r"cache: 8 prepared images take about .* GB free: choose .*--cache.*--factor"):
        cache.fill(samples, 1, quiet)
    assert not prepared and not list((tmp_path / "cache").glob("*.safetensors"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(needed * 1e9) + 1))
    cache.fill(samples, 1, quiet)


def test_the_estimate_of_the_disk_is_no_less_than_what_is_taken(make_nifti, tmp_path):
    data = np.zeros((40, 40, 40), np.float32)
    data[:, :, 2:22] = 0.5  # half of the grid is brain, which is more than a head has
    samples = [Sample(make_nifti(f"sub-{n}_T1w.nii.gz", dtype=np.float32, data=data), "T1w", None) for n in range(4)]
    cache = filled(tmp_path / "cache", samples)
    taken = sum(shard.stat().st_size for shard in (tmp_path / "cache").glob("*.safetensors")) / 1e9
    assert 0.9 * taken < cache.gigabytes(samples) < 1.1 * taken


def test_an_unusable_image_is_named_before_the_training_starts(make_samples, tmp_path):
    samples = make_samples(3)
    samples[1].path.write_bytes(b"not an image")
    with pytest.raises(ImageError, match="sub-1_T1w.nii.gz: cannot be read"):
        filled(tmp_path / "cache", samples)
    samples[1].path.unlink()
    with pytest.raises(ImageError, match="sub-1_T1w.nii.gz: cannot be read"):
        filled(tmp_path / "cache", samples)


def volumes_in_memory():
    gc.collect()
    return sum(type(one) is torch.Tensor and one.numel() == np.prod(SHAPE) for one in gc.get_objects())


def test_memory_does_not_grow_with_the_number_of_images(make_samples, tmp_path):
    """Counted are tensors of a volume's size; what is read ahead is one step's images."""
    samples = make_samples(40)
    counts = {}
    for number in (8, 40):
        cache = filled(tmp_path / "cache", samples[:number])
        recipe = DiffusionRecipe(samples[:number], [], NETWORK, cache=cache, batch=4)
        seen = set()
        for step in range(2 * number // 4):
            share = Share(0, step)
            items = share.items(4)
            batch = recipe._volumes(items, share)
            seen |= {round(float(one.image.sum()), 3) for one in batch}
            del batch
        assert len(seen) == number  # half of the draws are T2w, a third of the images
        assert recipe._ahead.held == 4
        recipe._ahead.close()
        counts[number] = volumes_in_memory()
    assert counts[40] == counts[8] == 0
