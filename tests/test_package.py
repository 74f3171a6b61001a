"""Fiducial as a package: what a wheel holds, and that it works where there is no checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from conftest import ROOT, run_command

from fiducial.__main__ import COMMANDS
from fiducial.version import VERSION
from fiducial.wings import WINGS

SMALL = ("--num-fid-samples", "4", "--per-proc-batch-size", "2", "--num-sampling-steps", "2")
PLAIN = ("--precision", "fp32", "--no-compile", "--device", "cpu")


class Installed:
    """An environment of its own, which has the dependencies of this one and nothing of ours, and a folder to work in."""

    def __init__(self, place: Path):
        venv.create(place / "env", with_pip=True)
        self.folder, self.bin = place / "work", place / "env" / "bin"
        self.folder.mkdir()
        packages = next((place / "env" / "lib").iterdir()) / "site-packages"
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, *words: str | Path) -> subprocess.CompletedProcess:
        """A program of the environment, started in the folder."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
        environment = kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": f"{self.bin}{os.pathsep}{kept['PATH']}"}
        program, *rest = map(str, words)
        done = subprocess.run(
            [str(self.bin / program), *rest], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done


def tree(folder: Path) -> Path:
    """The files of the checkout that belong to the project, elsewhere: building leaves files where it is done."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if not (ROOT / name).is_file() or name.startswith(("tests/", "docs/")):
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    place = tmp_path_factory.mktemp("installed")
    there = Installed(place)
    there.run("pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", tree(place / "tree"))
    return there


def test_every_folder_of_the_packages_is_in_the_wheel():
    """And nothing else: a folder of code that is forgotten in pyproject.toml is missing only where it is installed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for wing in ("fiducial", *WINGS) for path in (ROOT / wing).rglob("*.py")}
    names = {".".join(folder.parts if folder.parts[0] == "fiducial" else ("fiducial", *folder.parts)) for folder in folders}
    assert set(settings["packages"]) == names | {"fiducial.assets"}
    tops = {"fiducial": "fiducial", "fiducial.assets": "assets"} | {f"fiducial.{wing}": wing for wing in WINGS}
    assert settings["package-dir"] == tops


def test_digits_are_drawn_and_evaluated_where_it_is_installed(installed):
    done = installed.run("fiducial", "sample", "--preset", "digits", *SMALL, *PLAIN, "--ref", "digits", "--run-name", "run")
    assert "FID-digits" in done.stdout
    result = json.loads((installed.folder / "samples" / "run.json").read_text())
    assert result["fiducial"]["version"] == VERSION
    assert result["fiducial"]["commit"] is None
    assert result["reference"]["path"].endswith("fiducial/assets/digits/reference.npz")
    again = installed.run("fiducial", "evaluate", "samples/run.npz", "--ref", "digits", "--json", "-", "--device", "cpu")
    assert json.loads(again.stdout)["metrics"] == result["metrics"]
    assert "complete, 4 of 4 images" in installed.run("fiducial", "status", "samples/run").stdout


def test_ranks_draw_the_same_where_it_is_installed(installed):
    """Also in the checkout of somebody else's, which has scripts and folders of the same names."""
    foreign = [installed.folder / name for name in ("sample_ddp.py", "models.py", "studies.py")]
    for path in foreign:
        path.write_text("raise SystemExit('not this one')")
    options = ("sample", "--preset", "digits", "--exact", *SMALL, "--device", "cpu")
    launcher = ("torchrun", "--standalone", "--nproc_per_node=2", "-m", "fiducial")
    installed.run("python", "-m", "torch.distributed.run", *launcher[1:], *options, "--run-name", "two")
    installed.run("fiducial", *options, "--run-name", "one")
    for path in foreign:
        path.unlink()
    one, two = ((installed.folder / "samples" / f"{name}.npz").read_bytes() for name in ("one", "two"))
    assert one == two


def test_what_is_imported_where_it_is_installed(installed):
    code = """
import fiducial, importlib.util, sys
from fiducial.evaluation import Evaluator
from fiducial.models import DiT_models
assert Evaluator.__module__.startswith("fiducial.evaluation")
assert DiT_models["DiT-XL/2"].__module__ != "models"
assert importlib.util.find_spec("models") is None  # the short names are the checkout's
assert not any(type(finder).__name__ == "Checkout" for finder in sys.meta_path)
print(fiducial.__file__)
"""
    assert Path(installed.run("python", "-c", code).stdout.strip()).is_relative_to(installed.bin.parent)


def test_commands_are_called_as_they_are_typed(installed):
    """Help and messages of an installation name no file of a checkout."""
    for name in COMMANDS:
        said = installed.run("fiducial", name, "--help").stdout
        assert said.startswith(f"usage: fiducial {name}"), said.splitlines()[0]
        assert "python -m" not in said, name
        assert "sample_ddp.py" not in said, name


def test_an_editable_installation_is_the_checkout(tmp_path):
    there, place = Installed(tmp_path), tree(tmp_path / "tree")
    there.run("pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--editable", place)
    code = "import fiducial.models.probe; from fiducial.evaluation import Evaluator; print(fiducial.models.probe.__file__)"
    assert Path(there.run("python", "-c", code).stdout.strip()) == place / "models" / "probe.py"
    there.run("fiducial", "sample", "--preset", "digits", *SMALL, *PLAIN, "--run-name", "run")
    assert (there.folder / "samples" / "run.npz").exists()


def test_the_command_of_a_checkout_needs_no_installation():
    done = run_command("-m", "fiducial", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Fiducial {VERSION}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sampel"], "error: argument COMMAND: invalid choice: 'sampel'"),
        ([], "error: the following arguments are required: COMMAND"),
        (["evaluate"], "error: the following arguments are required: samples"),
        (["fetch", "dit-xl-2-255"], "error: "),
    ],
)
def test_a_mistake_is_one_sentence(words, said):
    done = run_command("-m", "fiducial", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr
    assert sys.executable not in done.stderr
