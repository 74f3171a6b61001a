"""An evaluator among processes that torch.distributed knows, as torchmetrics' users expect it: forward, sync and unsync."""

from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch.distributed as dist
from torch import Tensor

from fiducial import Group, UserError
from fiducial.evaluation.collection import NONE, Collection

if TYPE_CHECKING:
    from fiducial.evaluation.evaluate import Evaluation
    from fiducial.evaluation.results.result import Result


class Syncing:
    """The part of an `Evaluator` that torchmetrics' users know by its names. `_own` are this rank's images while it is synced."""

    evaluation: "Evaluation"
    _seen: Collection
    _own: Collection | None = None

    def forward(
        self, images: Tensor | np.ndarray, indices: Tensor | np.ndarray | None = None, labels: Tensor | np.ndarray | None = None
    ) -> "Result | None":
        """Take a batch as `update` does, and return the result of this batch alone; `evaluator(images)` does the same.

        Features are made once. To be called by all ranks; the result is rank 0's, as that of `compute`.

        Raises:
            UserError: as `update`, which then takes nothing; and as `compute`, where the batch is kept.
        """
        batch = self.fresh().update(images, indices, labels)
        self.merge(batch)
        return batch.compute()

    __call__ = forward

    def sync(self, process_group: "dist.ProcessGroup | None" = None) -> Self:
        """Let every rank of a process group, NCCL's or gloo's, have the images of all of them; by all of its ranks.

        `compute` is then each rank's own affair and gives every rank the result, and `unsync` goes back to this rank's images.
        Images without indices take turns, rank by rank.

        Args:
            process_group: one that is there; None for torch.distributed's default.

        Raises:
            UserError: if there is none, it is synced already, or the ranks' evaluators differ.
        """
        if self._own is not None:
            raise UserError("sync: the evaluator is synced already; call unsync() first")
        if not dist.is_initialized():
            raise UserError("sync: there is no process group; call torch.distributed.init_process_group() first")
        world_size, rank = dist.get_world_size(process_group), dist.get_rank(process_group)
        state = self._seen.state()
        if len(state["indices"]) and bool((state["indices"] == NONE).all()):
            state["indices"] = state["indices"].new_tensor(range(rank, rank + len(state["indices"]) * world_size, world_size))
        states: list = [None] * world_size
        dist.all_gather_object(states, state, group=process_group)
        together = Collection(self.evaluation.extractor, self._seen.rounded)
        try:
            for one in states:
                together.add_state(one)
        except ValueError as error:
            raise UserError(f"sync: {error}") from error
        self._own, self._seen = self._seen, together
        return self

    def unsync(self) -> Self:
        """Go back to this rank's own images.

        Raises:
            UserError: if it is not synced.
        """
        if self._own is None:
            raise UserError("unsync: the evaluator is not synced")
        self._seen, self._own = self._own, None
        return self

    def state_dict(self) -> dict[str, Tensor | str]:
        """The images that this rank has seen, for `torch.save`; it can be read with `weights_only=True`."""
        return (self._own or self._seen).state()

    def load_state_dict(self, state: dict[str, Tensor | str]) -> None:
        """Take the place of all that this rank has seen.

        Raises:
            ValueError: if it is not a state, or of another extractor; then all is as it was.
        """
        loaded = Collection(self.evaluation.extractor, self._seen.rounded)
        loaded.add_state(state)
        self._seen, self._own = loaded, None

    def merge(self, other: "Syncing | dict[str, Tensor | str]") -> Self:
        """Add what another has seen, or its state; images without indices follow on those that are here.

        Raises:
            ValueError: if it is no state, has another extractor, or its images are of another size; then all is as it was.
        """
        self._require_unsynced("merge")
        self._seen.add_state(other.state_dict() if isinstance(other, Syncing) else other)
        return self

    def _require_unsynced(self, what: str) -> None:
        if self._own is not None:
            raise UserError(f"{what}: the evaluator is synced, and holds other ranks' images; call unsync() first")

    @property
    def _evaluation(self) -> "Evaluation":
        """The evaluation of all ranks, or of this one by itself while it is synced."""
        if self._own is None:
            return self.evaluation
        return replace(self.evaluation, group=Group(0, 1, 0, "0", self.evaluation.group.device, dist.HashStore()))
