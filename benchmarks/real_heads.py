"""The app on real heads (../shared/data/real-multisite): does everything hold that the README promises?

Runs the app twice from empty folders and once more on its own output; prints one line an image and a summary.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
from common import shared_folder


def run(raw: Path, out: Path, work: Path, *more: str) -> float:
    """Run the app; return seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "mmh_bids.cli.run", str(raw), str(out), "participant", "-w", str(work), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mmh ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return time.perf_counter() - start


def sources(raw: Path) -> list[Path]:
    """The raw T1w and T2w images."""
    return sorted(path for path in raw.glob("sub-*/**/anat/*_T[12]w.nii.gz"))


def check(raw: Path, out: Path) -> bool:
    """Print one line an image; True if shapes and affines are the inputs' and volumes are plausible."""
    good = True
    for source in sources(raw):
        stem, sequence = source.name.removesuffix(".nii.gz").rsplit("_", 1)
        result = out / source.parent.relative_to(raw) / f"{stem}_desc-harmonized_{sequence}.nii.gz"
        before, after = nib.load(source), nib.load(result)
        same = before.shape == after.shape and before.affine.tobytes() == after.affine.tobytes()
        facts = json.loads(result.with_name(result.name.replace(".nii.gz", ".json")).read_text())["Harmonization"]
        extraction, registration, qc = facts["BrainExtraction"], facts["Registration"], facts["QC"]
        volume, dice = extraction["Volume"], extraction.get("DiceWithT1w")
        whole = not extraction["InputSkullStripped"]
        good &= same and (not whole or 900 <= volume <= 1900) and (dice is None or dice >= 0.93)
        print(
            f"{stem}_{sequence}: grid {'same' if same else 'DIFFERS'}, brain {volume:.0f} mL, "
            f"Dice with T1w {dice or 'n/a'}, with template {registration.get('Dice')}, "
            f"gradient correlation {qc['GradientCorrelation']:.3f}, mask: {extraction['Method']}"
        )
    return good


def differing(first: Path, second: Path) -> list[str]:
    """Files (but for logs) that are not byte-identical in two output folders."""
    names = {
        path.relative_to(root).as_posix() for root in (first, second) for path in root.rglob("*") if path.is_file()
    }
    names = {name for name in names if not name.startswith("logs/")}
    return sorted(
        name for name in names
        if not (first / name).exists() or not (second / name).exists()
        or (first / name).read_bytes() != (second / name).read_bytes()
    )  # fmt: skip


def main() -> None:
    """Run, check, summarise; exit code 1 if anything does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="empty folder for outputs and work directories")
    parser.add_argument("--raw", type=Path, default=shared_folder() / "data" / "real-multisite")
    parser.add_argument("--once", action="store_true", help="no second run from empty folders")
    asked = parser.parse_args()
    folder = asked.folder.absolute()
    out = folder / "first" / "mmh"
    print(f"first run: {run(asked.raw, out, folder / 'work1'):.0f} s for {len(sources(asked.raw))} images")
    good = check(asked.raw, out)
    validator = Path(sys.executable).with_name("bids-validator-deno")
    for dataset in (asked.raw, out):
        code = subprocess.run([str(validator), str(dataset)], capture_output=True, check=False).returncode
        print(f"bids-validator-deno on {dataset.name}: exit code {code}")
        good &= code == 0
    again = run(asked.raw, out, folder / "work1")
    print(f"second run, nothing to do: {again:.1f} s")
    good &= again < 20
    if not asked.once:
        # the same folder name: it is part of the report's command line
        twin = folder / "second" / "mmh"
        run(asked.raw, twin, folder / "work2")
        different = differing(out, twin)
        print(f"rerun from an empty work directory: {len(different)} files differ {different[:5]}")
        good &= not different
    print("all good" if good else "NOT all good")
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
