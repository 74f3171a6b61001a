"""Blocks of images, drawn in pieces that fit into memory, noise made ahead and pixels taken from the device beside."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from fiducial import UserError, one_line
from fiducial.sampling import memory
from fiducial.sampling.noise import NoiseStream
from fiducial.sampling.source.failures import is_out_of_memory


class Blocks:
    """Draws blocks of one size; where memory does not do for one, this and the following are drawn in halves, and so on.

    Args:
        size: images of a block.
        beside: decode on a stream of its own.
        note: called with what is out of the ordinary.
    """

    def __init__(self, size: int, device: torch.device, beside: bool, note: Callable[..., object]):
        self._size, self.batch, self._device, self._note = size, size, device, note
        self._beside = torch.cuda.Stream(device) if beside else None

    def draw(
        self,
        starts: Iterable[int],
        noise: Callable[[list[range]], NoiseStream],
        sample: Callable[[range, NoiseStream], Tensor],
        decode: Callable[[Tensor], Tensor],
        fewer: Callable[[], object],
    ) -> Iterator[tuple[int, np.ndarray]]:
        """First index and pixels (size, H, W, 3) uint8 of the blocks that begin at `starts`.

        Args:
            noise: the stream for some pieces.
            sample: the latents of one.
            decode: pixels of latents.
            fewer: called when pieces have become smaller.

        Raises:
            UserError: if memory is not enough for one image.
        """
        left = [int(start) for start in starts]
        while left:
            try:
                yield from self._draw(left, noise, sample, decode)
            except Exception as error:
                if not is_out_of_memory(error):
                    error.add_note(f"while drawing {self._name(left[0])}")
                    raise
                if self.batch == 1:
                    raise UserError(f"out of memory for a single image, of {self._name(left[0])} ({one_line(error)})") from error
                reason = one_line(error)
            else:
                return
            self.batch = -(-self.batch // 2)
            self._note(event="out of memory", batch=self.batch, images=self._name(left[0]), reason=reason)
            fewer()
            memory.release(self._device)

    def _name(self, start: int) -> str:
        return f"images {start} to {start + self._size - 1}"

    @torch.inference_mode()
    def _draw(
        self,
        left: list[int],
        noise: Callable[[list[range]], NoiseStream],
        sample: Callable[[range, NoiseStream], Tensor],
        decode: Callable[[Tensor], Tensor],
    ) -> Iterator[tuple[int, np.ndarray]]:
        """As `draw`; takes from `left` what is drawn."""
        pieces = self.pieces(left)
        with noise(pieces) as stream:
            block: list[Tensor] = []
            for piece in pieces:
                latents = sample(piece, stream)
                if block and piece.start % self._size == 0:  # decoded while these latents were made
                    yield left.pop(0), self._take(block)
                block.append(self.fetch(latents, decode))
                if piece.stop % self._size == 0 and not self._beside:
                    yield left.pop(0), self._take(block)
            if block:
                yield left.pop(0), self._take(block)

    def pieces(self, starts: list[int]) -> list[range]:
        """The blocks that begin at `starts`, in pieces that are drawn at once."""
        return [
            range(first, min(first + self.batch, start + self._size))
            for start in starts
            for first in range(start, start + self._size, self.batch)
        ]

    def _take(self, block: list[Tensor]) -> np.ndarray:
        """The pixels of a block, once they are there; empties it."""
        if self._beside:
            self._beside.synchronize()
        pixels = (block[0] if len(block) == 1 else torch.cat(block)).numpy()
        block.clear()
        return pixels

    def fetch(self, latents: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """Pixels in the host's memory; with a stream of its own, they are there when that has come so far."""
        if not self._beside:
            return decode(latents).cpu()
        self._beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._beside):
            pixels = decode(latents)
            latents.record_stream(self._beside)
            return torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True).copy_(pixels, non_blocking=True)
