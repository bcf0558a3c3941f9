"""Run the graphs with Nipype, show progress, and turn crashes into one line an image."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmh_bids.bids.derivatives import OutputPaths, sidecar_path
from mmh_bids.errors import ImageError, UsageError
from mmh_bids.workflows.base import Job, init_mmh_wf
from mmh_bids.workflows.plugin import PatientMultiProc
from mmh_bids.workflows.study import Study

logger = logging.getLogger("mmh")

#: What a step is called for people; nodes that are not listed show no line.
STEPS = {
    "check": "read and checked",
    "extract_brain": "brain extracted",
    "reuse_mask": "brain mask reused",
    "coregister": "registered to the T1w",
    "correct_bias": "bias field corrected",
    "register": "registered to the template",
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
        self._keys: dict[str, str] = {}

    def run(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Process `jobs`; return the message of every image that failed, by its key.

        A T2w that never ran because its T1w failed has an empty message.
        """
        settings = self.study.settings
        self._configure()
        self._keys = {f"{job.run.node_name}_wf": job.run.key for job in jobs}
        workflow = init_mmh_wf(jobs, self.study)
        crashes = self.crash_dir()
        workflow.config["execution"]["crashdump_dir"] = str(crashes)
        if settings.write_graph:
            self._write_graph(workflow)
        before = set(crashes.glob("crash-*"))
        try:
            workflow.run(plugin=self._plugin())
        except (RuntimeError, ImageError) as error:
            # Nipype raises again what its nodes raised; the crash files tell which image each belongs to
            if not set(crashes.glob("crash-*")) - before:
                raise
            logger.debug("nipype: %s", error)
        failed = self._read_crashes(sorted(set(crashes.glob("crash-*")) - before))
        for job in jobs:
            if job.run.key not in failed and not self.is_complete(job):
                failed[job.run.key] = ""
        return failed

    def crash_dir(self) -> Path:
        """Folder that Nipype writes crash files to; they are moved to the participants' log folders."""
        folder = self.study.settings.work_dir / "crashes" / self.run_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_complete(self, job: Job) -> bool:
        """Whether the image's last file is there and belongs to this job."""
        path = sidecar_path(OutputPaths(self.study.settings.output_dir, job.run).harmonized())
        try:
            return json.loads(path.read_text())["Harmonization"]["Fingerprint"] == job.fingerprint
        except (OSError, ValueError, KeyError):
            return False

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
        quiet = settings.verbose < 2
        # not Nipype's own log file: its lock object does not survive the fork into the workers
        to_file = logging.FileHandler(logs / "nipype.log")
        for name in ("nipype", "nipype.workflow", "nipype.interface", "nipype.utils"):
            log = logging.getLogger(name)
            for handler in log.handlers:
                if type(handler) is logging.StreamHandler:
                    handler.setLevel(logging.CRITICAL if quiet else logging.INFO)
            log.propagate = False
        for handler in list(logging.getLogger("nipype").handlers):
            if isinstance(handler, logging.FileHandler):
                logging.getLogger("nipype").removeHandler(handler)
        logging.getLogger("nipype").addHandler(to_file)

    def _plugin(self) -> Any:
        """The Nipype plugin: ours, or what the user names."""
        settings = self.study.settings
        name, args = settings.use_plugin or "MultiProc", dict[str, Any]()
        if settings.nipype_plugin_file:
            name, args = read_plugin_file(settings.nipype_plugin_file, name)
        args = {"status_callback": self._progress, **args}
        if name == "MultiProc":
            args.setdefault("n_procs", 1 if settings.low_mem else settings.nprocs)
            if settings.mem_gb:
                args.setdefault("memory_gb", settings.mem_gb)
            args.setdefault("raise_insufficient", False)
            args.setdefault("order", list(self._keys))
            return PatientMultiProc(plugin_args=args)
        from nipype.pipeline import plugins

        plugin = getattr(plugins, f"{name}Plugin", None)
        if plugin is None:
            raise UsageError(f"--use-plugin {name}: Nipype has no such plugin; try MultiProc, Linear or SLURM")
        return plugin(plugin_args=args)

    def _progress(self, node: Any, status: str) -> None:
        name = f"{node.fullname}"
        if status == "start":
            self._started[name] = time.monotonic()
            return
        key, step = self._key(name), STEPS.get(node.name)
        if status == "end" and node.name == "write_derivatives":
            self.finished += 1
        if status == "end" and key and step:
            seconds = time.monotonic() - self._started.get(name, time.monotonic())
            logger.info("[%d/%d] %s: %s (%.1f s)", self.finished, self.total, key, step, seconds)

    def _key(self, fullname: str) -> str | None:
        return next((self._keys[part] for part in fullname.split(".") if part in self._keys), None)

    def _read_crashes(self, files: Sequence[Path]) -> dict[str, str]:
        """Message by image; the crash files move to ``OUT/sub-X/log/<run>/``."""
        failed: dict[str, str] = {}
        for file in files:
            text = file.read_text(errors="replace")
            key = self._key(crashed_node(text))
            if key is None:
                # the reference image's graph: it stops every image
                for other in self._keys.values():
                    failed.setdefault(other, message_of(text))
                continue
            failed[key] = message_of(text)
            label = re.match(r"sub-([^_]+)", key)
            target = self.study.settings.output_dir / f"sub-{label[1] if label else ''}" / "log" / self.run_id
            target.mkdir(parents=True, exist_ok=True)
            (target / f"crash-{file.stem.removeprefix('crash-')}.txt").write_text(text)
            logger.error("%s: %s", key, failed[key])
        return failed

    def _write_graph(self, workflow: Any) -> None:
        folder = self.study.settings.output_dir / "logs"
        workflow.write_graph(
            dotfilename=str(folder / f"graph-{self.run_id}.dot"), graph2use="colored", simple_form=True
        )


def read_plugin_file(path: Path, default: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a Nipype plugin from a JSON or YAML file, as fMRIPrep reads it."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"--nipype-plugin-file {path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UsageError(f"--nipype-plugin-file {path}: needs an object with plugin and plugin_args")
    return content.get("plugin", default), dict(content.get("plugin_args") or {})


def crashed_node(text: str) -> str:
    """Full name of the node from a text crash file.

    >>> crashed_node("Node: mmh_wf.sub_01_T1w_wf.check\\nWorking directory: /w")
    'mmh_wf.sub_01_T1w_wf.check'
    """
    match = re.search(r"^Node: (\S+)", text, re.MULTILINE)
    return match[1] if match else ""


def message_of(text: str) -> str:
    """The error's own line from a text crash file: our message, or the kind and text of a foreign error.

    >>> message_of("Traceback:\\n\\tmmh_bids.errors.ImageError: a.nii.gz: truncated; fetch it again\\n")
    'a.nii.gz: truncated; fetch it again'
    >>> message_of("OSError: [Errno 28] No space left on device: '/out/x'")
    "[Errno 28] No space left on device: '/out/x'; free space there and run the same command again"
    """
    ours = re.findall(r"mmh_bids\.errors\.\w+: (.+)", text)
    if ours:
        return ours[-1].strip()
    full = re.findall(r"OSError: (\[Errno (?:28|122)\].+)", text)
    if full:
        return f"{full[-1].strip()}; free space there and run the same command again"
    errors = re.findall(r"^\s*((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)$", text, re.MULTILINE)
    return errors[-1].strip() if errors else "failed; see the crash file"
