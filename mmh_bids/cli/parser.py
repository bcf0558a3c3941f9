"""Flags of ``mmh`` and how they become `Settings`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from mmh_bids import __version__
from mmh_bids.cli.config_file import of_config
from mmh_bids.cli.paths import derivative, input_path, model, output_path, target
from mmh_bids.container import default_work_dir
from mmh_bids.errors import BundleError, UsageError
from mmh_bids.machine import available_cpus
from mmh_bids.settings import Settings

_UNITS = {"": 1e-3, "K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}

#: In the order in which they are done.
LEVELS = ("participant", "group")

EPILOG = """\
examples:
  mmh data/ds-sample out participant              harmonize everything, unified look
  mmh bids out participant --participant-label 01 --dry-run
                                                  list what would be done and why
  mmh bids out participant --target site:Utrecht  towards one site's look
  mmh bids out participant -d fmriprep=/data/fmriprep
                                                  reuse fMRIPrep's brain masks
  mmh bids out group                              tables and reports over everybody in out

exit codes: 0 all done, 1 some image failed (the others are done), 2 wrong usage,
3 nothing to do, 70 internal error. Run the same command again to resume.
"""


class _Parser(argparse.ArgumentParser):
    """Usage errors in one line on standard error, exit code 2, like every other error of ours."""

    def error(self, message: str):
        raise UsageError(f"{message} (mmh --help lists the flags)")


def memory_gb(text: str) -> float:
    """GB from ``8G``, ``500M``, ``1T``, or a bare number of MB, as fMRIPrep and Slurm read it.

    >>> memory_gb("8G"), memory_gb("4096"), memory_gb("512mb")
    (8.0, 4.096, 0.512)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no amount of memory: write for example 8G or 8000 (MB)")
    return round(float(match[1]) * _UNITS[match[2].upper()], 6)


def label(text: str) -> str:
    """A participant or session label without its prefix.

    >>> label("sub-01"), label("ses-A"), label("01")
    ('01', 'A', '01')
    """
    return re.sub(r"^(sub|ses)-", "", text.strip())


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def method_of(model: str) -> str:
    """Method for a bundle when none is asked for: the default if the bundle serves it, else z-scoring, else its first.

    A bundle that cannot be opened gets the default: what is wrong with it is said when it is used.

    >>> method_of("mmh-light"), method_of("classic"), method_of("/nowhere")
    ('mmh-light', 'zscore', 'mmh-light')
    """
    from mmh_bids.models.bundle import open_bundle

    try:
        methods = open_bundle(model).methods
    except BundleError:
        return Settings.method
    return next((name for name in (Settings.method, "zscore", *methods) if name in methods), Settings.method)


def device(text: str) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"'{text}': write auto, cpu, cuda or cuda:N")
    return text


def build_parser() -> argparse.ArgumentParser:
    """The parser; flags are spelled as fMRIPrep and MRIQC spell them, underscores are accepted for hyphens."""
    parser = _Parser(
        prog="mmh",
        description="Harmonize the T1w and T2w images of a BIDS dataset across scanners, and report how well it went.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("bids_dir", type=input_path, help="root of a valid BIDS dataset")
    parser.add_argument(
        "output_dir",
        type=output_path,
        help="where the derivatives go; never inside the dataset but under derivatives/",
    )
    parser.add_argument(
        "analysis_level",
        nargs="+",
        choices=LEVELS,
        metavar="{participant,group}",
        help="participant: harmonize; group: tables and reports over all that was harmonized; both in one call work",
    )
    parser.add_argument("--version", action="version", version=f"mmh {__version__}")
    _selection(parser.add_argument_group("which images"))
    _processing(parser.add_argument_group("what is done"))
    _resources(parser.add_argument_group("resources"))
    _flow(parser.add_argument_group("flow"))
    return parser


def _selection(group: Any) -> None:
    add = group.add_argument
    add(
        "--participant-label",
        nargs="+",
        type=label,
        metavar="LABEL",
        help="participants, with or without sub-",
    )
    add(
        "--failed-only",
        action="store_true",
        help="only participants of whom an image failed before, or whose call was killed or interrupted",
    )
    add("--session-label", nargs="+", type=label, metavar="LABEL", help="sessions, with or without ses-")
    add("--modalities", nargs="+", choices=["T1w", "T2w"], help="default: both")
    add(
        "--bids-filter-file",
        type=input_path,
        metavar="FILE",
        help='JSON of pybids filters, {"t1w": {"acquisition": "mprage"}}',
    )
    add(
        "--skip-bids-validation",
        action="store_true",
        help="accepted: the dataset as a whole is never validated, only what is used of it",
    )
    add(
        "--bids-database-dir",
        type=output_path,
        metavar="DIR",
        help="pybids database, made at first use; speeds up huge datasets",
    )
    add(
        "-d",
        "--derivatives",
        nargs="+",
        type=derivative,
        metavar="NAME=PATH",
        help="reuse brain masks and transforms of fMRIPrep-style derivatives",
    )
    add(
        "--site-from",
        choices=["auto", "participants", "session", "sidecar", "dataset"],
        help="where an image's site is read (default auto)",
    )
    add("--site-column", metavar="COLUMN", help="column of participants.tsv or sessions.tsv (default site)")


def _processing(group: Any) -> None:
    add = group.add_argument
    add(
        "--method",
        metavar="NAME",
        help=f"harmonizer: none, mmh-light, zscore, whitestripe, nyul, histmatch ... (default {Settings.method})",
    )
    add("--model", type=model, metavar="NAME|DIR", help="model bundle, shipped or your own (default: the method's)")
    add("--target", type=target, metavar="TARGET", help="unified (default), site:LABEL or image:PATH")
    add(
        "--skull-strip",
        choices=["auto", "skip", "force"],
        help="auto (default) recognises stripped images; skip takes the image's support; force always extracts",
    )
    add(
        "--skull",
        choices=["strip", "keep"],
        help="outside the brain: zero (default), or the mapped intensities",
    )
    add("--bias-correction", choices=["n4", "none"], help="default n4")
    add(
        "--output-spaces",
        nargs="+",
        metavar="SPACE[:res-N]",
        help="also write in these template spaces; the input's own grid always is",
    )
    add(
        "--bids-mirror",
        type=output_path,
        metavar="DIR",
        help="also write the dataset once more with harmonized whole heads under the raw names, as input of other "
        "programs; implies --skull keep (docs/pipelines.md)",
    )
    add(
        "--bids-mirror-files",
        choices=["auto", "copy", "symlink"],
        help="the mirror's other files: auto (default) hard links, or copies where the file system has none; copy; or "
        "symlink to absolute paths",
    )
    add("--random-seed", type=int, metavar="N", help="default 0")


def _resources(group: Any) -> None:
    add = group.add_argument
    add(
        "--nprocs",
        "--n-cpus",
        type=positive,
        metavar="N",
        help="processes at a time (default: the cores you may use)",
    )
    add("--omp-nthreads", type=positive, metavar="N", help="threads of one step (default 1)")
    add(
        "--mem",
        dest="mem_gb",
        type=memory_gb,
        metavar="SIZE",
        help="memory to stay within: 8G, 500M; a bare number is MB",
    )
    add("--low-mem", action="store_true", help="one image at a time")
    add("--device", type=device, metavar="DEVICE", help="auto (default), cpu, cuda or cuda:N")
    add("--use-plugin", metavar="NAME", help="Nipype plugin (default MultiProc)")
    add("--nipype-plugin-file", type=input_path, metavar="FILE", help="JSON or YAML with plugin and plugin_args")


def _flow(group: Any) -> None:
    add = group.add_argument
    add(
        "-w",
        "--work-dir",
        type=output_path,
        metavar="DIR",
        help="intermediate files and caches (default: work, here; in the container image: output_dir/work); never "
        "inside the dataset",
    )
    add("--clean-workdir", action="store_true", help="remove the intermediate files of images that are done")
    add(
        "--config-file",
        type=input_path,
        metavar="FILE",
        help="TOML of an earlier run (OUT/logs/config-*.toml); flags win over it",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print one row an image with what would be done and why, and about how long that takes, then stop",
    )
    add(
        "--qc-fail",
        choices=["warn", "exclude", "error"],
        help="images with a quality value beyond use: warn (keep them and say so; default), exclude (keep the "
        "preprocessed image only), error (as exclude, and count them as failed); thresholds: docs/qc.md",
    )
    add("--reports-only", action="store_true", help="write the reports again from existing derivatives")
    add("--boilerplate-only", action="store_true", help="write the methods text and citations only")
    add("--stop-on-first-crash", action="store_true", help="do not go on with other images after an error")
    add(
        "--resource-monitor",
        action="store_true",
        help="let Nipype record memory and CPU of every step (WORK/mmh_wf/resource_monitor.json)",
    )
    add("--write-graph", action="store_true", help="write the workflow's graph to OUT/logs")
    add("--sloppy", action="store_true", help="fast and bad, for tests; stamped on the outputs")
    add("--notrack", action="store_true", help="accepted and without effect: nothing is ever sent anywhere")
    add("-v", "--verbose", action="count", help="more messages; -vv shows Nipype's")


def _normalise(argv: Sequence[str]) -> list[str]:
    """``--participant_label`` becomes ``--participant-label``; values stay as they are."""
    out = []
    for word in argv:
        if word.startswith("--"):
            flag, sep, value = word.partition("=")
            word = flag.replace("_", "-") + sep + value
        out.append(word)
    return out


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Command line to settings.

    Raises
    ------
    UsageError
        Unknown flags, wrong values, an unreadable configuration file.
    """
    words = _normalise(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    given = vars(parser.parse_args(words))
    config = given.get("config_file")
    if config is not None:
        given = of_config(parser, config, [str(given["bids_dir"]), str(given["output_dir"]), "participant"]) | given
    for name in ("notrack", "config_file"):
        given.pop(name, None)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    values["analysis_level"] = tuple(level for level in LEVELS if level in values["analysis_level"])
    values.setdefault("work_dir", default_work_dir(values["output_dir"]))
    values.setdefault("nprocs", 1 if values.get("low_mem") else available_cpus())
    if "bids_mirror" in values and values.setdefault("skull", "keep") != "keep":
        raise UsageError("--bids-mirror: raw data are whole heads; leave --skull strip out, or give --skull keep")
    if "model" in values and "method" not in values:
        values["method"] = method_of(values["model"])
    return Settings(**values)
