"""The image: what is in it, and that a closed container gives the bytes that the same code gives outside."""

import json
import os
import subprocess
import sys

import pytest
from in_container import CLOSED, ONE_HEAD, assert_same, contents

from mmh_bids import __version__

pytestmark = pytest.mark.container

GB = 1e9
#: One image, by a quick method: enough where only the surroundings are under test.
QUICK = ("participant", "--participant-label", "03", "--method", "zscore", "--sloppy")


def closed(data, out):
    """The engine's words for a closed container with a dataset and an output folder."""
    return (*CLOSED, "-v", f"{data}:/data:ro", "-v", f"{out}:/out")


def test_size_and_labels(image):
    facts = json.loads(image.ask("image", "inspect", image.name).stdout)[0]
    assert facts["Size"] <= 2.5 * GB
    labels = facts["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert {"title", "description", "licenses", "revision"} <= {name.rpartition(".")[2] for name in labels}
    assert facts["Config"]["Entrypoint"] == ["mmh"]


def test_the_next_revision_is_built_from_the_cache(image, build):
    """Engines differ in what they keep of stages that are not built again."""
    again = build(f"{image.name}-again", "--build-arg=REVISION=again")
    try:
        facts = json.loads(again.ask("image", "inspect", again.name).stdout)[0]
        assert facts["Config"]["Labels"]["org.opencontainers.image.revision"] == "again"
        assert again.run("--version").stdout.split() == ["mmh", __version__]
    finally:
        again.ask("rmi", again.name)


def test_nothing_of_the_build_is_left(image):
    script = """
        for tool in gcc cc g++ make git; do command -v $tool; done
        ls -d /src /dist /root/.cache /root/.config 2>/dev/null
        find /opt/mmh -maxdepth 5 -name pip
        find /tmp /var/tmp -mindepth 1
        find /opt ! -perm -o=r ! -type l
    """
    assert image.run("-c", script, before=("--rm", "--network=none", "--entrypoint=sh", "--user=0:0")).stdout == ""


@pytest.mark.parametrize("command", ["mmh", "mmh-train", "mmh-evaluate", "mmh-simulate"])
def test_commands(image, command):
    done = image.run("--version", before=(*CLOSED, f"--entrypoint={command}"))
    assert done.stdout.split() == [command, __version__]


def test_whole_sample_has_the_bytes_of_outside(image, sample, out, outside):
    made = out()
    image.run("/data", "/out", "participant", before=closed(sample, made))
    assert_same(made, outside(sample))
    assert {path.name for path in made.glob("sub-*.html")} == {f"sub-0{number}.html" for number in (1, 2, 3, 4)}
    record = json.loads(next((made / "logs").glob("provenance-*.json")).read_text())
    named = [activity["mmh:container"] for activity in record["activity"].values() if "mmh:container" in activity]
    assert len(named) == 1 and named[0].startswith(f"image:mmh:{__version__}")
    validator = ("--rm", "--read-only", "--network=none", "--user=12345:12345", "-v", f"{made}:/out:ro")
    found = image.run("--json", "/out", before=(*validator, "--entrypoint=bids-validator-deno"))
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_real_head_has_the_bytes_of_outside(image, shared_data, out, outside):
    made, dataset = out(), shared_data / "real-multisite"
    image.run("/data", "/out", "participant", *ONE_HEAD, before=closed(dataset, made))
    assert_same(made, outside(dataset, *ONE_HEAD))


def test_no_temporary_folder_either(image, sample, out):
    """As Docker's ``--read-only`` is: podman's has writable /tmp, /run and /var/tmp."""
    made = out()
    without = () if "docker" in image.ask("--version").stdout.lower() else ("--read-only-tmpfs=false",)
    image.run("/data", "/out", *QUICK, before=(*without, *closed(sample, made)))
    assert any(name.endswith("_desc-harmonized_T1w.nii.gz") for name in contents(made))
    again = image.run("/data", "/out", *QUICK, before=(*without, *closed(sample, made)))
    assert "0 image(s) to harmonize, 1 done before" in again.stderr


def test_wrapper_runs_the_image_as_its_caller(image, sample, out, repo_root, tmp_path):
    made, work = out(), out("work")
    words = [repo_root / "docker" / "mmh-docker", sample, made, *QUICK, "-w", work, "--image", image.name]
    environ = image.environment | {"MMH_CONTAINER_ENGINE": " ".join(image.engine)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    assert "ends with exit code 0" in done.stderr
    harmonized = made / "sub-03" / "anat" / "sub-03_desc-harmonized_T1w.nii.gz"
    assert (harmonized.stat().st_uid, harmonized.stat().st_gid) == (os.getuid(), os.getgid())
    assert (work / "mmh_wf").is_dir() and not (made / "work").exists()
    links = json.loads((made / "dataset_description.json").read_text())["DatasetLinks"]
    assert (made / links["raw"]).resolve() == sample.resolve()
    failed = subprocess.run(
        [sys.executable, *words, "--method", "x"], capture_output=True, text=True, check=False, env=environ
    )
    assert failed.returncode == 2 and "x" in failed.stderr
