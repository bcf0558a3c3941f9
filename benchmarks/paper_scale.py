"""Stage 1 of one volume at the published size: time, arithmetic, memory, beside the published way of running it.

    python benchmarks/paper_scale.py                  on a GPU: the published network, grid and sampler, 59 passes
    python benchmarks/paper_scale.py --compile        also with torch.compile
    python benchmarks/paper_scale.py --device cpu     the same code on a smaller grid, with fewer passes, in float32

Published way: the same weights in MONAI's blocks as they come, eager (contiguous layout, plain attention where its
matrix fits, float16 autocast on a GPU). Ours: what `mmh --method mmh-diffusion` does. The weights are random, of a
scale at which features stay in range: neither time nor memory depends on them. Floating-point operations are counted by
torch on the meta device, and the ceilings are measured here, in the same precision. Every part runs in a process of its
own. Writes a page.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mmh_bids.harmonizers.mmh import WEIGHTS_FILE, Mmh
from mmh_bids.image.grid import MODEL_SHAPE
from mmh_bids.models.acceleration import choose_acceleration
from mmh_bids.models.bundle import open_bundle, write_bundle
from mmh_bids.models.gradient import gradient_condition
from mmh_bids.models.memory import SLAB_PLANES
from mmh_bids.models.sampler import Predictor, make_sampler
from mmh_bids.models.unet import SEQUENCE_CLASS, StyleUNet, to_signed
from mmh_bids.training.recipes import RECIPES

STYLE = (-0.2, 0.4)
TOGETHER = "ours, two volumes at once"
#: What is run on a GPU, and what on a CPU.
FULL = {"shape": list(MODEL_SHAPE), "sampler": {"name": "paper"}}
SCALED = {
    "shape": [48, 64, 64], "sampler": {"name": "paper", "schedule_steps": 6, "invert_steps": 4, "denoise_steps": 3},
}  # fmt: skip
#: Largest relative error, and least ratio of times, that were aimed at.
ERROR, RATIO = 1e-2, 3.0


def random_network(arguments: Mapping[str, Any], seed: int = 0) -> StyleUNet:
    """The network with random weights everywhere: a new one predicts no noise at all."""
    torch.manual_seed(seed)
    network = StyleUNet(**arguments).eval()
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.xavier_normal_(weight)
    return network


def make_volume(shape: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A ball with folds and noise in [0, 1], (1, X, Y, Z), and its mask."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    mask = sum(axis**2 for axis in axes) < 0.8
    folds = 0.5 + 0.25 * np.sin(9 * axes[0] + 3 * axes[2]) * np.cos((11 + seed) * axes[1])
    noise = np.random.default_rng(seed).normal(0, 0.02, shape)
    return ((folds + noise).clip(0, 1) * mask).astype(np.float32)[np.newaxis], mask


def write_random_bundle(folder: Path, network: StyleUNet, shape: list[int], sampler: Mapping[str, Any]) -> None:
    card = {
        "name": "random", "license": "Apache-2.0", "methods": [Mmh.name], "network": network.arguments,
        "sampler": dict(sampler), "grid": {"shape": shape, "affine": np.eye(4).tolist()}, "output_max": 1000,
        "targets": ["unified"], "training": {}, "metrics": {},
        "sequences": {"T1w": {"targets": {"unified": {"mean": STYLE[0], "std": STYLE[1]}}}},
    }  # fmt: skip
    write_bundle(folder, card, {WEIGHTS_FILE: {name: value.numpy() for name, value in network.state_dict().items()}})


def flops_of(call: Callable[[], Any]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def flops_of_pass(arguments: Mapping[str, Any], shape: list[int]) -> float:
    """Floating-point operations of one pass, counted on tensors that hold no numbers."""
    with torch.device("meta"):
        network = StyleUNet(**arguments).eval()
        volume = torch.empty(1, 1, *shape)
        step = torch.empty(1, dtype=torch.long)
        return flops_of(lambda: network(volume, volume, step, step, torch.empty(1, 2)))


class Stopwatch:
    """Seconds on the wall and of the processor, a GPU's queue waited for."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, call: Callable[[], Any]) -> tuple[dict[str, float], Any]:
        self._wait()
        wall, processor = time.perf_counter(), time.process_time()
        out = call()
        self._wait()
        return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}, out

    def best(self, call: Callable[[], Any], times: int = 5) -> float:
        """Least seconds of some calls, after one that does not count."""
        call()
        kind = "wall" if self.device != "cpu" else "processor"
        return min(self(call)[0][kind] for _ in range(times))

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)


def peak_gb(device: str) -> float:
    """Most memory: of torch's tensors on a GPU, of the process on a CPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@torch.inference_mode()
def published(case: Mapping[str, Any], device: str) -> tuple[dict[str, Any], np.ndarray]:
    """As the authors' script runs the network; the same loop, numbers and style."""
    network = random_network(case["network"]).to(device)
    half = torch.autocast("cuda", torch.float16) if device != "cpu" else nullcontext()
    flash, image = False, volumes(case, device, 1)
    step = torch.zeros(1, dtype=torch.long, device=device)
    _use_flash(network, False)
    with half:
        try:
            predictor(network, image)(image, step)
        except torch.OutOfMemoryError:
            flash = True
            torch.cuda.empty_cache()
            _use_flash(network, True)
            predictor(network, image)(image, step)
        found, out = sampled(network, image, case, device)
    return {**found, "flash": flash}, out


@torch.inference_mode()
def together(case: Mapping[str, Any], device: str, count: int = 2) -> tuple[dict[str, Any], np.ndarray]:
    """As ours, several volumes at once; seconds are those of one."""
    plain = random_network(case["network"])
    how = choose_acceleration(plain.arguments, case["shape"], device, "random")
    network = how.prepared(plain, device)
    found, out = sampled(network, volumes(case, device, count), case, device)
    seconds = {clock: value / count for clock, value in found["seconds"].items()}
    return {**found, "seconds": seconds, "DType": how.dtype, "Slabs": how.planes}, out


def volumes(case: Mapping[str, Any], device: str, count: int) -> torch.Tensor:
    """The volume in [-1, 1], (count, 1, X, Y, Z); the first is always the same."""
    made = [make_volume(case["shape"], seed)[0] for seed in range(count)]
    return to_signed(torch.from_numpy(np.stack(made)).to(device))


def predictor(network: torch.nn.Module, image: torch.Tensor) -> Predictor:
    condition, count = gradient_condition(image), len(image)
    label = torch.tensor([SEQUENCE_CLASS["T1w"]] * count, device=image.device)
    style = torch.tensor([STYLE] * count, device=image.device)
    return lambda noisy, times: network(noisy, condition, times, label, style).float()


def sampled(
    network: torch.nn.Module, image: torch.Tensor, case: Mapping[str, Any], device: str
) -> tuple[dict[str, Any], np.ndarray]:
    """Time and memory of bringing images up and down, and the first result in [0, 1]."""
    sampler, predict = make_sampler(case["sampler"]), predictor(network, image)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, signed = Stopwatch(device)(lambda: sampler.denoise(predict, sampler.invert(predict, image)))
    out = ((signed[0].cpu().numpy() + 1) / 2).clip(0, 1) * make_volume(case["shape"])[1]
    return {"seconds": seconds, "gb": peak_gb(device)}, out


def _use_flash(network: StyleUNet, wanted: bool) -> None:
    for module in network.modules():
        if hasattr(module, "use_flash_attention"):
            module.use_flash_attention = wanted


def ours(case: Mapping[str, Any], device: str, **changes: Any) -> tuple[dict[str, Any], np.ndarray]:
    """As the app does it, from the bundle; `changes` to what it chooses for the device."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_bundle(Path(folder) / "random", random_network(case["network"]), case["shape"], case["sampler"])
        method = Mmh.load(open_bundle(Path(folder) / "random"), device)
        method._chosen = replace(method._acceleration(), **changes)
        method._loaded(WEIGHTS_FILE)
    volume, mask = make_volume(case["shape"])
    if device != "cpu":
        short = make_sampler({"name": "plain", "steps": 1, "top": 1})
        method._sampler, usual = lambda: short, method._sampler
        method.harmonize(volume, mask, "T1w", "unified", 0)  # kernels are chosen, or compiled
        method._sampler = usual
        torch.cuda.reset_peak_memory_stats(device)
    seconds, result = Stopwatch(device)(lambda: method.harmonize(volume, mask, "T1w", "unified", 0))
    details = {name: result.details[name] for name in ("DType", "Slabs")}
    return {"seconds": seconds, "gb": peak_gb(device), **details}, result.volume


@torch.inference_mode()
def ceilings(case: Mapping[str, Any], device: str) -> dict[str, float]:
    """Operations a second of a product of matrices, a convolution and the attention of the network's size."""
    gpu = device != "cpu"
    dtype, clock = torch.float16 if gpu else torch.float32, Stopwatch(device)
    size, channels, edge = (8192, 128, 96) if gpu else (2048, 64, 48)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    layer = torch.nn.Conv3d(channels, channels, 3, padding=1, device=device, dtype=dtype)
    layer = layer.to(memory_format=torch.channels_last_3d)
    features = torch.randn(1, channels, edge, edge, edge, device=device, dtype=dtype)
    features = features.contiguous(memory_format=torch.channels_last_3d)
    tokens = int(np.prod([-(-size // 8) * 8 // 4 for size in case["shape"]]))
    heads = torch.randn(1, 8, tokens, 32, device=device, dtype=dtype)
    calls = {
        "product of matrices": lambda: matrix @ matrix,
        "3D convolution": lambda: layer(features),
        "attention": lambda: functional.scaled_dot_product_attention(heads, heads, heads),
    }
    work = [2.0 * size**3, 2.0 * 27 * channels**2 * edge**3, 4.0 * tokens**2 * 8 * 32]
    return {name: flop / clock.best(call) for (name, call), flop in zip(calls.items(), work, strict=True)}


def variants(device: str, compiled: bool) -> dict[str, dict[str, Any]]:
    """What else than the app's own choice is run, by name."""
    out: dict[str, dict[str, Any]] = {"ours": {}}
    if device != "cpu":
        out |= {
            "ours, bfloat16": {"dtype": "bfloat16"},
            f"ours, slabs of {SLAB_PLANES} planes": {"planes": SLAB_PLANES},
            "ours, contiguous": {"channels_last": False},
            TOGETHER: {},
        }
    else:
        out["ours, the whole volume at once"] = {"planes": None}
    if compiled:
        out["ours, compiled"] = {"compiled": True}
    return out


def measure(part: str, case: Mapping[str, Any], device: str, compiled: bool, folder: Path) -> dict[str, Any]:
    """Run a part in this process; what it makes of the volume is written into the folder."""
    if part == "ceilings":
        return ceilings(case, device)
    if part in ("published", TOGETHER):
        found, out = (published if part == "published" else together)(case, device)
    else:
        found, out = ours(case, device, **variants(device, compiled)[part])
    np.save(folder / f"{part}.npy", out)
    return found


def run_all(asked: argparse.Namespace, device: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """All parts, each in a process of its own."""
    found: dict[str, Any] = {"flops": flops_of_pass(case["network"], case["shape"])}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("ceilings", "published", *variants(device, asked.compile)):
            print(f"{part} ...", flush=True)
            command = [sys.executable, __file__, "--part", part, "--device", device, "--threads", str(asked.threads)]
            command += ["--folder", name, "--case", json.dumps(case), *(["--compile"] if asked.compile else [])]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[part] = json.loads(done.stdout.splitlines()[-1])
        expected = np.load(folder / "published.npy")
        for part in variants(device, asked.compile):
            away = np.load(folder / f"{part}.npy") - expected
            found[part]["error"] = float(np.linalg.norm(away) / np.linalg.norm(expected))
    return found


def page(found: Mapping[str, Any], case: Mapping[str, Any], device: str, threads: int) -> str:
    """The page, in Markdown."""
    gpu = device != "cpu"
    machine = torch.cuda.get_device_name(device) if gpu else f"threads of the CPU ({platform.machine()}): {threads}"
    sampler = make_sampler(case["sampler"])
    version, grid = torch.__version__.partition("+")[0], " x ".join(map(str, case["shape"]))
    lines = ["# Stage 1 of one volume at the published size", ""]
    lines += [f"By `benchmarks/paper_scale.py` (`make benchmark-paper`), torch {version}, {machine}.", ""]
    if not gpu:
        full = flops_of_pass(case["network"], FULL["shape"])
        lines += [
            "**Not run on a GPU: there was none.** This is the same network on a smaller grid with fewer passes, in "
            f"float32. On the published grid a pass is {full / 1e12:.1f} TFLOP and a volume's 59 passes are "
            f"{59e-15 * full:.2f} PFLOP (counted); how long they take on a GPU, and how much faster ours is there, is "
            "not known.", "",
        ]  # fmt: skip
    lines += [
        f"Grid {grid}, {len(sampler.up)} passes up and {len(sampler.down)} down, {found['flops'] / 1e12:.3g} TFLOP a "
        "pass (counted by torch on the meta device). Random weights.", "",
        f"| | {'s' if gpu else 'processor s'} | TFLOP/s | peak GB | times faster | relative error | |",
        "|---|---:|---:|---:|---:|---:|---|",
        *(row(found, part, sampler.passes, gpu) for part in found if part not in ("flops", "ceilings")), "",
        "Ceilings measured in the same run, in the precision of ours:", "", "| | TFLOP/s |", "|---|---:|",
        *(f"| {name} | {value / 1e12:.3g} |" for name, value in found["ceilings"].items()), "",
        f"Peak memory is that of {'tensors on the GPU' if gpu else 'the process, libraries and weights included'}. "
        f"Aimed at: relative error up to {ERROR:g}"
        + (f", at least {RATIO:g} times faster." if gpu else "; the ratio aimed at, 3, is one of GPUs."),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def row(found: Mapping[str, Any], part: str, passes: int, gpu: bool) -> str:
    """A line of the table."""
    one, clock = found[part], "wall" if gpu else "processor"
    seconds = one["seconds"][clock]
    cells = [part, f"{seconds:.4g}", f"{found['flops'] * passes / seconds / 1e12:.3g}", f"{one['gb']:.2f}"]
    if part == "published":
        fitted = "memory-efficient attention, as the matrix did not fit" if one["flash"] else "MONAI's plain attention"
        cells += ["", "", f"{'float16 autocast' if gpu else 'float32'}, {fitted}"]
    else:
        slabs = f"slabs of {one['Slabs']} planes" if one["Slabs"] else "whole volume"
        ratio = found["published"]["seconds"][clock] / seconds
        cells += [f"{ratio:.2f}", f"{one['error']:.1e}", f"{one['DType']}, {slabs}"]
    return f"| {' | '.join(cells)} |"


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    out.add_argument("--threads", type=int, default=1, help="of a CPU")
    out.add_argument("--compile", action="store_true", help="measure torch.compile, too")
    out.add_argument("--docs", type=Path, default=Path("docs/benchmarks"), help="where the page goes")
    for name in ("--part", "--folder", "--case"):
        out.add_argument(name, help=argparse.SUPPRESS)
    return out


def main() -> None:
    """Measure and write the page."""
    asked = parser().parse_args()
    torch.set_num_threads(asked.threads)
    device = asked.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if asked.part:
        found = measure(asked.part, json.loads(asked.case), device, asked.compile, Path(asked.folder))
        print(json.dumps(found))
        return
    case = {**(FULL if device != "cpu" else SCALED), "network": dict(RECIPES["paper"].network)}
    text = page(run_all(asked, device, case), case, device, asked.threads)
    asked.docs.mkdir(parents=True, exist_ok=True)
    (asked.docs / "paper-scale.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
