"""``mmh-evaluate``: what did methods do to a dataset? Numbers, a table and a page."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmh_bids import __version__
from mmh_bids.cli.environment import pin_linear_algebra, prepare_environment
from mmh_bids.errors import EXIT_OK, EXIT_SOME_FAILED, MmhError, UsageError

if TYPE_CHECKING:
    from mmh_bids.evaluation.study import Request

logger = logging.getLogger("mmh_bids.evaluate")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mmh-evaluate``; returns its exit code, see `mmh_bids.errors`."""
    pin_linear_algebra()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("mmh_bids").setLevel(logging.INFO)
    args = _parser().parse_args(argv)
    try:
        return _evaluate(args)
    except MmhError as error:
        print(f"mmh-evaluate: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mmh-evaluate: interrupted; the same command goes on from there", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"mmh-evaluate: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_SOME_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmh-evaluate",
        description="Compare harmonization methods: any folders of derivatives over one BIDS dataset, beside controls "
        "(the raw image, preprocessing only, and that blurred). Writes evaluation.json, evaluation.tsv and "
        "evaluation.html. Brain masks and transforms are those of the first folder made by mmh.",
        epilog="Example: mmh-evaluate BIDS_DIR OUT_DIR --methods mmh=out/mmh nyul=out/nyul --effects age sex",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("bids_dir", type=Path, metavar="BIDS_DIR", help="root of the raw BIDS dataset")
    add("output_dir", type=Path, metavar="OUT_DIR", help="folder of the results; work/ in it keeps measurements")
    add("--methods", nargs="+", required=True, metavar="NAME=FOLDER", help="derivatives to compare")
    add("--travelling", type=Path, metavar="TSV", help="participant_id and person, where a person has several labels")
    add("--effects", nargs="+", default=[], metavar="COLUMN", help="columns of participants.tsv that must survive")
    add("--modalities", nargs="+", choices=["T1w", "T2w"], default=["T1w", "T2w"], help="which images")
    add("--participant-label", nargs="+", default=[], metavar="LABEL", help="some participants only")
    add("--site-from", choices=["auto", "participants", "session", "sidecar", "dataset"], default="auto", help="as mmh")
    add("--site-column", default="site", help="as mmh")
    add(
        "--style",
        action="store_true",
        help="clusters by the small style encoder, too; imports torch, a second an image",
    )
    add("--permutations", type=int, default=100, help="shuffled labels that probes and clusters are compared with")
    add("--seed", type=int, default=0, help="seed of everything random")
    add("--nprocs", type=int, default=1, help="processes that read images")
    add("--version", action="version", version=f"mmh-evaluate {__version__}")
    return parser


def _evaluate(args: argparse.Namespace) -> int:
    methods = methods_of(args.methods)
    _check(args, methods)
    prepare_environment(args.output_dir / "work")
    from mmh_bids.bids.derivatives import write_json
    from mmh_bids.evaluation.study import Request, evaluate, to_json, to_tsv
    from mmh_bids.files import atomic_write
    from mmh_bids.reports.evaluation import write_evaluation_page

    request: Request = Request(
        args.bids_dir,
        args.output_dir,
        methods,
        travelling=args.travelling,
        effects=tuple(args.effects),
        modalities=tuple(dict.fromkeys(args.modalities)),
        participant_label=tuple(args.participant_label),
        site_from=args.site_from,
        site_column=args.site_column,
        seed=args.seed,
        permutations=args.permutations,
        nprocs=args.nprocs,
        with_style=args.style,
    )
    found = evaluate(request)
    for problem in found.problems:
        logger.warning("%s", problem)
    content = to_json(found)
    write_json(args.output_dir / "evaluation.json", content)
    atomic_write(args.output_dir / "evaluation.tsv", to_tsv(found))
    write_evaluation_page(args.output_dir / "evaluation.html", content)
    for sequence, facts in content["Sequences"].items():
        print(f"{sequence}: {facts['Summary']}")
    print(f"{args.output_dir / 'evaluation.html'}")
    return EXIT_SOME_FAILED if found.problems else EXIT_OK


def methods_of(words: Sequence[str]) -> dict[str, Path]:
    """Folders by name, from ``NAME=FOLDER``.

    Raises
    ------
    UsageError
        A word of another form, a name twice or a control's, or a folder that is not there.

    Examples
    --------
    >>> methods_of(["here=."])
    {'here': PosixPath('.')}
    """
    from mmh_bids.evaluation.sources import CONTROLS, MASK_ONLY

    found: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or not folder or not _NAME.fullmatch(name):
            raise UsageError(f"--methods {word}: give NAME=FOLDER, the name of letters, digits and ._+-")
        if name in found or name in (*CONTROLS, MASK_ONLY):
            why = "comes twice" if name in found else "is a control's name"
            raise UsageError(f"--methods {word}: {name} {why}; choose another name")
        if not Path(folder).is_dir():
            raise UsageError(f"--methods {word}: no such folder; give the root of a method's derivatives")
        found[name] = Path(folder)
    return found


def _check(args: argparse.Namespace, methods: dict[str, Path]) -> None:
    root, out = args.bids_dir.resolve(), args.output_dir.resolve()
    if not root.is_dir():
        raise UsageError(f"{args.bids_dir}: no such folder; give the root of a BIDS dataset as first argument")
    if root == out or (root in out.parents and root / "derivatives" not in out.parents):
        raise UsageError(f"{args.output_dir}: lies inside the dataset; choose a folder outside")
    for name, folder in methods.items():
        if folder.resolve() == out:
            raise UsageError(f"{args.output_dir}: is the folder of method {name}; choose another")
    for flag, least in (("permutations", 1), ("nprocs", 1), ("seed", 0)):
        if getattr(args, flag) < least:
            raise UsageError(f"--{flag} {getattr(args, flag)}: must be {least} or more")
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{args.output_dir}: cannot be made ({error.strerror}); name a folder that can") from None


if __name__ == "__main__":
    sys.exit(main())
