"""Who may import whom: the rule that keeps the evaluator usable alone and the numerics free of input and output."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, run_command

from fiducial.wings import WINGS

GROUND, PROGRAM = "fiducial", "sample_ddp"
ROOF = ROOT / "fiducial" / "__main__.py"  # the one command, which starts those of every package
ALLOWED = {
    "fiducial": set(),
    "models": {"fiducial"},
    "diffusion": {"fiducial"},
    "evaluation": {"fiducial"},
    "sampling": {"fiducial", "models", "diffusion"},
    "studies": {"fiducial", "models", "diffusion", "sampling", "evaluation"},
    "sample_ddp": {"fiducial", "sampling", "studies"},
}
FIRST = "import fiducial"  # of each package, so that the others are found; it imports nothing of it


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it, by their full names; those for typing only as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wing(module: str) -> str:
    """The package of ours that a module is in, or the first part of its name."""
    first, _, rest = module.partition(".")
    second = rest.partition(".")[0]
    return second if first == GROUND and second in WINGS else first


def files_of(package: str) -> list[Path]:
    files = [ROOT / f"{package}.py"] if (ROOT / f"{package}.py").exists() else sorted((ROOT / package).rglob("*.py"))
    assert files
    return files


def modules() -> dict[str, Path]:
    """Every file of the packages by the name of its module."""
    found = {}
    for package in (GROUND, *WINGS):
        for path in files_of(package):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(parts if package == GROUND else (GROUND, *parts))] = path
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_follow_the_design(package):
    ours = {*ALLOWED, "scripts", "tests"}
    for path in set(files_of(package)) - {ROOF}:
        names = set(imported(path)) - ({GROUND} if path.name == "__init__.py" and FIRST in path.read_text() else set())
        assert {wing(name) for name in names} & ours - {package} <= ALLOWED[package], path


def test_packages_are_imported_by_their_long_names():
    for path in [*modules().values(), ROOT / f"{PROGRAM}.py", *(ROOT / "scripts").glob("*.py")]:
        assert not {name.partition(".")[0] for name in imported(path)} & set(WINGS), path


def test_no_module_imports_itself_in_a_circle():
    """Whatever is imported for typing only, or within a function, counts as well."""
    there = modules()
    graph = {name: {other for other in imported(path) if other in there and other != name} for name, path in there.items()}
    for name, path in there.items():
        if path.name == "__init__.py":  # a package is imported with every one of its modules, which may need it
            graph[name] = set()
    state: dict[str, int] = {}

    def visit(name: str, way: list[str]) -> None:
        if state.get(name) == 2:
            return
        assert state.get(name) != 1, " -> ".join([*way[way.index(name) :], name])
        state[name] = 1
        for other in sorted(graph[name]):
            visit(other, [*way, name])
        state[name] = 2

    for name in sorted(graph):
        visit(name, [])


def test_plan_options_and_store_need_no_torch():
    folder = ROOT / "sampling"
    for path in (folder / "plan.py", *(folder / "options").glob("*.py"), *(folder / "store").glob("*.py")):
        assert "torch" not in {module.partition(".")[0] for module in imported(path)}, path


@pytest.mark.parametrize("program", ["models.__main__", "sampling.__main__", "evaluation.__main__", "sample_ddp"])
def test_what_takes_long_to_import_waits_for_user_errors(program):
    """Within it Ctrl-C is no traceback, and an orphan is ended; and --help comes at once."""
    heavy = {"torch", "diffusers", "safetensors", "scipy"} | ({"numpy", "PIL"} if program != "sample_ddp" else set())
    done = run_command("-c", f"import sys, {program}; print(sorted({heavy} & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_models_are_there_under_the_name_of_their_package():
    code = "import models; from models import DiT, DiT_models; assert DiT_models and models.DiT is DiT; models.x"
    done = run_command("-c", code)
    assert done.stderr.endswith("AttributeError: module 'fiducial.models' has no attribute 'x'\n")


@pytest.mark.parametrize(
    "code",
    [
        "import models, models.probe, fiducial.models.probe as long",
        "import fiducial.models.probe as long; import models.probe, models",
        "from models import probe; import models, fiducial; from fiducial.models import probe as long",
    ],
)
def test_a_package_is_the_same_by_both_names(code):
    same = "assert models.probe is long and models is fiducial.models and models.DiT is long.DiT"
    spec = "assert (long.__spec__.name, long.__name__) == ('fiducial.models.probe',) * 2"
    done = run_command("-c", f"{code}; import fiducial; {same}; {spec}")
    assert (done.returncode, done.stderr) == (0, "")


def test_somebody_elses_package_of_the_same_name_stays_theirs(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("mine = 1")
    (tmp_path / "models" / "probe.py").write_text("mine = 2")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; sys.path.append({str(ROOT)!r}); import fiducial.models.probe; "
    done = run_command("-P", "-c", f"{code} import models, models.probe; assert (models.mine, models.probe.mine) == (1, 2)")
    assert (done.returncode, done.stderr) == (0, "")
