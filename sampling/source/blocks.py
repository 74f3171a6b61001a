"""Blocks of images, drawn in pieces that fit into memory, noise made ahead and pixels taken from the device beside."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fiducial import UserError, life, one_line
from fiducial.sampling import memory
from fiducial.sampling.noise import NoiseStream
from fiducial.sampling.source.decoding import Decode, Decoding, OneDoesNotFit, Part
from fiducial.sampling.source.failures import is_out_of_memory


@dataclass(frozen=True)
class Steps:
    """The steps from indices to pixels."""

    noise: Callable[[list[range]], NoiseStream]  # the stream for some pieces
    sample: Callable[[range, NoiseStream], Tensor]  # the latents of a piece
    decode: Decode
    again: Decode  # in fp32, of latents whose images were not finite
    fewer: Callable[[], object]  # called when pieces have become smaller


class Blocks:
    """Draws blocks of one size; where memory does not do for one, this and the following are drawn in halves, and so on.

    Args:
        size: images of a block.
        beside: decode on a stream of its own.
        note: called with what is out of the ordinary.
        decoded: images decoded at once; where memory does not do for that, half as many from then on, of the same latents.
        is_joint: images of a block depend on each other, so that it is drawn whole or not at all.
    """

    def __init__(
        self,
        size: int,
        device: torch.device,
        beside: bool,
        note: Callable[..., object],
        decoded: int,
        is_joint: bool = False,
    ):
        self._size, self.batch, self._device, self._note, self._is_joint = size, size, device, note, is_joint
        self._decoding = Decoding(device, beside, note, decoded, self._name)

    @torch.inference_mode()
    def draw(self, starts: Iterable[int], count: int, steps: Steps) -> Iterator[tuple[int, np.ndarray]]:
        """First index and pixels (size, H, W, 3) uint8 of the blocks that begin at `starts`.

        Args:
            count: images from this index on need not be finite.

        Where not even one image can be decoded, the network holds less in halves.

        Raises:
            UserError: if memory is not enough for one image, or one is not finite in fp32 either.
        """
        left, coming = [int(start) for start in starts], []
        while left:
            try:
                yield from self._draw(left, coming, count, steps)
            except Exception as error:
                undecoded = isinstance(error, OneDoesNotFit) and self.batch > 1
                if not (left and (undecoded or is_out_of_memory(error))):
                    raise
                if coming:
                    yield self._take(coming, count, steps.again)
                if self.batch == 1:
                    raise UserError(f"out of memory for a single image, of {self._name(left[0])} ({one_line(error)})") from error
                reason = one_line(error)
                if self._is_joint:
                    raise UserError(
                        f"out of memory for {self._name(left[0])}, whose steps are common to all of them, so that they cannot be "
                        f"drawn in halves; give a smaller --per-proc-batch-size than {self._size} ({reason})"
                    ) from error
            else:
                return
            self.batch = -(-self.batch // 2)
            self._note(event="out of memory", batch=self.batch, images=self._name(left[0]), reason=reason)
            steps.fewer()
            memory.release(self._device)

    @property
    def decoded_at_once(self) -> int:
        """Images, at most."""
        return self._decoding.at_once

    def decode(self, latents: Tensor, decode: Decode) -> Tensor:
        """Pixels (n, H, W, 3) uint8 of latents, decoded as those of a block are, but finite or not."""
        indices = range(len(latents))
        return torch.from_numpy(self._decoding.pixels(self._decoding.parts(indices, latents, decode), 0, decode))

    def _draw(self, left: list[int], coming: list[Part], count: int, steps: Steps) -> Iterator[tuple[int, np.ndarray]]:
        """As `draw`; takes from `left` what is drawn, and puts it into `coming`, until it is taken from there."""
        pieces = self.pieces(left)
        with steps.noise(pieces) as stream:
            block: list[Part] = []
            for piece in pieces:
                life.tell("sampling")
                with self._named(piece.start):
                    latents = steps.sample(piece, stream)
                if coming:  # decoded while these latents were made
                    yield self._take(coming, count, steps.again)
                life.tell("decoding")
                with self._named(piece.start):
                    block += self._decoding.parts(piece, latents, steps.decode)
                if piece.stop % self._size == 0:
                    left.pop(0)
                    coming += block
                    block.clear()
                if coming and not self._decoding.stream:
                    yield self._take(coming, count, steps.again)
            if coming:
                yield self._take(coming, count, steps.again)

    def _take(self, coming: list[Part], count: int, again: Decode) -> tuple[int, np.ndarray]:
        """The block that is coming, once it is there; empties `coming`."""
        start = coming[0].indices[0]
        with self._named(start):
            pixels = self._decoding.pixels(coming, count, again)
        coming.clear()
        return start, pixels

    def _name(self, index: int) -> str:
        """The block that an image is in."""
        start = index // self._size * self._size
        return f"images {start} to {start + self._size - 1}"

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        """In here an error gets the block's name."""
        try:
            yield
        except Exception as error:
            error.add_note(f"while drawing {self._name(index)}")
            raise

    def pieces(self, starts: list[int]) -> list[range]:
        """The blocks that begin at `starts`, in pieces that are drawn at once."""
        return [
            range(first, min(first + self.batch, start + self._size))
            for start in starts
            for first in range(start, start + self._size, self.batch)
        ]
