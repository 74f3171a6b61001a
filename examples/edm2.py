"""EDM2 (Karras et al., arXiv 2312.02696; autoguidance, 2406.02507) as a generator: see "Examples" in docs/generators.md.

Facts as in the published code (commit 4bf8162), none of which is here; its weights were never at hand, so no published number has
been reproduced with this.
"""

import torch
from torch import Tensor

from examples.trusted import codec, network, one_hot
from fiducial.diffusion.grids import Places
from fiducial.diffusion.paths import Point
from fiducial.diffusion.prediction import Raw, from_x0
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.guidance import guide
from fiducial.models.decoders.rounding import to_uint8

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7
RAW_MEAN, RAW_STD, FINAL_STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), 0.5  # of the autoencoder's latents


def draw(
    labels: Tensor,
    noise,
    device: torch.device,
    net: str,
    sha256: str,
    gnet: str = "",
    gnet_sha256: str = "",
    guidance: float = 1.0,
    steps: int = 32,
    vae: str = "mse",
    code: str = "",
) -> Tensor:
    """Images (n, H, W, 3) uint8: of 64 x 64 by a network of pixels, of 512 x 512 by one of latents.

    Args:
        net: the pickle. Reading it runs the code in it.
        sha256: of that file.
        gnet: pickle of the network that is guided away from: an unconditional or a worse one.
        guidance: 1 is none; EDM2's 1.4 is cond + 0.4 (cond - other).
        vae: autoencoder of a network of latents, as `--vae` takes it.
        code: folder of the published code, which the pickles import.

    Raises:
        ValueError: if the hashes are not those of the files, or `gnet` and `guidance` do not go together.
    """
    if (guidance != 1) != bool(gnet):
        raise ValueError("guidance= and gnet= go together: the network that is guided away from, and how far, such as 1.4")
    main = network(net, sha256, code, device)
    given = one_hot(labels, main.label_dim)
    other = network(gnet, gnet_sha256, code, device) if gnet else None

    def denoise(x: Tensor, sigma: float) -> Tensor:
        level = torch.tensor(sigma, dtype=torch.float32, device=device)
        image = main(x, level, given).float()
        return image if other is None else guide(image, other(x, level, given).float(), guidance)

    size = main.img_resolution
    found = sample(denoise, noise((main.img_channels, size, size)), steps)
    if main.img_channels == 3:
        return to_uint8(found, "dit")  # 127.5 x + 128, truncated
    images = codec(vae, RAW_MEAN, RAW_STD, FINAL_STD, device)(found)  # this autoencoder is used on pixels in [0, 1]
    return to_uint8(2 * images - 1, "repa")  # 255 y, truncated


def sample(denoise: Raw, noise: Tensor, steps: int = 32) -> Tensor:
    """Images or latents (n, C, h, w) by Heun's method on x = image + sigma noise, without stochasticity: 2 steps - 1 evaluations.

    The time of the flow is sigma, so its velocity is (x - image) / sigma, and the solver is that of `--sampler flow-heun`.

    Args:
        denoise: (x, sigma) -> the expected image.
        noise: standard normal (n, C, h, w).
    """
    places = Places(tuple(map(place, sigmas(steps))), place)
    return SAMPLERS["flow-heun"].draw(from_x0(denoise), SIGMA_MAX * noise, places, iter(()))


def place(sigma: float) -> Point:
    """x = image + sigma noise."""
    return Point(t=sigma, alpha=1.0, sigma=sigma, alpha_rate=0.0, sigma_rate=1.0)


def sigmas(steps: int) -> list[float]:
    """The noise levels from 80 to 0.002, equally spaced in their seventh root, and 0 after them."""
    most, least = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return [(most + step / (steps - 1) * (least - most)) ** RHO for step in range(steps)] + [0.0]
