"""`Run`: one source image with all that later steps need to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Action = Literal["harmonize", "skip", "fail", "done"]


@dataclass(frozen=True)
class Run:
    """One T1w or T2w image of a dataset and what is to be done with it.

    Attributes
    ----------
    path
        Absolute path of the image.
    sequence
        ``"T1w"`` or ``"T2w"``.
    entities
        BIDS entities of the file name in their order, short keys without the suffix:
        ``{"sub": "01", "ses": "A", "acq": "mprage", "run": "1"}``, labels as strings, exactly as spelled in the name.
    metadata
        The sidecar's fields after BIDS inheritance.
    site
        Site label, or None where nothing tells it.
    site_source
        Where the label came from, for people: ``"participants.tsv:site"``, ``"sidecar:Manufacturer,..."``.
    action
        ``harmonize``; ``skip`` (not for us, see `reason`); ``fail`` (header unreadable or unusable, see `reason`);
        ``done`` (the output is there, made with the same settings and input).
    reason
        One line for the dry run and participants.tsv; empty for a plain ``harmonize``.
    """

    path: Path
    sequence: str
    entities: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    site: str | None = None
    site_source: str = ""
    action: Action = "harmonize"
    reason: str = ""

    @property
    def participant(self) -> str:
        """Participant label without ``sub-``."""
        return self.entities["sub"]

    @property
    def session(self) -> str | None:
        """Session label without ``ses-``, None without sessions."""
        return self.entities.get("ses")

    @property
    def stem(self) -> str:
        """File name without suffix and extension: ``sub-01_ses-A_acq-mprage``."""
        return "_".join(f"{key}-{label}" for key, label in self.entities.items())

    @property
    def key(self) -> str:
        """Unique name of the image in its dataset: ``sub-01_ses-A_acq-mprage_T1w``."""
        return f"{self.stem}_{self.sequence}"

    @property
    def node_name(self) -> str:
        """`key` in letters, digits and underscores, as Nipype wants names."""
        return "".join(char if char.isalnum() else "_" for char in self.key)
