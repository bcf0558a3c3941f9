"""Lightning Fabric on one device or on many: data-parallel training, on Slurm or not."""

from __future__ import annotations

import inspect
import os
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import distributed
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from mmh_bids.errors import UsageError
from mmh_bids.interfaces.child import resolve_device

#: The others wait while the first process validates, draws and writes.
_PATIENCE = timedelta(hours=6)
#: More than any network has.
_ONE_BUCKET_MB = 1 << 20


def make_fabric(device: str, devices: int = 1, nodes: int = 1, precision: str = "32-true") -> Fabric:
    """Make a Fabric, not launched yet.

    Parameters
    ----------
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    devices, nodes
        Processes (GPUs) a machine, and machines. Under Slurm ``srun`` starts the processes, otherwise Fabric does.
    precision
        Lightning's name of it.

    Raises
    ------
    UsageError
        There are not so many devices, or Slurm was told another number.
    """
    kind, _, number = resolve_device(device).partition(":")
    if number and devices * nodes > 1:
        raise UsageError(f"--device {device}: names one GPU; give --device cuda with --devices and --nodes")
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise UsageError(f"--devices {devices}: this machine shows {torch.cuda.device_count()} GPUs; give as many")
    _check_slurm(devices, nodes)
    options: dict[str, Any] = {"accelerator": kind, "precision": precision}
    if devices * nodes == 1:
        return Fabric(devices=[int(number)] if number else 1, plugins=_plugins(), **options)
    wrapping: dict[str, Any] = {"gradient_as_bucket_view": True, _buffer_option(): False}
    strategy = _ExactDDP(timeout=_PATIENCE, **wrapping)
    return Fabric(devices=devices, num_nodes=nodes, strategy=strategy, plugins=_plugins(), **options)


class _ExactDDP(DDPStrategy):
    """Sums all gradients at once, in the order in which the network has its weights.

    Torch sums them in buckets and packs these anew after the first step of a run. From three processes on the order of
    a sum depends on the place in the bucket, so a resumed training would differ from one that went on.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(bucket_cap_mb=_ONE_BUCKET_MB, **options)

    def setup_module(self, module: Module) -> DistributedDataParallel:
        wrapped = super().setup_module(module)
        wrapped.register_comm_hook({id(weight): place for place, weight in enumerate(module.parameters())}, _mean)
        return wrapped


def _mean(places, bucket):  # torch compares annotations with types, here they would be names
    """Replace every gradient of a bucket by its mean over the processes."""
    pairs = zip(bucket.parameters(), bucket.gradients(), strict=True)
    gradients = [gradient for _, gradient in sorted(pairs, key=lambda pair: places[id(pair[0])])]
    together = torch.cat([gradient.flatten() for gradient in gradients]).div_(distributed.get_world_size())
    distributed.all_reduce(together)
    for gradient, mean in zip(gradients, together.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
    buffer = bucket.buffer()
    done: Any = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
    done.set_result(buffer)
    return done


def _buffer_option() -> str:
    """What torch calls the option: recipes keep buffers equal; written to in every pass, autograd would refuse them."""
    known = inspect.signature(DistributedDataParallel).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"


def is_first() -> bool:
    """Whether this is the first process, or the only one; also before Fabric is launched."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _under_srun() -> bool:
    """Whether Slurm started this process as a task of its own; a batch script is none."""
    return "SLURM_STEP_ID" in os.environ and "SLURM_NTASKS" in os.environ


def _plugins() -> list[Any]:
    """In a batch script without ``srun`` Lightning would wait for tasks that nobody starts."""
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    return [LightningEnvironment()] if "SLURM_NTASKS" in os.environ and not (_under_srun() or torchrun) else []


def _check_slurm(devices: int, nodes: int) -> None:
    """Raise UsageError where ``srun`` started another number of processes than was asked for."""
    if not _under_srun() or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return
    tasks, hosts = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
    if (tasks, hosts) != (devices * nodes, nodes):
        raise UsageError(
            f"--devices {devices} --nodes {nodes}: Slurm started {tasks} tasks on {hosts} nodes; start with "
            f"srun --ntasks-per-node={devices} --nodes={nodes}, or give --devices {max(tasks // hosts, 1)} "
            f"--nodes {hosts}"
        )
    # Lightning refuses --ntasks without it, though it says the same
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))
