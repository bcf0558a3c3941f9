"""Torchvision beside a PyTorch that it was not compiled for. Each case is a process: an import cannot be undone."""

import subprocess
import sys
import textwrap

import pytest


def run(code, folder=""):
    """Standard output of Python code; `folder` comes first on its path."""
    start = f"import sys; sys.path.insert(0, {str(folder)!r})\n" if folder else ""
    done = subprocess.run([sys.executable, "-c", start + textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def make_package(tmp_path):
    """``make_package(code)``: a folder with a package torchvision that runs `code` when imported."""

    def make(code):
        package = tmp_path / "torchvision"
        package.mkdir()
        (package / "__init__.py").write_text(textwrap.dedent(code))
        return tmp_path

    return make


#: What torchvision does at import, whether or not its compiled part has declared the operators.
DESCRIBES_OPERATORS = """
    import torch
    for name in ("nms", "qnms"):
        torch.library.register_fake(f"torchvision::{name}")(lambda dets, scores, iou_threshold: dets)
    imported = True
"""
CALLS = """
    from mmh_bids.models.vision import mend_torchvision
    print(mend_torchvision(), mend_torchvision())
    import torchvision
    print(torchvision.imported)
"""


def test_lightning_comes_up_after_the_training_package():
    assert run("import mmh_bids.training, lightning.fabric; print('up')") == "up\n"


def test_missing_operators_are_declared(make_package):
    folder = make_package(DESCRIBES_OPERATORS)
    with pytest.raises(AssertionError, match="operator torchvision::nms does not exist"):
        run("import torchvision", folder)
    assert run(CALLS, folder) == "True True\nTrue\n"


def test_one_declared_operator_is_not_declared_again(make_package):
    declares = """
    import torch
    library = torch.library.Library("torchvision", "FRAGMENT")
    if not hasattr(torch.ops.torchvision, "nms"):
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    """
    # the failed import must not take its own declaration along
    folder = make_package(textwrap.dedent(declares) + "torch.kept = library\n" + textwrap.dedent(DESCRIBES_OPERATORS))
    assert run(CALLS, folder) == "True True\nTrue\n"


def test_other_faults_are_left_alone(make_package):
    folder = make_package("raise RuntimeError('another fault')")
    code = """
        import torch
        from mmh_bids.models.vision import mend_torchvision
        print(mend_torchvision(), hasattr(torch.ops.torchvision, "nms"))
    """
    assert run(code, folder) == "False False\n"


def test_nothing_happens_without_torchvision():
    code = """
        import importlib.util, sys
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "torchvision" else find(name, *rest)
        from mmh_bids.models.vision import mend_torchvision
        print(mend_torchvision(), "torchvision" in sys.modules)
    """
    assert run(code) == "False False\n"
