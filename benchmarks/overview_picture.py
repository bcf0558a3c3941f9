"""The README's picture: the sample's travelling subject on three scanners, before and after, brain only.

python benchmarks/overview_picture.py OUT_DIR docs/images/overview.png   (OUT_DIR: output of the app on data/ds-sample)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from mmh_bids.image.grid import load_template, resample
from mmh_bids.image.registration import read_matrix

ROWS = {"as scanned": "desc-preproc", "harmonized": "desc-harmonized"}
MM = 18  # axial slice of the template, MNI z


def axial(anat: Path, stem: str, sequence: str, desc: str, raw: Path | None) -> np.ndarray:
    """One axial slice in template space, inside the brain mask."""
    mask_name = f"{stem}_desc-brain_mask.nii.gz" if sequence == "T1w" else f"{stem}_desc-brainT2w_mask.nii.gz"
    image = nib.load(raw) if raw else nib.load(anat / f"{stem}_{desc}_{sequence}.nii.gz")
    mask = nib.load(anat / mask_name)
    data = np.where(np.asanyarray(mask.dataobj) > 0, image.get_fdata(dtype=np.float32), 0)
    matrix = read_matrix(str(anat / f"{stem}_from-{sequence}_to-MNI152NLin2009aSym_mode-image_xfm.txt"))
    template = load_template()
    grid = template.affine.copy()
    grid[:3, 3] = [-80, -112, MM]
    return resample(data, image.affine, (161, 191, 1), grid, matrix)[:, :, 0].T


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--raw", type=Path, default=Path("data/ds-sample"))
    asked = parser.parse_args()
    sessions = ["A", "B", "C"]
    figure = Figure(figsize=(12, 4.6), facecolor="black")
    axes = figure.subplots(2, 6, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for first, sequence in enumerate(("T1w", "T2w")):
        for row, (label, desc) in enumerate(ROWS.items()):
            slices = []
            for session in sessions:
                stem = f"sub-01_ses-{session}"
                raw = asked.raw / "sub-01" / f"ses-{session}" / "anat" / f"{stem}_{sequence}.nii.gz"
                anat = asked.output_dir / "sub-01" / f"ses-{session}" / "anat"
                slices.append(axial(anat, stem, sequence, desc, raw if row == 0 else None))
            # as scanned, units differ: each by its own 99.5th percentile; harmonized, one window for all three
            tops = [np.percentile(one[one > 0], 99.5) for one in slices]
            tops = tops if row == 0 else [float(np.mean(tops))] * 3
            for column, (one, top) in enumerate(zip(slices, tops, strict=True)):
                ax = axes[row, 3 * first + column]
                ax.imshow(one, cmap="gray", vmin=0, vmax=top, origin="lower", interpolation="bilinear")
                ax.axis("off")
                if row == 0:
                    ax.set_title(f"{sequence}, scanner {sessions[column]}", color="white", fontsize=11)
                if first == column == 0:
                    ax.text(-0.06, 0.5, label, color="white", rotation=90, va="center", ha="right", fontsize=11,
                            transform=ax.transAxes)  # fmt: skip
    asked.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(asked.picture, dpi=80, facecolor="black", bbox_inches="tight", metadata={"Software": None})


if __name__ == "__main__":
    main()
