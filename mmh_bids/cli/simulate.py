"""``mmh-simulate``: the sample dataset, and travelling subjects out of label maps."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mmh_bids import __version__
from mmh_bids.errors import EXIT_OK, MmhError, UsageError
from mmh_bids.simulate.dataset import write_heads, write_sample
from mmh_bids.simulate.scanner import SEQUENCES, USES, Scanner, load_scanners


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mmh-simulate``; returns its exit code (0 done, 1 a file was no label map, 2 wrong use)."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except MmhError as error:
        print(f"mmh-simulate: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"mmh-simulate: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmh-simulate",
        description="Simulate T1w and T2w brain MR images of several scanners as BIDS datasets.",
        epilog="Example: mmh-simulate heads OUT --labels head-*_dseg.nii.gz --scanners A B C",
    )
    parser.add_argument("--version", action="version", version=f"mmh-simulate {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_sample(commands)
    _add_heads(commands)
    _add_scanners(commands)
    return parser


def _add_sample(commands: argparse._SubParsersAction) -> None:
    sample = commands.add_parser(
        "sample",
        help="the sample dataset: 4 participants, 3 sites, under 10 MB",
        description="Write the sample dataset: heads around the ICBM152 tissue maps of the nilearn package, "
        "4 participants, 3 sites, one travelling subject, one T2w-only. A seed always gives the same bytes.",
    )
    _add_common(sample)
    sample.set_defaults(run=_sample)


def _add_heads(commands: argparse._SubParsersAction) -> None:
    heads = commands.add_parser(
        "heads",
        help="travelling subjects out of label maps, with the truth",
        description="Scan whole-head label maps (FreeSurfer codes, above 500 outside the brain, as in "
        "SynthSeg's training maps) on simulated scanners. A label map is a participant, a scanner a session and site.",
    )
    _add_common(heads)
    heads.add_argument("--labels", type=Path, nargs="+", required=True, metavar="FILE", help="label maps (NIfTI)")
    which = heads.add_mutually_exclusive_group()
    which.add_argument("--scanners", nargs="+", metavar="NAME", help="names from the scanner file (default: all of it)")
    which.add_argument("--use", choices=USES, help="all scanners of the file that are for training, or for testing")
    heads.add_argument("--modalities", nargs="+", choices=SEQUENCES, default=list(SEQUENCES), help="default: T1w T2w")
    heads.add_argument(
        "--derivatives",
        type=Path,
        metavar="DIR",
        help="where the truth goes: masks, labels, noise-free and unified images, poses "
        "(default: OUT_DIR/derivatives/truth)",
    )
    heads.add_argument("--rescan", action="store_true", help="take each image twice, as run-1 and run-2")
    heads.set_defaults(run=_heads)


def _add_scanners(commands: argparse._SubParsersAction) -> None:
    scanners = commands.add_parser(
        "scanners", help="list the scanners", description="List the scanners, their use and protocols, one a line."
    )
    _add_scanner_file(scanners)
    scanners.set_defaults(run=_list)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder of the new dataset")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random, 0 or more (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="delete what a former run left in OUT_DIR")
    _add_scanner_file(parser)


def _add_scanner_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scanner-file", type=Path, metavar="YAML", help="your own scanners (default: those of the package)"
    )


def _sample(args: argparse.Namespace) -> int:
    scanners = load_scanners(args.scanner_file)
    _prepare(args)
    write_sample(args.out_dir, scanners, args.seed)
    return EXIT_OK


def _heads(args: argparse.Namespace) -> int:
    known = load_scanners(args.scanner_file)
    chosen = _choose(known, args.scanners, args.use)
    for path in args.labels:
        if not path.is_file():
            raise UsageError(f"--labels {path}: no such file; give label maps in NIfTI format")
    _prepare(args)
    write_heads(
        args.out_dir,
        args.labels,
        chosen,
        sequences=args.modalities,
        seed=args.seed,
        truth=args.derivatives,
        rescan=args.rescan,
    )
    return EXIT_OK


def _list(args: argparse.Namespace) -> int:
    for scanner in load_scanners(args.scanner_file).values():
        kinds = ", ".join(
            f"{sequence}: {protocol.sequence} {' x '.join(f'{size:g}' for size in protocol.voxel)} mm"
            for sequence, protocol in scanner.protocols.items()
        )
        print(f"{scanner.name}  {scanner.use}  {scanner.manufacturer} {scanner.field:g} T  {kinds}")
    return EXIT_OK


def _choose(known: dict[str, Scanner], names: Sequence[str] | None, use: str | None) -> list[Scanner]:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise UsageError(f"--scanners {' '.join(unknown)}: unknown; known are {', '.join(known)}")
    chosen = [known[name] for name in dict.fromkeys(names or known) if use in (None, known[name].use)]
    if not chosen:
        raise UsageError(f"--use {use}: no scanner of the file is for {use}; set its field use")
    return chosen


def _prepare(args: argparse.Namespace) -> None:
    out: Path = args.out_dir
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed}: must be 0 or more")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; give a folder for OUT_DIR")
    if out.is_dir() and any(out.iterdir()):
        if not args.overwrite:
            raise UsageError(f"{out}: not empty; give another OUT_DIR or --overwrite")
        _clear(out)
    out.mkdir(parents=True, exist_ok=True)


def _clear(out: Path) -> None:
    """Empty a dataset folder; refuse what does not look like one: a slip must not cost a home folder."""
    if not (out / "dataset_description.json").is_file():
        raise UsageError(f"--overwrite: {out} holds no dataset_description.json; delete its content yourself")
    for entry in out.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


if __name__ == "__main__":
    sys.exit(main())
