"""Time and memory of the style encoders on one volume of the model grid, without and with gradients to the volume.

BiomedCLIP's image tower is built as its config says, with random weights: neither depends on their values. Each case is
a process of its own; memory is its peak above what it holds before the pass, when the weights are loaded.

    python benchmarks/style_encoder.py [--threads N] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file

from mmh_bids.image.grid import MODEL_SHAPE
from mmh_bids.models.encoders import load_style_encoder
from mmh_bids.models.style import TriPlanarEncoder
from mmh_bids.models.tower import CONFIG, SAFE_WEIGHTS
from mmh_bids.models.vision import mend_torchvision

#: Vision part of the config in BiomedCLIP's repository.
BIOMEDCLIP = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    },
}
#: Encoder, whether gradients are taken, slices at a time.
CASES = [
    ("BiomedCLIP", False, 8),
    ("BiomedCLIP", True, 8),
    ("BiomedCLIP", True, 24),
    ("small", False, 8),
    ("small", True, 8),
]


def write_random_tower(folder: Path) -> None:
    """Write BiomedCLIP's image tower with random weights in open_clip's folder form."""
    mend_torchvision()
    import open_clip

    text = open_clip.CLIPTextCfg(context_length=1, vocab_size=1, width=8, heads=1, layers=1)
    vision = open_clip.CLIPVisionCfg(**BIOMEDCLIP["vision_cfg"])
    model = open_clip.CustomTextCLIP(BIOMEDCLIP["embed_dim"], vision, text)
    save_file(
        {name: value for name, value in model.state_dict().items() if name.startswith("visual.")}, folder / SAFE_WEIGHTS
    )
    (folder / CONFIG).write_text(json.dumps({"model_cfg": BIOMEDCLIP}))


def load(name: str, folder: Path, chunk: int) -> TriPlanarEncoder:
    """The encoder of a case."""
    encoder = load_style_encoder(folder if name == "BiomedCLIP" else None)
    encoder.chunk = chunk
    return encoder


class Peak:
    """Samples the memory of this process, or asks the GPU, while it is entered; ``gb`` above the start's."""

    def __init__(self, device: str) -> None:
        self.cuda, self.gb = device != "cpu", 0.0

    def __enter__(self) -> Peak:
        self._process, self._done = psutil.Process(), threading.Event()
        self._start = torch.cuda.memory_allocated() if self.cuda else self._process.memory_info().rss
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            self.gb = max(self.gb, (self._process.memory_info().rss - self._start) / 1e9)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self.cuda:
            self.gb = (torch.cuda.max_memory_allocated() - self._start) / 1e9


def measure(name: str, gradients: bool, chunk: int, folder: Path, device: str) -> dict[str, float]:
    """Seconds (wall and processor) and gigabytes of one pass, after loading."""
    encoder = load(name, folder, chunk).to(device)
    volume = torch.rand(1, 1, *MODEL_SHAPE, device=device).requires_grad_(gradients)
    wall, processor = time.perf_counter(), time.process_time()
    with Peak(device) as peak, torch.set_grad_enabled(gradients):
        out = encoder(volume)
        if gradients:
            out.square().sum().backward()
        if device != "cpu":
            torch.cuda.synchronize()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {"wall": wall, "processor": processor, "gb": peak.gb, "slices": 3 * encoder.slices}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.case is not None:
        print(json.dumps(measure(*CASES[options.case], options.folder, options.device)))
        return
    size = " x ".join(map(str, MODEL_SHAPE))
    print(f"volume {size}, {options.device}, {options.threads} threads, torch {torch.__version__}\n")
    print("| encoder | slices | at a time | gradients | seconds | processor seconds | peak memory (GB) |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        write_random_tower(Path(folder))
        for number, (name, gradients, chunk) in enumerate(CASES):
            command = [sys.executable, __file__, "--case", str(number), "--folder", folder]
            command += ["--threads", str(options.threads), "--device", options.device]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {name} | {found['slices']} | {chunk} | {'yes' if gradients else 'no'} | {found['wall']:.1f} "
                f"| {found['processor']:.1f} | {found['gb']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
