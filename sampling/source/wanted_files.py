"""The files of a run that its options name by where they are published: which are here, and where the others come from."""

from dataclasses import dataclass, replace
from pathlib import Path

from fiducial import Group, UserError, say
from fiducial.models.checkpoints import catalogue, hub
from fiducial.models.checkpoints.places import Page, Place
from fiducial.models.decoders.autoencoder import NAMED_VAES
from fiducial.sampling.options.config import SamplingConfig


@dataclass(frozen=True)
class Wanted:
    """One file, or a codec's folder; `path` is where it is, or will be."""

    option: str
    source: str  # in words
    path: Path
    is_here: bool
    place: Place | None = None

    @property
    def line(self) -> str:
        """For people."""
        if self.is_here:
            return f"file      {self.option}: is here, {self.path}"
        return f"file      {self.option}: not here; from {self.source}; to {self.path}"


def wanted(config: SamplingConfig) -> list[Wanted]:
    """The files that a run takes from where others have published them, those given as paths of one's own left out.

    Raises:
        UserError: if an option names no such file, or nothing is published of the model where no checkpoint is given.
    """
    cache_dir = config.cache_dir
    if config.ckpt is None:
        places = {"--ckpt": catalogue.choose(config.model, config.image_size, config.num_classes).checkpoint}
    else:
        places = {"--ckpt": catalogue.place_of(config.ckpt)}
    for name in ("vae", "latent_stats", "guidance_ckpt"):
        places[f"--{name.replace('_', '-')}"] = catalogue.place_of(getattr(config, name))
    found = [
        Wanted(option, place.said, place.path(cache_dir), place.is_there(cache_dir), place)
        for option, place in places.items()
        if place
    ]
    repository = NAMED_VAES.get(config.vae, config.vae)
    if places["--vae"] is None and hub.is_hub_id(repository) and not Path(config.vae).exists():
        is_here, kept = hub.is_here(repository, cache_dir), hub.kept_at(repository, cache_dir)
        found.insert(1, Wanted("--vae", f"https://huggingface.co/{repository}", kept, is_here))
    return found


def require_fetchable(config: SamplingConfig) -> None:
    """Raise UserError for a file that is not here and that no program can fetch."""
    for one in wanted(config):
        if isinstance(one.place, Page) and not one.is_here:
            one.place.find(one.option, config.cache_dir)


def require_here(config: SamplingConfig) -> None:
    """Say of each file of a run whether it is here and where it comes from, for a dry run, which downloads nothing.

    Raises:
        UserError: if one of them is not here.
    """
    found = wanted(config)
    say(*(one.line for one in found))
    if missing := [one.option for one in found if not one.is_here]:
        raise UserError(
            f"{' and '.join(missing)}: published, but not here, and a dry run downloads nothing; python -m models fetch PRESET "
            "brings what a program can fetch, or give files of your own by these options"
        )


def found_beside(config: SamplingConfig, group: Group) -> SamplingConfig:
    """The configuration with local paths in the place of published codec, statistics and second network, which are downloaded
    if need be, by rank 0 and then by the first rank of each node that does not see them."""
    for name in ("vae", "latent_stats", "guidance_ckpt"):
        given, option = getattr(config, name), f"--{name.replace('_', '-')}"
        is_network = name == "guidance_ckpt"
        if given is None or not (is_network or catalogue.place_of(given)):
            continue
        asked = [f"{name}-place", given, config.cache_dir]
        path = group.once_per_node(asked, lambda: str(_local(given, option, config.cache_dir)), main_first=True)  # noqa: B023
        config = replace(config, **{name: Path(path) if is_network else path})
    return config


def _local(given: Path | str, option: str, cache_dir: Path | None) -> Path:
    return catalogue.find_given(Path(given), option, cache_dir)
