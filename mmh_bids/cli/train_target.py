"""``mmh-train target``: its flags, and the call."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mmh_bids.cli.stopped import REQUEUE_HELP, stopped_by
from mmh_bids.errors import EXIT_OK, UsageError


def add_target(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command; it sets ``run``."""
    target = commands.add_parser(
        "target",
        help="train stage 2 of MMH: from the unified look to that of one site",
        description="Train stage 2 of MMH on images that 'mmh BIDS_DIR DERIVATIVE_DIR participant --method none' "
        "wrote, and write a copy of stage 1's bundle that knows the site: mmh --model FOLDER --target site:LABEL. "
        "Interrupt it whenever you like: the same command goes on where it was (exit code 75 says that something is "
        "left to do).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = target.add_argument
    add("images", metavar="DERIVATIVE_DIR", nargs="+", type=Path, help="output folders of mmh, of all sites")
    add("--target-site", metavar="SITE", required=True, help="whose look; other sites' images serve style transfer")
    add("--bundle", metavar="NAME|FOLDER", default="mmh-light", help="stage 1, which may know other sites already")
    add("--held-out", metavar="SUB", nargs="*", default=[], help="sub-03 ...: for validation only")
    add("--output", metavar="FOLDER", type=Path, required=True, help="folder of the new bundle")
    add("--work", metavar="FOLDER", type=Path, required=True, help="checkpoint, log.csv, TensorBoard")
    add("--cache", metavar="FOLDER", type=Path, help="images without style (default: style-removed in --work)")
    add("--name", default="", help="name of the bundle (default: the folder's)")
    add("--label", default="", help="what the target is to be called (default: the site)")
    add(
        "--style-weights",
        metavar="DIR",
        type=Path,
        help="folder of BiomedCLIP, or of mmh-train encoder (default: the small encoder that comes along)",
    )
    add("--allow-download", action="store_true", help="fetch BiomedCLIP from the Hugging Face hub")
    add("--no-transfer", action="store_true", help="style reconstruction only: needs no other site")
    add(
        "--no-sites",
        action="store_true",
        help="do not learn each site's average person: T2w in a site's look keep nothing of a person's own (light)",
    )
    add("--steps", type=int, help="optimizer steps (default: 300 light, 30 epochs diffusion)")
    add("--learning-rate", type=float, help="at its top (default: 2e-3 light, 5e-7 diffusion)")
    add("--last", type=int, default=10, help="denoising steps that gradients flow through (diffusion)")
    add("--validate-every", type=int, default=100, help="steps between validations")
    add("--seed", type=int, default=0, help="seed of weights and data")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", default="32-true", choices=["32-true", "16-mixed", "bf16-mixed"], help="of the computations")
    add("--requeue", action="store_true", help=REQUEUE_HELP)
    add("--source", metavar="TEXT", default="", help="where the images come from, for the card")
    add("--overwrite", action="store_true", help="replace the bundle that is in FOLDER")
    target.set_defaults(run=_target)


def _target(options: argparse.Namespace) -> int:
    try:
        from mmh_bids.training.requeue import Interrupted
        from mmh_bids.training.target import TargetRequest, train_target
    except ImportError as error:
        raise UsageError(f"training needs {error.name}: pip install 'mmh_bids[train]'") from None

    ours = ("run", "requeue", "no_transfer", "no_sites")
    values = {key: value for key, value in vars(options).items() if key not in ours}
    for key in ("images", "held_out"):
        values[key] = tuple(values[key])
    values |= {
        "name": options.name or options.output.name,
        "label": options.label or options.target_site,
        "transfer": not options.no_transfer,
        "sites": not options.no_sites,
    }
    try:
        bundle = train_target(TargetRequest(**values))
    except Interrupted as stopped:
        return stopped_by(stopped, options.requeue)
    target = f"site:{values['label']}"
    print(
        f"{bundle.folder}: bundle {bundle.name} knows {target}; held-out {json.dumps(bundle.card['metrics'][target])}"
    )
    return EXIT_OK
