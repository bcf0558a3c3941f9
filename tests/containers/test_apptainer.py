"""Apptainer, as an ordinary user: the image itself and the definition file give the bytes of outside.

MMH_APPTAINER is the command that runs as that user (default: apptainer), MMH_APPTAINER_BUILD the one that builds.
"""

import os
import shlex
import shutil

import pytest
from in_container import assert_same, call

pytestmark = pytest.mark.container

SOME = ("participant", "--participant-label", "02", "--modalities", "T1w")


@pytest.fixture(scope="module")
def apptainer():
    """The commands to build and to run with."""
    run = shlex.split(os.environ.get("MMH_APPTAINER", "apptainer"))
    if not shutil.which(run[0]):
        pytest.skip("there is no Apptainer (set MMH_APPTAINER)")
    return shlex.split(os.environ.get("MMH_APPTAINER_BUILD", "")) or run, run


@pytest.fixture(scope="module")
def archive(image, tmp_path_factory):
    """The image as a file; some GB."""
    path = tmp_path_factory.mktemp("archive") / "mmh.tar"
    call([*image.engine, "save", "-o", path, image.name])
    path.parent.chmod(0o755)
    yield path
    path.unlink()


@pytest.fixture(params=["image", "definition file"])
def sif(request, apptainer, archive, repo_root):
    """An Apptainer image, made either way."""
    build, _ = apptainer
    path = archive.with_name("mmh.sif")
    if request.param == "image":
        call([*build, "build", path, f"docker-archive:{archive}"])
    else:
        recipe = shutil.copy(repo_root / "singularity" / "mmh.def", archive.parent)
        call([*build, "build", path, recipe], cwd=archive.parent)
    yield path
    path.unlink()


def test_apptainer_has_the_bytes_of_outside(sif, apptainer, repo_root, tmp_path, outside):
    made, sample = tmp_path / "out", repo_root / "data" / "ds-sample"
    made.mkdir()
    made.chmod(0o777)
    for folder in list(made.parents)[:3]:
        folder.chmod(folder.stat().st_mode | 0o055)  # the user of MMH_APPTAINER may be another
    bound = ("--cleanenv", "--containall", "--no-home", "-B", f"{sample}:/data:ro", "-B", f"{made}:/out")
    call([*apptainer[1], "run", *bound, sif, "/data", "/out", *SOME], cwd=tmp_path)
    assert_same(made, outside(sample, *SOME[1:]))
    assert (made / "work" / "mmh_wf").is_dir()
