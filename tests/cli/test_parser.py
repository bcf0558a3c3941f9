"""Flags become settings; wrong ones end in one line that names the flag."""

import dataclasses
import os
from pathlib import Path

import pytest

from mmh_bids.cli.parser import build_parser, memory_gb, parse
from mmh_bids.cli.run import main
from mmh_bids.errors import UsageError
from mmh_bids.machine import available_cpus, available_gb
from mmh_bids.settings import Settings

BASE = ("bids", "out", "participant")

#: Flag words to the fields they set; every flag of ``--help`` is here or in `OTHERS`.
FLAGS = {
    "--participant-label sub-01 02": {"participant_label": ("01", "02")},
    "--failed-only": {"failed_only": True},
    "--session-label ses-A B": {"session_label": ("A", "B")},
    "--modalities T2w": {"modalities": ("T2w",)},
    "--bids-filter-file f.json": {"bids_filter_file": Path.cwd() / "f.json"},
    "--skip-bids-validation": {"skip_bids_validation": True},
    "--bids-database-dir db": {"bids_database_dir": Path.cwd() / "db"},
    "-d fmriprep=/data/f /data/smriprep": {"derivatives": (("fmriprep", "/data/f"), ("smriprep", "/data/smriprep"))},
    "--derivatives a=/b": {"derivatives": (("a", "/b"),)},
    "--site-from session": {"site_from": "session"},
    "--site-column scanner": {"site_column": "scanner"},
    "--method nyul": {"method": "nyul"},
    "--model mmh-light": {"model": "mmh-light"},
    "--target site:A": {"target": "site:A"},
    "--target image:a.nii": {"target": f"image:{Path.cwd() / 'a.nii'}"},
    "--skull-strip force": {"skull_strip": "force"},
    "--skull keep": {"skull": "keep"},
    "--bias-correction none": {"bias_correction": "none"},
    "--output-spaces A B:res-2": {"output_spaces": ("A", "B:res-2")},
    "--bids-mirror m": {"bids_mirror": Path.cwd() / "m", "skull": "keep"},
    "--bids-mirror-files symlink": {"bids_mirror_files": "symlink"},
    "--random-seed 7": {"random_seed": 7},
    "--nprocs 3": {"nprocs": 3},
    "--n-cpus 3": {"nprocs": 3},
    "--omp-nthreads 4": {"omp_nthreads": 4},
    "--mem 8G": {"mem_gb": 8.0},
    "--mem 500M": {"mem_gb": 0.5},
    "--mem 4000": {"mem_gb": 4.0},
    "--low-mem": {"low_mem": True, "nprocs": 1},
    "--device cuda:1": {"device": "cuda:1"},
    "--use-plugin Linear": {"use_plugin": "Linear"},
    "--nipype-plugin-file p.yml": {"nipype_plugin_file": Path.cwd() / "p.yml"},
    "-w work": {"work_dir": Path.cwd() / "work"},
    "--work-dir ~/w": {"work_dir": Path("~/w").expanduser()},
    "--clean-workdir": {"clean_workdir": True},
    "--dry-run": {"dry_run": True},
    "--qc-fail exclude": {"qc_fail": "exclude"},
    "--reports-only": {"reports_only": True},
    "--boilerplate-only": {"boilerplate_only": True},
    "--stop-on-first-crash": {"stop_on_first_crash": True},
    "--resource-monitor": {"resource_monitor": True},
    "--write-graph": {"write_graph": True},
    "--sloppy": {"sloppy": True},
    "--notrack": {},
    "-vv": {"verbose": 2},
    "--verbose": {"verbose": 1},
}
OTHERS = {"--config-file", "--help", "--version", "-h"}


def _defaults(**changed):
    base = Settings(Path.cwd() / "bids", Path.cwd() / "out", work_dir=Path.cwd() / "work", nprocs=available_cpus())
    return dataclasses.replace(base, **changed)


@pytest.mark.parametrize("words", FLAGS)
def test_flag_sets_its_field_and_no_other(words):
    assert parse([*BASE, *words.split()]) == _defaults(**FLAGS[words])


def test_all_flags_are_tested_and_have_a_help_text():
    known = {word for action in build_parser()._actions for word in action.option_strings}
    assert known - OTHERS - {"-v"} == {word for words in FLAGS for word in words.split() if word[0] == "-"} - {"-vv"}
    assert all(action.help for action in build_parser()._actions)


def test_underscores_are_accepted_for_hyphens_but_values_stay():
    settings = parse([*BASE, "--participant_label", "a_b", "--site_column=my_site"])
    assert (settings.participant_label, settings.site_column) == (("a_b",), "my_site")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mem 0", "--mem: '0' is no amount of memory"),
        ("--mem 3X", "--mem: '3X' is no amount of memory"),
        ("--nprocs 0", "'0' is not a whole number above 0"),
        ("--omp-nthreads two", "'two' is not a whole number above 0"),
        ("--target foo", "--target: 'foo': write unified, site:LABEL or image:PATH"),
        ("--target image:", "--target: 'image:': write"),
        ("--device gpu", "--device: 'gpu': write auto, cpu, cuda or cuda:N"),
        ("--skull-strip maybe", "--skull-strip: invalid choice: 'maybe'"),
        ("--bids-mirror m --skull strip", "--bids-mirror: raw data are whole heads; leave --skull strip out"),
        ("--bids-mirror-files hard", "--bids-mirror-files: invalid choice: 'hard'"),
        ("--modalities FLAIR", "--modalities: invalid choice: 'FLAIR'"),
        ("--participant", "unrecognized arguments: --participant"),
        ("--random-seed x", "--random-seed: invalid int value: 'x'"),
        ("--fancy", "unrecognized arguments: --fancy"),
        ("-w ~nobody-here/w", "--work-dir: '~nobody-here/w': this home directory is not known here; write the path"),
        ("-d a=~nobody-here/w", "--derivatives: '~nobody-here/w': this home directory is not known here"),
    ],
)
def test_wrong_value_names_its_flag(words, message, capsys):
    with pytest.raises(UsageError) as caught:
        parse([*BASE, *words.split()])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [(), ("bids",), ("bids", "out"), ("bids", "out", "session")])
def test_missing_or_unknown_positional(words):
    with pytest.raises(UsageError, match="mmh --help lists the flags"):
        parse(list(words))


@pytest.mark.parametrize(
    ("words", "levels"),
    [
        (("group",), ("group",)),
        (("group", "participant"), ("participant", "group")),
        (("participant", "participant"), ("participant",)),
    ],
)
def test_levels_come_once_and_in_their_order(words, levels):
    assert parse(["bids", "out", *words]).analysis_level == levels


def test_help_and_version(capsys):
    for word, text in (("--help", "exit codes: 0 all done"), ("--version", "mmh ")):
        with pytest.raises(SystemExit) as caught:
            main([word])
        assert caught.value.code == 0
        assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"), [("1t", 1000.0), ("2GB", 2.0), ("0.5g", 0.5), ("100k", 1e-4), (" 7 M ", 7e-3)]
)
def test_memory(text, expected):
    assert memory_gb(text) == expected


def test_resources_of_this_machine():
    assert 1 <= available_cpus() <= os.cpu_count()
    assert available_gb() > 0.1


def test_model_folder_becomes_absolute_and_a_name_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "classic").mkdir()
    for word, expected in (("mine", str(tmp_path / "mine")), ("classic", "classic"), ("none", "none"),
                           ("./classic", str(tmp_path / "classic"))):  # fmt: skip
        assert parse([*BASE, "--model", word]).model == expected


# ---- configuration files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", FLAGS)
def test_settings_survive_a_configuration_file(words, tmp_path):
    asked = parse([*BASE, *words.split()])
    (tmp_path / "c.toml").write_text(asked.to_toml())
    assert parse([*BASE, "--config-file", str(tmp_path / "c.toml")]) == asked


def test_flags_win_over_the_configuration_file(tmp_path):
    (tmp_path / "c.toml").write_text('method = "none"\nparticipant_label = ["01", "02"]\nbids_dir = "/elsewhere"\n')
    settings = parse([*BASE, "--participant-label", "03", "--config-file", str(tmp_path / "c.toml")])
    assert (settings.method, settings.participant_label) == ("none", ("03",))
    assert settings.bids_dir == Path.cwd() / "bids"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'methd = "none"', "unknown setting(s) methd"),
        (b"method = ", "not valid TOML"),
        (b'nprocs = "many"', "'many' is not a whole number above 0"),
        (b'skull = "maybe"', "--skull: invalid choice: 'maybe'"),
        (b"work_dir = 5", "a value is of the wrong kind"),
        (b"derivatives = [5]", "a value is of the wrong kind"),
        (b"\xff\xfe", "cannot be read (not UTF-8 text)"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_unusable_configuration_file(tmp_path, content, message):
    file = tmp_path / "c.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        parse([*BASE, "--config-file", str(file)])
    assert str(caught.value).startswith(f"--config-file {file}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bundle_brings_its_method():
    assert parse([*BASE, "--model", "classic"]).method == "zscore"
    assert parse([*BASE, "--model", "classic", "--method", "nyul"]).method == "nyul"
    assert parse([*BASE, "--model", "/nowhere"]).method == _defaults().method
