"""A run's files on a node: every node makes sure that its own are those that rank 0 has read."""

import socket
from contextlib import suppress
from pathlib import Path

from fiducial import Group, UserError
from fiducial.models.checkpoints import checkpoint
from fiducial.models.decoders.table import Decoder, decoder_of
from fiducial.sampling.identity import Identity
from fiducial.sampling.options.config import SamplingConfig


class NodeFiles:
    """The checkpoint and the codec of a run, on the node of this rank."""

    def __init__(self, config: SamplingConfig, identity: Identity, group: Group):
        self._config, self._identity, self._group = config, identity, group
        self._folder: Path | None = None

    def meet(self) -> None:
        """For all ranks that have blocks to draw: the first of a node, which has some if any has, checks the node's files."""
        asked = ["vae", self._config.vae, self._config.cache_dir]
        self._folder = Path(self._group.once_per_node(asked, lambda: str(self._find())))

    def codec(self) -> Decoder:
        """Of this node, not loaded."""
        self._folder = self._find()
        return decoder_of(self._config.vae).open(self._folder)

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


def find_vae(config: SamplingConfig) -> Path:
    """The codec's folder on this node, fetched if it has to be."""
    return decoder_of(config.vae).find(config.vae, config.cache_dir)
