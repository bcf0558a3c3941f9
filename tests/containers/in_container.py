"""Runs in a container and comparison of outputs, for the tests behind ``make container-test``."""

import hashlib
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: What a container gets here: nothing but the two folders.
CLOSED = ("--rm", "--read-only", "--user=12345:12345", "--network=none", "--memory=6g")
#: One image of the real heads.
ONE_HEAD = ("--participant-label", "ljA", "--session-label", "2", "--modalities", "T1w")


@dataclass(frozen=True)
class Image:
    """An image of mmh and the engine that has it."""

    engine: tuple[str, ...]
    name: str
    environment: dict[str, str]  # an engine without root keeps its images and settings in HOME

    def run(self, *words, before=CLOSED, code=0, timeout=3600):
        """``run`` of the engine: its words `before` the image, mmh's `words` after it; the finished process."""
        return self.ask("run", *before, self.name, *words, code=code, timeout=timeout)

    def ask(self, *words, code=0, timeout=3600):
        """Call the engine; the finished process."""
        return call([*self.engine, *words], code, timeout, env=self.environment)


def call(words, code=0, timeout=3600, **options):
    """Run a command to its end and check its exit code."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, timeout=timeout, **options
    )
    assert done.returncode == code, f"{shlex.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
    return done


def contents(folder):
    """sha256 of every file outside ``logs`` and ``work``, by its path in the folder."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(names.items())
        if name.split("/")[0] not in ("logs", "work")
    }


def assert_same(folder, other):
    """Both folders hold the same files with the same bytes, some images among them."""
    ours, theirs = contents(folder), contents(other)
    assert any(name.endswith("_desc-harmonized_T1w.nii.gz") for name in ours)
    assert [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)] == []
