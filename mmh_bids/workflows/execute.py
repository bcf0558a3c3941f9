"""Run the graphs with Nipype, show progress, and turn crashes into one line an image."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from traits.api import TraitError

from mmh_bids.bids.derivatives import OutputPaths, read_sidecar, sidecar_path
from mmh_bids.errors import ImageError, UsageError
from mmh_bids.files import atomic_write, temporary_prefix
from mmh_bids.machine import available_gb
from mmh_bids.settings import Settings
from mmh_bids.workflows.base import Job, init_mmh_wf
from mmh_bids.workflows.plugin import PatientMultiProc
from mmh_bids.workflows.study import Study

logger = logging.getLogger("mmh")

_MORE_SPACE = "free space there or name another --work-dir, then run the same command again"

#: What a step is called for people; nodes that are not listed show no line.
STEPS = {
    "check": "read and checked",
    "extract_brain": "brain extracted",
    "reuse_mask": "brain mask reused",
    "coregister": "registered to the T1w",
    "correct_bias": "bias field corrected",
    "register": "registered to the template",
    "reuse_xfm": "transform to the template reused",
    "harmonize": "harmonized",
    "transport": "change carried to the own grid",
    "write_derivatives": "derivatives written",
    "draw_figures": "figures drawn",
}


class Executor:
    """Runs batches of jobs; one instance a call of the program."""

    def __init__(self, study: Study, run_id: str, total: int):
        self.study, self.run_id, self.total = study, run_id, total
        self.finished = 0
        self._started: dict[str, float] = {}
        self._jobs: dict[str, Job] = {}

    def run(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Process `jobs`; return the message of every image that failed, by its key.

        A T2w that never ran because its T1w failed has an empty message.
        """
        settings = self.study.settings
        self._configure()
        self._jobs = {f"{job.run.node_name}_wf": job for job in jobs}
        workflow = init_mmh_wf(jobs, self.study)
        crashes = self.crash_dir()
        workflow.config["execution"]["crashdump_dir"] = str(crashes)
        if settings.write_graph:
            self._write_graph(workflow)
        before = set(crashes.glob("crash-*"))
        stopped = self._execute(workflow)
        failed = self._read_crashes(sorted(set(crashes.glob("crash-*")) - before))
        if stopped and not failed and not isinstance(stopped, OSError):
            raise stopped
        for job in jobs:
            if job.run.key not in failed and not self.is_complete(job):
                failed[job.run.key] = self._of_work_dir(stopped) if isinstance(stopped, OSError) else ""
        return failed

    def _execute(self, workflow: Any) -> Exception | None:
        """Run the graph; return what Nipype raised, which most often only repeats what its nodes did."""
        before = Path.cwd()
        # Nipype's resource monitor leaves files in the current folder, its workers start in it
        os.chdir(self.study.settings.work_dir / "logs" / self.run_id)
        plugin = self._plugin()
        try:
            workflow.run(plugin=plugin)
        except (RuntimeError, ImageError, TraitError, OSError) as error:
            logger.debug("nipype: %s", error)
            return error
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        finally:
            os.chdir(before)
            if isinstance(plugin, PatientMultiProc):
                # after an error Nipype leaves it open: nothing may be written any more once we say how it ended
                plugin.pool.shutdown(wait=True, cancel_futures=True)
                self._sweep(plugin.worker_pids)
        return None

    def _sweep(self, pids: Iterable[int]) -> None:
        """Remove the half files that workers which were killed left in the output folder."""
        for job in self._jobs.values():
            paths = OutputPaths(self.study.settings.output_dir, job.run)
            for folder in (paths.anat, paths.figures, paths.features.parent):
                for path in [path for pid in pids for path in folder.glob(f"{temporary_prefix(pid)}*")]:
                    path.unlink(missing_ok=True)

    def _of_work_dir(self, error: OSError) -> str:
        """What to say when Nipype itself cannot write; its own files all lie in the work directory."""
        where = error.filename or self.study.settings.work_dir
        return f"{where}: {error.strerror or error}; {_MORE_SPACE}"

    def crash_dir(self) -> Path:
        """Folder that Nipype writes crash files to; they are moved to the participants' log folders."""
        folder = self.study.settings.work_dir / "crashes" / self.run_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_complete(self, job: Job) -> bool:
        """Whether the image's last file is there and belongs to this job."""
        path = sidecar_path(OutputPaths(self.study.settings.output_dir, job.run).harmonized())
        try:
            facts = read_sidecar(path).get("Harmonization")
        except ImageError:
            return False
        return isinstance(facts, dict) and facts.get("Fingerprint") == job.fingerprint

    def _configure(self) -> None:
        from nipype import config

        settings = self.study.settings
        logs = settings.work_dir / "logs" / self.run_id
        logs.mkdir(parents=True, exist_ok=True)
        config.update_config({
            "logging": {
                "log_directory": str(logs), "log_to_file": "false", "workflow_level": "INFO", "interface_level": "INFO",
            },
            "execution": {
                "crashfile_format": "txt", "poll_sleep_duration": "0.05", "remove_unnecessary_outputs": "false",
                "stop_on_first_crash": str(settings.stop_on_first_crash).lower(), "hash_method": "timestamp",
                "keep_inputs": "false", "check_version": "false",
            },
            "monitoring": {
                "enabled": str(settings.resource_monitor).lower(), "sample_frequency": "0.5", "summary_append": "true",
            },
        })  # fmt: skip
        from nipype import logging as nipype_logging

        nipype_logging.update_logging(config)
        if settings.resource_monitor:
            config.enable_resource_monitor()
        _route_nipype_log(logs / "nipype.log", on_terminal=settings.verbose >= 2)

    def _plugin(self) -> Any:
        """The Nipype plugin: ours, or what the user names."""
        settings = self.study.settings
        plugin, args = choose_plugin(settings)
        args = {"status_callback": self._progress, **args}
        if plugin is PatientMultiProc:
            args.setdefault("n_procs", 1 if settings.low_mem else settings.nprocs)
            # Nipype would take the whole machine's, where this may be a Slurm job with a small part of it
            args.setdefault("memory_gb", settings.mem_gb or 0.9 * available_gb())
            args.setdefault("raise_insufficient", False)
            args.setdefault("order", list(self._jobs))
        return plugin(plugin_args=args)

    def _progress(self, node: Any, status: str) -> None:
        name = f"{node.fullname}"
        if status == "start":
            self._started[name] = time.monotonic()
            return
        # "end" also comes for steps found done, and from Linear for steps that follow a failed one
        started = self._started.pop(name, None)
        key, step = self._key(name), STEPS.get(node.name)
        if status == "exception":
            logger.error(
                "[%d/%d] %s: failed (%s); the reason follows at the end",
                self.finished,
                self.total,
                key or "reference",
                node.name,
            )
        if status != "end" or started is None or not key or not step:
            return
        if node.name == "write_derivatives":
            self.finished += 1
        logger.info("[%d/%d] %s: %s (%.1f s)", self.finished, self.total, key, step, time.monotonic() - started)

    def _key(self, fullname: str) -> str | None:
        return next((self._jobs[part].run.key for part in fullname.split(".") if part in self._jobs), None)

    def _read_crashes(self, files: Sequence[Path]) -> dict[str, str]:
        """Message by image; the crash files move to ``OUT/sub-X/log/<run>/``."""
        failed: dict[str, str] = {}
        runs = {job.run.key: job.run for job in self._jobs.values()}
        for file in files:
            text = file.read_text(errors="replace")
            key = self._key(crashed_node(text))
            message = message_of(text, self.study.settings.work_dir)
            if not message:
                continue  # cut off by a full disk
            if key is None:
                # the reference image's graph: it stops every image
                for other in runs:
                    failed.setdefault(other, message)
                continue
            path = runs[key].path
            failed.setdefault(key, message if path.name in message else f"{path}: {message}")
            target = OutputPaths(self.study.settings.output_dir, runs[key]).log_dir(self.run_id)
            try:
                atomic_write(target / f"crash-{file.stem.removeprefix('crash-')}.txt", text)
            except OSError as error:
                logger.debug("%s stays in %s (%s)", file.name, file.parent, error.strerror)
        return failed

    def _write_graph(self, workflow: Any) -> None:
        folder = self.study.settings.output_dir / "logs"
        file = folder / f"graph-{self.run_id}.dot"
        try:
            workflow.write_graph(dotfilename=str(file), graph2use="colored", simple_form=True)
        except OSError as error:
            if not file.exists():
                raise
            logger.warning("--write-graph: %s is written, but not drawn (%s); install graphviz", file, error)


def _route_nipype_log(file: Path, on_terminal: bool) -> None:
    """Send Nipype's messages to `file`, and to standard error only if asked for.

    Nipype's own log file is not used: its lock object does not survive the fork into the workers.
    """
    top = logging.getLogger("nipype")
    for handler in list(top.handlers):
        top.removeHandler(handler)
        handler.close()
    # all its loggers hand on to this one, and this one not to the root, whose handler is for our own lines
    top.propagate = False
    top.addHandler(logging.FileHandler(file, encoding="utf-8"))
    if on_terminal:
        top.addHandler(logging.StreamHandler(sys.stderr))


def choose_plugin(settings: Settings) -> tuple[type, dict[str, Any]]:
    """Class and arguments of the Nipype plugin that ``--use-plugin`` and ``--nipype-plugin-file`` ask for.

    Raises
    ------
    UsageError
        Nipype has no such plugin, or the file cannot be used.
    """
    from nipype.pipeline import plugins

    name, args, flag = settings.use_plugin or "MultiProc", dict[str, Any](), "--use-plugin"
    if settings.nipype_plugin_file:
        flag = f"--nipype-plugin-file {settings.nipype_plugin_file}:"
        name, args = read_plugin_file(settings.nipype_plugin_file, name)
    if name == "MultiProc":
        return PatientMultiProc, args
    plugin = getattr(plugins, f"{name}Plugin", None)
    if plugin is None:
        raise UsageError(f"{flag} {name}: Nipype has no such plugin; try MultiProc, Linear or SLURM")
    return plugin, args


def read_plugin_file(path: Path, default: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a Nipype plugin from a JSON or YAML file, as fMRIPrep reads it."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"--nipype-plugin-file {path}: cannot be read ({reason}); give JSON or YAML") from None
    args = content.get("plugin_args") or {} if isinstance(content, dict) else None
    if not isinstance(args, dict):
        raise UsageError(f"--nipype-plugin-file {path}: needs an object with plugin and plugin_args")
    return str(content.get("plugin", default)), dict(args)


def crashed_node(text: str) -> str:
    """Full name of the node from a text crash file.

    >>> crashed_node("Node: mmh_wf.sub_01_T1w_wf.check\\nWorking directory: /w")
    'mmh_wf.sub_01_T1w_wf.check'
    """
    match = re.search(r"^Node: (\S+)", text, re.MULTILINE)
    return match[1] if match else ""


def message_of(text: str, work_dir: Path) -> str:
    """The error's own line from a text crash file: our message, or the kind and text of a foreign error, or nothing.

    >>> message_of("Traceback:\\n\\tmmh_bids.errors.ImageError: a.nii.gz: truncated; fetch it again\\n", Path("w"))
    'a.nii.gz: truncated; fetch it again'
    >>> message_of("OSError: [Errno 28] No space left on device", Path("w"))
    'w: No space left on device; free space there or name another --work-dir, then run the same command again'
    """
    ours = re.findall(r"mmh_bids\.errors\.\w+: (.+)", text)
    if ours:
        return ours[-1].strip()
    # what is written to the output folder raises errors of ours; all else is written to the work directory
    full = re.findall(r"OSError: \[Errno (?:28|122)\] ([\w ]+)", text)
    if full:
        return f"{work_dir}: {full[-1].strip()}; {_MORE_SPACE}"
    errors = re.findall(r"^\s*((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)$", text, re.MULTILINE)
    return errors[-1].strip() if errors else ""
