"""Blocks in pieces, by steps that do next to nothing: what is drawn again when memory runs out or a number is none, and what not.

The stream beside is one whose copies happen only when it is waited for.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fiducial import UserError
from fiducial.sampling.source.blocks import Blocks, Steps
from fiducial.sampling.source.decoding import Decode
from fiducial.sampling.source.failures import is_out_of_memory

CPU = torch.device("cpu")
SIZE = 8
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


class Stream:
    """Of a GPU that is not there."""

    current: ClassVar[list["Stream"]] = []

    def __init__(self, *_: object):
        self.pending: list[Callable[[], object]] = []

    def wait_stream(self, _: object) -> None:
        pass

    def synchronize(self) -> None:
        for copy in self.pending:
            copy()
        self.pending.clear()


@contextmanager
def on(stream: Stream) -> Iterator[None]:
    Stream.current.append(stream)
    try:
        yield
    finally:
        Stream.current.pop()


class Pinned(torch.Tensor):
    """Memory that a copy reaches when its stream is waited for."""

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:
        assert non_blocking
        plain, source = self.as_subclass(torch.Tensor), source.clone()
        Stream.current[-1].pending.append(lambda: plain.copy_(source))
        return plain


@pytest.fixture(params=[False, True], ids=["", "beside"])
def beside(request, monkeypatch) -> bool:
    """Whether decoding is on a stream of its own."""
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)

    def pinned(*shape: object, pin_memory: bool = False, **options: object) -> Tensor:
        made = empty(*shape, **options)
        return made.zero_().as_subclass(Pinned) if pin_memory else made

    monkeypatch.setattr(torch, "empty", pinned)
    return request.param


class Drawing:
    """Latents of image i are all i, and so are its pixels."""

    def __init__(self, beside: bool, decoded: int = SIZE):
        self.events: list[dict] = []
        self.sampled: list[range] = []
        self.decoded: list[int] = []
        self.again: list[list[int]] = []
        self.blocks = Blocks(SIZE, CPU, beside, lambda **event: self.events.append(event), decoded)

    def sample(self, piece: range, _: object) -> Tensor:
        self.sampled.append(piece)
        return torch.tensor(piece).float().view(-1, 1, 1, 1)

    def decode(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        self.decoded.append(len(latents))
        return latents.to(torch.uint8), torch.ones(len(latents), dtype=torch.bool)

    def decode_again(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        self.again.append(latents.flatten().int().tolist())
        return latents.to(torch.uint8), torch.ones(len(latents), dtype=torch.bool)

    def draw(self, count: int = 1000) -> Iterator[tuple[int, list[int]]]:
        """Two blocks."""
        steps = Steps(lambda _: nullcontext(), self.sample, self.decode, self.decode_again, lambda: None)
        for start, pixels in self.blocks.draw((0, SIZE), count, steps):
            yield start, np.asarray(pixels).ravel().tolist()


def up_to(most: int, decode: Decode) -> Decode:
    """Decoding for which memory does up to so many images."""

    def decode_few(latents: Tensor) -> tuple[Tensor, Tensor]:
        if len(latents) > most:
            raise OUT_OF_MEMORY
        return decode(latents)

    return decode_few


RIGHT = [(start, list(range(start, start + SIZE))) for start in (0, SIZE)]


def test_blocks_are_drawn_whole_and_decoded_in_parts(beside):
    drawing = Drawing(beside, decoded=3)
    assert list(drawing.draw()) == RIGHT
    assert drawing.decoded == [3, 3, 2] * 2
    assert drawing.sampled == [range(8), range(8, 16)]
    assert not drawing.events


def test_memory_that_runs_out_in_decoding_costs_no_latents(beside, monkeypatch):
    """The network draws as many at once as before, and each once."""
    drawing = Drawing(beside)
    monkeypatch.setattr(drawing, "decode", up_to(3, drawing.decode))
    assert list(drawing.draw()) == RIGHT
    assert drawing.sampled == [range(8), range(8, 16)]
    assert drawing.decoded == [2] * 8
    found = [(event["event"], event["decoded"], event["images"]) for event in drawing.events]
    assert found == [("out of memory while decoding", 4, "images 0 to 7"), ("out of memory while decoding", 2, "images 0 to 7")]


def test_an_image_that_cannot_be_decoded_alone_is_an_error(beside, monkeypatch):
    drawing = Drawing(beside)

    def decode(latents: Tensor) -> tuple[Tensor, Tensor]:
        if latents.max() >= SIZE:
            raise OUT_OF_MEMORY
        return Drawing.decode(drawing, latents)

    monkeypatch.setattr(drawing, "decode", decode)
    drawn = drawing.draw()
    assert next(drawn) == RIGHT[0]
    with pytest.raises(UserError, match=r"for decoding a single image, of images 8 to 15 \(CUDA out of memory\); --vae-tiling"):
        next(drawn)
    assert drawing.sampled[-1] == range(8, 9)


def test_an_image_that_fits_beside_a_smaller_batch_is_decoded_then(beside, monkeypatch):
    """What the network holds for its batch is what decoding lacked."""
    drawing = Drawing(beside)

    def decode(latents: Tensor) -> tuple[Tensor, Tensor]:
        if len(drawing.sampled[-1]) > 2:
            raise OUT_OF_MEMORY
        return Drawing.decode(drawing, latents)

    monkeypatch.setattr(drawing, "decode", decode)
    assert list(drawing.draw()) == RIGHT
    assert [len(piece) for piece in drawing.sampled] == [8, 4] + [2] * 8
    assert [event["batch"] for event in drawing.events if event["event"] == "out of memory"] == [4, 2]


def test_memory_that_runs_out_in_the_next_block_does_not_cost_the_one_before(beside, monkeypatch):
    """Which is decoded beside it, and is not the one that is named."""
    drawing = Drawing(beside)

    def sample(piece: range, noise: object) -> Tensor:
        if piece.start >= SIZE and len(piece) > 4:
            raise OUT_OF_MEMORY
        return Drawing.sample(drawing, piece, noise)

    monkeypatch.setattr(drawing, "sample", sample)
    assert list(drawing.draw()) == RIGHT
    assert drawing.sampled == [range(8), range(8, 12), range(12, 16)]
    found = [(event["event"], event["batch"], event["images"]) for event in drawing.events]
    assert found == [("out of memory", 4, "images 8 to 15")]


def test_an_error_names_the_block_that_it_comes_of(beside, monkeypatch):
    drawing = Drawing(beside)
    monkeypatch.setattr(drawing, "sample", lambda piece, _: torch.zeros(8, 1, 1, 1) if piece.start == 0 else 1 / 0)
    with pytest.raises(ZeroDivisionError) as raised:
        list(drawing.draw())
    assert raised.value.__notes__ == ["while drawing images 8 to 15"]


def spoilt(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of a decoder whose images 4, 5 and 14 are not finite."""
    is_bad = (latents == 4) | (latents == 5) | (latents == 14)
    return (latents * ~is_bad).to(torch.uint8), ~is_bad.flatten()


def test_images_that_are_not_finite_are_decoded_once_more(beside, monkeypatch):
    """They alone, and of those that only fill up the last block none."""
    drawing = Drawing(beside, decoded=3)
    monkeypatch.setattr(drawing, "decode", spoilt)
    assert list(drawing.draw(count=14)) == [RIGHT[0], (8, [*range(8, 14), 0, 15])]
    assert drawing.again == [[4, 5]]
    assert drawing.events == [{"event": "decoded again in fp32", "indices": [4, 5]}]
    assert drawing.sampled == [range(8), range(8, 16)]


def test_images_that_are_not_finite_then_either_are_an_error(beside, monkeypatch):
    drawing = Drawing(beside)
    monkeypatch.setattr(drawing, "decode", spoilt)
    monkeypatch.setattr(drawing, "decode_again", spoilt)
    with pytest.raises(UserError, match="the autoencoder gave NaN or infinity for images 4, 5, also in fp32"):
        list(drawing.draw())


def test_decoding_once_more_is_done_in_what_fits(beside, monkeypatch):
    drawing = Drawing(beside)
    monkeypatch.setattr(drawing, "decode", lambda latents: (latents.to(torch.uint8) * 0, latents.flatten() > 100))
    monkeypatch.setattr(drawing, "decode_again", up_to(2, drawing.decode_again))
    assert list(drawing.draw()) == RIGHT
    assert drawing.sampled == [range(8), range(8, 16)]
    assert list(itertools.chain(*drawing.again)) == list(range(16))


def after(error: Exception, of: Exception | None = None, handling: Exception | None = None) -> Exception:
    error.__cause__, error.__context__ = of, handling
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OUT_OF_MEMORY, True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (after(RuntimeError("backend='inductor' raised"), of=OUT_OF_MEMORY), True),
        (after(RuntimeError("backend='inductor' raised"), of=after(ValueError("x"), handling=OUT_OF_MEMORY)), True),
        (after(ValueError("a"), of=after(ValueError("b"), handling=RuntimeError("c"))), False),
        (after(UserError("out of memory for a single image"), of=OUT_OF_MEMORY), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (ValueError("CUDA out of memory"), False),
    ],
    ids=str,
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_errors_that_came_of_each_other_have_an_end():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__context__ = second, first
    assert not is_out_of_memory(first)
