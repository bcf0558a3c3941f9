"""The engine, the image and the runs in and outside it, for the tests behind ``make container-test``.

MMH_CONTAINER_ENGINE is the engine's command (default: docker, else podman). MMH_CONTAINER_BUILD is how it builds, with
``{tag}`` and ``{context}`` (default: ``ENGINE build -t {tag} {context}``). MMH_IMAGE is an image that is there already:
nothing is built or removed then. TORCH_PIP_ARGS chooses the build of PyTorch, as for ``make image``; the size is
tested for a CPU build.
"""

import os
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
from in_container import Image, call


@pytest.fixture(scope="session")
def engine():
    """The engine's command."""
    words = shlex.split(os.environ.get("MMH_CONTAINER_ENGINE", ""))
    found = words or [name for name in ("docker", "podman") if shutil.which(name)][:1]
    if not found:
        pytest.skip("there is no container engine (set MMH_CONTAINER_ENGINE)")
    return tuple(found)


@pytest.fixture(scope="session")
def build(engine, repo_root, users_environment):
    """``build(tag, *arguments)``: the image of the Dockerfile, with further words for the engine."""

    def run(tag, *arguments):
        form = os.environ.get("MMH_CONTAINER_BUILD") or f"{shlex.join(engine)} build -t {{tag}} {{context}}"
        words = [word.format(tag=tag, context=repo_root) for word in shlex.split(form)]
        torch = f"--build-arg=TORCH_PIP_ARGS={os.environ.get('TORCH_PIP_ARGS', '')}"
        call([*words, torch, *arguments], env=users_environment)
        return Image(engine, tag, users_environment)

    return run


@pytest.fixture(scope="session")
def image(engine, build, users_environment):
    """The CPU image, built from the Dockerfile and removed at the end, or the one in MMH_IMAGE."""
    if os.environ.get("MMH_IMAGE"):
        yield Image(engine, os.environ["MMH_IMAGE"], users_environment)
        return
    made = build(f"mmh:test-{os.getpid()}")
    yield made
    made.ask("rmi", made.name)


@pytest.fixture(scope="session")
def sample(repo_root):
    return repo_root / "data" / "ds-sample"


@pytest.fixture
def out(image, tmp_path):
    """``out(name)``: an output folder that any user may write to; emptied by the engine, as its files are another's."""
    made = []

    def make(name="out"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        made.append(folder)
        return folder

    yield make
    for folder in made:
        root = ("--rm", "--network=none", "--user=0:0", "-v", f"{folder}:/out", "--entrypoint=sh")
        image.run("-c", "rm -rf /out/* /out/.[!.]*", before=root)


@pytest.fixture(scope="session")
def outside(tmp_path_factory):
    """``outside(dataset, *words)``: the same code without a container; the output folder, beside ``data`` as in it."""

    @cache
    def run(dataset, *words):
        base = tmp_path_factory.mktemp("outside")
        (base / "data").symlink_to(Path(dataset).resolve())
        command = [sys.executable, "-m", "mmh_bids.cli.run", base / "data", base / "out", "participant"]
        call([*command, "-w", base / "work", "--device", "cpu", *words])
        shutil.rmtree(base / "work")
        return base / "out"

    return run
