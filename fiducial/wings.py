"""The folders that are packages of Fiducial: `fiducial.models` is the folder `models`, installed or not.

An installation has them inside `fiducial`. In a checkout they stand beside it and nothing has to be installed: they are
found here, and `models`, as it is called from the checkout's own folder, is the same package with the same modules.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
WINGS = ("diffusion", "models", "sampling", "evaluation", "studies")
IS_CHECKOUT = not all((PACKAGE / wing).is_dir() for wing in WINGS)
ASSETS = (ROOT if IS_CHECKOUT else PACKAGE) / "assets"  # the digits, and what ImageNet's classes are called


class Checkout(MetaPathFinder):
    """Finds the packages beside `fiducial`, by their long and by their short names."""

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        first, _, rest = name.partition(".")
        if first == PACKAGE.name and rest in WINGS:
            return PathFinder.find_spec(name, [str(ROOT)])
        if first in WINGS and rest.rpartition(".")[2] != "__main__" and _is_ours(first):
            spec = ModuleSpec(name, Same(f"{PACKAGE.name}.{name}"))
            if (folder := ROOT.joinpath(*name.split("."))).is_dir():
                spec.submodule_search_locations = [str(folder)]  # as `python -m` asks of a package
            return spec
        return None


class Same(Loader):
    """Gives a module that is there under another name."""

    def __init__(self, name: str):
        self._name, self._spec = name, None

    def create_module(self, _: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # which the import system has replaced


def _is_ours(wing: str) -> bool:
    """Whether the short name is this checkout's package, and not somebody else's."""
    there = sys.modules.get(wing)
    spec = there.__spec__ if there else PathFinder.find_spec(wing)
    return bool(spec and spec.origin) and Path(spec.origin).parent == ROOT / wing


def find_wings() -> None:
    """Have the packages found, where they are not inside this one; one that is being imported by its short name is exchanged."""
    if not IS_CHECKOUT:
        return
    sys.meta_path.insert(0, Checkout())
    for wing in WINGS:
        if wing in sys.modules and _is_ours(wing):
            sys.modules[wing] = importlib.import_module(f"{PACKAGE.name}.{wing}")
