"""Guidance: where it acts, on what, and how the two predictions it takes are computed in one pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from fiducial.guidance import guide

if TYPE_CHECKING:
    from torch import Tensor

# (x (N, C, H, W), time t from 0, the image, to 1, noise; labels (N,) int64) -> a network's output (N, C or 2C, H, W)
Network = Callable[["Tensor", float, "Tensor"], "Tensor"]
Weak = Union["Tensor", Network]


@dataclass(frozen=True)
class Guidance:
    """How strong, in which channels and at which times."""

    scale: float = 1.0  # 1 is none
    channels: int | None = None  # the first so many; None: all, and what is predicted beside them as well
    low: float = 0.0  # 0 is the image, 1 noise
    high: float = 1.0
    open_low: bool = False  # the end itself is outside
    open_high: bool = False

    def applies(self, t: float) -> bool:
        """Whether the prediction at time `t` is guided (arXiv 2404.07724).

        Raises:
            ValueError: if `t` is no time, such as a timestep of a thousand, at which nothing would ever be guided.
        """
        if not 0 <= t <= 1:
            raise ValueError(f"t = {t}: must be from 0, the image, to 1, noise")
        above = self.low < t if self.open_low else self.low <= t
        below = t < self.high if self.open_high else t <= self.high
        return self.scale != 1.0 and above and below

    def times(self) -> tuple[float, ...]:
        """A time for each way in which a network is evaluated: where it is guided, and where not, if there are such times."""
        inside, beneath, beyond = (self.low + self.high) / 2, self.low / 2, (self.high + 1) / 2
        ways = {self.applies(t): t for t in (beyond, beneath, inside)}
        return tuple(ways.values())


def guided(network: Network, weak: Weak | None, labels: "Tensor", guidance: Guidance) -> Callable[["Tensor", float], "Tensor"]:
    """A network for its labels, guided: (x, t) -> output as the network's own. Where guidance does not act, only the
    conditional prediction is computed.

    Args:
        weak: labels (N,) for which the same network predicts in the same pass, or another network; None where the scale is 1.
    """

    def predict(x: "Tensor", t: float) -> "Tensor":
        import torch

        if not guidance.applies(t):
            return network(x, t, labels)
        if callable(weak):
            strong, away = network(x, t, labels), weak(x, t, labels)
        else:
            strong, away = network(torch.cat([x, x]), t, torch.cat([labels, weak])).chunk(2)
        channels = guidance.channels or strong.shape[1]
        combined = guide(strong[:, :channels], away[:, :channels], guidance.scale)
        return torch.cat([combined, strong[:, channels:]], dim=1)

    return predict
