"""What the tests of the families' networks share."""

import torch

TOLERANCE = 1e-5  # of the largest output
TIMES, LABELS = (0.0, 0.37, 1.0), (0, 7, 10)


def lively(network, seed=0, std=0.12):
    """The network with all of its parameters random, also those that begin as zeros; weights of norms are about 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        parameter.data = std * torch.randn(parameter.shape, generator=generator) + is_scale
    return network.eval()


@torch.no_grad()
def difference(network, second, side, *more):
    """By how much a network and its second writing differ at some times and labels, by the largest output.

    Args:
        second: of an image (C, H, W), a time and a label.
        side: of the image.
        more: what else the network takes.
    """
    x = torch.randn(3, network.in_channels, side, side, generator=torch.Generator().manual_seed(1))
    found = network(x, torch.tensor(TIMES), torch.tensor(LABELS), *more)
    expected = torch.stack([second(*one) for one in zip(x, TIMES, LABELS, strict=True)])
    assert expected.std() > 0.01
    return ((found - expected).abs().max() / expected.abs().max()).item()


def keys_of(build, **options):
    """The names of a network's weights."""
    with torch.device("meta"):
        return set(build(**options).state_dict())


def write(content, folder):
    torch.save(content, folder / "checkpoint.pt")
    return folder / "checkpoint.pt"
