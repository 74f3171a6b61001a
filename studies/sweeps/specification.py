"""The specification of a sweep: the options that vary, the seeds, the rounds; checked by the sampler's parser. No torch."""

import hashlib
import itertools
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fiducial import UserError
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.options.parser import build_parser, parse

OWN = {  # options of `sample` that a sweep gives itself, and what to give in their place
    "global-seed": "--seeds",
    "run-name": "--out",
    "sample-dir": "--out",
    "num-fid-samples": "--num-fid-samples of the sweep",
    "dry-run": "--dry-run of the sweep",
    "help": "fiducial sample --help",
    "version": "fiducial --version",
    "ref": "--ref of the sweep",
}
MOST = 4096  # runs
SLUG = 70  # characters of what differs in the name of a run


@dataclass(frozen=True)
class Configuration:
    """One point of the grid: `values` by option, as text, `name` for people, and `key`, by which its runs are called."""

    name: str
    key: str
    values: dict[str, str]


@dataclass(frozen=True)
class Specification:
    """All that determines a sweep's images and decisions. `over` holds the values by option, `options` those of all runs."""

    over: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    start: int
    count: int
    growth: float
    metric: str
    options: tuple[str, ...]

    def to_json(self) -> dict:
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, data: dict) -> "Specification":
        over = {name: tuple(values) for name, values in data["over"].items()}
        return cls(**{**data, "over": over, "seeds": tuple(data["seeds"]), "options": tuple(data["options"])})

    @property
    def sizes(self) -> list[int]:
        """Images of each run in each round, ascending; the last is all of them."""
        found, size = [], float(self.start)
        while size < self.count:
            found.append(round(size))
            size *= self.growth
        return [*found, self.count]

    @property
    def configurations(self) -> list[Configuration]:
        """The grid, the option that was given first varying slowest."""
        found = []
        for values in itertools.product(*self.over.values()):
            pairs = dict(zip(self.over, values, strict=True))
            name = ", ".join(f"{option} {_short(value)}" for option, value in pairs.items())
            slug = re.sub(r"[^A-Za-z0-9.+]+", "-", name).strip("-.")[:SLUG]
            content = json.dumps([self.options, pairs])
            found.append(Configuration(name, f"{slug}-{hashlib.sha256(content.encode()).hexdigest()[:6]}", pairs))
        return found

    def arguments(self, one: Configuration, seed: int, count: int, folder: Path) -> list[str]:
        """Of `fiducial sample`, for the run of a configuration and seed."""
        given = [*self.options, *(f"--{option}={value}" for option, value in one.values.items()), f"--global-seed={seed}"]
        return [*given, f"--num-fid-samples={count}", f"--sample-dir={folder}", f"--run-name={run_of(one, seed)}"]


def run_of(one: Configuration, seed: int) -> str:
    """The name of a run."""
    return f"{one.key}-seed-{seed}"


def parsed_over(texts: list[str], options: set[str]) -> dict[str, tuple[str, ...]]:
    """Options and their values of `--over NAME=VALUE,VALUE`, or with semicolons between values that have commas in them.

    Raises:
        UserError: for what is no option, is given twice, or has no two values.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, rest = text.removeprefix("--").partition("=")
        name = name.replace("_", "-")
        values = tuple(value.strip() for value in rest.split(";" if ";" in rest else ",") if value.strip())
        if not equals or not values:
            raise UserError(f"--over {text}: must be NAME=VALUE,VALUE such as cfg-scale=1,1.25,1.5")
        if name in OWN:
            raise UserError(f"--over {text}: cannot be swept; see {OWN[name]}")
        if name not in options:
            raise UserError(f"--over {text}: --{name} is no option of fiducial sample that takes a value")
        if name in found:
            raise UserError(f"--over {text}: --{name} is given twice")
        if repeated := next((value for value in values if values.count(value) > 1), None):
            raise UserError(f"--over {text}: {repeated} is there twice")
        found[name] = values
    return found


def checked(spec: Specification) -> Specification:
    """The same with the size of a block, which is part of a run and must not change as it grows.

    Raises:
        UserError: in one sentence, for what the sampler does not take, or two configurations that are one.
    """
    if len(spec.configurations) * len(spec.seeds) > MOST:
        raise UserError(f"--over: {len(spec.configurations)} configurations of {len(spec.seeds)} seeds are over {MOST:,} runs")
    given = {text.partition("=")[0].removeprefix("--") for text in spec.options if text.startswith("--")}
    if own := sorted(given & OWN.keys() - {"ref"}):
        raise UserError(f"--{own[0]}: a sweep gives it to its runs itself; see {OWN[own[0]]}")
    if both := sorted(given & spec.over.keys()):
        raise UserError(f"--{both[0]}: is given for all runs and by --over; leave one of them out")
    seen: dict[str, Configuration] = {}
    for one in spec.configurations:
        config = _config(spec, one)
        if (other := seen.setdefault(repr(replace(config, run_name=None)), one)) is not one:
            raise UserError(f"--over: {other.name} and {one.name} are the same configuration; leave one of them out")
    if "per-proc-batch-size" in given | spec.over.keys():
        return spec
    return replace(spec, options=(*spec.options, f"--per-proc-batch-size={config.per_proc_batch_size}"))


def _config(spec: Specification, one: Configuration) -> SamplingConfig:
    try:
        return parse(spec.arguments(one, spec.seeds[0], spec.start, Path("samples")))[0]
    except UserError as error:
        raise UserError(f"{one.name}: {error}") from error


def valued_options() -> set[str]:
    """The options of `sample` that take a value, without dashes."""
    actions = build_parser()._actions
    return {text.removeprefix("--") for one in actions if one.nargs is None for text in one.option_strings if text[:2] == "--"}


def _short(value: str) -> str:
    """A value as a name has it: of a path its end."""
    return Path(value).name if "/" in value else value
