"""References that others have published, by name: ADM's batches, which papers of class-conditional models compare with."""

from dataclasses import dataclass
from pathlib import Path

from fiducial import REFERENCES, default_cache, download

ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"


@dataclass(frozen=True)
class Published:
    """A reference npz with the statistics of a training set and some of its images, and the size of those."""

    url: str
    image_size: int


PUBLISHED = {
    "adm-imagenet-64": Published(f"{ADM}/imagenet/64/VIRTUAL_imagenet64_labeled.npz", 64),
    "adm-imagenet-128": Published(f"{ADM}/imagenet/128/VIRTUAL_imagenet128_labeled.npz", 128),
    "adm-imagenet-256": Published(f"{ADM}/imagenet/256/VIRTUAL_imagenet256_labeled.npz", 256),
    "adm-imagenet-512": Published(f"{ADM}/imagenet/512/VIRTUAL_imagenet512.npz", 512),
    "adm-lsun-bedroom-256": Published(f"{ADM}/lsun/bedroom/VIRTUAL_lsun_bedroom256.npz", 256),
    "adm-lsun-cat-256": Published(f"{ADM}/lsun/cat/VIRTUAL_lsun_cat256.npz", 256),
    "adm-lsun-horse-256": Published(f"{ADM}/lsun/horse/VIRTUAL_lsun_horse256.npz", 256),
}


def fetch(name: str, cache_dir: Path | None = None) -> Path:
    """The file of that name in `PUBLISHED`, downloaded if it is not there.

    Raises:
        UserError: if it cannot be had.
    """
    return download(PUBLISHED[name].url, (cache_dir or default_cache()) / REFERENCES / f"{name}.npz")
