"""A toy training on two processes, run as a script by test_plateau_pair.py; Fabric runs it again for the other one.

The published schedule: Adam at a rate that falls when a validation, which the first process alone makes, is no better.
"""

import sys
from pathlib import Path

import torch

from mmh_bids.training.distributed import make_fabric
from mmh_bids.training.loop import Plan, all_parameters, fit

PLAN = Plan(
    12, 0.05, warmup=0, weight_decay=0.0, clip=None, average=0.0, validate_every=2, optimizer="adam",
    schedule="plateau", patience=1, monitor="error",
)  # fmt: skip


class Slope:
    """Learns y = 2 x; its error never improves."""

    def build(self):
        return torch.nn.Linear(1, 1)

    def groups(self, network):
        return all_parameters(network)

    def losses(self, network, rng, device):
        x = torch.linspace(-1, 1, 8)[:, None]
        return {"loss": (network(x) - 2 * x).square().mean()}

    def validate(self, network, device, folder, step):
        return {"error": 1.0}


def main(folder):
    fabric = make_fabric("cpu", devices=2)
    fabric.launch()
    network = fit(Slope(), PLAN, folder, fabric, {}, print)
    (folder / f"weight-{fabric.global_rank}.txt").write_text(repr(float(network.weight)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
