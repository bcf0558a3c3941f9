"""``mmh-train``: make model bundles from one's own images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmh_bids import __version__
from mmh_bids.cli.stopped import REQUEUE_HELP, stopped_by
from mmh_bids.cli.train_encoder import add_encoder
from mmh_bids.cli.train_target import add_target
from mmh_bids.errors import EXIT_OK, MmhError, UsageError


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
    _add_global(commands)
    add_target(commands)
    add_encoder(commands)
    return parser


def _add_global(commands: argparse._SubParsersAction) -> None:
    stage = commands.add_parser(
        "global",
        help="train stage 1 of MMH: any scan to one unified look",
        description="Train stage 1 of MMH and write a bundle for mmh --model FOLDER. Interrupt it whenever you like: "
        "the same command goes on where it was (exit code 75 says that there is something left to do). "
        "mmh-light learns from label maps (FreeSurfer codes, above 500 outside the brain), which it scans on simulated "
        "scanners; mmh-diffusion from the images that 'mmh BIDS_DIR DERIVATIVE_DIR participant --method none' writes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = stage.add_argument
    add("images", metavar="LABELS|DERIVATIVE_DIR", nargs="+", type=Path, help="label maps, or output folders of mmh")
    add("--method", choices=["mmh-light", "mmh-diffusion"], default="mmh-light", help="what to train")
    add("--recipe", choices=["small", "paper"], default="small", help="of the diffusion: for a CPU, or as published")
    add("--held-out", metavar="NAME", nargs="+", required=True, help="head-04 ... or sub-03 ...: for validation only")
    add("--output", metavar="FOLDER", type=Path, required=True, help="folder of the new bundle")
    add("--work", metavar="FOLDER", type=Path, required=True, help="checkpoint, log.csv, TensorBoard, pictures")
    add("--name", default="", help="name of the bundle (default: the folder's)")
    # absent unless given: the recipe has the defaults, see `mmh_bids.training.recipes`
    own = partial(add, default=argparse.SUPPRESS)
    own("--steps", type=int, help="optimizer steps (default 1450; paper: 300 times every image)")
    own("--learning-rate", type=float, help="at its top (default 0.0012; paper: 0.0001)")
    own("--batch", type=int, help="images a step, on all devices together (default 4)")
    own("--accumulate", type=int, help="work on a step's images in so many passes: takes less memory (default 1; "
        "paper: one image at once)")  # fmt: skip
    add("--filters", type=int, default=16, help="channels of the light network at 2 mm")
    add("--patch", type=int, default=80, help="edge of the cubes (mm) that the light network is trained on")
    add("--start", metavar="BUNDLE", default="", help="light bundle, name or folder, whose weights to begin with")
    own("--factor", type=int, help="the diffusion averages so many voxels along each axis (default 2; paper: 1)")
    add("--crop", type=int, help="edge of the cubes that the diffusion is trained on (default: whole volumes)")
    add("--sampler", default="paper", help="of the diffusion: paper, or a number of steps")
    own("--validate-every", type=int, help="steps between validations (default 150; paper: 10 times every image)")
    add("--seed", type=int, default=0, help="seed of weights and data")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--devices", type=int, default=1, help="GPUs (or CPU processes) a machine, each with its share of a batch")
    add("--nodes", type=int, default=1, help="machines; start with srun --nodes=M --ntasks-per-node=N")
    add("--requeue", action="store_true", help=REQUEUE_HELP)
    own("--precision", choices=["32-true", "16-mixed", "bf16-mixed"],
        help="of the computations (default 32-true; paper on a GPU: 16-mixed)")  # fmt: skip
    add("--workers", type=int, default=1, help="processes that prepare heads, threads that read images")
    add("--cache", metavar="FOLDER", type=Path, help="prepared images of the diffusion (default: cache in --work)")
    add("--source", metavar="TEXT", default="", help="where the images come from, for the card")
    add("--overwrite", action="store_true", help="replace the bundle that is in FOLDER")
    stage.set_defaults(run=_global)


def _global(options: argparse.Namespace) -> int:
    try:
        from mmh_bids.training.loop import Interrupted
    except ImportError as error:
        raise UsageError(f"training needs {error.name}: pip install 'mmh_bids[train]'") from None
    from mmh_bids.training.stage_one import Request, train_global

    given = {key: value for key, value in vars(options).items() if key not in ("run", "requeue")}
    values = _by_recipe(options.method, options.recipe, options.devices * options.nodes, given.get("batch")) | given
    for key in ("images", "held_out"):
        values[key] = tuple(values[key])
    values["name"] = options.name or options.output.name
    try:
        bundle = train_global(Request(**values))
    except Interrupted as stopped:
        return stopped_by(stopped, options.requeue)
    if bundle:
        print(f"{bundle.folder}: bundle {bundle.name}, held-out {json.dumps(dict(bundle.card['metrics']))}")
    return EXIT_OK


def _by_recipe(method: str, name: str, devices: int, batch: int | None) -> dict[str, Any]:
    """Values of the flags that were not given, by name."""
    from mmh_bids.training.recipes import recipe_of

    if method == "mmh-light" and name != "small":
        raise UsageError(f"--recipe {name}: is for --method mmh-diffusion")
    recipe = recipe_of(method, name)
    return {
        # of these it depends on the number of images, and on the device, what they are
        **dict.fromkeys(("steps", "validate_every", "precision")),
        "learning_rate": recipe.learning_rate,
        "batch": recipe.batch,
        "accumulate": recipe.accumulate(devices, batch or recipe.batch),
        "factor": recipe.factor,
    }


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
    """Run the command; return the exit code.

    0 done, 1 an unusable image, 2 usage, 3 nothing to do, 75 interrupted: the same command goes on.
    """
    options = build_parser().parse_args(argv)
    try:
        return options.run(options) or EXIT_OK
    except MmhError as error:
        print(f"mmh-train: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
