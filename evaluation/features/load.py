"""Loading an extractor by its name."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import torch

from fiducial import Group, UserError
from fiducial.evaluation.features import TIMM, WEIGHTS, agreement, spec_of
from fiducial.evaluation.features.extractor import Extractor
from fiducial.memory import keep_freed_memory
from fiducial.precision import require_plain_float32


def load_extractor(
    name: str,
    weights: Mapping[str, str | Path] | None,
    group: Group,
    dtype: str = "float32",
    cache_dir: str | Path | None = None,
) -> Extractor:
    """The extractor called `name`.

    Args:
        weights: files by the name of whose weights they are, in place of the published ones; those of others are not looked at.
        cache_dir: where published weights are kept.

    Raises:
        UserError: if the weights are missing, damaged, or not this network's, or nothing here is multiplied in float32.
    """
    require_plain_float32(group.device)
    spec = spec_of(name)
    if dtype not in spec.dtypes:
        raise UserError(f"--dtype {dtype}: the extractor {name} runs in {' or '.join(spec.dtypes)} only")
    with torch.random.fork_rng(devices=[]):  # networks are made before their weights are read, which draws random numbers
        path = None
        if spec.weights:
            if group.device.type == "cpu":
                keep_freed_memory()
            path = spec.weights.find((weights or {}).get(spec.weights.name), group, cache_dir)
        module, function = spec.build.split(".")
        build = getattr(import_module(f"fiducial.evaluation.features.{module}"), function)
        extractor = build(spec, path, group.device, dtype)
        if group.device.type == "cuda" and dtype == "float32" and not (spec.timm and spec.timm.autocast):
            agreement.require(extractor, lambda: build(spec, path, torch.device("cpu"), dtype), group)
    return extractor


def require_taken(names: Sequence[str], weights: Mapping[str, str | Path]) -> None:
    """Raise UserError if a file was given that none of the extractors called `names` takes."""
    taken = {spec.weights.name for name in names if (spec := spec_of(name)).weights}
    for given, path in weights.items():
        if given not in WEIGHTS and not given.startswith(TIMM):
            raise UserError(f"--weights {given}={path}: no weights are called so; choose from {', '.join(WEIGHTS)}, or timm:NAME")
        if given not in taken:
            what = f"extractor is {names[0]}, which does" if len(names) == 1 else f"extractors are {', '.join(names)}, which do"
            raise UserError(f"--weights {given}={path}: the {what} not take them")


def given_for(name: str, weights: Mapping[str, str | Path]) -> Path | None:
    """The file that was given for the extractor called `name`, if one was."""
    own = spec_of(name).weights
    return Path(weights[own.name]) if own and own.name in weights else None
