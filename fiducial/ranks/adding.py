"""The one collective: sums of arrays over ranks."""

import atexit
from typing import TYPE_CHECKING

from fiducial.console import UserError, one_line
from fiducial.ranks.board import Board

if TYPE_CHECKING:
    import numpy as np
    import torch


class Adder:
    """Sums over gloo, whose connections are made for the first of them."""

    def __init__(self):
        self._groups: list[torch.distributed.ProcessGroup | None] = []  # at most one; None is torch's default

    def sum(self, array: "np.ndarray", board: Board, world_size: int) -> "np.ndarray":
        """The sum over ranks of a float64 array of one shape; to be called by all at once.

        Raises:
            UserError: if they cannot connect to each other.
        """
        import torch
        import torch.distributed as dist

        if not self._groups:
            self._connect(board, world_size)
        total = torch.from_numpy(array.copy())
        board.ask(lambda: dist.all_reduce(total, group=self._groups[0]))
        return total.numpy()

    def _connect(self, board: Board, world_size: int) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            # Somebody else's, such as a training loop's over NCCL, which takes no arrays of the host's memory.
            self._groups.append(board.ask(lambda: dist.new_group(backend="gloo")))
            return
        # A connection of its own, because gloo's waiting would hold up this rank's beats.
        store = dist.PrefixStore("gloo", board.store.clone())
        try:
            dist.init_process_group("gloo", store=store, rank=board.rank, world_size=world_size)
        except RuntimeError as error:
            remedy = "GLOO_SOCKET_IFNAME can name the network interface that the nodes share"
            raise UserError(f"the ranks cannot connect to each other ({one_line(error)}); {remedy}") from error
        self._groups.append(None)
        atexit.register(self.close)  # where nobody else does; a process that ends with connections open may abort

    def close(self) -> None:
        import torch.distributed as dist

        if self._groups and dist.is_initialized():
            dist.destroy_process_group(self._groups[0])
            self._groups.clear()
