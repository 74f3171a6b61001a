"""NETWORKS: what a checkpoint, a solver and a probe have to know of each family of networks, one row a family."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fiducial import UserError
from fiducial.models.networks import dit, sit


@dataclass(frozen=True)
class NetworkSpec:
    """A row of NETWORKS."""

    name: str  # of the family, with which the names of its models begin
    build: Mapping[str, Callable[..., nn.Module]]  # by the name that --model takes; each as `DiT` is called
    predicts: str  # of diffusion.prediction.PREDICTIONS; a velocity along its own clock
    path: str  # of diffusion.paths
    clock: Callable[[float], float]  # what it is fed at a time t from 0, the image, to 1, noise
    noise_end: float  # the last such t that it was trained at
    # By names and texts that a file says beside the weights: `name`, that with what no sampler takes, or None.
    recognise: Callable[[Iterable[tuple[str, str]]], str | None]
    sampler: str  # unless another is asked for: that of its published numbers, or the closest to it that there is
    needs_variance: bool = False  # its samplers take one beside what it predicts
    noise_scale: Callable[[int], float] = lambda _: 1.0  # standard deviation of its noise by the size of images
    least_time: float = 0.0  # by which x - image is at least divided, where that is its velocity


NETWORKS: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        NetworkSpec(
            name="DiT",
            build=dit.DiT_models,
            predicts="noise",
            path="ddpm",
            clock=lambda t: dit.NUM_TIMESTEPS * t,
            noise_end=1 - 1 / dit.NUM_TIMESTEPS,
            recognise=lambda _: None,  # what is not said to be another is a DiT
            sampler="ddpm",
            needs_variance=True,
        ),
        NetworkSpec("SiT", sit.SiT_models, "velocity", "linear", sit.clock, 1.0, sit.recognise, "euler"),
    )
}
USUAL = "DiT"


def models() -> list[str]:
    """The names of all models."""
    return [name for spec in NETWORKS.values() for name in spec.build]


def family_of(model: str | None) -> str:
    """The family that the name of a model, or of what might be one, begins with; DiT where it is of none."""
    return next((name for name in NETWORKS if model and model.startswith(f"{name}-")), USUAL)


def spec_of(model: str) -> NetworkSpec:
    """The row of a model.

    Raises:
        UserError: if there is no such model.
    """
    found = next((spec for spec in NETWORKS.values() if model in spec.build), None)
    if found is None:
        raise UserError(f"--model {model}: no such model; choose from {', '.join(models())}")
    return found


def alike(model: str) -> list[str]:
    """The models of other families whose weights have the same names and shapes."""
    size = model.removeprefix(family_of(model))
    return [f"{name}{size}" for name, spec in NETWORKS.items() if f"{name}{size}" in spec.build and f"{name}{size}" != model]


def asked(network: nn.Module, spec: NetworkSpec, shared_timestep: bool = False) -> Callable[[Tensor, float, Tensor], Tensor]:
    """A network on the clock of the samplers: (x (N, C, H, W), t from 0, the image, to 1, noise; labels (N,)) -> output.

    A velocity is turned so that it leads towards noise; a variance beside anything but noise is left out.

    Args:
        shared_timestep: embed the timestep once, not once a row; the same but for the last bits of a smaller matrix product.
    """
    is_backwards = spec.predicts == "velocity" and spec.clock(1.0) < spec.clock(0.0)

    def ask(x: Tensor, t: float, labels: Tensor) -> Tensor:
        timestep = torch.full((1 if shared_timestep else len(x),), spec.clock(t), device=x.device)
        out = network(x, timestep, labels)
        if spec.predicts != "noise":
            out = out[:, : x.shape[1]]
        return -out if is_backwards else out

    return ask
