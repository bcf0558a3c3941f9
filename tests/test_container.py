"""Which container this is, where intermediate files go in ours, and what makes the bytes the same in and outside it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mmh_bids.cli.environment import prepare_environment
from mmh_bids.cli.parser import parse
from mmh_bids.container import CONTAINER_VARIABLE, container_id


@pytest.mark.parametrize(
    ("files", "environ", "expected"),
    [
        ({}, {}, None),
        ({}, {"APPTAINER_CONTAINER": "/i/mmh.sif"}, "apptainer:/i/mmh.sif"),
        ({}, {"SINGULARITY_CONTAINER": "/i/mmh.sif"}, "singularity:/i/mmh.sif"),
        ({".dockerenv": ""}, {"MMH_CONTAINER_IMAGE": "mmh:0.1.0"}, "image:mmh:0.1.0"),
        ({".dockerenv": ""}, {}, "docker:unknown"),
        (
            {
                ".dockerenv": "",
                "proc/self/mountinfo": f"1 2 8:1 /var/lib/docker/containers/{'ab' * 32}/hostname /etc/h rw",
            },
            {},
            f"docker:{'ab' * 32}",
        ),
        ({"run/.containerenv": 'engine="podman-4"\nimage="localhost/mmh:1"\n'}, {}, "podman:localhost/mmh:1"),
        ({"run/.containerenv": ""}, {}, "podman:unknown"),
    ],
)
def test_container(tmp_path, files, environ, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert container_id(tmp_path, environ) == expected


def test_intermediate_files_go_where_there_is_room(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(CONTAINER_VARIABLE, raising=False)
    assert parse(["/data", "/out", "participant"]).work_dir == tmp_path / "work"
    monkeypatch.setenv(CONTAINER_VARIABLE, "mmh:1")
    assert str(parse(["/data", "/out", "participant"]).work_dir) == "/out/work"
    assert str(parse(["/data", "/out", "participant", "-w", "/scratch"]).work_dir) == "/scratch"


@pytest.mark.parametrize("home", [None, "/nowhere"])
def test_caches_need_neither_home_nor_tmp(tmp_path, monkeypatch, home):
    monkeypatch.setattr(os, "environ", {} if home is None else {"HOME": home})
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [os.environ.get("TMPDIR", "/nowhere")])
    prepare_environment(tmp_path / "work")
    assert os.environ["HOME"] == os.environ["TMPDIR"] == tempfile.gettempdir() == str(tmp_path / "work/caches")
    folders = [name for name, value in os.environ.items() if value.startswith(str(tmp_path / "work/caches"))]
    assert {"MPLCONFIGDIR", "TORCH_HOME", "XDG_CACHE_HOME", "NIPYPE_CONFIG_DIR", "TEMPLATEFLOW_HOME"} <= set(folders)


KERNELS = """
import os, sys
from mmh_bids.cli.{module} import main
assert "numpy" not in sys.modules
try:
    main(["/nowhere", "/nowhere/out", *{words}])
except SystemExit:
    pass
import numpy, scipy.linalg
from threadpoolctl import threadpool_info
print({{library["architecture"] for library in threadpool_info() if library["internal_api"] == "openblas"}})
"""


@pytest.mark.skipif("avx2" not in Path("/proc/cpuinfo").read_text(), reason="a processor without AVX2")
@pytest.mark.parametrize(
    ("module", "words", "asked", "expected"),
    [
        ("run", ["participant", "--model", "classic"], None, "{'Haswell'}"),
        ("run", ["participant"], "Nehalem", "{'Nehalem'}"),
        ("evaluate", ["--methods", "a=/nowhere"], None, "{'Haswell'}"),
    ],
)
def test_linear_algebra_is_that_of_every_processor(module, words, asked, expected):
    """OpenBLAS chooses by processor otherwise, and by a variable that a container does not have."""
    environ = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    environ |= {"OPENBLAS_CORETYPE": asked} if asked else {}
    code = KERNELS.format(module=module, words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.strip().splitlines()[-1] == expected
