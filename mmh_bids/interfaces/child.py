"""Steps that hold a network run in a process of their own: ``python -m mmh_bids.interfaces.child REQUEST.json``.

Their memory goes back to the system when they end, torch never enters the workflow's processes, and if the system
kills one for lack of memory, the workflow lives on and can say so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmh_bids.errors import EXIT_SOME_FAILED, ImageError, MmhError
from mmh_bids.machine import end_with_parent


def run_child(task: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run `task` with `request` in a child process and return its answer.

    Parameters
    ----------
    task
        Name of a function of `TASKS`.
    request
        JSON-ready arguments.
    folder
        Existing folder for the request and the answer.

    Raises
    ------
    ImageError
        With the child's own message, or with what to do if the child was killed.
    """
    request_file, answer_file = folder / f"{task}_request.json", folder / f"{task}_answer.json"
    answer_file.unlink(missing_ok=True)
    request_file.write_text(json.dumps({"task": task, "answer": str(answer_file), "request": request}))
    done = subprocess.run(
        [sys.executable, "-m", "mmh_bids.interfaces.child", str(request_file)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    answer = _read(answer_file)
    if "error" in answer:
        raise ImageError(answer["error"])
    if answer and done.returncode == 0:
        return answer
    raise ImageError(explain(task, done.returncode, done.stderr))


def _read(answer_file: Path) -> dict[str, Any]:
    """The child's answer; empty if it did not come to write all of it."""
    try:
        return dict(json.loads(answer_file.read_text()))
    except (OSError, ValueError):
        return {}


def explain(task: str, returncode: int, stderr: str) -> str:
    """One line for a child that ended without an answer.

    >>> explain("brain", -9, "")[:77]
    'the brain step was killed by the system, most likely for lack of memory: give'
    """
    if returncode in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return (
            f"the {task} step was killed by the system, most likely for lack of memory: give the job more memory, "
            "or lower --nprocs or --mem"
        )
    if returncode < 0:
        known = {int(member): member.name for member in signal.Signals}
        name = known.get(-returncode, str(-returncode))
        return f"the {task} step ended by signal {name}; rerun with -vv and report it"
    last = stderr.strip().splitlines()[-1] if stderr.strip() else "no message"
    return f"the {task} step ended with code {returncode}: {last}"


def resolve_device(asked: str) -> str:
    """``auto`` becomes ``cuda`` where torch sees one, else ``cpu``; a CUDA device that is not there is an error."""
    if asked == "cpu":
        return asked
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    index = torch.device(asked).index or 0
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise ImageError(f"--device {asked}: torch {torch.__version__} sees no such device; use --device cpu or auto")
    return asked


def gpu_name(device: str) -> str:
    """What the machine calls the GPU that this process calls ``cuda[:N]``: two jobs may see different ones as 0.

    Its UUID where torch sees it: a batch system that shows each job its own GPUs only calls them all 0. Else the name
    in CUDA_VISIBLE_DEVICES.
    """
    if "torch" in sys.modules and (uuid := _uuid(int(device.partition(":")[2] or 0))):
        return uuid
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    index = int(device.partition(":")[2] or 0)
    return visible[index] if index < len(visible) else str(index)


def _uuid(index: int) -> str | None:
    import torch

    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return f"GPU-{uuid}" if uuid else None


def _one_at_a_time(device: str, lock_dir: str):
    """One process owns a GPU at a time: the others wait here rather than run out of its memory.

    The lock goes with the process that holds it, however that ends.
    """
    if device == "cpu":
        return nullcontext()
    from filelock import FileLock

    return FileLock(Path(lock_dir) / f"gpu-{gpu_name(device).replace('/', '-')}.lock")


def brain(request: dict[str, Any]) -> dict[str, Any]:
    """Extract the brain of ``in_file`` into ``out_file``."""
    from mmh_bids.interfaces.files import load, save
    from mmh_bids.models.brain import extract_brain

    data, affine = load(request["in_file"])
    device = resolve_device(request["device"])
    with _one_at_a_time(device, request["lock_dir"]):
        mask = extract_brain(data, device, request["threads"])
    save(mask, affine, Path(request["out_file"]))
    return {"device": device}


def harmonize(request: dict[str, Any]) -> dict[str, Any]:
    """Harmonize ``in_file`` (model grid) into ``out_file`` with a method and its bundle."""
    import numpy as np

    from mmh_bids.harmonizers.base import Reference, find_method
    from mmh_bids.interfaces.files import load, save
    from mmh_bids.models.bundle import open_bundle

    volume, affine = load(request["in_file"])
    mask, _ = load(request["mask_file"], bool)
    reference = None
    if request.get("reference_file"):
        reference = Reference(load(request["reference_file"])[0][np.newaxis], load(request["reference_mask"], bool)[0])
    device = resolve_device(request["device"])
    with _one_at_a_time(device, request["lock_dir"]):
        method = find_method(request["method"]).load(open_bundle(request["model"]), device)
        result = method.harmonize(
            volume[np.newaxis], mask, request["sequence"], request["target"], request["seed"], reference,
            request.get("site"),
        )  # fmt: skip
    save(result.volume[0], affine, Path(request["out_file"]))
    return {"device": device, "keeps_input_scale": result.keeps_input_scale, "details": dict(result.details)}


def device(request: dict[str, Any]) -> dict[str, Any]:
    """Whether the device that was asked for is there."""
    return {"device": resolve_device(request["device"])}


TASKS = {"brain": brain, "harmonize": harmonize, "device": device}


def main(argv: list[str]) -> int:
    """Read the request file, run the task, write its answer."""
    end_with_parent()
    request = json.loads(Path(argv[0]).read_text())
    answer_file = Path(request["answer"])
    try:
        answer = TASKS[request["task"]](request["request"])
        answer_file.write_text(json.dumps(answer))
        return 0
    except MmhError as error:
        message = str(error)
    except MemoryError:
        message = f"the {request['task']} step ran out of memory: give the job more, or lower --nprocs"
    except OSError as error:
        message = (
            f"{error.filename or answer_file.parent}: {error.strerror or error}; free space there or name another "
            "--work-dir, then run the same command again"
        )
    try:
        answer_file.write_text(json.dumps({"error": message}))
    except OSError:
        print(message, file=sys.stderr)  # no room for the answer either: `explain` takes the last line
    return EXIT_SOME_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
