"""Published files of weights: where they come from, and where they are kept. No torch."""

from dataclasses import dataclass
from pathlib import Path

from fiducial import Group, UserError, download


@dataclass(frozen=True)
class Weights:
    """A published file of weights. `name` is what --weights calls it, `title` what sentences do.

    `form` is what files hold such weights, `sha256` the first digits of the published one's hash, None where that is not known
    here; `besides` ends the sentence that it is missing. It is kept as `saved_as`, or by the last part of its address; the same
    file may be there as others keep it, `also_called` so.
    """

    name: str
    title: str
    url: str
    form: str
    sha256: str | None = None
    besides: str = ""
    saved_as: str = ""
    also_called: tuple[str, ...] = ()

    def are_published(self, sha256: str) -> bool | None:
        """Whether a file with this hash is the published one, None where that is not known."""
        return None if self.sha256 is None else sha256.startswith(self.sha256)

    def kept_at(self, cache_dir: str | Path | None) -> Path:
        """Where the published file is kept: in Fiducial's cache if a person says where that is, else in torch's hub cache."""
        import torch

        folder = Path(cache_dir or torch.hub.get_dir()) / "checkpoints"
        own = folder / (self.saved_as or self.url.rsplit("/", 1)[1])
        others = (folder / name for name in self.also_called)
        return next((path for path in others if path.is_file() and not own.exists()), own)

    def fetch(self, cache_dir: str | Path | None = None) -> Path:
        """The published file, downloaded if it is not there.

        Raises:
            UserError: if it cannot be had.
        """
        if not self.url:
            raise UserError(f"{self.title}: no weights of it are published; give them as --weights {self.name}=FILE")
        try:
            return download(self.url, self.kept_at(cache_dir), *([self.sha256] if self.sha256 else []))
        except UserError as error:
            raise UserError(
                f"the {self.title} weights are missing: {error}, or give it as --weights {self.name}=FILE{self.besides}"
            ) from error

    def find(self, given: str | Path | None, group: Group, cache_dir: str | Path | None = None) -> Path:
        """The file of weights: the one given, else the published one, which rank 0 fetches first, then nodes that do not see it.

        Raises:
            UserError: if there is none and it cannot be fetched.
        """
        if given is not None:
            return Path(given)
        return Path(group.once_per_node([f"{self.name}-weights", cache_dir], lambda: str(self.fetch(cache_dir)), main_first=True))
