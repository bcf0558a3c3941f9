"""Fetch what the tests in a browser need into ``build/``, without root: axe-core, and Chromium where there is none.

Both are packages of npm, pinned by version and hash. Nothing of them is kept in the repository: axe-core is under the
MPL 2.0. What cannot be fetched is named, and the tests that need it are left out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build"
AXE = BUILD / "axe-core" / "axe.min.js"
CHROMIUM = BUILD / "chromium" / "chromium"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: Package, version, sha256 of its archive.
AXE_PACKAGE = ("axe-core", "4.14.1", "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745")
CHROMIUM_PACKAGE = (
    "@sparticuz/chromium",
    "147.0.0",
    "18fe5404ce845594cd7d592fc07f37a19514079ba4d9c27192ad8b908743f16b",
)
# Python's library has no brotli, Node has.
_UNPACK = (
    "const z = require('zlib'), f = require('fs');"
    "f.writeFileSync(process.argv[2], z.brotliDecompressSync(f.readFileSync(process.argv[1])))"
)
_FONTS = """<?xml version="1.0"?>
<fontconfig><dir>{folder}/fonts</dir><dir>/usr/share/fonts</dir><cachedir>{folder}/font-cache</cachedir></fontconfig>
"""


def find_chromium() -> tuple[str, dict[str, str]] | None:
    """Path of a Chromium that is named, installed or fetched, and what it needs in its environment, or None."""
    named = os.environ.get("MMH_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if named:
        return named, {}
    if CHROMIUM.is_file():
        folder = CHROMIUM.parent
        return str(CHROMIUM), {"LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_FILE": str(folder / "fonts.conf")}
    return None


def unpack(package: tuple[str, str, str], folder: Path) -> Path:
    """The folder of a package of npm, unpacked into `folder`; OSError where it cannot be had."""
    name, version, digest = package
    done = subprocess.run(
        ["npm", "pack", "--silent", f"{name}@{version}"], cwd=folder, capture_output=True, text=True, check=False
    )
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise OSError(f"npm pack {name}@{version}: {(done.stderr.strip().splitlines() or ['no file came'])[-1]}")
    if hashlib.sha256(archives[0].read_bytes()).hexdigest() != digest:
        raise OSError(f"{name}@{version}: the archive has another hash than the pinned one")
    extract(archives[0], folder)
    return folder / "package"


def extract(path: Path, folder: Path) -> None:
    """Unpack an archive whose content is known by the hash of its package."""
    with tarfile.open(path) as archive:
        # Python 3.11.3 and older have no filters
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)


def fetch_axe() -> None:
    """axe-core into build/axe-core, if it is not there."""
    if AXE.is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        package = unpack(AXE_PACKAGE, Path(folder))
        AXE.parent.mkdir(parents=True, exist_ok=True)
        for name in ("LICENSE", AXE.name):
            shutil.copy(package / name, AXE.parent / name)


def fetch_chromium() -> None:
    """A headless Chromium into build/chromium, with its libraries and a font, if none is found."""
    if find_chromium():
        return
    with tempfile.TemporaryDirectory() as temporary:
        package = unpack(CHROMIUM_PACKAGE, Path(temporary))
        folder = Path(temporary) / "chromium"
        folder.mkdir()
        for name, target in (("chromium.br", "chromium"), ("al2023.tar.br", "lib.tar"), ("fonts.tar.br", "fonts.tar")):
            subprocess.run(["node", "-e", _UNPACK, str(package / "bin" / name), str(folder / target)], check=True)
        for name in ("lib.tar", "fonts.tar"):
            extract(folder / name, folder)
            (folder / name).unlink()
        (folder / "fonts.conf").write_text(_FONTS.format(folder=CHROMIUM.parent))
        (folder / "chromium").chmod(0o755)
        shutil.rmtree(CHROMIUM.parent, ignore_errors=True)
        CHROMIUM.parent.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, CHROMIUM.parent)


def main() -> int:
    """Fetch both; say what could not be had and go on."""
    for fetch, loss in ((fetch_axe, "the accessibility tests"), (fetch_chromium, "all tests in a browser")):
        try:
            fetch()
        except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
            print(f"left out: {loss}: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
