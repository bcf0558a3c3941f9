"""The learning rate that falls when a validation no longer improves, with a state that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau


class Plateau:
    """Share of the learning rate: 1, and `reduction` times that whenever validation did not improve `patience` times.

    torch's `ReduceLROnPlateau`, on an optimizer of its own: the loop sets the rates of groups itself.

    Parameters
    ----------
    patience
        Validations without improvement that are borne.
    reduction
        Factor.

    Examples
    --------
    >>> plateau = Plateau(patience=1, reduction=0.5)
    >>> shares = []
    >>> for error in (3.0, 2.0, 2.5, 2.1, 1.0):
    ...     plateau.step(error)
    ...     shares.append(plateau.share)
    >>> shares
    [1.0, 1.0, 1.0, 0.5, 0.5]
    """

    def __init__(self, patience: int, reduction: float) -> None:
        self._optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._scheduler = ReduceLROnPlateau(self._optimizer, factor=reduction, patience=patience)

    @property
    def share(self) -> float:
        """What the learning rate is multiplied by now."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self, error: float) -> None:
        """Take note of a validation's error."""
        self._scheduler.step(error)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from, JSON-ready."""
        return {"share": self.share, **self._scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the one whose state this is."""
        self._optimizer.param_groups[0]["lr"] = state["share"]
        self._scheduler.load_state_dict({name: value for name, value in state.items() if name != "share"})
