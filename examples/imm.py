"""IMM (Zhou et al., arXiv 2503.07565) as a generator: see "Examples" in docs/generators.md.

A network that is told where to, s, leads from t to there in one step. Facts as in the published code (commit c9473e9), none of
which is here; its weights were never at hand, so no published number has been reproduced with this.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from examples.trusted import codec, network, one_hot
from fiducial.diffusion.grids import Spacing
from fiducial.models.decoders.rounding import to_uint8

MEAN, STD = (0.86488, -0.27787343, 0.21616915, 0.3738409), (4.85503674, 5.31922414, 3.93725398, 3.9870003)
FINAL_STD = 0.5  # of latents that the network sees, and of its noise


def draw(
    labels: Tensor,
    noise,
    device: torch.device,
    net: str,
    sha256: str,
    cfg: float = 1.5,
    steps: int = 8,
    second: str = "",
    vae: str = "mse",
    code: str = "",
) -> Tensor:
    """Images (n, H, W, 3) uint8.

    Args:
        net: the pickle. Reading it runs the code in it.
        sha256: of that file.
        cfg: scale of guidance in all channels; 1 is none.
        second: what the network is told as its second time, `stride`, t - s, or `identity`, s; empty: as the file says.
        vae: autoencoder of a network of latents, as `--vae` takes it.
        code: folder of the published code, which the pickle imports.

    Raises:
        ValueError: if the hash is not that of the file.
    """
    main = network(net, sha256, code, device)
    if second:
        main.temb_type = second
    size = main.img_resolution
    found = sample(main, noise((main.img_channels, size, size)), one_hot(labels, main.label_dim), steps, cfg)
    return to_uint8(found if main.img_channels == 3 else codec(vae, MEAN, STD, FINAL_STD, device)(found), "dit")


def sample(net: nn.Module, noise: Tensor, labels: Tensor | None, steps: int, cfg: float) -> Tensor:
    """Images or latents (n, C, h, w), float32: the network's own map from each of equally spaced times to the next, in float64.

    They lead from its T (0.994), where the state is noise of its own deviation, to its eps (0).

    Args:
        net: gives the state at s for one at t, guided, as `cfg_forward(x, t, s, class_labels, cfg_scale=)`.
        noise: standard normal (n, C, h, w).
        labels: (n, classes) one-hot; None where it takes none, and is not guided.
    """
    times = Spacing(of_steps=True, start=net.T, end=net.eps).times(steps)
    scale = cfg if labels is not None and cfg != 1 else None
    x = net.sigma_data * noise.double()
    for here, there in pairwise(torch.tensor(times, dtype=torch.float64, device=x.device)):
        x = net.cfg_forward(x, here, there, class_labels=labels, cfg_scale=scale).double()
    return x.float()
