"""Weights that their makers have published: what they are of, where they are, and how `--ckpt` becomes a local path."""

from dataclasses import dataclass
from pathlib import Path

from fiducial import CHECKPOINTS, UserError, default_cache, download
from fiducial.models.checkpoints import hub
from fiducial.wings import ASSETS

OFFICIAL = "https://dl.fbaipublicfiles.com/DiT/models"
FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")  # endings of a file of weights, which no hub id has


@dataclass(frozen=True)
class Published:
    """A checkpoint, and the name of the reference (see `python -m evaluation`) that its numbers are given against."""

    url: str
    model: str
    image_size: int
    num_classes: int
    reference: str

    def path(self, cache_dir: Path | None) -> Path:
        """Where it is kept."""
        return (cache_dir or default_cache()) / CHECKPOINTS / self.url.rsplit("/", 1)[1]


# By the name of the preset of sample_ddp.py that draws from it. No hashes: the makers publish none.
CATALOGUE = {
    f"dit-xl-2-{size}": Published(f"{OFFICIAL}/DiT-XL-2-{size}x{size}.pt", "DiT-XL/2", size, 1000, f"adm-imagenet-{size}")
    for size in (256, 512)
}


def find(ckpt: Path | None, model: str, image_size: int, num_classes: int, cache_dir: Path | None = None) -> Path:
    """The local path of the checkpoint that `--ckpt` names, or of the published one, downloaded where it has to be.

    A path that exists is taken as it is; else owner/name is a diffusers model of the hub.

    Raises:
        UserError: if it cannot be had, or there is none for this model.
    """
    if ckpt is None:
        published = choose(model, image_size, num_classes)
        return download(published.url, published.path(cache_dir))
    if is_path(ckpt):
        return ckpt
    folders = ("", "transformer/")  # of a transformer alone, or of a pipeline
    return hub.snapshot(str(ckpt), f"--ckpt {ckpt} (no such path here)", cache_dir, folders, older=True)


def unlike_published(ckpt: Path | None, model: str, image_size: int, num_classes: int, cache_dir: Path | None) -> str | None:
    """A sentence on weights that were given where others are published for this model; None where there is nothing to say."""
    wanted = model, image_size, num_classes
    for published in CATALOGUE.values():
        there = published.path(cache_dir)
        if (
            ckpt
            and wanted == (published.model, published.image_size, published.num_classes)
            and ckpt.absolute() != there.absolute()
        ):
            return f"--ckpt {ckpt} may be another than the published {there.name}, of which no hash is known: its own is recorded"
    return None


def source_of(ckpt: Path, cache_dir: Path | None) -> str | None:
    """The origin of a checkpoint in words; None for another file than those that are published, or embedded."""
    if ckpt.absolute().is_relative_to(ASSETS):
        return "shipped with Fiducial"
    there = {published.path(cache_dir).absolute(): published.url for published in CATALOGUE.values()}
    url = there.get(ckpt.absolute())
    return url and f"downloaded from {url}"


def is_path(ckpt: Path) -> bool:
    """Whether it names a file or folder, there or not, and not a model of the hub."""
    return ckpt.exists() or ckpt.suffix in FILES or not hub.is_hub_id(str(ckpt))


def choose(model: str, image_size: int, num_classes: int) -> Published:
    """The published weights for a run without `--ckpt`.

    Raises:
        UserError: if there are none.
    """
    wanted = model, image_size, num_classes
    for published in CATALOGUE.values():
        if wanted == (published.model, published.image_size, published.num_classes):
            return published
    known = " and ".join(f"{published.model} at --image-size {published.image_size}" for published in CATALOGUE.values())
    raise UserError(
        f"--ckpt is missing: weights are published for {known} with 1000 classes only, not for {model} at {image_size} with "
        f"{num_classes}; give a checkpoint, or --preset digits for the embedded model"
    )
