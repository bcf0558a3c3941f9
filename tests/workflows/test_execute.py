"""Graphs whose nodes fail or are killed: nothing hangs, each image gets its line, the others go on."""

import logging
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

from mmh_bids.bids.derivatives import OutputPaths, sidecar_path
from mmh_bids.bids.run import Run
from mmh_bids.errors import ImageError, UsageError
from mmh_bids.interfaces.child import run_child
from mmh_bids.settings import Settings
from mmh_bids.workflows.base import Job
from mmh_bids.workflows.execute import Executor, choose_plugin, message_of, read_plugin_file
from mmh_bids.workflows.plugin import WORKER_KILLED, PatientMultiProc

LIMIT = 60  # seconds after which a graph counts as hanging


def be_killed(folder):
    """Leave half a file and die as the system's memory killer would have it."""
    import os
    import signal
    from pathlib import Path

    Path(folder, f".tmp-{os.getpid()}-ab.nii.gz").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)


def be_wrong(folder):
    from mmh_bids.errors import ImageError

    raise ImageError("what is wrong with it; what to do")


def be_full(folder):
    raise OSError(28, "No space left on device")


def be_well(folder):
    import os
    from pathlib import Path

    Path(folder, f"done-{os.getpid()}").touch()


@pytest.fixture
def study(tmp_path):
    """What the executor needs to know of a study that has no bundle."""
    settings = Settings(tmp_path / "raw", tmp_path / "out", work_dir=tmp_path / "work", nprocs=1)
    return SimpleNamespace(settings=settings)


def _job(label, root=Path("/raw")):
    run = Run(root / f"sub-{label}/anat/sub-{label}_T1w.nii.gz", "T1w", {"sub": label})
    return Job(run, "0" * 16, "")


def _graph(tmp_path, first_steps):
    """One workflow a participant: the step ``check`` does what is given, ``write_derivatives`` follows it."""
    graph = pe.Workflow(name="mmh_wf", base_dir=str(tmp_path / "work"))
    for label, function in first_steps.items():
        own = pe.Workflow(name=f"sub_{label}_T1w_wf")
        check = pe.Node(Function(input_names=["folder"], output_names=["out"], function=function), name="check")
        write = pe.Node(
            Function(input_names=["folder", "out"], output_names=["last"], function=_last), name="write_derivatives"
        )
        folder = tmp_path / f"out/sub-{label}/anat"
        folder.mkdir(parents=True)
        check.inputs.folder = write.inputs.folder = str(folder)
        own.connect(check, "out", write, "out")
        graph.add_nodes([own])
    return graph


def _last(folder, out):
    from pathlib import Path

    Path(folder, "written").touch()


def _execute(study, tmp_path, first_steps):
    """Run a graph as `Executor.run` does; return the messages by image."""
    executor = Executor(study, "run", total=len(first_steps))
    executor._configure()
    executor._jobs = {f"sub_{label}_T1w_wf": _job(label) for label in first_steps}
    graph = _graph(tmp_path, first_steps)
    graph.config["execution"]["crashdump_dir"] = str(executor.crash_dir())
    began = time.monotonic()
    executor._execute(graph)
    assert time.monotonic() - began < LIMIT
    return executor._read_crashes(sorted(executor.crash_dir().glob("crash-*")))


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("plugin", ["MultiProc", "Linear"])
def test_failed_image_has_its_message_and_the_others_go_on(study, tmp_path, plugin, caplog):
    study.settings = Settings(**{**vars(study.settings), "use_plugin": plugin})
    with caplog.at_level(logging.INFO, "mmh"):
        failed = _execute(study, tmp_path, {"01": be_wrong, "02": be_well})
    path = Path("/raw/sub-01/anat/sub-01_T1w.nii.gz")
    assert failed == {"sub-01_T1w": f"{path}: what is wrong with it; what to do"}
    assert not (tmp_path / "out/sub-01/anat/written").exists()
    assert (tmp_path / "out/sub-02/anat/written").exists()
    (crash,) = (tmp_path / "out/sub-01/log/run").iterdir()
    assert "what is wrong with it" in crash.read_text()
    # only what ran is reported
    assert [line.split(" (")[0] for line in caplog.messages] == [
        "[0/2] sub-01_T1w: failed",
        "[0/2] sub-02_T1w: read and checked",
        "[1/2] sub-02_T1w: derivatives written",
    ]


@pytest.mark.timeout(LIMIT)
def test_killed_worker_is_explained_and_the_others_go_on(study, tmp_path):
    failed = _execute(study, tmp_path, {"01": be_killed, "02": be_well, "03": be_well})
    assert failed == {"sub-01_T1w": f"/raw/sub-01/anat/sub-01_T1w.nii.gz: {WORKER_KILLED}"}
    assert all((tmp_path / f"out/sub-{label}/anat/written").exists() for label in ("02", "03"))
    assert list((tmp_path / "out/sub-01/anat").iterdir()) == []


@pytest.mark.timeout(LIMIT)
def test_pool_that_broke_between_two_steps_is_replaced(tmp_path):
    plugin = PatientMultiProc(plugin_args={"n_procs": 1})
    assert plugin.pool.submit(os.kill, os.getpid(), 0).result() is None
    broken = plugin.pool
    with pytest.raises(RuntimeError):
        broken.submit(os._exit, 1).result()
    graph = _graph(tmp_path, {"01": be_well})
    graph.config["execution"]["poll_sleep_duration"] = 0.05
    graph.run(plugin=plugin)
    assert (tmp_path / "out/sub-01/anat/written").exists()
    assert plugin.pool is not broken


@pytest.mark.timeout(LIMIT)
def test_full_work_directory_is_named(study, tmp_path):
    failed = _execute(study, tmp_path, {"01": be_full, "02": be_well})
    message = failed["sub-01_T1w"]
    assert f"{tmp_path / 'work'}: No space left on device; free space there or name another --work-dir" in message
    assert "sub-01_T1w.nii.gz" in message


@pytest.mark.timeout(LIMIT)
def test_nipype_that_cannot_write_fails_the_images_not_the_call(study, tmp_path, monkeypatch):
    executor = Executor(study, "run", total=1)
    full = OSError(28, "No space left on device")
    graph = SimpleNamespace(config={"execution": {}}, run=lambda plugin: (_ for _ in ()).throw(full))
    monkeypatch.setattr("mmh_bids.workflows.execute.init_mmh_wf", lambda jobs, study: graph)
    failed = executor.run([_job("01")])
    assert failed == {
        "sub-01_T1w": f"{tmp_path / 'work'}: No space left on device; free space there or name another --work-dir, "
        "then run the same command again"
    }


@pytest.mark.timeout(LIMIT)
def test_error_of_ours_without_a_crash_file_is_not_swallowed(study, tmp_path, monkeypatch):
    executor = Executor(study, "run", total=1)
    graph = SimpleNamespace(config={"execution": {}}, run=lambda plugin: (_ for _ in ()).throw(RuntimeError("a bug")))
    monkeypatch.setattr("mmh_bids.workflows.execute.init_mmh_wf", lambda jobs, study: graph)
    with pytest.raises(RuntimeError, match="a bug"):
        executor.run([_job("01")])


def test_half_files_of_other_processes_stay(study, tmp_path):
    executor = Executor(study, "run", total=1)
    executor._jobs = {"sub_01_T1w_wf": _job("01")}
    folder = OutputPaths(study.settings.output_dir, _job("01").run).anat
    folder.mkdir(parents=True)
    for name in (".tmp-12-ab.nii.gz", ".tmp-123-ab.nii.gz", ".tmp-12-cd.json", "sub-01.json"):
        (folder / name).touch()
    executor._sweep([12])
    assert sorted(path.name for path in folder.iterdir()) == [".tmp-123-ab.nii.gz", "sub-01.json"]


@pytest.mark.timeout(LIMIT)
def test_killed_child_is_explained(tmp_path):
    os.mkfifo(tmp_path / "never.nii")  # the child waits for its first byte
    caught = []

    def run():
        request = {
            "in_file": str(tmp_path / "never.nii"),
            "out_file": "",
            "device": "cpu",
            "lock_dir": "",
            "threads": 1,
        }
        try:
            run_child("brain", request, tmp_path)
        except ImageError as error:
            caught.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    while not (children := [p for p in psutil.Process().children() if "mmh_bids.interfaces.child" in p.cmdline()]):
        time.sleep(0.05)
    children[0].kill()
    thread.join()
    assert caught == [
        "the brain step was killed by the system, most likely for lack of memory: give the job more memory, or lower "
        "--nprocs or --mem"
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"plugin": "Linear"}', ("Linear", {})),
        (b"plugin: SLURM\nplugin_args: {sbatch_args: --mem 8G}\n", ("SLURM", {"sbatch_args": "--mem 8G"})),
        (b"plugin_args:\n  n_procs: 2\n", ("MultiProc", {"n_procs": 2})),
    ],
)
def test_plugin_file(tmp_path, content, expected):
    (tmp_path / "plugin").write_bytes(content)
    assert read_plugin_file(tmp_path / "plugin", "MultiProc") == expected


@pytest.mark.parametrize("content", [b"[1]", b"", b"plugin: [", b"\xff\xfe", b"plugin_args: 3", None])
def test_unusable_plugin_file(tmp_path, content):
    file = tmp_path / "plugin.yml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=f"--nipype-plugin-file {file}: (cannot be read|needs an object)"):
        read_plugin_file(file, "MultiProc")


def test_unknown_plugin():
    settings = Settings(Path("/raw"), Path("/out"), use_plugin="Multiproc")
    with pytest.raises(UsageError, match="--use-plugin Multiproc: Nipype has no such plugin; try MultiProc"):
        choose_plugin(settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Node: a\nValueError: x\n\tmmh_bids.errors.ImageError: f.nii: bad; mend it\n", "f.nii: bad; mend it"),
        ("Traceback:\n  File x\nMemoryError", "MemoryError"),
        ("traits.trait_errors.TraitError: The 'in_file' trait", "traits.trait_errors.TraitError: The 'in_file' trait"),
        ("", ""),
    ],
)
def test_message_of_a_crash_file(text, expected):
    assert message_of(text, Path("/w")) == expected


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ('{"Harmonization": {"Fingerprint": "f"}}', True),
        ('{"Harmonization": {"Fingerprint": "g"}}', False),
        ('{"Harmonization": null}', False),
        ("[1]", False),
        ("{", False),
        (None, False),
    ],
)
def test_an_image_is_complete_once_its_sidecar_is_that_of_the_job(tmp_path, text, whole):
    run = Run(tmp_path / "sub-01_T1w.nii.gz", "T1w", {"sub": "01"})
    path = sidecar_path(OutputPaths(tmp_path, run).harmonized())
    path.parent.mkdir(parents=True)
    if text is not None:
        path.write_text(text)
    executor = SimpleNamespace(study=SimpleNamespace(settings=SimpleNamespace(output_dir=tmp_path)))
    assert Executor.is_complete(executor, Job(run, "f", "s")) is whole
