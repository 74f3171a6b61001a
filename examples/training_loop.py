"""A training loop that logs FID with its interval: a small flow, in plain PyTorch, of the pictures beside the digits' reference.

    python examples/training_loop.py --tensorboard events
    torchrun --nproc_per_node=2 examples/training_loop.py --steps 400 --every 100

Each rank trains on batches of its own; every `--every` steps all of them draw the same images and evaluate them together.
"""

import argparse
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # in a checkout that is not installed

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fiducial
from fiducial import user_errors
from fiducial.studies.callback import FidCallback
from fiducial.wings import ASSETS

SIDE = 16  # pixels of what the flow makes, of one channel; the digits' are 64 and grey
CLASSES = 10


class Velocity(nn.Module):
    """x (n, 1, SIDE, SIDE), t (n,) from 0, the image, to 1, noise, and labels (n,) -> dx/dt."""

    def __init__(self, width: int = 256):
        super().__init__()
        self.time, self.label = nn.Linear(1, width), nn.Embedding(CLASSES, width)
        self.first, self.second, self.last = nn.Linear(SIDE**2, width), nn.Linear(width, width), nn.Linear(width, SIDE**2)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        told = self.time(t[:, None]) + self.label(labels)
        hidden = F.silu(self.first(x.flatten(1)) + told)
        return self.last(F.silu(self.second(hidden) + told)).view_as(x)


def sample(model: nn.Module, noise: Tensor, labels: Tensor, steps: int = 20) -> Tensor:
    """Images (n, 3, 64, 64) in [-1, 1], by Euler's method from noise."""
    x = noise
    for number in range(steps, 0, -1):
        x = x - model(x, torch.full((len(x),), number / steps, device=x.device), labels) / steps
    return F.interpolate(x, size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1)


def training_data(device: torch.device) -> tuple[Tensor, Tensor]:
    """(100, 1, SIDE, SIDE) in [-1, 1] and their classes (100,)."""
    with np.load(ASSETS / "digits" / "reference.pictures.npz") as arrays:
        images, labels = torch.from_numpy(arrays["arr_0"]), torch.from_numpy(arrays["arr_1"])
    grey = images.permute(0, 3, 1, 2)[:, :1].float() / 127.5 - 1
    return F.interpolate(grey, size=(SIDE, SIDE), mode="area").to(device), labels.to(device)


def train(steps: int, every: int, count: int, log: object = ()) -> list[dict[str, float]]:
    """Train, and return the values of each evaluation; empty but on rank 0."""
    group = fiducial.init()
    if group.world_size > 1:
        dist.init_process_group("nccl" if group.device.type == "cuda" else "gloo")
    torch.manual_seed(group.rank)
    images, labels = training_data(group.device)
    network = Velocity().to(group.device)
    model = DistributedDataParallel(network) if group.world_size > 1 else network
    average = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    shape = (1, SIDE, SIDE)
    fid = FidCallback(
        *(sample, shape, "digits"), count=count, every=every, num_classes=CLASSES, value_range=(-1, 1), log=log, group=group
    )
    found = []
    for step in range(1, steps + 1):
        chosen = torch.randint(len(images), (64,), device=group.device)
        x, noise, t = images[chosen], torch.randn(64, *shape, device=group.device), torch.rand(64, device=group.device)
        mixed = torch.lerp(x, noise, t[:, None, None, None])
        loss = F.mse_loss(model(mixed, t, labels[chosen]), noise - x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                slow.lerp_(fast, 0.02)
        if values := fid(step, average):
            found.append(values)
    if group.world_size > 1:
        dist.destroy_process_group()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=200, help="steps between two evaluations")
    parser.add_argument("--count", type=int, default=500, help="images that are drawn for each")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="write the values there as well")
    args = parser.parse_args()
    logs = [lambda values, step: print(step, ", ".join(f"{name} {value:.2f}" for name, value in values.items()), flush=True)]
    if args.tensorboard and fiducial.environment_rank() == 0:
        from torch.utils.tensorboard import SummaryWriter

        logs.append(SummaryWriter(str(args.tensorboard)))
    train(args.steps, args.every, args.count, logs)


if __name__ == "__main__":
    with user_errors():
        main()
