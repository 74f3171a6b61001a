"""Files of the real formats with random contents, for tests and benchmarks: what they stand in for cannot be shipped."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch_fidelity import feature_extractor_inceptionv3 as fidelity


def pictures(count: int, seed: int, size: int = 64) -> np.ndarray:
    """Smooth coloured blobs (count, size, size, 3) uint8: unlike noise, they differ after Inception's resize."""
    random = np.random.default_rng(seed)
    small = torch.from_numpy(random.normal(0.5 + 0.1 * seed, 0.4, size=(count, 3, 5, 5)))
    large = F.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
    return (255 * large).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def write_pngs(folder: Path, images: np.ndarray) -> Path:
    """Makes `folder` with one PNG an image, named by index."""
    folder.mkdir()
    for index, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{index:06d}.png", compress_level=1)
    return folder


def score(logits: torch.Tensor) -> float:
    """exp(mean KL) of logits (N, classes) in one block."""
    p = logits.double().softmax(1)
    return float((p * (p / p.mean(0)).clamp_min(1e-30).log()).sum(1).mean().exp())


@torch.no_grad()
def write_inception(path: Path) -> Path:
    """A weights file in torch-fidelity's form, random but alive.

    At the default initialisation all features are near 0 and every Inception score is 1; here the batch norms know the
    statistics of some pictures, and the last layer is scaled until the score of some is 5. Its bias is large, so that
    keeping it would show.
    """
    torch.manual_seed(0)
    kept = fidelity.load_state_dict_from_url
    fidelity.load_state_dict_from_url = lambda *_, **__: None
    fidelity.FeatureExtractorInceptionV3.load_state_dict = lambda *_: None
    try:
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["logits_unbiased"])
    finally:
        fidelity.load_state_dict_from_url = kept
        del fidelity.FeatureExtractorInceptionV3.load_state_dict
    seen = torch.from_numpy(np.concatenate([pictures(8, 0), pictures(8, 1)])).permute(0, 3, 1, 2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    network(seen)
    network.eval()
    network.fc.bias.normal_(0, 2)
    (logits,) = network(seen)
    network.fc.weight *= next(scale for scale in range(1, 1000) if score(scale * logits) > 5)
    torch.save(network.state_dict(), path)
    return path
