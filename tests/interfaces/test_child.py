"""Steps in a process of their own: their answer comes back, and so does the reason why there is none."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmh_bids.errors import ImageError
from mmh_bids.interfaces import child
from mmh_bids.interfaces.child import explain, gpu_name, resolve_device, run_child
from mmh_bids.interfaces.files import load, save

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def request(folder, **changes):
    """A request that the method ``none`` can answer."""
    mask = np.zeros((12, 13, 14), bool)
    mask[2:9, 2:9, 2:9] = True
    volume = np.where(mask, np.random.default_rng(0).random(mask.shape), 0).astype(np.float32)
    return {
        "in_file": save(volume, AFFINE, folder / "model.nii"), "mask_file": save(mask, AFFINE, folder / "mask.nii"),
        "out_file": str(folder / "out.nii"), "sequence": "T1w", "method": "none", "model": "classic",
        "target": "unified", "seed": 0, "device": "cpu", "lock_dir": str(folder / "locks"),
    } | changes  # fmt: skip


def test_the_answer_and_the_image_come_back(tmp_path):
    answer = run_child("harmonize", request(tmp_path), tmp_path)
    assert answer == {"device": "cpu", "keeps_input_scale": True, "details": {}}
    np.testing.assert_array_equal(load(tmp_path / "out.nii")[0], load(tmp_path / "model.nii")[0])
    np.testing.assert_array_equal(load(tmp_path / "out.nii")[1], AFFINE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "nothing"}, "--method nothing: unknown"),
        ({"model": "gone"}, "gone"),
        ({"device": "cuda:63"}, "--device cuda:63.*cpu or auto"),
    ],
)
def test_its_own_error_comes_back_as_one_line(tmp_path, change, says):
    with pytest.raises(ImageError, match=says) as error:
        run_child("harmonize", request(tmp_path, **change), tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.nii").exists()


def test_a_stale_answer_is_not_believed(tmp_path):
    (tmp_path / "harmonize_answer.json").write_text(json.dumps({"device": "cpu", "keeps_input_scale": True}))
    with pytest.raises(ImageError, match="unknown"):
        run_child("harmonize", request(tmp_path, method="nothing"), tmp_path)


def test_a_task_that_is_none(tmp_path):
    with pytest.raises(ImageError, match="the juggle step ended with code 1: KeyError: 'juggle'"):
        run_child("juggle", {}, tmp_path)


@pytest.fixture
def python(tmp_path, monkeypatch):
    """``python(code)``: every child runs this instead; ``answer`` is the path of the answer file."""

    def use(code):
        script = tmp_path / "python"
        script.write_text(
            f"#!{sys.executable}\nimport json, os, signal, sys\n"
            f"answer = json.loads(open(sys.argv[-1]).read())['answer']\n{code}\n"
        )
        script.chmod(0o755)
        monkeypatch.setattr(child.sys, "executable", str(script))

    return use


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "brain step was killed by the system.*memory.*--nprocs"),
        ("sys.exit(137)", "killed by the system.*memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
        ("os.kill(os.getpid(), 36)", "signal 36"),
        ("raise RuntimeError('the\\nlast line')", "ended with code 1: last line"),
        ("sys.exit(3)", "ended with code 3: no message"),
        ("open(answer, 'w').write('{\"device\": \"cp')", "ended with code 0"),
        ("json.dump({'device': 'cpu'}, open(answer, 'w')); os._exit(9)", "ended with code 9"),
        ("sys.stderr.buffer.write(b'\\xff\\xfe'); sys.exit(1)", "ended with code 1"),
    ],
)
def test_a_child_that_dies_is_explained(tmp_path, python, code, says):
    python(code)
    with pytest.raises(ImageError, match=says) as error:
        run_child("brain", {}, tmp_path)
    assert "\n" not in str(error.value)


def test_its_message_wins_over_its_end(tmp_path, python):
    python("json.dump({'error': 'no brain was found'}, open(answer, 'w')); os.kill(os.getpid(), signal.SIGTERM)")
    with pytest.raises(ImageError, match="^no brain was found$"):
        run_child("brain", {}, tmp_path)


def test_out_of_memory_inside_is_explained(tmp_path):
    """A real shortage: numpy may not have the address space that it asks for."""
    save(np.zeros((440, 440, 440), bool), np.eye(4), tmp_path / "big.nii")
    values = request(tmp_path, in_file=str(tmp_path / "big.nii"))
    file, answer = tmp_path / "request.json", tmp_path / "answer.json"
    file.write_text(json.dumps({"task": "harmonize", "answer": str(answer), "request": values}))

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (300 << 20, 300 << 20))

    done = subprocess.run(
        [sys.executable, "-m", "mmh_bids.interfaces.child", str(file)],
        preexec_fn=limit, capture_output=True, text=True, check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "harmonize step ran out of memory" in json.loads(answer.read_text())["error"]


@pytest.mark.parametrize("number", range(1, 65))
def test_every_signal_has_an_explanation(number):
    assert explain("brain", -number, "").startswith("the brain step")


def test_devices(monkeypatch):
    assert resolve_device("cpu") == "cpu"
    import torch

    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ImageError, match="--device cuda:63: .*no such device; use --device cpu or auto"):
        resolve_device("cuda:63")


@pytest.mark.parametrize(
    ("visible", "device", "name"),
    [
        (None, "cuda", "0"),
        (None, "cuda:0", "0"),
        (None, "cuda:2", "2"),
        ("", "cuda", "0"),
        ("3", "cuda", "3"),
        ("3, 1", "cuda:1", "1"),
        ("GPU-8a4f,GPU-77", "cuda:0", "GPU-8a4f"),
    ],
)
def test_a_gpu_has_one_name_whatever_a_job_calls_it(monkeypatch, visible, device, name):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_name(device) == name


def test_one_process_at_a_time_owns_a_gpu(tmp_path):
    """The second lock of the same GPU, under its other name, waits; another GPU's does not."""
    from filelock import Timeout

    with child._one_at_a_time("cuda", str(tmp_path / "locks")):
        with pytest.raises(Timeout):
            child._one_at_a_time("cuda:0", str(tmp_path / "locks")).acquire(timeout=0.05)
        child._one_at_a_time("cuda:1", str(tmp_path / "locks")).acquire(timeout=0.05).lock.release()
    with child._one_at_a_time("cpu", str(Path("/nowhere"))):
        assert not Path("/nowhere").exists()


HOLD = """
import sys, time
from mmh_bids.interfaces.child import _one_at_a_time
print("asks", flush=True)
with _one_at_a_time(sys.argv[2], sys.argv[1]):
    print("owns", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def owner(folder, device, seconds):
    """A process that asks for the GPU; it has come so far when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), device, str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "asks\n"
    return process


def test_processes_on_one_gpu_take_turns_and_a_killed_one_makes_room(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with owner(tmp_path, "cuda", 60) as first:
        assert first.stdout.readline() == "owns\n"
        with owner(tmp_path, "cuda:1", 0) as other:  # another GPU: nobody waits
            assert other.stdout.readline() == "owns\n"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
        with owner(tmp_path, "cuda:1", 0) as second:  # the first one's GPU by another number
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(timeout=1)
            first.kill()
            assert second.stdout.readline() == "owns\n"
            assert second.wait(timeout=10) == 0
