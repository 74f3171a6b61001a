"""A run's files on a node: every node makes sure that its own are those that rank 0 has read."""

import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from fiducial import Group, UserError
from fiducial.models.checkpoints import checkpoint
from fiducial.models.checkpoints.checkpoint import Checkpoint
from fiducial.models.decoders import affine
from fiducial.models.decoders.affine import Affine
from fiducial.models.decoders.table import Decoder, decoder_of
from fiducial.models.networks.table import spec_of
from fiducial.sampling.identity import Identity
from fiducial.sampling.options.config import SamplingConfig

STATISTICS = "latent_stats_sha256"  # in an identity, where they are not those of the codec's configuration


class NodeFiles:
    """The checkpoint and the codec of a run, on the node of this rank.

    Args:
        told: the statistics of latents that the checkpoint holds, as `told` gives them.
    """

    def __init__(self, config: SamplingConfig, identity: Identity, group: Group, told: Mapping | None = None):
        self._config, self._identity, self._group, self._told = config, identity, group, told
        self._folder: Path | None = None

    def meet(self) -> None:
        """For all ranks that have blocks to draw: the first of a node, which has some if any has, checks the node's files."""
        asked = ["vae", self._config.vae, self._config.cache_dir]
        self._folder = Path(self._group.once_per_node(asked, lambda: str(self._find())))

    def codec(self) -> Decoder:
        """Of this node, not loaded."""
        self._folder = self._find()
        codec = decoder_of(self._config.vae).open(self._folder)
        codec.affine = statistics_of(self._config, self._told) or codec.affine
        if output := output_of(self._config, codec):
            codec.output_scale = output
        return codec

    def _find(self) -> Path:
        """The codec's folder; on all ranks but 0, after a look at the files."""
        if self._folder is None:
            self._folder = find_vae(self._config)
            if not self._group.is_main:
                self.check(self._folder)
        return self._folder

    def check(self, folder: Path) -> None:
        """Raise UserError if a file of this node is not the one that rank 0 has read; `folder` is the codec's."""
        found = {"checkpoint_sha256": None, "vae_sha256": None}
        with suppress(UserError):
            found["checkpoint_sha256"] = checkpoint.sha256(self._config.ckpt)
        with suppress(UserError):
            found["vae_sha256"] = decoder_of(self._config.vae).open(folder).sha256
        paths = [self._config.ckpt, folder]
        if self._config.guidance_ckpt is not None:
            found["guidance_checkpoint_sha256"] = None
            paths.append(self._config.guidance_ckpt)
            with suppress(UserError):
                found["guidance_checkpoint_sha256"] = checkpoint.sha256(self._config.guidance_ckpt)
        for path, (name, sha256) in zip(paths, found.items(), strict=True):
            if sha256 != self._identity.values[name]:
                raise UserError(f"{path} on {socket.gethostname()} is missing or another file than on the first node")
        own = statistics_of(self._config, self._told)
        if (own and own.sha256) != self._identity.values.get(STATISTICS):
            said = f"--latent-stats {self._config.latent_stats} on {socket.gethostname()}"
            raise UserError(f"{said} is another file than on the first node")


def statistics_of(config: SamplingConfig, told: Mapping | None = None) -> Affine | None:
    """The map of latents that stands in for that of the codec's configuration; None where there is none.

    Raises:
        UserError: if `--latent-stats` says none.
    """
    if config.latent_stats is not None:
        return affine.read(config.latent_stats, config.latent_multiplier or 1.0)
    return affine.from_parts({name: torch.tensor(values) for name, values in told.items()}) if told else None


def output_of(config: SamplingConfig, codec: Decoder) -> str | None:
    """The scale of a ViT decoder's numbers, of `rounding.OUTPUTS`: as `--vae-output` says, or as the network's family has it;
    None of other codecs, whose images have one scale.

    Raises:
        UserError: if `--vae-output` is given for one of those.
    """
    if not hasattr(codec, "output_scale"):
        if config.vae_output is not None:
            raise UserError(f"--vae-output {config.vae_output}: only a ViT decoder has it, not --vae {config.vae}; leave it out")
        return None
    return config.vae_output or spec_of(config.model).vae_output


def told_by_checkpoint(found: Checkpoint) -> dict[str, list] | None:
    """The statistics of its latents that a checkpoint holds, as JSON; None where it holds none."""
    held = getattr(found, "statistics", None)
    return held and {"scale": held.scale.flatten().tolist(), "shift": held.bias.flatten().tolist()}


def find_vae(config: SamplingConfig) -> Path:
    """The codec's folder on this node, fetched if it has to be."""
    return decoder_of(config.vae).find(config.vae, config.cache_dir)
