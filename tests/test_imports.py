"""Who may import whom: the rule that keeps the evaluator usable alone and the numerics free of input and output."""

import ast

import pytest
from conftest import ROOT, run_command

PACKAGES = ("models", "diffusion", "sampling", "evaluation", "distributed", "sample_ddp", "scripts", "tests")
ALLOWED = {
    "distributed": set(),
    "models": {"distributed"},
    "diffusion": set(),
    "evaluation": {"distributed"},
    "sampling": {"models", "diffusion", "distributed"},
    "sample_ddp": {"sampling", "evaluation", "distributed"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
        yield from (name.split(".")[0] for name in names)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_follow_the_design(package):
    files = [ROOT / f"{package}.py"] if (ROOT / f"{package}.py").exists() else sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert {name for name in imported(path) if name in PACKAGES} - {package} <= ALLOWED[package], path


def test_plan_and_output_need_no_torch():
    for name in ("plan", "classes", "config", "output"):
        assert "torch" not in set(imported(ROOT / "sampling" / f"{name}.py"))


@pytest.mark.parametrize("program", ["models.__main__", "sampling.__main__", "evaluation.__main__", "sample_ddp"])
def test_what_takes_long_to_import_waits_for_user_errors(program):
    """Within it Ctrl-C is no traceback, and an orphan is ended; and --help comes at once."""
    heavy = {"torch", "diffusers", "safetensors", "scipy"} | ({"numpy", "PIL"} if program != "sample_ddp" else set())
    done = run_command("-c", f"import sys, {program}; print(sorted({heavy} & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_models_are_there_under_the_name_of_their_package():
    code = "import models; from models import DiT, DiT_models; assert DiT_models and models.DiT is DiT; models.x"
    done = run_command("-c", code)
    assert done.stderr.endswith("AttributeError: module 'models' has no attribute 'x'\n")
