"""What a simulated scanner is, read from a YAML file and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mmh_bids.errors import UsageError
from mmh_bids.simulate import signal
from mmh_bids.simulate.tissues import Relaxation, relaxation

SEQUENCES = ("T1w", "T2w")
DTYPES = ("int16", "uint16", "uint8", "float32")
#: What a scanner may serve for: models are fitted and tuned on the first only.
USES = ("training", "testing")
#: Image axes as BIDS names them.
IMAGE_AXES = ("i", "j", "k")
#: Largest amplitude of motion that still counts as mild, millimetres.
_MOST_GHOSTING = 2.0
_KINDS = ("mprage", "spoiled_gradient_echo", "spin_echo", "fast_spin_echo")
#: Names of pulse sequences in sidecars.
_SIDECAR_NAMES = {
    "mprage": ("IR\\GR", "SP\\MP", "MPRAGE"),
    "spoiled_gradient_echo": ("GR", "SP", "Spoiled gradient echo"),
    "spin_echo": ("SE", "NONE", "Spin echo"),
    "fast_spin_echo": ("SE", "SK", "Fast spin echo"),
}


@dataclass(frozen=True)
class Protocol:
    """One sequence of a scanner: contrast, grid, storage.

    Attributes
    ----------
    sequence
        ``mprage``, ``spoiled_gradient_echo``, ``spin_echo`` or ``fast_spin_echo``.
    tr, te, ti
        Repetition, (effective) echo and inversion time, seconds; `ti` for mprage only.
    flip
        Excitation angle of gradient echoes, refocusing angle of a fast spin echo (sidecar only), degrees.
    echo_spacing, echoes
        Train of mprage and fast_spin_echo, seconds and number.
    voxel
        Size along the image's own axes, millimetres; the largest is the slice thickness.
    axes
        Anatomical direction that each image axis points to, such as ``RAS`` or ``PIR``.
    oblique
        Rotations of the grid about world x, y, z, degrees.
    dtype, slope
        Stored type, and scl_slope of integer types (1 writes none).
    level
        Stored-value scale: what unbiased white matter of an average person comes to (receive gain), before
        `slope`.
    snr
        White-matter `level` over the standard deviation of the noise.
    ghosting
        Amplitude of the head's periodic motion during the scan, millimetres, 0 (none) to 2; see `ghosting`.
    phase_encoding
        Image axis of the phase encoding: ``i``, ``j`` or ``k``; along it ghosts appear. None: not told.
    """

    sequence: str
    tr: float
    te: float
    flip: float
    voxel: tuple[float, float, float]
    ti: float | None = None
    echo_spacing: float = 0.0
    echoes: int = 0
    axes: str = "RAS"
    oblique: tuple[float, float, float] = (0.0, 0.0, 0.0)
    dtype: str = "int16"
    slope: float = 1.0
    level: float = 400.0
    snr: float = 30.0
    ghosting: float = 0.0
    phase_encoding: str | None = None

    def signals(self, tissues: Relaxation, transmit: float = 1.0) -> NDArray[np.float64]:
        """Signal of each tissue, (T,), where the transmit field is `transmit` times nominal.

        Raises
        ------
        UsageError
            If no scanner could play the sequence out (negative delay).
        """
        angle = self.flip * transmit
        train: dict[str, Any] = {"echo_spacing": self.echo_spacing, "echoes": self.echoes}
        if self.sequence == "mprage":
            return signal.mprage(
                tissues.t1,
                tissues.t2star,
                tissues.pd,
                tr=self.tr,
                ti=self.ti or 0.0,
                te=self.te,
                flip=angle,
                **train,
            )
        if self.sequence == "spoiled_gradient_echo":
            return signal.spoiled_gradient_echo(
                tissues.t1, tissues.t2star, tissues.pd, tr=self.tr, te=self.te, flip=angle
            )
        # Excitation 90 and refocusing 180 degrees scale alike: sin(excitation) sin^2(refocusing / 2) is a
        # cube.
        loss = np.abs(np.sin(np.pi / 2 * transmit)) ** 3
        if self.sequence == "spin_echo":
            return loss * signal.spin_echo(tissues.t1, tissues.t2, tissues.pd, tr=self.tr, te=self.te)
        return loss * signal.fast_spin_echo(tissues.t1, tissues.t2, tissues.pd, tr=self.tr, te=self.te, **train)


@dataclass(frozen=True)
class Scanner:
    """A scanner: who made it, where it stands, its fields and protocols.

    Attributes
    ----------
    name
        Key in the file; serves as session label and must be letters and digits.
    manufacturer, model, institution
        Go into the sidecars.
    field
        Tesla.
    bias
        Standard deviation over the head of the logarithm of the receive field.
    transmit
        Relative drop of the transmit field from the centre of the brain to 90 mm from it.
    protocols
        ``T1w`` and/or ``T2w``.
    use
        ``training`` or ``testing``; nothing may be fitted or tuned on a scanner for testing.
    """

    name: str
    manufacturer: str
    model: str
    institution: str
    field: float
    bias: float
    transmit: float
    protocols: Mapping[str, Protocol]
    use: str = USES[0]

    def protocol(self, sequence: str) -> Protocol:
        """The protocol of ``"T1w"`` or ``"T2w"``; UsageError if the scanner has none."""
        if sequence not in self.protocols:
            raise UsageError(f"scanner {self.name}: no {sequence} protocol; it has {', '.join(self.protocols)}")
        return self.protocols[sequence]

    def sidecar(self, sequence: str) -> dict[str, Any]:
        """BIDS metadata of an image of this scanner, in writing order."""
        protocol = self.protocol(sequence)
        kind, variant, label = _SIDECAR_NAMES[protocol.sequence]
        out: dict[str, Any] = {
            "Manufacturer": self.manufacturer,
            "ManufacturersModelName": self.model,
            "MagneticFieldStrength": self.field,
            "InstitutionName": self.institution,
            "StationName": f"SIM{self.name}",
            "DeviceSerialNumber": f"SIM-{self.name}",
            "SoftwareVersions": "mmh-simulate",
            "ReceiveCoilName": "Simulated head coil",
            "NonlinearGradientCorrection": True,
            "MRAcquisitionType": "2D" if max(protocol.voxel) >= 1.5 * min(protocol.voxel) else "3D",
            "ScanningSequence": kind,
            "SequenceVariant": variant,
            "SequenceName": protocol.sequence,
            "PulseSequenceType": label,
            "PulseSequenceDetails": f"{label}, simulated",
            "RepetitionTime": protocol.tr,
            "EchoTime": protocol.te,
            "FlipAngle": protocol.flip,
        }
        if protocol.ti is not None:
            out["InversionTime"] = protocol.ti
        if protocol.echoes and protocol.sequence == "fast_spin_echo":
            out["EchoTrainLength"] = protocol.echoes
        if protocol.phase_encoding is not None:
            out["PhaseEncodingDirection"] = protocol.phase_encoding
        return out

    def changed(self, changes: Mapping[str, Mapping[str, Any]]) -> Scanner:
        """The same scanner with some `Protocol` fields replaced, per sequence.

        >>> load_scanners()["A"].changed({"T1w": {"voxel": (2.0, 2.0, 2.0)}}).protocol("T1w").voxel
        (2.0, 2.0, 2.0)
        """
        protocols = {
            name: dataclasses.replace(protocol, **changes.get(name, {})) for name, protocol in self.protocols.items()
        }
        return dataclasses.replace(self, protocols=protocols)


def load_scanners(path: str | Path | None = None) -> dict[str, Scanner]:
    """Read scanners from YAML.

    Parameters
    ----------
    path
        File laid out as ``mmh_bids/data/scanners.yaml``; None reads that one.

    Returns
    -------
    dict
        Name to `Scanner`, in the order of the file.

    Raises
    ------
    UsageError
        For an unreadable file, unknown or missing fields, or a protocol that cannot be played out.

    Examples
    --------
    >>> list(load_scanners())[:3]
    ['A', 'B', 'C']
    """
    source = str(path) if path else "scanners.yaml of the package"
    try:
        text = Path(path).read_text() if path else _packaged()
        raw = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{source}: cannot be read ({error}); give a YAML file of scanners") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: not valid YAML ({' '.join(str(error).split())}); correct the file") from None
    if not isinstance(raw, dict) or not raw or not all(isinstance(entry, dict) for entry in raw.values()):
        raise UsageError(f"{source}: expected one mapping a scanner; see mmh_bids/data/scanners.yaml for the layout")
    return {str(name): _scanner(str(name), entry, source) for name, entry in raw.items()}


def _packaged() -> str:
    return (resources.files("mmh_bids.data") / "scanners.yaml").read_text()


def _scanner(name: str, entry: dict[str, Any], source: str) -> Scanner:
    where = f"{source}: scanner {name}"
    if not name.isalnum():
        raise UsageError(f"{where}: names become session labels; use letters and digits only")
    protocols = {key: _protocol(entry[key], f"{where}, {key}") for key in SEQUENCES if key in entry}
    plain = {key: value for key, value in entry.items() if key not in SEQUENCES}
    if not protocols:
        raise UsageError(f"{where}: needs a T1w or a T2w protocol; add one")
    scanner = _build(Scanner, {"name": name, "protocols": protocols, **plain}, where)
    if scanner.use not in USES:
        raise UsageError(f"{where}: use {scanner.use} is unknown; use one of {', '.join(USES)}")
    for protocol in protocols.values():
        try:
            protocol.signals(relaxation(scanner.field))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    return scanner


def _protocol(entry: dict[str, Any], where: str) -> Protocol:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: expected a mapping of protocol fields")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    protocol = _build(Protocol, values, where)
    if protocol.sequence not in _KINDS:
        raise UsageError(f"{where}: sequence {protocol.sequence} is unknown; use one of {', '.join(_KINDS)}")
    if protocol.dtype not in DTYPES:
        raise UsageError(f"{where}: dtype {protocol.dtype} is unknown; use one of {', '.join(DTYPES)}")
    if len(protocol.voxel) != 3 or min(protocol.voxel) <= 0 or len(protocol.oblique) != 3:
        raise UsageError(f"{where}: voxel needs three sizes above 0 mm and oblique three angles")
    pairs = ("RL", "AP", "SI")
    if sorted(next((i for i, pair in enumerate(pairs) if c in pair), 9) for c in protocol.axes) != [0, 1, 2]:
        raise UsageError(f"{where}: axes {protocol.axes} must name one of R/L, one of A/P and one of S/I")
    if min(protocol.level, protocol.snr, protocol.slope) <= 0:
        raise UsageError(f"{where}: level, snr and slope must be above 0")
    _check_ghosting(protocol, where)
    return protocol


def _check_ghosting(protocol: Protocol, where: str) -> None:
    amount, axis = protocol.ghosting, protocol.phase_encoding
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount <= _MOST_GHOSTING:
        raise UsageError(f"{where}: ghosting {amount} must be a displacement from 0 to {_MOST_GHOSTING:g} mm")
    if axis is not None and axis not in IMAGE_AXES:
        raise UsageError(f"{where}: phase_encoding {axis} is unknown; use one of {', '.join(IMAGE_AXES)}")
    if amount and axis is None:
        raise UsageError(f"{where}: ghosting runs along the phase encoding; give phase_encoding as i, j or k")


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    missing = sorted(required - set(values))
    if unknown:
        raise UsageError(f"{where}: unknown field(s) {', '.join(unknown)}; known are {', '.join(fields)}")
    if missing:
        raise UsageError(f"{where}: missing field(s) {', '.join(missing)}")
    return kind(**values)
