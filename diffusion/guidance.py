"""Guidance: where it acts, how strongly, on what, and how the two predictions it takes are computed in one pass."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from fiducial.guidance import guide

if TYPE_CHECKING:
    from torch import Tensor

# (x (N, C, H, W), time t from 0, the image, to 1, noise; labels (N,) int64) -> a network's output (N, C or 2C, H, W). One that
# predicts over an interval gets its other end `r` after these.
Network = Callable[..., "Tensor"]


@dataclass(frozen=True)
class Inner:
    """An earlier head of the same network, which is guided away from (RAEv2): called as `Network`, it gives both outputs."""

    both: Callable[..., tuple["Tensor", "Tensor"]]


Weak = Union["Tensor", Network, Inner]
# What part of scale - 1 acts at a time t, by the power that the last of them has.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda _t, _power: 1.0,
    "linear": lambda t, _power: 1 - t,  # from none at noise to all at the image
    "power-cosine": lambda t, power: (1 - math.cos(math.pi * (1 - t) ** power)) / 2,  # MDT's
}


@dataclass(frozen=True)
class Guidance:
    """How strong, in which channels and at which times."""

    scale: float = 1.0  # 1 is none
    channels: int | None = None  # the first so many; None: all, and what is predicted beside them as well
    low: float = 0.0  # 0 is the image, 1 noise
    high: float = 1.0
    open_low: bool = False  # the end itself is outside
    open_high: bool = False
    schedule: str = "constant"
    power: float = 4.0

    def scale_at(self, t: float) -> float:
        """The scale at time `t`, 1 outside the interval (arXiv 2404.07724).

        Raises:
            ValueError: if `t` is no time, such as a timestep of a thousand, at which nothing would ever be guided.
        """
        if not 0 <= t <= 1:
            raise ValueError(f"t = {t}: must be from 0, the image, to 1, noise")
        above = self.low < t if self.open_low else self.low <= t
        below = t < self.high if self.open_high else t <= self.high
        if not (above and below):
            return 1.0
        return self.scale if self.schedule == "constant" else 1 + (self.scale - 1) * SCHEDULES[self.schedule](t, self.power)

    def applies(self, t: float) -> bool:
        """Whether the prediction at time `t` is guided; see `scale_at`."""
        return self.scale_at(t) != 1.0

    def times(self) -> tuple[float, ...]:
        """A time for each way in which a network is evaluated: where it is guided, and where not, if there are such times."""
        inside, beneath, beyond = (self.low + self.high) / 2, self.low / 2, (self.high + 1) / 2
        ways = {self.applies(t): t for t in (beyond, beneath, self.high, self.low, inside)}
        return tuple(ways.values())


def guided(network: Network, weak: Weak | None, labels: "Tensor", guidance: Guidance) -> Callable[..., "Tensor"]:
    """A network for its labels, guided: (x, t) -> output as the network's own. Where guidance does not act, only the
    conditional prediction is computed.

    Args:
        weak: labels (N,) for which the same network predicts in the same pass, another network, or an inner head; None where the
            scale is 1.

    The callable takes `r` and `guided_at` of a `Point` as well.
    """

    def predict(x: "Tensor", t: float, r: float | None = None, guided_at: float | None = None) -> "Tensor":
        import torch

        beside = () if r is None else (r,)
        scale = guidance.scale_at(t if guided_at is None else guided_at)
        if scale == 1.0:
            return network(x, t, labels, *beside)
        if isinstance(weak, Inner):
            strong, away = weak.both(x, t, labels, *beside)
        elif callable(weak):
            strong = network(x, t, labels, *beside).clone()  # the next graph on a GPU may write over it
            away = weak(x, t, labels, *beside)
        else:
            strong, away = network(torch.cat([x, x]), t, torch.cat([labels, weak]), *beside).chunk(2)
        channels = guidance.channels or strong.shape[1]
        combined = guide(strong[:, :channels], away[:, :channels], scale)
        return torch.cat([combined, strong[:, channels:]], dim=1)

    return predict
