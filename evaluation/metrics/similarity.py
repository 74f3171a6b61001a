"""PSNR and SSIM of images beside their originals, image by image: tensors to tensors, in float64, nothing else."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RANGE = 255.0  # of levels
SIGMA, TRUNCATE = 1.5, 3.5  # of SSIM's window, and after how many of its deviations it ends
K1, K2 = 0.01, 0.03
RADIUS = int(TRUNCATE * SIGMA + 0.5)
LEAST = 2 * RADIUS + 1  # pixels a side that SSIM's window takes


def mean_squared_error(images: Tensor, originals: Tensor) -> Tensor:
    """(N,) float64, over all pixels and channels of two tensors (N, H, W, 3) of levels from 0 to 255, of any dtype."""
    return (images.double() - originals.double()).square().mean((1, 2, 3))


def psnr(errors: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, of mean squared errors of levels from 0 to 255; infinite where that is 0."""
    return 10 * torch.log10(RANGE**2 / errors)


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity (N,) float64, in [-1, 1], of two tensors (N, H, W, 3) of levels from 0 to 255, of any dtype.

    As Wang et al. (2004) have it, and scikit-image with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=255, channel_axis=-1`: the mean over channels, and over the places whose 11 x 11 window is within the image.

    Raises:
        ValueError: if images are smaller than the window.
    """
    if min(images.shape[1:3]) < LEAST:
        raise ValueError(f"images of {images.shape[2]} x {images.shape[1]}; SSIM's window takes {LEAST} x {LEAST}")
    x, y = (part.double().permute(0, 3, 1, 2) for part in (images, originals))
    mean_x, mean_y, square_x, square_y, product = (_blurred(part) for part in (x, y, x * x, y * y, x * y))
    variance_x, variance_y, covariance = square_x - mean_x**2, square_y - mean_y**2, product - mean_x * mean_y
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)).mean((1, 2, 3))


def _blurred(images: Tensor) -> Tensor:
    """(N, 3, H, W) under the window where that is whole: (N, 3, H - 10, W - 10)."""
    places = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64, device=images.device)
    window = torch.exp(-0.5 * (places / SIGMA) ** 2)
    window /= window.sum()
    planes = images.reshape(-1, 1, *images.shape[2:])
    rows = F.conv2d(planes, window.view(1, 1, -1, 1))
    return F.conv2d(rows, window.view(1, 1, 1, -1)).reshape(*images.shape[:2], *(side - 2 * RADIUS for side in images.shape[2:]))


def psnr_of(error: float) -> float:
    """`psnr` of one mean squared error."""
    return math.inf if error == 0 else 10 * math.log10(RANGE**2 / error)
