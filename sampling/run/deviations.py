"""In which choices a run is drawn otherwise than the published row of its preset."""

from pathlib import Path

from fiducial.diffusion.paths import CHAIN
from fiducial.models.checkpoints.catalogue import place_of
from fiducial.models.networks.table import is_guided_outside, spec_of
from fiducial.sampling.options import presets
from fiducial.sampling.options.choices import OF_GUIDANCE, spacing_of
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.options.parser import parse
from fiducial.sampling.source.flow import Flow

SIMPLE = ("model", "vae", "latent_stats", "latent_multiplier", "image_size", "num_classes", "weights_key", "cfg_scale")
FETCHED = ("vae", "latent_stats", "guidance_ckpt")  # of published files, which a run has by their local paths
Told = str | int | float | bool | list | None


def told(preset: str | None, config: SamplingConfig, weights: str | None = None, asked: str | None = None) -> dict | None:
    """The published row of a preset for a manifest, and under `differing` each choice that the run has otherwise: the name of the
    option, the row's value and the run's, None where that has none. None where the preset has no row.

    Args:
        config: of the run, with nothing untold in it.
        weights: the key of its weights; None: as `config` says.
        asked: the same where its file holds others that would be taken by themselves, else None.
    """
    if (row := presets.told(preset)) is None:
        return None
    theirs = choices(parse(["--preset", preset])[0])
    ours = choices(config)
    if weights is not None:
        ours["weights_key"] = asked if theirs["weights_key"] is None else weights
    for name in FETCHED:
        if (place := place_of(theirs.get(name))) and str(ours.get(name)) == str(place.path(config.cache_dir)):
            ours[name] = theirs[name]
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return row | {"differing": [[name, _plain(theirs.get(name)), _plain(ours.get(name))] for name in names]}


def choices(config: SamplingConfig) -> dict[str, object]:
    """The choices that a run's images depend on beside seed, labels, rounding and numerics, by option; those without effect in it
    are left out.
    """
    spec = spec_of(config.model)
    found = {name: getattr(config, name) for name in SIMPLE}
    found |= {"sampler": config.sampler, "num_sampling_steps": config.num_sampling_steps, **config.sampler_options()}
    if config.cfg_scale != 1.0:
        found |= {name: getattr(config, name) for name in OF_GUIDANCE if name != "cfg_power"}
        found |= {"cfg_power": config.cfg_power} if config.cfg_schedule == "power-cosine" else {}
        found |= {"cfg_channels": config.cfg_channels} if is_guided_outside(config.model, config.cfg_scale) else {}
    if spec.path == CHAIN:
        return found
    flow, spacing = Flow.of(config), spacing_of(config)
    found |= {"path": flow.spec.path, "prediction": flow.spec.predicts, "grid": spacing and spacing.text, "state": config.state}
    return found | {"least_time": flow.least_time, "noise_scale": flow.noise_scale}


def _plain(value: object) -> Told:
    """As JSON has it."""
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def tell_of_rows(config: SamplingConfig) -> str | None:
    """A sentence on the presets of a run's model where it was drawn by none of them; None where there are none."""
    wanted = {"model": config.model, "image_size": config.image_size, "num_classes": config.num_classes}
    names = [name for name, row in presets.ROWS.items() if wanted.items() <= row.options.items()]
    if not names:
        return None
    return (
        f"note: published settings of {config.model} at {config.image_size} are --preset {' or '.join(names)}; these are your own"
    )
