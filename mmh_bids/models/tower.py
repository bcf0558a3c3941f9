"""The image tower of a CLIP model, read from a folder as open_clip writes it; its text tower is never built.

The only module that imports open_clip, and only while a tower is loaded. A tower is a network from (N, 3, H, W) to
(N, D) with open_clip's attributes: ``image_size`` (H, W), ``image_mean`` and ``image_std`` (one a channel).
"""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from mmh_bids.errors import UsageError
from mmh_bids.files import sha256_file
from mmh_bids.models.vision import mend_torchvision

CONFIG, SAFE_WEIGHTS, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
REPOSITORY = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
#: What its own preprocessing says, and CLIP's where a config says nothing: OpenAI's values.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_REMEDY = (
    f"get {CONFIG} and {WEIGHTS} (784 MB, licence MIT) of {REPOSITORY} from the Hugging Face hub, "
    "put both into one folder, and give it with --style-weights DIR"
)
_PREFIX = "visual."
#: The smallest text tower that open_clip builds without another package; it is thrown away.
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
_BIOMEDCLIP = (512, "vit_base_patch16_224", "BiomedNLP")


def load_tower(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load the image tower of an open_clip model from a local folder. Nothing is downloaded.

    Parameters
    ----------
    folder
        Has ``open_clip_config.json`` and ``open_clip_model.safetensors`` (preferred) or
        ``open_clip_pytorch_model.bin``.

    Returns
    -------
    tower
        In evaluation mode, float32, on the CPU.
    facts
        JSON-ready: ``name``, ``sha256`` of the weight file, ``embed_dim``, ``image_size``.

    Raises
    ------
    UsageError
        A file is missing, damaged, or does not fit the other one; or open_clip is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"--style-weights {folder}: no such folder; {_REMEDY}")
    config = _read_config(folder / CONFIG)
    path = folder / SAFE_WEIGHTS if (folder / SAFE_WEIGHTS).is_file() else folder / WEIGHTS
    if not path.is_file():
        raise UsageError(f"--style-weights {folder}: has neither {SAFE_WEIGHTS} nor {WEIGHTS}; {_REMEDY}")
    tower = _build(folder / CONFIG, config)
    _fill(tower, path)
    _check_sizes(tower, folder / CONFIG, config)
    facts = {
        "name": _name(folder, config),
        "sha256": sha256_file(path),
        "embed_dim": config["embed_dim"],
        "image_size": list(tower.image_size),  # type: ignore[arg-type]
    }
    return tower.eval(), facts


def download_tower(cache_dir: Path | None = None) -> Path:
    """Fetch BiomedCLIP's two files from the Hugging Face hub, unless they lie in the cache; return their folder.

    Call it only where the user said ``--allow-download``.

    Raises
    ------
    UsageError
        No connection, or huggingface_hub is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UsageError("--allow-download needs huggingface_hub: pip install 'mmh_bids[train]'") from None
    try:
        config = huggingface_hub.hf_hub_download(REPOSITORY, CONFIG, cache_dir=cache_dir)
        huggingface_hub.hf_hub_download(REPOSITORY, WEIGHTS, cache_dir=cache_dir)
    except Exception as error:  # noqa: BLE001 (the hub's client raises its own, its HTTP library's and the system's)
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"--allow-download: {REPOSITORY} cannot be fetched ({first}); {_REMEDY}") from None
    return Path(config).parent


def _read_config(path: Path) -> dict[str, Any]:
    """The model's config, with the preprocessing under ``preprocess``."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--style-weights {path.parent}: has no {CONFIG}; {_REMEDY}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); {_REMEDY}") from None
    try:
        model = stored["model_cfg"]
        preprocess = stored.get("preprocess_cfg") or {}
        found: dict[str, Any] = {
            "embed_dim": int(model["embed_dim"]),
            "vision": dict(model["vision_cfg"]),
            "quick_gelu": bool(model.get("quick_gelu", False)),
            "text": str((model.get("text_cfg") or {}).get("hf_model_name", "")),
            "mean": tuple(float(value) for value in preprocess.get("mean", CLIP_MEAN)),
            "std": tuple(float(value) for value in preprocess.get("std", CLIP_STD)),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: describes no open_clip model ({error!r}); {_REMEDY}") from None
    if len(found["mean"]) != 3 or len(found["std"]) != 3 or min(found["std"]) <= 0:
        raise UsageError(f"{path}: mean and std of the preprocessing must be three numbers each; {_REMEDY}")
    return found


def _build(path: Path, config: dict[str, Any]) -> nn.Module:
    """The image tower with random weights."""
    mend_torchvision()
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        raise UsageError(f"--style-weights needs open_clip ({_first(error)}): pip install 'mmh_bids[train]'") from None
    # or timm would fetch weights of its own
    vision = {**config["vision"], "timm_model_pretrained": False}
    try:
        model = open_clip.CustomTextCLIP(
            config["embed_dim"],
            open_clip.CLIPVisionCfg(**vision),
            open_clip.CLIPTextCfg(**_NO_TEXT),
            quick_gelu=config["quick_gelu"],
        )
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UsageError(f"{path}: no image tower can be built from it ({_first(error)}); {_REMEDY}") from None
    tower = model.visual
    open_clip.model.set_model_preprocess_cfg(tower, {"mean": config["mean"], "std": config["std"]})
    return tower


def _fill(tower: nn.Module, path: Path) -> None:
    """Fill the tower with the ``visual.*`` part of the weight file, strictly."""
    try:
        weights = _read_safe(path) if path.suffix == ".safetensors" else _read_pickled(path)
    except (OSError, EOFError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        raise UsageError(f"{path}: truncated or no file of weights ({_first(error)}); {_REMEDY}") from None
    if not weights:
        raise UsageError(f"{path}: has no image tower ({_PREFIX}*); {_REMEDY}")
    try:
        tower.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(f"{path}: does not fit {CONFIG} ({' '.join(str(error).split())[:200]}); {_REMEDY}") from None


def _read_safe(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as stored:
        names = [name for name in stored.keys() if name.startswith(_PREFIX)]  # noqa: SIM118 (no mapping)
        return {name.removeprefix(_PREFIX): stored.get_tensor(name).float() for name in names}


def _read_pickled(path: Path) -> dict[str, torch.Tensor]:
    # mapped where the format allows, so that the text tower is not read
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    stored = stored.get("state_dict", stored) if isinstance(stored, dict) else {}
    weights = {name.removeprefix("module."): value for name, value in stored.items()}
    return {name.removeprefix(_PREFIX): value.float() for name, value in weights.items() if name.startswith(_PREFIX)}


def _check_sizes(tower: nn.Module, path: Path, config: dict[str, Any]) -> None:
    """Raise UsageError unless the tower takes images of the size it states and gives (N, embed_dim)."""
    try:
        with torch.no_grad():
            shape = tuple(tower.eval()(torch.zeros(1, 3, *tower.image_size)).shape)  # type: ignore[misc]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"{path}: the tower takes no images of {tower.image_size} ({_first(error)})") from None
    if shape != (1, config["embed_dim"]):
        raise UsageError(f"{path}: the tower gives {shape[1:]} numbers an image, not embed_dim {config['embed_dim']}")


def _name(folder: Path, config: dict[str, Any]) -> str:
    """BiomedCLIP's repository for what is configured as it is, else the folder's name."""
    size, model, text = _BIOMEDCLIP
    known = config["embed_dim"] == size and config["vision"].get("timm_model_name") == model and text in config["text"]
    return REPOSITORY if known else folder.resolve().name


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
