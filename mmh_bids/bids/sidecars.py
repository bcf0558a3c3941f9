"""Metadata of an image by BIDS inheritance: JSON files from the dataset's root down to the image's folder."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmh_bids.bids.names import split_name
from mmh_bids.errors import ImageError

_Sidecar = tuple[dict[str, str], str, Path]


class SidecarIndex:
    """The JSON files that images may inherit from; each is read once, and only if an image needs it.

    pybids could resolve the inheritance too, but a single broken JSON file then ends the indexing of all.

    Parameters
    ----------
    root
        The dataset's root.
    paths
        JSON files, absolute, of any suffix.
    """

    def __init__(self, root: Path, paths: Iterable[Path]):
        self._root = root
        self._by_folder: dict[Path, list[_Sidecar]] = defaultdict(list)
        self._loaded: dict[Path, dict[str, Any]] = {}
        for path in paths:
            try:
                entities, suffix, _ = split_name(path)
            except ValueError:
                continue  # not a BIDS name, so nobody inherits from it
            self._by_folder[path.parent].append((entities, suffix, path))

    def metadata(self, image: Path) -> dict[str, Any]:
        """Fields for `image`; nearer files win. Null values count as absent.

        Raises
        ------
        ImageError
            A JSON file the image inherits from cannot be read or is not an object.
        """
        entities, suffix, _ = split_name(image)
        fields: dict[str, Any] = {}
        for folder in self._folders(image):
            fitting = [
                (len(own), path)
                for own, own_suffix, path in self._by_folder.get(folder, ())
                if own_suffix == suffix and own.items() <= entities.items()
            ]
            # BIDS allows one file a folder; where there are more, the more specific one has the last word.
            for _, path in sorted(fitting):
                fields.update(self._load(path))
        return {key: value for key, value in fields.items() if value is not None}

    def _folders(self, image: Path) -> list[Path]:
        below = image.parent.relative_to(self._root).parts
        return [self._root.joinpath(*below[:depth]) for depth in range(len(below) + 1)]

    def _load(self, path: Path) -> dict[str, Any]:
        if path not in self._loaded:
            self._loaded[path] = read_json_object(path)
        return self._loaded[path]


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; ImageError with one line and a remedy otherwise."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ImageError(f"{path.name}: not UTF-8 text; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ImageError(f"{path.name}: not valid JSON ({error}); correct it") from None
    except OSError as error:
        raise ImageError(f"{path.name}: cannot be read ({error.strerror}); check the file") from None
    if not isinstance(content, dict):
        raise ImageError(f"{path.name}: holds no JSON object; it must start with {{ and end with }}")
    return content
