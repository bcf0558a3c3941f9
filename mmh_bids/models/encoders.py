"""Which style encoder: BiomedCLIP's from a folder, or the small one that comes with the package.

The small encoder is a folder of ``encoder.json`` and ``encoder.safetensors`` under ``mmh_bids/data/encoders``. Its card
has ``format_version``, ``name``, ``license``, ``network`` (arguments of `build_small`), ``training``, ``metrics`` and
``files``, which gives the weight file's ``sha256`` and ``bytes``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from mmh_bids.errors import UsageError
from mmh_bids.models.small_tower import SmallTower
from mmh_bids.models.style import TriPlanarEncoder
from mmh_bids.models.tower import download_tower, load_tower

FORMAT_VERSION = 1
CARD, WEIGHTS_FILE = "encoder.json", "encoder.safetensors"
SHIPPED = "small"
_RESTORE = "install mmh_bids again, or train the encoder again with mmh-train encoder"
#: Seed of the aggregator's first weights, which stage 2 goes on from.
_SEED = 0


def load_style_encoder(weights: Path | None = None, allow_download: bool = False) -> TriPlanarEncoder:
    """Load a style encoder, in evaluation mode, on the CPU.

    Parameters
    ----------
    weights
        Folder of BiomedCLIP (or another model of open_clip), see `tower.load_tower`, whose aggregator is new and always
        the same; or a folder that `write_small` wrote.
    allow_download
        Without `weights`: fetch BiomedCLIP from the Hugging Face hub, or take it from that client's cache.

    Returns
    -------
    The encoder of the folder, BiomedCLIP's, or, where neither is given, the small one that is shipped. ``card["name"]``
    tells which.

    Raises
    ------
    UsageError
        A file is missing or damaged, or nothing can be downloaded.
    """
    # networks are made with random weights before they are filled: the caller's random numbers stay as they are
    with torch.random.fork_rng(devices=[]):
        if weights is None and not allow_download:
            return read_small(shipped_folder() / SHIPPED)
        if weights is not None and (Path(weights) / CARD).is_file():
            return read_small(Path(weights))
        return _published(Path(weights) if weights is not None else download_tower())


def _published(folder: Path) -> TriPlanarEncoder:
    tower, facts = load_tower(folder)
    torch.manual_seed(_SEED)
    try:
        encoder = TriPlanarEncoder(tower, dim=facts["embed_dim"], card=facts)
    except ValueError as error:
        raise UsageError(f"--style-weights {folder}: the tower cannot be used ({error})") from None
    encoder.card |= {"slices": encoder.slices, "margin_mm": encoder.margin_mm, "voxel_mm": encoder.voxel_mm}
    return encoder.eval()


def shipped_folder() -> Path:
    """Folder of the encoders that come with the package."""
    with as_file(files("mmh_bids.data")) as folder:
        return Path(folder) / "encoders"


def build_small(network: Mapping[str, Any], card: Mapping[str, Any]) -> TriPlanarEncoder:
    """Return a small encoder with random weights.

    Parameters
    ----------
    network
        ``tower``: arguments of `SmallTower`; the rest are arguments of `TriPlanarEncoder`, ``dim`` for both.
    card
        See `TriPlanarEncoder`.
    """
    rest = {key: value for key, value in network.items() if key != "tower"}
    return TriPlanarEncoder(SmallTower(dim=network["dim"], **network["tower"]), **rest, card=card)


def read_small(folder: Path) -> TriPlanarEncoder:
    """Read and verify an encoder that `write_small` wrote.

    Raises
    ------
    UsageError
        A file is missing, truncated, altered, or of a newer format.
    """
    card = _read_card(folder / CARD)
    raw = _read_weights(folder / WEIGHTS_FILE, card)
    try:
        encoder = build_small(card["network"], {"name": card["name"], "sha256": card["files"][WEIGHTS_FILE]["sha256"]})
        encoder.load_state_dict(load(raw))
    except (SafetensorError, RuntimeError, TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{folder}: weights and card differ ({str(error).splitlines()[0]}); {_RESTORE}") from None
    encoder.card |= {"embed_dim": card["network"]["dim"], "slices": encoder.slices}
    encoder.card |= {"margin_mm": encoder.margin_mm, "voxel_mm": encoder.voxel_mm}
    return encoder.requires_grad_(False).eval()


def write_small(folder: Path, encoder: TriPlanarEncoder, card: Mapping[str, Any], overwrite: bool = False) -> Path:
    """Write an encoder's card and weights all at once; return the folder.

    Parameters
    ----------
    folder
        Appears complete or not at all.
    card
        The fields of ``encoder.json`` but for ``format_version`` and ``files``.
    overwrite
        Replace an encoder that is there (never any other folder).

    Raises
    ------
    UsageError
        The folder exists and may not be replaced, or cannot be written.
    """
    folder = Path(folder).absolute()
    check_output(folder, overwrite)
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        raw = save({name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()})
        (temporary / WEIGHTS_FILE).write_bytes(raw)
        facts = {WEIGHTS_FILE: {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}}
        full = {"format_version": FORMAT_VERSION, **card, "files": facts}
        (temporary / CARD).write_text(json.dumps(full, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise UsageError(f"--output {folder}: cannot be written ({error.strerror}); choose another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise UsageError if `folder` exists and may not be replaced."""
    if folder.exists() and not (overwrite and (folder / CARD).is_file()):
        remedy = "choose another folder" if overwrite else "choose another folder or give --overwrite"
        raise UsageError(f"--output {folder}: exists already; {remedy}")


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: missing; {_RESTORE}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); {_RESTORE}") from None
    version = card.get("format_version") if isinstance(card, dict) else None
    if version != FORMAT_VERSION:
        raise UsageError(f"{path}: format {version} is unknown to this version of mmh; {_RESTORE}")
    return card


def _read_weights(path: Path, card: Mapping[str, Any]) -> bytes:
    try:
        raw = path.read_bytes()
        wanted = card["files"][WEIGHTS_FILE]["sha256"]
    except FileNotFoundError:
        raise UsageError(f"{path}: missing; {_RESTORE}") from None
    except (OSError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read or has no sha256 in {CARD} ({error}); {_RESTORE}") from None
    if hashlib.sha256(raw).hexdigest() != wanted:
        raise UsageError(f"{path}: truncated or altered, its sha256 is not the one in {CARD}; {_RESTORE}")
    return raw
