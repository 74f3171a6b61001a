"""Counter-based noise: a pure function of (seed, index, step), made on the host ahead of its use.

`philox-v1`: numpy's Philox-4x64 with key (seed, 0) and counter (0, 0, step, index), read by numpy's float32 ziggurat.
Step 0 is the initial latent, step s the noise of the s-th sampling step.
"""

import hashlib
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fiducial import UserError
from fiducial.sampling.plan import philox

NOISE_VERSION = "philox-v1"
NOISE_STREAM = 0
TENSORS_AHEAD = 8
MOST_THREADS = 8  # 20,000 latents of 4 x 32 x 32 a second each
PINNED_SHAPE = (4, 8, 8)
PINNED_SHA256 = "cc479f361f0b2b2ed95478dd6294a27c50b7a26ae45d140e55d58eec5ee5cb53"


class Normals:
    """Standard normal numbers of one seed, by one generator, which is set to the counter of each image and step: making one takes
    as long as a small latent does. For one thread.
    """

    def __init__(self, seed: int):
        self._bits = philox(seed, NOISE_STREAM, [0, 0, 0, 0])
        self._generator, self._state = np.random.Generator(self._bits), self._bits.state

    def fill(self, row: np.ndarray, index: int, step: int) -> None:
        """Write those of an image and a step into `row`, float32 and contiguous."""
        self._state["state"]["counter"][2:] = step, index
        self._bits.state = self._state  # with nothing of what was drawn before
        self._generator.standard_normal(dtype=np.float32, out=row)


def standard_normal(seed: int, index: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 of `shape` for one image and one step."""
    made = np.empty(shape, dtype=np.float32)
    Normals(seed).fill(made, index, step)
    return made


def check_stream() -> None:
    """Numpy may improve its normal distribution and thereby change every sample; that must not pass as `philox-v1`.

    Raises:
        UserError: if this numpy draws anything else.
    """
    if hashlib.sha256(standard_normal(0, 0, 0, PINNED_SHAPE)).hexdigest() != PINNED_SHA256:
        raise UserError(
            f"numpy {np.__version__} draws other noise than {NOISE_VERSION}; install the version in requirements.lock"
        )


def noise_threads(device: torch.device, cores: int) -> int:
    """How many make noise: for a GPU, which wants more than one makes if the network is small, as many as there are cores beside
    the one that feeds it; on a CPU one, as the network needs the others.
    """
    return 1 if device.type == "cpu" else max(1, min(MOST_THREADS, cores - 1))


class NoiseStream(Iterator[Tensor]):
    """The tensors of a rank's batches one after another: for each batch the initial latents, then one for each step.

    Background threads fill pinned memory a few tensors ahead; each is copied to the device without waiting. Use it as
    a context manager, so that they end when drawing ends early.

    Args:
        batches: the indices of each batch.
        shape: (C, H, W) of one latent.
        steps: noise tensors of a batch after its initial latents.
        threads: which share the rows of a tensor.
    """

    def __init__(
        self,
        seed: int,
        batches: Iterable[range],
        shape: tuple[int, ...],
        steps: int,
        device: torch.device,
        threads: int = 1,
    ):
        self._seed, self._batches, self._shape, self._steps = seed, batches, shape, steps
        self._device, self._threads = device, threads
        self._queue: queue.Queue[Tensor | Exception] = queue.Queue(TENSORS_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="noise", daemon=True)
        self._thread.start()

    def __enter__(self) -> "NoiseStream":
        return self

    def __exit__(self, *_) -> None:
        self._stopped.set()
        self._thread.join()

    def __next__(self) -> Tensor:
        item = self._queue.get()
        if isinstance(item, Exception):
            self._queue.put(item)  # for whoever asks again
            raise item
        return item.to(self._device, non_blocking=True)

    def _produce(self) -> None:
        try:
            normals = [Normals(self._seed) for _ in range(self._threads)]
            with ThreadPoolExecutor(self._threads, "noise") as pool:
                for indices in self._batches:
                    for step in range(self._steps + 1):
                        if not self._put(self._tensor(indices, step, normals, pool)):
                            return
            self._put(StopIteration())
        except Exception as error:  # raised again where the tensor is asked for
            self._put(error)

    def _tensor(self, indices: range, step: int, normals: list[Normals], pool: Executor) -> Tensor:
        pin = self._device.type == "cuda"
        out = torch.empty((len(indices), *self._shape), dtype=torch.float32, pin_memory=pin)
        rows, each = out.numpy(), -(-len(indices) // len(normals))

        def fill(part: int) -> None:
            some = slice(part * each, (part + 1) * each)
            for row, index in zip(rows[some], indices[some], strict=True):
                normals[part].fill(row, index, step)

        list(pool.map(fill, range(len(normals))))  # raises what one of them has
        return out

    def _put(self, item: Tensor | Exception) -> bool:
        """Hand an item over when there is room; False if nobody wants it any more."""
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
