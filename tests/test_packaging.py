"""What setup.cfg and constraints.txt promise holds for the code as it is."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points, packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: asked for though no module imports them (yet): MONAI's needs and what messages tell the user to call
INDIRECT = {"einops", "monai", "nilearn", "scikit-fuzzy", "templateflow"}


@pytest.fixture(scope="module")
def metadata(repo_root):
    parser = configparser.ConfigParser(comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str
    parser.read(repo_root / "setup.cfg", encoding="utf-8")
    return parser


def _requirements(text):
    return [Requirement(line) for line in text.strip().splitlines()]


@pytest.fixture(scope="module")
def declared(metadata):
    return {canonicalize_name(item.name) for item in _requirements(metadata["options"]["install_requires"])}


def _imported(paths):
    """Distributions whose modules these files import, anywhere in a file."""
    modules = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    modules -= sys.stdlib_module_names | {"mmh_bids", "tomllib"}
    owners = packages_distributions()
    return {canonicalize_name(owners.get(module, [module])[0]) for module in modules}


def _for_training(package):
    """Modules that only a training needs: the image tower of the style encoder is one."""
    return {*(package / "training").rglob("*.py"), package / "models" / "tower.py"}


@pytest.fixture(scope="module")
def imported(repo_root):
    """Distributions that mmh_bids imports where no training is asked for."""
    package = repo_root / "mmh_bids"
    return _imported(set(package.rglob("*.py")) - _for_training(package))


def test_training_imports_what_its_extra_declares(repo_root, metadata, declared):
    extra = {canonicalize_name(item.name) for item in _requirements(metadata["options.extras_require"]["train"])}
    assert _imported(_for_training(repo_root / "mmh_bids")) <= declared | extra


def test_every_import_is_declared(imported, declared):
    assert imported - declared == set()


def test_nothing_declared_is_unused(imported, declared):
    assert declared - imported == INDIRECT - imported


def test_everything_declared_is_pinned(metadata, repo_root):
    pins = _requirements(re.sub(r"(?m)^#.*\n", "", (repo_root / "constraints.txt").read_text(encoding="utf-8")))
    wanted = metadata["options"]["install_requires"] + "".join(metadata["options.extras_require"].values())
    for python in ("3.10", "3.11", "3.12", "3.13"):
        here = {"python_version": python}
        pinned = [canonicalize_name(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate(here)]
        assert len(pinned) == len(set(pinned)), "two pins of a package for one Python"
        for item in _requirements(wanted):
            if item.marker is None or item.marker.evaluate(here):
                assert canonicalize_name(item.name) in pinned, f"{item.name} on Python {python}"
    assert all(str(pin.specifier).startswith("==") for pin in pins)


def test_entry_points_load():
    scripts = [item for item in entry_points(group="console_scripts") if item.value.startswith("mmh_bids.")]
    methods = list(entry_points(group="mmh_bids.harmonizers"))
    assert {"mmh", "mmh-evaluate", "mmh-simulate", "mmh-train"} <= {item.name for item in scripts}
    assert {"none", "zscore", "whitestripe", "nyul", "histmatch"} <= {item.name for item in methods}
    for item in scripts + methods:
        assert callable(item.load())


@pytest.mark.slow
def test_wheel_carries_the_package_data(repo_root, tmp_path):
    """Built from a copy, as a build leaves files beside setup.cfg; the tools of the environment suffice offline."""
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo_root / name, source)
    shutil.copytree(repo_root / "mmh_bids", source / "mmh_bids", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("mmh_bids/")}
    expected = {str(path.relative_to(source)) for path in (source / "mmh_bids").rglob("*") if path.is_file()}
    assert inside == expected
