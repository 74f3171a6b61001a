"""Latent-diffusion's layers once more, plain and by the names in its files, and random weights of their shapes."""

import torch
import torch.nn.functional as F


class Weights(dict):
    """Random weights by name, made as they are asked for."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self._random = torch.Generator().manual_seed(seed)

    def layer(self, name: str, *shape: int, std: float = 0.1) -> None:
        self[f"{name}.weight"] = std * torch.randn(shape, generator=self._random) + (len(shape) == 1)
        self[f"{name}.bias"] = std * torch.randn(shape[:1], generator=self._random)

    def block(self, name: str, before: int, after: int) -> None:
        self.layer(f"{name}.norm1", before)
        self.layer(f"{name}.conv1", after, before, 3, 3)
        self.layer(f"{name}.norm2", after)
        self.layer(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            self.layer(f"{name}.nin_shortcut", after, before, 1, 1)

    def attention(self, name: str, size: int) -> None:
        self.layer(f"{name}.norm", size)
        for part in ("q", "k", "v", "proj_out"):
            self.layer(f"{name}.{part}", size, size, 1, 1)


class Layers:
    """The layers of a state."""

    def __init__(self, state: dict):
        self._state = state

    def conv(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self._state[f"{name}.weight"]
        return F.conv2d(x, weight, self._state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 32, self._state[f"{name}.weight"], self._state[f"{name}.bias"], eps=1e-6)

    def last(self, name: str, after: str, x: torch.Tensor) -> torch.Tensor:
        """The norm, swish and the convolution after it."""
        x = self.norm(name, x)
        return self.conv(after, x * torch.sigmoid(x))

    def block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        h = self.last(f"{name}.norm2", f"{name}.conv2", self.last(f"{name}.norm1", f"{name}.conv1", x))
        return h + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self._state else x)

    def attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.conv(f"{name}.{part}", self.norm(f"{name}.norm", x)).flatten(2) for part in "qkv")
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5, dim=2)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", weights, v).view_as(x))

    def blocks(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """All blocks of a level, each with its attention where it has one."""
        number = 0
        while f"{name}.block.{number}.conv1.weight" in self._state:
            x = self.block(f"{name}.block.{number}", x)
            x = self.attention(f"{name}.attn.{number}", x) if f"{name}.attn.{number}.q.weight" in self._state else x
            number += 1
        return x

    def middle(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.block(f"{name}.block_2", self.attention(f"{name}.attn_1", self.block(f"{name}.block_1", x)))
