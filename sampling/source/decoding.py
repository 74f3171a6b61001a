"""From latents to pixels in the host's memory: in parts that fit into the device's, on a stream beside, and once more in fp32
where numbers are none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fiducial import UserError, one_line
from fiducial.sampling import memory
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.source.failures import is_out_of_memory, not_finite

# At 512 pixels an image takes Stable Diffusion's decoder 0.8 GB in float32, and so many are enough to keep a GPU busy.
DECODED_AT_ONCE = 16
Decode = Callable[[Tensor], tuple[Tensor, Tensor]]  # latents -> pixels (n, H, W, 3) uint8; (n,) bool, which were finite before


class OneDoesNotFit(UserError):
    """A single image cannot be decoded beside what is held now."""


def decoded_at_once(config: SamplingConfig, device: torch.device) -> int:
    """How many images are decoded at once. On a CPU the last bits of an image depend on how many others are, and `exact` promises
    those of a whole block.
    """
    return config.per_proc_batch_size if config.exact and device.type == "cpu" else DECODED_AT_ONCE


@dataclass(frozen=True)
class Part:
    """Some images of a block. Pixels and `finite` are there when their stream has come so far."""

    indices: Sequence[int]
    latents: Tensor
    pixels: Tensor  # in the host's memory, as is
    finite: Tensor


class Decoding:
    """Decodes latents of blocks.

    Args:
        beside: on a stream of its own.
        note: called with what is out of the ordinary.
        at_once: images; where memory does not do for that, half as many from then on.
        name: of the block that an image is in.
    """

    def __init__(self, device: torch.device, beside: bool, note: Callable[..., object], at_once: int, name: Callable[[int], str]):
        self._device, self._note, self.at_once, self._name = device, note, at_once, name
        self.stream = torch.cuda.Stream(device) if beside else None

    def parts(self, indices: Sequence[int], latents: Tensor, decode: Decode) -> list[Part]:
        """The images of some latents; nothing has waited for those of a stream beside.

        Raises:
            OneDoesNotFit: if memory is not enough for one.
        """
        found: list[Part] = []
        while len(indices):
            some = min(self.at_once, len(indices))
            try:
                found.append(Part(indices[:some], latents[:some], *self._fetch(latents[:some], decode)))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if some == 1:
                    said = f"out of memory for decoding a single image, of {self._name(indices[0])} ({one_line(error)})"
                    raise OneDoesNotFit(f"{said}; --vae-tiling takes less") from error
                reason = one_line(error)
            else:
                indices, latents = indices[some:], latents[some:]
                continue
            self.at_once = -(-some // 2)
            name = self._name(indices[0])
            self._note(event="out of memory while decoding", decoded=self.at_once, images=name, reason=reason)
            memory.release(self._device)
        return found

    def _fetch(self, latents: Tensor, decode: Decode) -> tuple[Tensor, Tensor]:
        """Pixels, and which are finite, in the host's memory; with a stream of its own, when that has come so far."""
        if not self.stream:
            pixels, finite = decode(latents)
            return pixels.cpu(), finite.cpu()
        self.stream.wait_stream(torch.cuda.current_stream())
        latents.record_stream(self.stream)
        with torch.cuda.stream(self.stream):
            pixels, finite = decode(latents)
            return _copied(pixels), _copied(finite)

    def pixels(self, parts: list[Part], count: int, again: Decode) -> np.ndarray:
        """Pixels (n, H, W, 3) uint8 of all parts, once they are there; what is not finite and before `count` is decoded again.

        Raises:
            UserError: if something is not finite then either.
        """
        self._wait()
        for part in parts:
            self._mend(part, count, again)
        return (parts[0].pixels if len(parts) == 1 else torch.cat([part.pixels for part in parts])).numpy()

    def _wait(self) -> None:
        if self.stream:
            self.stream.synchronize()

    def _mend(self, part: Part, count: int, again: Decode) -> None:
        bad = [row for row in (~part.finite).nonzero().flatten().tolist() if part.indices[row] < count]
        if not bad:
            return
        indices = [part.indices[row] for row in bad]
        self._note(event="decoded again in fp32", indices=indices)
        mended = self.parts(indices, part.latents[bad], again)
        self._wait()
        part.pixels[bad] = torch.cat([one.pixels for one in mended])
        finite = torch.cat([one.finite for one in mended]).tolist()
        if lost := [index for index, is_finite in zip(indices, finite, strict=True) if not is_finite]:
            raise not_finite("autoencoder", lost)


def _copied(found: Tensor) -> Tensor:
    """A copy in the host's memory, which is there when the current stream has come so far."""
    return torch.empty(found.shape, dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)
