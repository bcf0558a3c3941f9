"""Makes torchvision importable beside a PyTorch that it was not compiled for."""

from __future__ import annotations

import importlib
import importlib.util
import re

import torch

#: Operators that torchvision describes at import though its compiled part, which declares them, may not have loaded.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_MISSING = re.compile(r"operator torchvision::q?nms does not exist")
#: The declarations last as long as this object.
_library: torch.library.Library | None = None


def mend_torchvision() -> bool:
    """Import torchvision; where only the schemas of its box operators are missing, declare them first.

    That is so for a torchvision compiled for CUDA beside a PyTorch for the CPU, which is what the package index serves
    where PyTorch came from another one. Lightning, timm and open_clip all import torchvision, so call this before them.
    The declared operators have no kernels: box suppression stays unavailable, image models work.

    Returns
    -------
    Whether torchvision can be imported now. What is broken in another way is left for its user to meet.
    """
    global _library
    if importlib.util.find_spec("torchvision") is None:
        return False
    fault = _import_fault()
    if _library is None and _MISSING.search(fault):
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name, schema in _SCHEMAS.items():
            if not hasattr(torch.ops.torchvision, name):
                _library.define(schema)
        fault = _import_fault()
    return not fault


def _import_fault() -> str:
    """Message of what the import of torchvision raises; empty if all is well."""
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # noqa: BLE001 (a package can fail in any way)
        return str(error) or type(error).__name__
    return ""
