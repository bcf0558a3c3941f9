"""``mmh-train``: make model bundles from one's own images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmh_bids import __version__
from mmh_bids.errors import EXIT_OK, MmhError


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``mmh-train``, one subcommand a kind of bundle; each sets ``run`` to its function."""
    parser = argparse.ArgumentParser(prog="mmh-train", description="Make a model bundle from your own images.")
    parser.add_argument("--version", action="version", version=f"mmh-train {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    standards = commands.add_parser(
        "standards",
        help="learn the standards of the classical methods",
        description=(
            "Learn what T1w and T2w intensities of each site, and of all sites together, look like, "
            "and write a bundle for the methods nyul, zscore, whitestripe and histmatch. "
            "The images are those that 'mmh BIDS_DIR DERIVATIVE_DIR participant --method none' writes "
            "(*_desc-model_T1w.nii.gz). "
            "Use the bundle with mmh --model FOLDER."
        ),
    )
    standards.add_argument("derivatives", metavar="DERIVATIVE_DIR", nargs="+", type=Path, help="output folder of mmh")
    standards.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="folder of the new bundle")
    standards.add_argument("--name", default="classic", help="name of the bundle (default %(default)s)")
    standards.add_argument(
        "--site-targets",
        metavar="SITE",
        nargs="*",
        help="sites to keep as targets (default: all; none given: unified only)",
    )
    standards.add_argument("--source", metavar="TEXT", default="", help="where the images come from, for the card")
    standards.add_argument("--overwrite", action="store_true", help="replace the bundle that is in FOLDER")
    standards.set_defaults(run=_standards)
    return parser


def _standards(options: argparse.Namespace) -> None:
    from mmh_bids.training.standards import train_standards

    bundle = train_standards(
        options.derivatives,
        options.output,
        options.name,
        options.overwrite,
        site_targets=options.site_targets,
        source=options.source,
    )
    sequences, targets = ", ".join(bundle.sequences), ", ".join(bundle.targets())
    print(f"{bundle.folder}: bundle {bundle.name} for {sequences}, targets {targets}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code (0 done, 1 an unusable image, 2 usage, 3 nothing to do)."""
    options = build_parser().parse_args(argv)
    try:
        options.run(options)
    except MmhError as error:
        print(f"mmh-train: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
