"""Apptainer, as an ordinary user: the image itself and the definition file give the bytes of outside.

MMH_APPTAINER is the command that runs as that user (default: apptainer), MMH_APPTAINER_BUILD the one that builds.
"""

import os
import shlex
import shutil

import pytest
from in_container import ONE_HEAD, assert_same, call

pytestmark = pytest.mark.container

#: The default takes minutes for a few percent of the size.
QUICK_TO_PACK = "-comp zstd -Xcompression-level 3"


@pytest.fixture(scope="module")
def apptainer():
    """The commands to build and to run with."""
    run = shlex.split(os.environ.get("MMH_APPTAINER", "apptainer"))
    if not shutil.which(run[0]):
        pytest.skip("there is no Apptainer (set MMH_APPTAINER)")
    return shlex.split(os.environ.get("MMH_APPTAINER_BUILD", "")) or run, run


@pytest.fixture(scope="module")
def archive(image, tmp_path_factory, open_to_all):
    """The image as a file; some GB."""
    path = open_to_all(tmp_path_factory.mktemp("archive")) / "mmh.tar"
    image.ask("save", "-o", path, image.name)
    path.chmod(0o644)
    yield path
    path.unlink()


@pytest.fixture(scope="module", params=["image", "definition file"])
def sif(request, apptainer, archive, repo_root, users_environment):
    """An Apptainer image, made either way."""
    path = archive.with_name("mmh.sif")
    source = f"docker-archive:{archive}"
    if request.param == "definition file":
        source = shutil.copy(repo_root / "singularity" / "mmh.def", archive.parent)
    build = [*apptainer[0], "build", f"--mksquashfs-args={QUICK_TO_PACK}"]
    call([*build, path, source], cwd=archive.parent, env=users_environment)
    yield path
    path.unlink()


@pytest.fixture
def inside(sif, apptainer, tmp_path, users_environment, open_to_all):
    """``inside(dataset, *words)``: mmh in the closed Apptainer image; the output folder."""

    def run(dataset, *words):
        made = open_to_all(tmp_path / "out")
        bound = ("--cleanenv", "--containall", "--no-home", "-B", f"{dataset}:/data:ro", "-B", f"{made}:/out")
        words = ("/data", "/out", "participant", *words)
        call([*apptainer[1], "run", *bound, sif, *words], cwd=tmp_path, env=users_environment)
        assert (made / "work" / "mmh_wf").is_dir()
        return made

    return run


def test_whole_sample_through_apptainer_has_the_bytes_of_outside(inside, outside, sample):
    assert_same(inside(sample), outside(sample))


def test_real_head_through_apptainer_has_the_bytes_of_outside(inside, outside, shared_data):
    dataset = shared_data / "real-multisite"
    assert_same(inside(dataset, *ONE_HEAD), outside(dataset, *ONE_HEAD))
