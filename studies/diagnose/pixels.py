"""Numbers of each image that a cause moves, and the changes of images that undo or repeat one."""

import io
from math import erfc, sqrt

import numpy as np
from PIL import Image

QUALITIES = (95, 90, 75, 50)  # of JPEG, which are tried


def grey(images: np.ndarray) -> np.ndarray:
    """The mean of the channels of (N, H, W, 3) uint8 as (N, H, W) float32."""
    return images.mean(3, dtype=np.float32)


def blockiness(images: np.ndarray) -> np.ndarray:
    """Log ratio (N,) of mean steps across the borders of JPEG's 8x8 blocks to those within them; 0 where there are none."""
    pictures = grey(images)
    ratios = []
    for axis in (1, 2):
        steps = np.abs(np.diff(pictures, axis=axis)).mean(3 - axis)
        border = np.arange(steps.shape[1]) % 8 == 7
        ratios.append(np.log((steps[:, border].mean(1) + 0.01) / (steps[:, ~border].mean(1) + 0.01)))
    return np.mean(ratios, axis=0)


def sharpness(images: np.ndarray) -> np.ndarray:
    """Log share (N,) of an image's power that lies above half of the Nyquist frequency."""
    pictures = grey(images)
    power = np.abs(np.fft.rfft2(pictures - pictures.mean((1, 2), keepdims=True))) ** 2
    rows, columns = np.fft.fftfreq(images.shape[1]), np.fft.rfftfreq(images.shape[2])
    high = np.hypot(rows[:, None], columns[None]) > 0.25
    return np.log((power[:, high].sum(1) + 1) / (power.sum((1, 2)) + 1))


def chance(a: np.ndarray, b: np.ndarray, paired: bool = False) -> float:
    """Two-sided probability that means of independent numbers (N,), (M,) differ so by chance; of pairs where `paired`."""
    if paired:
        gap, error = float((a - b).mean()), float((a - b).std(ddof=1)) / sqrt(len(a))
    else:
        gap, error = float(a.mean() - b.mean()), sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    if error == 0:
        return float(gap == 0)
    return erfc(abs(gap) / error / sqrt(2))


def are_paired(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether image i of one is the other's image i, made in another way: nearer than a neighbour in nearly all places."""
    count = min(len(a), len(b), 256)
    first, second = grey(a[:count]).reshape(count, -1), grey(b[:count]).reshape(count, -1)
    own = np.square(first - second).mean(1)
    others = np.square(first - np.roll(second, 1, axis=0)).mean(1)
    return bool((own < others / 2).mean() > 0.9)


def shifted(images: np.ndarray, levels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Images moved by a fraction of a level for each channel (3,), rounded at random so that means move by just that."""
    noise = np.random.default_rng(seed)
    moved = [np.floor(one + levels + noise.random(one.shape, dtype=np.float32)) for one in images.astype(np.float32)]
    return np.clip(moved, 0, 255).astype(np.uint8)


def as_jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    """Images after being saved as JPEG and read."""
    made = np.empty_like(images)
    for index, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        made[index] = np.asarray(Image.open(buffer).convert("RGB"))
    return made


def quality_of(jpeg: np.ndarray, clean: np.ndarray) -> int:
    """The quality of `QUALITIES` at which `clean` becomes as blocky as `jpeg` is."""
    wanted = blockiness(jpeg[:256]).mean()
    return min(QUALITIES, key=lambda quality: abs(blockiness(as_jpeg(clean[:256], quality)).mean() - wanted))


def first_of_each(images: np.ndarray) -> np.ndarray:
    """Indices of the images that none before equals."""
    seen: dict[bytes, int] = {}
    for index, image in enumerate(images):
        seen.setdefault(image.tobytes(), index)
    return np.array(sorted(seen.values()))
