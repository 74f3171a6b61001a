"""Agreement of an extractor on a GPU with itself on the CPU, where both multiply in float32: TF32 or a sick GPU shows in it."""

import hashlib
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from fiducial import Group, UserError, default_cache, life, make_folder, read_json, write_whole
from fiducial.cache import VERIFIED
from fiducial.devices import driver_version
from fiducial.evaluation.features.extractor import Extractor

IMAGES, AT_ONCE = 64, 8
ALLOWED = 1e-4  # relative error of an image's features; TF32 gives 1e-3
SIZE = 64  # of the images, where the extractor takes any
LARGEST = 1 << 16  # bytes of a verdict


def require(extractor: Extractor, on_cpu: Callable[[], Extractor], group: Group) -> None:
    """Compare the features of a few images on this rank's GPU with the CPU's, unless that was found of it before.

    To be called by all ranks.

    Args:
        on_cpu: loads the same extractor there; called by rank 0 alone.

    Raises:
        UserError: if they differ by more than rounding.
    """
    path = default_cache() / VERIFIED / f"{key_of(extractor)}.json"
    known = group.gather(is_known(path))
    if group.once(lambda: all(known)):
        return
    right = np.array(group.once(lambda: features(on_cpu()).tolist()))
    found = error(features(extractor), right)
    told = group.gather([found, f"{torch.cuda.get_device_name(extractor.device)} of rank {group.rank} on {socket.gethostname()}"])
    worst, which = group.once(lambda: max(told, key=lambda one: (not one[0] <= ALLOWED, one[0])))
    if not worst <= ALLOWED:  # on every rank, so that none waits for another
        raise UserError(
            f"{which} gives other features than the CPU: those of {extractor.name} are off by {worst:.2g} ({ALLOWED:g} is "
            "allowed), so numbers would be wrong; see what torch is set to, or give --device cpu"
        )
    with suppress(OSError, UserError):
        make_folder(path.parent)
        write_whole(path, lambda beside: beside.write_text(json.dumps({"error": found})))


def features(extractor: Extractor) -> np.ndarray:
    """Features (IMAGES, D) float64, a few images at once: on a slow processor each batch is a sign of life."""
    found = []
    for some in np.split(images(extractor), IMAGES // AT_ONCE):
        life.sign()
        found.append(extractor.run(some)[0].double().cpu().numpy())
    return np.concatenate(found)


def is_known(path: Path) -> bool:
    """Whether the verdict in a file is that they agree."""
    with suppress(OSError, ValueError, TypeError, KeyError, UserError):
        return read_json(path, LARGEST)["error"] <= ALLOWED
    return False


def key_of(extractor: Extractor) -> str:
    """The key of a verdict: this very GPU, the software, and the extractor."""
    gpu = torch.cuda.get_device_properties(extractor.device)
    on = [socket.gethostname(), gpu.name, str(getattr(gpu, "uuid", "")), driver_version()]
    by = [torch.version.cuda, torch.backends.cudnn.version(), torch.__version__, extractor.mark, ALLOWED]
    return hashlib.sha256(json.dumps([*on, *by]).encode()).hexdigest()[:32]


def images(extractor: Extractor) -> np.ndarray:
    """Images (IMAGES, H, W, 3) uint8 with structure at all scales, always the same."""
    size, random = extractor.image_size or SIZE, np.random.default_rng(0)
    coarse = random.integers(0, 256, (IMAGES, 4, 4, 3))
    fine = random.integers(-32, 33, (IMAGES, size, size, 3))
    side = -(-size // 4)
    smooth = coarse.repeat(side, axis=1).repeat(side, axis=2)[:, :size, :size]
    return (smooth + fine).clip(0, 255).astype(np.uint8)


def error(found: np.ndarray, right: np.ndarray) -> float:
    """The relative error of the image where it is largest; NaN if a feature is not finite."""
    errors = np.linalg.norm(found - right, axis=1) / np.linalg.norm(right, axis=1)
    return float(errors.max()) if np.isfinite(found).all() else float("nan")
