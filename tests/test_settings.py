"""Settings survive TOML, and the fingerprint follows what decides an image and nothing else."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmh_bids.errors import UsageError
from mmh_bids.settings import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLAIN = Settings(Path("/data"), Path("/out"))

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
paths = text.filter(lambda value: "\0" not in value).map(lambda value: Path("/a") / value)
VALUES = {
    "Path": paths,
    "Path | None": st.none() | paths,
    "str": text,
    "str | None": st.none() | text,
    "int": st.integers(-(2**62), 2**62),
    "bool": st.booleans(),
    "float | None": st.none() | st.floats(allow_nan=False),
    "tuple[str, ...]": st.lists(text, max_size=3).map(tuple),
    "tuple[tuple[str, str], ...]": st.lists(st.tuples(text, text), max_size=3).map(tuple),
}
FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Settings)}
ANY = st.builds(Settings, **{name: VALUES[kind] for name, kind in FIELDS.items()})


@given(asked=ANY)
def test_toml_there_and_back(asked):
    assert Settings.from_toml(asked.to_toml()) == asked


@given(asked=ANY)
def test_the_copy_of_a_run_is_plain_toml_without_empty_values(asked):
    values = tomllib.loads(asked.to_toml())
    assert set(values) == {name for name in FIELDS if getattr(asked, name) is not None}


def test_a_partial_file_gives_what_it_names():
    assert Settings.toml_values('method = "zscore"\noutput_spaces = ["MNI152NLin6Asym"]\nwork_dir = "w"') == {
        "method": "zscore",
        "output_spaces": ("MNI152NLin6Asym",),
        "work_dir": Path("w"),
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("metod = 'nyul'", "unknown setting.*metod.*method"),
        ("method = ", "not valid TOML"),
        ("= = =", "not valid TOML"),
    ],
)
def test_bad_files_are_usage_errors_of_one_line(content, says):
    with pytest.raises(UsageError, match=says) as error:
        Settings.toml_values(content)
    assert str(error.value).startswith("--config-file")
    assert "\n" not in str(error.value)


OTHER = {
    "method": "nyul", "model": "/my/bundle", "target": "site:A", "skull_strip": "force", "skull": "keep",
    "bias_correction": "none", "output_spaces": ("MNI152NLin6Asym",), "random_seed": 7, "sloppy": True,
    "derivatives": (("fmriprep", "/d"),),
}  # fmt: skip


@pytest.mark.parametrize("name", Settings.DECISIVE)
def test_each_decisive_setting_changes_the_fingerprint(name):
    changed = dataclasses.replace(PLAIN, **{name: OTHER[name]})
    assert changed.fingerprint() != PLAIN.fingerprint()


@pytest.mark.parametrize("name", sorted(set(FIELDS) - set(Settings.DECISIVE)))
def test_no_other_setting_changes_the_fingerprint(name):
    different = {"Path": Path("/x"), "str": "x", "int": 5, "bool": True, "float": 4.0, "tuple": ("x",)}
    kind = next(word for word in different if FIELDS[name].startswith(word))
    value = different[kind] if getattr(PLAIN, name) != different[kind] else False
    changed = dataclasses.replace(PLAIN, **{name: value})
    assert changed != PLAIN
    assert changed.fingerprint() == PLAIN.fingerprint()


def test_the_fingerprint_covers_what_else_decides_and_is_the_same_everywhere():
    marks = [PLAIN.fingerprint(source=source, bundle=bundle) for source in "ab" for bundle in "cd"]
    assert len(set(marks)) == 4
    assert PLAIN.fingerprint(bundle="c", source="a") == marks[0]
    assert all(len(mark) == 16 and int(mark, 16) >= 0 for mark in marks)


def test_settings_are_frozen_and_decisive_names_exist():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.method = "zscore"
    assert set(Settings.DECISIVE) <= set(FIELDS)
