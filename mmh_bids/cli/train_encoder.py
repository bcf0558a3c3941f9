"""``mmh-train encoder``: its flags, and the call."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mmh_bids.cli.stopped import REQUEUE_HELP, stopped_by
from mmh_bids.errors import EXIT_OK, UsageError


def add_encoder(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command; it sets ``run``."""
    encoder = commands.add_parser(
        "encoder",
        help="train the small style encoder that stands in for BiomedCLIP in stage 2",
        description="Train the small style encoder by contrast: scans of one simulated scanner are alike whoever is "
        "scanned, scans of two are not. Interrupt it whenever you like: the same command goes on where it was (exit "
        "code 75 says that something is left to do).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = encoder.add_argument
    add("labels", metavar="LABELS", nargs="+", type=Path, help="label maps (FreeSurfer codes, above 500 outside)")
    add("--held-out", metavar="NAME", nargs="+", required=True, help="head-04 ...: two or more, for validation only")
    add("--output", metavar="FOLDER", type=Path, required=True, help="folder of the new encoder")
    add("--work", metavar="FOLDER", type=Path, required=True, help="simulated scans, checkpoint, log.csv, TensorBoard")
    add("--name", default="", help="name of the encoder (default: the folder's)")
    add("--scanners", type=int, default=320, help="simulated scanners to learn from")
    add("--validation-scanners", type=int, default=24, help="others to validate on, which scan all held-out heads")
    add("--steps", type=int, default=240, help="optimizer steps")
    add("--learning-rate", type=float, default=3e-4, help="at its top")
    add("--batch", type=int, default=24, help="pairs of scans a step")
    add("--validate-every", type=int, default=60, help="steps between validations")
    add("--seed", type=int, default=0, help="seed of weights and data")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--workers", type=int, default=1, help="processes that simulate")
    add("--requeue", action="store_true", help=REQUEUE_HELP)
    add("--source", metavar="TEXT", default="", help="where the label maps come from, for the card")
    add("--overwrite", action="store_true", help="replace the encoder that is in FOLDER")
    encoder.set_defaults(run=_encoder)


def _encoder(options: argparse.Namespace) -> int:
    try:
        from mmh_bids.training.encoder import EncoderRequest, train_encoder
        from mmh_bids.training.requeue import Interrupted
    except ImportError as error:
        raise UsageError(f"training needs {error.name}: pip install 'mmh_bids[train]'") from None

    values = {key: value for key, value in vars(options).items() if key not in ("run", "requeue")}
    values |= {"labels": tuple(options.labels), "held_out": tuple(options.held_out)}
    values["name"] = options.name or options.output.name
    try:
        folder, metrics = train_encoder(EncoderRequest(**values))
    except Interrupted as stopped:
        return stopped_by(stopped, options.requeue)
    print(f"{folder}: style encoder {values['name']}, held-out {json.dumps(metrics)}")
    return EXIT_OK
