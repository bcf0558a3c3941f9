"""A process that is killed costs what it worked on, and nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from simulated_study import make_study, scans

from mmh_bids.bids.run import Run
from mmh_bids.evaluation.measure import Task, measure_all
from mmh_bids.evaluation.pool import in_processes
from mmh_bids.evaluation.sources import Entry, entries_of, sources_of


def square(number):
    """The square, but for 2, whose process is killed."""
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def second_try(mark: Path):
    """Killed at the first try, as two together may need too much memory; done at the second."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


class Deadly(Entry):
    """An image that kills who looks at it."""

    def kept_as(self, source, work, with_style):
        os.kill(os.getpid(), signal.SIGKILL)


def test_who_is_killed_is_given_up_and_the_others_go_on():
    found = dict(in_processes(square, [0, 1, 2, 3, 4], 2))
    assert found == {0: 0, 1: 1, 2: None, 3: 9, 4: 16}


def test_a_second_try_alone_may_do(tmp_path):
    (tmp_path / "b").touch()
    found = dict(in_processes(second_try, [tmp_path / "a", tmp_path / "b"], 2))
    assert found == {0: "done", 1: "done"}


def test_errors_of_the_work_are_the_callers():
    with pytest.raises(TypeError):
        list(in_processes(square, [3, "x"], 2))


def test_an_image_that_is_too_much_is_named_and_the_others_are_measured(tmp_path):
    make_study(tmp_path, methods=("nothing",), singles=2, travellers=0)
    runs = [
        Run(tmp_path / "raw" / scan.folder / f"{scan.stem}_T1w.nii.gz", "T1w",
            {"sub": f"{scan.person:02d}", "ses": scan.site, "run": "1"}, site=scan.site)
        for scan in scans(2, 0)
    ]  # fmt: skip
    sources, problems = sources_of(runs, {"nothing": tmp_path / "nothing"}, {})
    assert len(sources) == 2 and problems == []
    good = tuple(entries_of(sources[0], {})[0])
    tasks = [Task(sources[0], good, tmp_path / "work"), Task(sources[1], (Deadly("a", runs[1].path),), tmp_path)]
    (line,) = measure_all(tasks, 2)
    assert line.startswith(f"{runs[1].path}: the process that measured it was killed") and "--nprocs" in line
    assert all(entry.kept_as(sources[0], tmp_path / "work", False).is_file() for entry in good)
