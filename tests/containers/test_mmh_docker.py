"""``docker/mmh-docker``: the engine's command for words of mmh, with an engine that only answers what it is asked."""

import importlib.util
import os
import shlex
import subprocess
import sys
from importlib.machinery import SourceFileLoader

import pytest

from mmh_bids import __version__
from mmh_bids.cli import paths
from mmh_bids.cli.flags import PATH_KINDS, describe
from mmh_bids.cli.parser import build_parser, parse

#: Answers ``--version`` as the engine of the name in ENGINE, prints this code's flags, else shows its words.
ENGINE = """#!/bin/sh
case "$*" in
  --version) echo "$ENGINE version 4.3.1" ;;
  *"-m mmh_bids.cli.flags") exec "$PYTHON" -m mmh_bids.cli.flags ;;
  *) printf '%s\\n' "$@" ;;
esac
"""


@pytest.fixture(scope="module")
def wrapper(repo_root):
    loader = SourceFileLoader("mmh_docker", str(repo_root / "docker" / "mmh-docker"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("mmh_docker", loader))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A folder with a dataset and what else flags may name; the current folder."""
    for name in ("data/ds", "prep", "bundle", "templates"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("ref_T1w.nii.gz", "filter.json", "config.toml", "plugin.yml"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TEMPLATEFLOW_HOME", raising=False)
    return tmp_path


@pytest.fixture
def run(repo_root, host):
    """``run(words, engine)``: the script as a user calls it; the lines that the engine was told, or the error."""
    engine = host / "engine"
    engine.write_text(ENGINE)
    engine.chmod(0o755)

    def call(*words, name="docker", **env):
        environ = os.environ | {"MMH_CONTAINER_ENGINE": str(engine), "ENGINE": name, "PYTHON": sys.executable} | env
        environ |= {"PYTHONPATH": str(repo_root)}
        return subprocess.run(
            [sys.executable, repo_root / "docker" / "mmh-docker", *map(str, words)],
            capture_output=True, text=True, check=False, env=environ, cwd=host, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return call


def mapped(wrapper, words):
    mounts, app = wrapper.app_call(describe(build_parser()), shlex.split(words))
    kinds = {text.split(",")[1].removeprefix("source="): text for text in mounts.words()[1::2]}
    return {path: "ro" if text.endswith(",readonly") else "rw" for path, text in kinds.items()}, app


@pytest.mark.parametrize(
    ("words", "mounted", "passed"),
    [
        ("", "", ""),
        ("--work_dir=work", "", ""),
        ("-d a=prep bundle", "prep:ro bundle:ro", "--derivatives a={0}/prep {0}/bundle"),
        ("--model bundle", "bundle:ro", "--model={0}/bundle"),
        ("--model classic", "", "--model=classic"),
        ("--target image:ref_T1w.nii.gz", "ref_T1w.nii.gz:ro", "--target=image:{0}/ref_T1w.nii.gz"),
        ("--target site:A", "", "--target=site:A"),
        ("--bids-filter-file filter.json", "filter.json:ro", "--bids-filter-file={0}/filter.json"),
        ("--nipype-plugin-file ./plugin.yml", "plugin.yml:ro", "--nipype-plugin-file={0}/plugin.yml"),
        ("--bids-database-dir db", "db:rw", "--bids-database-dir={0}/db"),
        ("--participant_label 01 02 --n-cpus 2", "", "--participant-label 01 02 --nprocs=2"),
        ("--config-file config.toml -w work", "config.toml:ro", "--config-file={0}/config.toml"),
        # a folder that is written to is not mounted read-only for a second flag
        ("-d mmh=out", "", "--derivatives mmh={0}/out"),
    ],
)
def test_paths_are_mounted_where_they_are(wrapper, host, words, mounted, passed):
    (host / "out").mkdir()
    mounts, app = mapped(wrapper, f"data/ds out participant {words}")
    expected = dict(item.split(":") for item in f"data/ds:ro out:rw work:rw {mounted}".split())
    assert mounts == {str(host / name): how for name, how in expected.items()}
    assert app[:3] == [f"{host}/data/ds", f"{host}/out", "participant"]
    assert sorted(app[3:]) == sorted([*passed.format(host).split(), f"--work-dir={host / 'work'}"])


def test_a_configuration_file_may_name_the_work_directory(wrapper, host):
    mounts, app = mapped(wrapper, "data/ds out participant --config-file config.toml")
    assert str(host / "work") not in mounts and app[3:] == [f"--config-file={host}/config.toml"]


def test_what_comes_out_says_the_same_to_the_app(wrapper, host):
    words = "data/ds out participant group --participant-label 01 sub-02 -d a=prep --mem 8G --random-seed -3 -vv -w w"
    assert parse(mapped(wrapper, words)[1]) == parse(shlex.split(words))


def test_every_flag_with_a_path_is_known_as_such():
    """A flag that takes a path has a type of `mmh_bids.cli.paths`; its metavar says whether it does."""
    for action in build_parser()._actions:
        takes = {"FILE", "DIR", "NAME=PATH", "NAME|DIR", "TARGET"} & {action.metavar}
        if takes or action.dest.endswith(("_dir", "_file")):
            assert action.type in PATH_KINDS, action.dest
        else:
            assert action.type not in PATH_KINDS, action.dest
    assert {value for name, value in vars(paths).items() if getattr(value, "__module__", "") == paths.__name__} == set(
        PATH_KINDS
    )


def test_output_inside_the_dataset_comes_after_it(wrapper, host):
    mounts, _ = wrapper.app_call(describe(build_parser()), ["data/ds", "data/ds/derivatives/mmh", "participant"])
    places = [text.split("target=")[1] for text in mounts.words()[1::2]]
    assert places.index(f"{host}/data/ds,readonly") < places.index(f"{host}/data/ds/derivatives/mmh")
    assert (host / "data/ds/derivatives/mmh").is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere out participant", "bids_dir nowhere: no such file or folder"),
        ("data/ds out participant -d a=nowhere", "--derivatives nowhere: no such file or folder"),
        ("data/ds filter.json participant", "output_dir filter.json: cannot be made (File exists)"),
        ("data/ds / participant", "output_dir /: mounted, it would hide the image's own files"),
        ("data/ds /opt/../opt/ participant", "output_dir /opt/../opt/: mounted, it would hide"),
        ("data/ds a,b participant", "output_dir a,b: a comma in a path cannot be mounted"),
        ("data/ds out participant --fancy", "unrecognized arguments: --fancy"),
        ("data/ds out", "the following arguments are required: analysis_level"),
        ("--gpus", "expected one argument"),
        ("--engine /nowhere/x data/ds out participant", "/nowhere/x: No such file or directory; name an engine"),
        ("--engine false data/ds out participant", f"mmh:{__version__}: is not here or no image of mmh (false run"),
    ],
)  # fmt: skip
def test_wrong_words_end_in_one_line(run, words, message):
    done = run(*words.split())
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("mmh-docker: error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_the_engine_gets_the_words_one_by_one(run, host):
    (host / "data/my ds").mkdir()
    done = run("data/my ds", "out", "participant", "--image", "site/mmh:7", "-w", "w")
    assert done.returncode == 0, done.stderr
    mount = "type=bind,source={0}/{1},target={0}/{1}"
    assert done.stdout.splitlines() == [
        "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", f"--user={os.getuid()}:{os.getgid()}",
        "--mount", mount.format(host, "data/my ds") + ",readonly", "--mount", mount.format(host, "out"),
        "--mount", mount.format(host, "w"),
        "site/mmh:7", f"{host}/data/my ds", f"{host}/out", "participant", f"--work-dir={host}/w",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "words", "expected", "absent"),
    [
        ("docker", "--gpus all", ["--gpus=all"], ["--security-opt=label=disable"]),
        ("docker", "--gpus 0,1", ['--gpus="device=0,1"'], ["--userns=keep-id"]),
        ("podman", "--gpus all", ["--device=nvidia.com/gpu=all"], ["--gpus=all", "--tmpfs=/tmp"]),
        ("podman", "--gpus 0,1", ["--device=nvidia.com/gpu=0", "--device=nvidia.com/gpu=1"], []),
        ("podman", "", ["--security-opt=label=disable"], []),
        ("docker", "--user 7:8", ["--user=7:8"], []),
        ("docker", "--user engine", ["--read-only"], ["--user=engine", f"--user={os.getuid()}:{os.getgid()}"]),
    ],
)
def test_gpus_and_user(run, engine, words, expected, absent):
    done = run("data/ds", "out", "participant", *words.split(), name=engine)
    assert done.returncode == 0, done.stderr
    given = done.stdout.splitlines()
    assert {"run", "--rm", "--read-only", "--network=none", *expected} <= set(given) and not set(absent) & set(given)
    # whatever is the engine's stands before the image, whatever is mmh's after it
    assert max(map(given.index, expected)) < given.index(f"mmh:{__version__}") < given.index("participant")


def test_podman_of_an_ordinary_user_keeps_the_ids(wrapper, monkeypatch):
    asked = wrapper.own_parser().parse_known_args([])[0]
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert {"--userns=keep-id", f"--user=1000:{os.getgid()}"} <= set(wrapper.engine_words(asked, podman=True))
    assert "--userns=keep-id" not in wrapper.engine_words(asked, podman=False)


def test_templates_of_the_host(run, host):
    done = run("data/ds", "out", "participant", TEMPLATEFLOW_HOME=str(host / "templates"))
    given = done.stdout.splitlines()
    assert f"--env=TEMPLATEFLOW_HOME={host}/templates" in given
    assert f"type=bind,source={host}/templates,target={host}/templates,readonly" in given


def test_print_shows_what_would_run(run):
    plain = run("data/ds", "out", "participant", "-w", "a b")
    shown = run("data/ds", "out", "participant", "-w", "a b", "--print")
    assert shlex.split(shown.stdout)[1:] == plain.stdout.splitlines()
    assert plain.stdout.splitlines()[0] == "run" and shown.stdout.count("\n") == 1


@pytest.mark.parametrize("flag", ["--help", "-h", "--version"])
def test_help_and_version_of_the_app_are_asked_of_the_image(run, flag):
    done = run(flag)
    assert done.returncode == 0
    tail = [
        "run",
        "--rm",
        "--network=none",
        f"mmh:{__version__}",
        flag.replace("-h", "--help") if flag == "-h" else flag,
    ]
    assert done.stdout.splitlines()[-5:] == tail
    assert ("--gpus WHICH" in done.stdout) is (flag != "--version")


def test_flags_of_another_time_are_refused(wrapper):
    with pytest.raises(wrapper.WrapperError, match="of another time"):
        wrapper.app_call(describe(build_parser()) | {"format": 99}, [])


def test_versions_agree(wrapper, repo_root):
    assert __version__ == wrapper.VERSION
    assert f"ARG VERSION={__version__}\n" in (repo_root / "Dockerfile").read_text()
