"""Names, places and sidecars of the derivatives of one image.

A derivative is named after its source: all entities of the source in their order, then ``space-``, ``res-``
and ``desc-``, so that no two sources share a name and no derivative has a name that raw data could have.

**Brain masks.** A mask has the suffix ``mask`` and so loses the ``T1w``/``T2w`` of its source: the two
images of a session would share one name. BIDS allows only ``label-`` (tissues and regions) and ``desc-`` to
tell masks on the same grid apart (``mod-`` is for defacing masks, ``space-T2w`` would need a
SpatialReference). The T1w mask keeps the usual ``desc-brain``, the T2w mask always is ``desc-brainT2w``,
whether there is a T1w image or not.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmh_bids import __version__
from mmh_bids.bids.run import Run
from mmh_bids.errors import ImageError, UsageError
from mmh_bids.files import atomic_write, extension

TEMPLATE = "MNI152NLin2009aSym"

#: Fields of the source's sidecar that stay true for an image with other intensities. Those that speak of
#: voxel axes (PhaseEncodingDirection, SliceTiming ...) are left out: they are wrong on another grid.
PROPAGATED_FIELDS = (
    "Manufacturer", "ManufacturersModelName", "DeviceSerialNumber", "StationName", "SoftwareVersions",
    "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "MagneticFieldStrength",
    "ReceiveCoilName", "ReceiveCoilActiveElements", "GradientSetType", "MRTransmitCoilSequence",
    "PulseSequenceType", "ScanningSequence", "SequenceVariant", "ScanOptions", "SequenceName",
    "PulseSequenceDetails", "MRAcquisitionType", "NonlinearGradientCorrection", "EchoTime", "RepetitionTime",
    "RepetitionTimeExcitation", "RepetitionTimePreparation", "InversionTime", "FlipAngle", "PartialFourier",
    "ParallelReductionFactorInPlane", "ParallelAcquisitionTechnique", "DwellTime", "SliceThickness",
    "ContrastBolusIngredient", "BodyPart",
)  # fmt: skip


@dataclass(frozen=True)
class OutputPaths:
    """Where everything about one image goes. Nothing is created.

    Examples
    --------
    >>> run = Run(Path("/raw/sub-01/ses-A/anat/sub-01_ses-A_T2w.nii"), "T2w", {"sub": "01", "ses": "A"})
    >>> paths = OutputPaths(Path("/out"), run)
    >>> paths.harmonized().relative_to("/out").as_posix()
    'sub-01/ses-A/anat/sub-01_ses-A_desc-harmonized_T2w.nii.gz'
    >>> paths.harmonized(TEMPLATE, "1").name
    'sub-01_ses-A_space-MNI152NLin2009aSym_res-1_desc-harmonized_T2w.nii.gz'
    >>> paths.brain_mask.name, paths.transform().name
    ('sub-01_ses-A_desc-brainT2w_mask.nii.gz',
    'sub-01_ses-A_from-T2w_to-MNI152NLin2009aSym_mode-image_xfm.txt')
    """

    output_dir: Path
    run: Run

    @property
    def participant_dir(self) -> Path:
        """``OUT/sub-X``."""
        return self.output_dir / f"sub-{self.run.participant}"

    @property
    def anat(self) -> Path:
        """``OUT/sub-X/[ses-Y/]anat``."""
        session = self.run.session
        return self.participant_dir / (f"ses-{session}" if session else "") / "anat"

    def image(self, desc: str, space: str | None = None, res: str | None = None) -> Path:
        """An image of the source's sequence."""
        return self.anat / self._name({"space": space, "res": res, "desc": desc}, f"{self.run.sequence}.nii.gz")

    def harmonized(self, space: str | None = None, res: str | None = None) -> Path:
        """The harmonized image: on the input's grid, or in a template space."""
        return self.image("harmonized", space, res)

    @property
    def preproc(self) -> Path:
        """The image after preprocessing (bias field removed, input's grid)."""
        return self.image("preproc")

    @property
    def model_grid(self) -> Path:
        """The image that a method would see; kept only for the method ``none``."""
        return self.image("model", TEMPLATE)

    @property
    def brain_mask(self) -> Path:
        """The brain mask on the input's grid; see the module's text for the name."""
        desc = "brain" if self.run.sequence == "T1w" else f"brain{self.run.sequence}"
        return self.anat / self._name({"desc": desc}, "mask.nii.gz")

    def transform(self, to: str = TEMPLATE, ext: str = ".txt") -> Path:
        """The transform from the image to a template (``.txt`` affine, ``.h5`` composite)."""
        return self.anat / self._name({"from": self.run.sequence, "to": to, "mode": "image"}, f"xfm{ext}")

    @property
    def figures(self) -> Path:
        """``OUT/sub-X/figures``, of all sessions."""
        return self.participant_dir / "figures"

    def figure(self, desc: str, ext: str = ".svg") -> Path:
        """One figure of the report about this image."""
        return self.figures / self._name({"desc": desc}, f"{self.run.sequence}{ext}")

    @property
    def features(self) -> Path:
        """What the group level compares of this image, see `mmh_bids.evaluation.features`; of all sessions."""
        return self.participant_dir / "features" / self._name({"desc": "features"}, f"{self.run.sequence}.npz")

    @property
    def excluded(self) -> Path:
        """Why the harmonized image was not kept and what its sidecar said, see `mmh_bids.cli.qc_fail`."""
        return self.participant_dir / "log" / self._name({"desc": "excluded"}, f"{self.run.sequence}.json")

    @property
    def report(self) -> Path:
        """``OUT/sub-X.html``."""
        return self.output_dir / f"sub-{self.run.participant}.html"

    def log_dir(self, run_id: str) -> Path:
        """``OUT/sub-X/log/<run>``, where crash files of one call of the program go."""
        return self.participant_dir / "log" / run_id

    def _name(self, added: Mapping[str, str | None], ending: str) -> str:
        return "_".join([self.run.stem, *(f"{key}-{label}" for key, label in added.items() if label), ending])


def sidecar_path(path: Path) -> Path:
    """The JSON file beside a derivative.

    >>> sidecar_path(Path("sub-01_desc-brain_mask.nii.gz")).name
    'sub-01_desc-brain_mask.json'
    """
    return path.with_name(path.name.removesuffix(extension(path)) + ".json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """Fields of a JSON file that this program wrote beside a derivative; empty if it holds no object.

    Raises
    ------
    ImageError
        It is missing or cannot be read.

    Examples
    --------
    >>> read_sidecar(Path("nowhere.json"))
    Traceback (most recent call last):
    mmh_bids.errors.ImageError: nowhere.json: no such file; run the participant level again
    """
    remedy = "run the participant level again"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; {remedy}") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:80]
        raise ImageError(f"{path}: cannot be read ({reason}); delete it and {remedy}") from None
    return content if isinstance(content, dict) else {}


def harmonization_on_disk(paths: OutputPaths) -> dict[str, Any]:
    """The ``Harmonization`` object of the image's sidecar, or of one that was not kept; empty if there is none."""
    for path in (sidecar_path(paths.harmonized()), paths.excluded):
        with contextlib.suppress(ImageError, ValueError, KeyError, TypeError):
            return dict(read_sidecar(path)["Harmonization"])
    return {}


def split_space(text: str) -> tuple[str, str | None]:
    """Take one of ``--output-spaces`` apart: template and resolution label.

    >>> split_space("MNI152NLin2009aSym:res-1"), split_space("MNI152NLin2009cAsym")
    (('MNI152NLin2009aSym', '1'), ('MNI152NLin2009cAsym', None))
    """
    space, *modifiers = text.split(":")
    res = [part.removeprefix("res-") for part in modifiers if part.startswith("res-")]
    if not space.isalnum() or len(res) != len(modifiers) or len(res) > 1 or not all(map(str.isalnum, res)):
        raise UsageError(f"--output-spaces {text}: unknown form; give TEMPLATE or TEMPLATE:res-LABEL")
    return space, res[0] if res else None


def bids_uri(path: Path, output_dir: Path, links: Mapping[str, Path]) -> str:
    """The BIDS URI of a file.

    Parameters
    ----------
    path
        Absolute path.
    output_dir
        Root of our derivatives: files in it need no dataset name.
    links
        The datasets under ``DatasetLinks`` by name, ``{"raw": bids_dir, ...}``.

    Returns
    -------
    str
        ``bids::...`` or ``bids:<name>:...``; a ``file://`` URI for a file that is in none of the datasets.

    Examples
    --------
    >>> links = {"raw": Path("/data")}
    >>> bids_uri(Path("/data/sub-01/anat/sub-01_T1w.nii.gz"), Path("/data/derivatives/mmh"), links)
    'bids:raw:sub-01/anat/sub-01_T1w.nii.gz'
    >>> bids_uri(Path("/data/derivatives/mmh/sub-01/anat/x.nii.gz"), Path("/data/derivatives/mmh"), links)
    'bids::sub-01/anat/x.nii.gz'
    """
    path = Path(os.path.abspath(path))
    for prefix, root in [("bids::", output_dir), *((f"bids:{name}:", root) for name, root in links.items())]:
        root = Path(os.path.abspath(root))
        if path.is_relative_to(root):
            return prefix + path.relative_to(root).as_posix()
    return path.as_uri()


def sidecar(
    run: Run,
    sources: Iterable[str],
    *,
    skull_stripped: bool,
    description: str | None = None,
    harmonization: Mapping[str, Any] | None = None,
    resolution: str | None = None,
) -> dict[str, Any]:
    """Fields of the JSON file of an image derivative, in a fixed order.

    Parameters
    ----------
    run
        The source image.
    sources
        BIDS URIs; see `bids_uri`.
    skull_stripped
        Whether everything outside the brain is zero.
    description
        One sentence about the file.
    harmonization
        The ``Harmonization`` object.
    resolution
        What the ``res-`` label means; required with ``res-``.
    """
    fields: dict[str, Any] = {
        "Description": description,
        "Sources": list(sources),
        "SkullStripped": skull_stripped,
        "Resolution": resolution,
    }
    fields |= {name: run.metadata[name] for name in PROPAGATED_FIELDS if name in run.metadata}
    fields["GeneratedBy"] = [{"Name": "mmh", "Version": __version__}]
    fields["Harmonization"] = None if harmonization is None else dict(harmonization)
    return {name: value for name, value in fields.items() if value is not None}


def mask_sidecar(sources: Iterable[str], description: str | None = None) -> dict[str, Any]:
    """Fields of the JSON file of a brain mask."""
    fields = {
        "Description": description,
        "Sources": list(sources),
        "Type": "Brain",
        "GeneratedBy": [{"Name": "mmh", "Version": __version__}],
    }
    return {name: value for name, value in fields.items() if value is not None}


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write `content` in one step: order as given, UTF-8, same bytes for the same content.

    Numbers that are not finite become null, which JSON can say; NumPy scalars and arrays and paths become
    plain.
    """
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    return atomic_write(path, text + "\n")


def write_sidecar(path: Path, fields: Mapping[str, Any]) -> Path:
    """Write the JSON file that belongs to the derivative `path`; return its path."""
    return write_json(sidecar_path(path), fields)


def plain(value: Any) -> Any:
    """`value` in the types of JSON.

    >>> import numpy as np
    >>> plain({"a": np.float32(0.5), "b": (np.int16(1), float("nan")), "c": Path("x"), "d": np.arange(2)})
    {'a': 0.5, 'b': [1, None], 'c': 'x', 'd': [0, 1]}
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
