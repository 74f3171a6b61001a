"""The choices of a sampler and of guidance: which go together, and which of them stand in a run's identity. No torch.

A configuration is taken by its fields, of which these are some: `config.py` builds on this file.
"""

from typing import TYPE_CHECKING, Protocol

from fiducial import UserError
from fiducial.diffusion.grids import Spacing, read_spacing
from fiducial.diffusion.guidance import SCHEDULES
from fiducial.diffusion.paths import CHAIN
from fiducial.diffusion.samplers import SAMPLERS, own_options

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENDS = {"closed": (False, False), "open": (True, True), "open-low": (True, False), "open-high": (False, True)}  # low, high
STATES = ("float32", "float64")
OF_FLOWS = ("path", "prediction", "grid", "state", "least_time", "noise_scale")
NULL_LABEL, INNER_HEAD = "null-label", "inner-head"  # what the same network is guided away from
USUAL = {"state": "float32", "guidance_ends": "closed", "cfg_schedule": "constant", "guidance_by": NULL_LABEL}
OF_GUIDANCE = (
    "guidance_interval",
    "guidance_ends",
    "cfg_schedule",
    "cfg_power",
    "guidance_by",
    "guidance_ckpt",
    "guidance_model",
)


class Choices(Protocol):
    """The fields of a `SamplingConfig` that are looked at here."""

    sampler: str | None
    num_sampling_steps: str
    own: "Mapping[str, float | str]"
    path: str | None
    prediction: str | None
    grid: str | None
    state: str
    least_time: float | None
    noise_scale: float | None
    cfg_scale: float
    cfg_schedule: str
    cfg_power: float
    guidance_interval: tuple[float, float]
    guidance_ends: str
    guidance_by: str
    guidance_ckpt: "Path | None"
    guidance_model: str | None


def rare(config: Choices) -> dict[str, str | float]:
    """Those of these that are not as usual, as they stand in an identity."""
    found = {name: getattr(config, name) for name, usual in USUAL.items() if getattr(config, name) != usual}
    return found | ({"cfg_power": config.cfg_power} if config.cfg_schedule == "power-cosine" else {})


def overruled(said: "Mapping[str, object]") -> set[str]:
    """The options that have no meaning beside what a person said, so that those of a preset or a file give way to it.

    Args:
        said: by the names of fields, what was said and nothing else.
    """
    names: set[str] = set()
    if said.get("labels") == "null" and "cfg_scale" not in said:
        names |= {"cfg_scale", *OF_GUIDANCE}
    if said.get("cfg_scale") == 1.0:
        names |= set(OF_GUIDANCE)
    if (row := SAMPLERS.get(str(said.get("sampler")))) is not None:
        names |= set(own_options()) - set(row.options)
        names |= set(OF_FLOWS) if CHAIN in row.solves else set()
    return names - set(said)


def check_sampler(config: Choices) -> None:
    """Raise UserError for options of a sampler that it does not have, or not so."""
    if config.sampler not in SAMPLERS:
        raise UserError(f"--sampler {config.sampler}: no such sampler; choose from {', '.join(SAMPLERS)}")
    for name in own_options():
        takers = {sampler: row.options[name] for sampler, row in SAMPLERS.items() if name in row.options}
        option = takers.get(config.sampler, next(iter(takers.values())))
        value, said = config.own.get(name, option.default), f"--{name.replace('_', '-')}"
        if not option.allows(value):
            raise UserError(f"{said} {value}: must be {option.said}")
        if value != option.default and config.sampler not in takers:
            raise UserError(f"{said} {value}: only --sampler {' or '.join(takers)} has it, not {config.sampler}")
    if CHAIN in SAMPLERS[config.sampler].solves:
        for name in OF_FLOWS:
            if getattr(config, name) not in (None, USUAL.get(name)):
                flows = ", ".join(sampler for sampler, row in SAMPLERS.items() if row.spacing)
                said = f"--{name.replace('_', '-')} {getattr(config, name)}"
                raise UserError(f"{said}: --sampler {config.sampler} has no such choice; {flows} have")
    elif spacing_of(config):
        _check_numbers(config)


def _check_numbers(config: Choices) -> None:
    if config.least_time is not None and not 0 <= config.least_time < 1:
        raise UserError(f"--least-time {config.least_time}: must be at least 0 and less than 1, such as JiT's 0.05")
    if config.noise_scale is not None and not 0 < config.noise_scale <= 100:
        raise UserError(f"--noise-scale {config.noise_scale}: must be more than 0 and at most 100")
    count = config.num_sampling_steps
    if count.isdecimal() and 1 <= int(count) <= 100_000:  # else the sampler says so itself
        try:
            spacing_of(config).times(int(count))
        except ValueError as error:
            raise UserError(f"--num-sampling-steps {count}: --grid {spacing_of(config).text} {error}") from error


def spacing_of(config: Choices) -> Spacing | None:
    """The builder of a run's grid; None where its sampler has a chain's timesteps.

    Raises:
        UserError: if what was given names none.
    """
    if config.grid is None:
        return SAMPLERS[config.sampler].spacing
    try:
        return read_spacing(config.grid)
    except ValueError as error:
        raise UserError(f"--grid {config.grid}: {error}") from error


def check_guidance(config: Choices) -> None:
    """Raise UserError for guidance that would be none, or is not in itself possible."""
    low, high = config.guidance_interval
    if not 0.0 <= low <= high <= 1.0:
        raise UserError(f"--guidance-interval {low},{high}: must be two numbers lo,hi with 0 <= lo <= hi <= 1; 1 is noise")
    if config.guidance_ends not in ENDS:
        raise UserError(f"--guidance-ends {config.guidance_ends}: must be one of {', '.join(ENDS)}")
    if config.cfg_schedule not in SCHEDULES:
        raise UserError(f"--cfg-schedule {config.cfg_schedule}: must be one of {', '.join(SCHEDULES)}")
    if not 0 < config.cfg_power <= 100:
        raise UserError(f"--cfg-power {config.cfg_power}: must be more than 0 and at most 100, such as MDT's 4")
    if config.cfg_power != 4.0 and config.cfg_schedule != "power-cosine":
        raise UserError(f"--cfg-power {config.cfg_power}: only --cfg-schedule power-cosine has one, not {config.cfg_schedule}")
    if config.guidance_model is not None and config.guidance_ckpt is None:
        raise UserError(f"--guidance-model {config.guidance_model}: only used with --guidance-ckpt, which is missing")
    if config.guidance_by not in (NULL_LABEL, INNER_HEAD):
        raise UserError(f"--guidance-by {config.guidance_by}: must be {NULL_LABEL} or {INNER_HEAD}")
    if config.guidance_by != NULL_LABEL and config.guidance_ckpt is not None:
        raise UserError(
            f"--guidance-by {config.guidance_by}: --guidance-ckpt {config.guidance_ckpt} is another network to guide away from; "
            "leave one of them out"
        )
    if config.cfg_scale != 1.0:
        return
    if (low, high) != (0.0, 1.0):
        raise UserError(f"--guidance-interval {low},{high}: --cfg-scale 1.0 has nothing to guide; leave it out, or give 0,1")
    for name, usual in (*USUAL.items(), ("guidance_ckpt", None)):
        if name != "state" and (value := getattr(config, name)) != usual:
            said = f"--{name.replace('_', '-')} {value}"
            raise UserError(f"{said}: --cfg-scale 1.0 has nothing to guide; leave it out, or give another scale")
