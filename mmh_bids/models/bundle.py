"""Model bundles: a folder of ``bundle.json`` and safetensors files, verified before anything is done with it.

``bundle.json`` carries the metadata names of MONAI bundles where there is one (``version``, ``task``,
``description``, ``authors``, ``data_source``, ``intended_use``, ``references``, ``network_data_format``),
and ours:

=================  =====================================================================================
format_version     integer; a reader refuses what is newer than it knows
name, license      strings
methods            names of the harmonization methods the bundle serves
network, sampler   arguments of the network and of the sampler; absent for the classical methods
grid               ``shape`` (three numbers) and ``affine`` (4x4, voxel -> RAS mm) of the model grid
output_max         value written to file for 1.0 of the bundle's scale
targets            ``unified`` and ``site:<label>``: what images can be brought to
sequences          per sequence and target, statistics of the training images; ``quantiles`` are the
                   256 that `mmh_bids.image.intensity.quantile_function` gives; ``sites`` beside ``targets``:
                   per site where images come from its average person (`mmh_bids.harmonizers.people`)
training           ``data`` and ``recipe``
metrics            measured on data held out of the training
files              per weight file its ``sha256`` and ``bytes``
=================  =====================================================================================

Fields this version does not know are kept and ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmh_bids import __version__
from mmh_bids.errors import BundleError
from mmh_bids.files import sha256_file

FORMAT_VERSION = 1
CARD = "bundle.json"
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "license": str,
    "methods": list,
    "grid": dict,
    "output_max": (int, float),
    "targets": list,
    "sequences": dict,
    "training": dict,
    "metrics": dict,
    "files": dict,
}
_RESTORE = "copy or train it again, or choose another with --model"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, its files verified. Make it with `open_bundle`.

    Attributes
    ----------
    folder
        Where the files are.
    card
        Content of ``bundle.json``.
    sha256
        Hash of ``bundle.json``, which holds the hashes of all other files: it stands for the whole bundle.
    """

    folder: Path
    card: Mapping[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return self.card["name"]

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods it serves."""
        return tuple(self.card["methods"])

    @property
    def output_max(self) -> float:
        """Value written to file for 1.0 of the bundle's scale."""
        return float(self.card["output_max"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the model grid."""
        x, y, z = (int(size) for size in self.card["grid"]["shape"])
        return x, y, z

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) voxel -> RAS mm of the model grid."""
        return np.array(self.card["grid"]["affine"], dtype=np.float64)

    @property
    def sequences(self) -> tuple[str, ...]:
        """Sequences it was made for."""
        return tuple(self.card["sequences"])

    def targets(self, sequence: str | None = None) -> tuple[str, ...]:
        """Targets it knows, of one sequence or of all: ``unified``, ``site:<label>``, sorted."""
        if sequence is None:
            return tuple(self.card["targets"])
        return tuple(sorted(self.card["sequences"].get(sequence, {}).get("targets", {}), key=target_order))

    def require(self, method: str) -> None:
        """Raise BundleError if the bundle does not serve `method`; ``none`` needs nothing of a bundle."""
        if method != "none" and method not in self.methods:
            raise BundleError(
                f"--model {self.name}: is not made for --method {method}; it serves {', '.join(self.methods)}"
            )

    def arrays(self, file_name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of one of the bundle's safetensors files by name."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if file_name not in self.card["files"]:
            raise BundleError(f"--model {self.name}: has no file {file_name} in {self.folder}; {_RESTORE}")
        try:
            return load_file(self.folder / file_name)
        except (OSError, SafetensorError) as error:
            raise BundleError(f"{self.folder / file_name}: cannot be read ({error}); {_RESTORE}") from None


def target_order(target: str) -> tuple[bool, str]:
    """Sort key that puts ``unified`` before the sites.

    >>> sorted(["site:b", "unified", "site:a"], key=target_order)
    ['unified', 'site:a', 'site:b']
    """
    return target != "unified", target


def shipped_folder() -> Path:
    """Folder of the bundles that come with the package."""
    with as_file(files("mmh_bids.data")) as folder:
        return Path(folder) / "bundles"


def shipped_names() -> list[str]:
    """Names of the bundles that come with the package."""
    return sorted(path.parent.name for path in shipped_folder().glob(f"*/{CARD}"))


#: Which shipped bundle a method uses where none is asked for; the rest use `DEFAULT_BUNDLE`.
_BUNDLE_OF_METHOD = {"mmh-light": "mmh-light", "mmh-diffusion": "mmh-diffusion"}
DEFAULT_BUNDLE = "classic"


def bundle_of(method: str) -> str:
    """Name of the shipped bundle for a method.

    >>> bundle_of("mmh-light"), bundle_of("nyul"), bundle_of("none")
    ('mmh-light', 'classic', 'classic')
    """
    return _BUNDLE_OF_METHOD.get(method, DEFAULT_BUNDLE)


def open_bundle(name_or_path: str | Path) -> Bundle:
    """Open and verify a bundle: every file is there, whole, and the one it was published as.

    Parameters
    ----------
    name_or_path
        Name of a shipped bundle, or path of a folder (``./name`` for a folder named like a shipped one).

    Raises
    ------
    BundleError
        An unknown name, or files that are missing, truncated, altered, unreadable or of a newer format.
    """
    names = shipped_names()
    if str(name_or_path) in names:
        return _verified(shipped_folder() / str(name_or_path))
    folder = Path(name_or_path)
    if not folder.is_dir():
        raise BundleError(
            f"--model {name_or_path}: neither a shipped bundle ({', '.join(names) or 'none'}) nor a folder"
        )
    return _verified(folder.resolve())


def _verified(folder: Path) -> Bundle:
    path = folder / CARD
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(
            f"--model {folder}: has no {CARD}, so it is no model bundle; give a bundle's folder"
        ) from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); {_RESTORE}") from None
    card = _parsed(path, raw)
    for name, facts in card["files"].items():
        _check_file(folder, name, facts)
    return Bundle(folder, card, hashlib.sha256(raw).hexdigest())


def _parsed(path: Path, raw: bytes) -> dict[str, Any]:
    """The card, its format version known and its fields of the right kinds."""
    try:
        card = json.loads(raw.decode("utf-8"))
    except ValueError as error:  # covers wrong JSON and wrong UTF-8
        raise BundleError(f"{path}: not valid JSON ({error}); {_RESTORE}") from None
    version = card.get("format_version") if isinstance(card, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{path}: has no valid format_version, so it is no card of a model bundle; {_RESTORE}")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path}: bundle format {version} is newer than this version of mmh reads ({FORMAT_VERSION}); "
            "update mmh_bids, or choose another bundle with --model"
        )
    for field, kind in _REQUIRED.items():
        if not isinstance(card.get(field), kind):
            raise BundleError(f"{path}: field {field} is missing or of the wrong type; {_RESTORE}")
    _check_numbers(path, card)
    return card


def _check_numbers(path: Path, card: Mapping[str, Any]) -> None:
    try:
        shape = [int(size) for size in card["grid"]["shape"]]
        affine = np.array(card["grid"]["affine"], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        shape, affine = [], np.zeros(0)
    good = len(shape) == 3 and min(shape) > 0 and affine.shape == (4, 4) and np.isfinite(affine).all()
    if not good or np.linalg.det(affine) == 0:
        raise BundleError(f"{path}: grid needs a shape of three sizes and a 4x4 affine; {_RESTORE}")
    if not (np.isfinite(card["output_max"]) and card["output_max"] > 0):
        raise BundleError(f"{path}: output_max must be above zero; {_RESTORE}")


def _check_file(folder: Path, name: str, facts: Any) -> None:
    """Verify name, size, hash and header of one weight file."""
    from safetensors import SafetensorError, safe_open

    path = folder / name
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise BundleError(f"{folder / CARD}: {name} is no plain name of a .safetensors file; {_RESTORE}")
    if not isinstance(facts, dict) or not isinstance(facts.get("sha256"), str):
        raise BundleError(f"{folder / CARD}: no sha256 is given for {name}; {_RESTORE}")
    try:
        size = path.stat().st_size
        if "bytes" in facts and size != facts["bytes"]:
            raise BundleError(f"{path}: truncated or altered, {size} of {facts['bytes']} bytes; {_RESTORE}")
        if sha256_file(path) != facts["sha256"].lower():
            raise BundleError(f"{path}: altered, its sha256 is not the one in {CARD}; {_RESTORE}")
        with safe_open(path, framework="numpy"):
            pass
    except FileNotFoundError:
        raise BundleError(f"{path}: missing from the bundle; {_RESTORE}") from None
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); {_RESTORE}") from None


def card_head(name: str, description: str, data: str, references: list[str]) -> dict[str, Any]:
    """Return the fields of a card that every training of ours fills in alike.

    Parameters
    ----------
    name, description
        Of the bundle.
    data
        Where the training images come from.
    references
        Papers.
    """
    return {
        "name": name,
        "version": __version__,
        "task": "Harmonization of T1w and T2w brain MR images",
        "description": description,
        "authors": "The mmh_bids team",
        "license": "Apache-2.0",
        "intended_use": "Research. Not a medical device.",
        "data_source": data,
        "references": references,
    }


def write_bundle(
    folder: str | Path,
    card: Mapping[str, Any],
    files: Mapping[str, Mapping[str, NDArray[Any]]],
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle all at once, and open it.

    Parameters
    ----------
    folder
        Folder to make; its parent must exist. It appears complete or not at all.
    card
        The fields of ``bundle.json`` (see the module's text) but for ``format_version``, ``files`` and
        ``network_data_format``, which are filled in here.
    files
        Per safetensors file name its arrays by name.
    overwrite
        Replace an existing bundle (never any other folder).

    Raises
    ------
    BundleError
        `folder` exists and may not be replaced, cannot be written, or the card lacks a field.
    """
    from safetensors.numpy import save

    folder = Path(folder).absolute()
    if folder.exists() and not (overwrite and (folder / CARD).is_file()):
        raise BundleError(f"--output {folder}: exists already; choose another folder or remove it")
    try:
        temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
        temporary.mkdir()
    except OSError as error:
        raise BundleError(f"--output {folder}: cannot be written ({error.strerror}); choose another folder") from None
    try:
        facts = {}
        for name, arrays in sorted(files.items()):
            path = temporary / name
            # the package's save_file makes files that only their owner can read
            path.write_bytes(save({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}))
            facts[name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        full = {"format_version": FORMAT_VERSION, **card, "files": facts}
        full.setdefault("network_data_format", _data_format(full.get("grid", {}).get("shape")))
        (temporary / CARD).write_text(_to_json(full), encoding="utf-8")
        _verified(temporary)
        _put_in_place(temporary, folder)
    except OSError as error:
        raise BundleError(f"--output {folder}: cannot be written ({error.strerror}); choose another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _verified(folder)


def _to_json(card: Mapping[str, Any]) -> str:
    """Indented JSON with each list of numbers on one line."""
    text = json.dumps(card, indent=2, allow_nan=False)
    return (
        re.sub(
            r"\[[\s\d.,eE+-]+\]",
            lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"),
            text,
        )
        + "\n"
    )


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`; an old bundle there is moved aside first and deleted last."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = temporary.with_name(temporary.name + "-old")
    folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _data_format(shape: Any) -> dict[str, Any]:
    """Inputs and outputs in MONAI's words."""
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 1,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {"0": "image"},
    }
    return {"inputs": {"image": image}, "outputs": {"pred": dict(image)}}
