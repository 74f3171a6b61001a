"""References that others have published, by name: ADM's batches, and the statistics that later papers compare with."""

from dataclasses import dataclass
from pathlib import Path

from fiducial import REFERENCES, default_cache, download
from fiducial.evaluation.features import FDR6

IMAGENET = 1_281_167  # images of ImageNet's training set
ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"


@dataclass(frozen=True)
class Published:
    """A reference with the statistics of a training set, and where it says so some of its images, and the size of those.

    `kind` is what a file is that does not say so itself, `source` a sentence on it, `count` of how many images it is, and
    `extractors` are those that it has statistics of.
    """

    url: str
    image_size: int
    kind: str | None = None
    source: str | None = None
    count: int | None = None
    extractors: tuple[str, ...] = ("inception",)


def _jit(size: int) -> Published:
    url = f"https://github.com/LTH14/JiT/raw/main/fid_stats/jit_in{size}_stats.npz"
    source = "ImageNet's training set as JiT's repository has it, by torch-fidelity's Inception"
    return Published(url, size, "JiT's statistics", source, IMAGENET)


def _edm2(size: int) -> Published:
    url = f"https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img{size}.pkl"
    source = "ImageNet's training set as EDM2's repository has it, by its own Inception and DINOv2"
    return Published(url, size, "EDM2's statistics", source, IMAGENET, ("inception", "dinov2"))


PUBLISHED = {
    "adm-imagenet-64": Published(f"{ADM}/imagenet/64/VIRTUAL_imagenet64_labeled.npz", 64),
    "adm-imagenet-128": Published(f"{ADM}/imagenet/128/VIRTUAL_imagenet128_labeled.npz", 128),
    "adm-imagenet-256": Published(f"{ADM}/imagenet/256/VIRTUAL_imagenet256_labeled.npz", 256),
    "adm-imagenet-512": Published(f"{ADM}/imagenet/512/VIRTUAL_imagenet512.npz", 512),
    "adm-lsun-bedroom-256": Published(f"{ADM}/lsun/bedroom/VIRTUAL_lsun_bedroom256.npz", 256),
    "adm-lsun-cat-256": Published(f"{ADM}/lsun/cat/VIRTUAL_lsun_cat256.npz", 256),
    "adm-lsun-horse-256": Published(f"{ADM}/lsun/horse/VIRTUAL_lsun_horse256.npz", 256),
    "jit_in256_stats": _jit(256),
    "jit_in512_stats": _jit(512),
    "imf-imagenet-256": Published(
        "https://huggingface.co/he-vision-group/iMF/resolve/main/imagenet_256_fid_stats.npz",
        256,
        "iMF's statistics",
        "ImageNet's training set as iMF's repository has it, by a port of Inception to JAX, on a TPU",
        IMAGENET,
    ),
    "edm2-imagenet-64": _edm2(64),
    "edm2-imagenet-512": _edm2(512),
    "fd-loss-imagenet-256": Published(
        "https://huggingface.co/jjiaweiyang/FD-Loss/resolve/main/data/fid_stats/paper_ref_stats.pkl",
        256,
        "FD-loss's statistics",
        "ImageNet's training set as FD-loss's repository has it: ADM's by Inception, its own by five networks",
        IMAGENET,
        tuple(FDR6),
    ),
}


def fetch(name: str, cache_dir: Path | None = None) -> Path:
    """The file of that name in `PUBLISHED`, downloaded if it is not there.

    Raises:
        UserError: if it cannot be had.
    """
    return download(PUBLISHED[name].url, kept_at(name, cache_dir))


def kept_at(name: str, cache_dir: Path | None = None) -> Path:
    """The path of that file."""
    return (cache_dir or default_cache()) / REFERENCES / f"{name}{Path(PUBLISHED[name].url).suffix}"
