"""Networks that wait in the host's memory, and are on the device for their work only."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class Waiting:
    """Networks whose weights stay in the host's memory, pinned where there is a GPU, so that nothing is copied back from it."""

    def __init__(self, device: torch.device):
        self._device = device
        self._masters: WeakKeyDictionary[nn.Module, list[tuple[Tensor, Tensor]]] = WeakKeyDictionary()

    @contextmanager
    def at_work(self, *networks: nn.Module | None) -> Iterator[None]:
        """Have copies of the weights of networks on the device in here."""
        every = [self._masters_of(network) for network in networks if network is not None]
        try:
            for one, master in chain.from_iterable(every):
                one.data = master.to(self._device, non_blocking=True, copy=True)
            yield
        finally:
            for one, master in chain.from_iterable(every):
                one.data = master

    def _masters_of(self, network: nn.Module) -> list[tuple[Tensor, Tensor]]:
        if network not in self._masters:
            self._masters[network] = [(one, self._pinned(one.data)) for one in chain(network.parameters(), network.buffers())]
        return self._masters[network]

    def _pinned(self, weights: Tensor) -> Tensor:
        return weights.pin_memory() if self._device.type == "cuda" else weights
