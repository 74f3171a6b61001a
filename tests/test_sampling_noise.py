import hashlib
import threading

import numpy as np
import pytest
import torch

from fiducial import UserError
from fiducial.sampling import noise
from fiducial.sampling.noise import PINNED_SHA256, PINNED_SHAPE, NoiseStream, check_stream, standard_normal


# Computed with numpy 2.4.6. A numpy whose normal distribution reads the generator otherwise would silently change every
# published sample: it must not pass as philox-v1.
@pytest.mark.parametrize(
    ("seed", "index", "step", "shape", "sha256"),
    [
        (0, 0, 0, PINNED_SHAPE, PINNED_SHA256),
        (0, 49_999, 250, (4, 32, 32), "06ad51f62af4b73427fb2ea536c2af020ac33b0f1a9d2a73cccbc1c301cd7a2a"),
        (2**64 - 1, 7, 1, (4, 64, 64), "bdcede8797aa55dfe40c13017398ed30120a340ede636fed699a740fd30cc90e"),
    ],
)
def test_the_stream_is_pinned(seed, index, step, shape, sha256):
    drawn = standard_normal(seed, index, step, shape)
    assert drawn.dtype == np.float32
    assert hashlib.sha256(drawn).hexdigest() == sha256


def by_numpy(seed, index, step, shape):
    """As `philox-v1` is defined, by a new generator."""
    bits = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=np.array([0, 0, step, index], np.uint64))
    return np.random.Generator(bits).standard_normal(shape, dtype=np.float32)


def test_another_normal_distribution_is_refused_before_anything_is_drawn(monkeypatch):
    check_stream()
    monkeypatch.setattr(noise, "standard_normal", lambda *_: np.zeros(PINNED_SHAPE, dtype=np.float32))
    with pytest.raises(UserError, match="philox-v1"):
        check_stream()


def test_neighbouring_large_seeds_differ():
    assert (standard_normal(2**64 - 1, 0, 0, (8,)) != standard_normal(2**64 - 2, 0, 0, (8,))).all()


def test_noise_is_standard_normal_and_independent_in_each_argument():
    tensors = [standard_normal(*key, (64, 64)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]]
    for number, a in enumerate(tensors):
        assert abs(a.mean()) < 0.08
        assert abs(a.std() - 1) < 0.05
        assert all(abs((a * b).mean()) < 0.08 for b in tensors[:number])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_stream_gives_each_block_its_latents_and_steps_in_any_batch(threads):
    blocks, size, shape = [0, 6], 3, (1, 1, 5)  # an odd number, of which half a word is left
    batches = [range(start, start + size) for start in blocks]
    with NoiseStream(5, batches, shape, steps=2, device=torch.device("cpu"), threads=threads) as stream:
        tensors = list(stream)
    assert len(tensors) == 6
    for number, tensor in enumerate(tensors):
        start, step = blocks[number // 3], number % 3
        expected = np.stack([by_numpy(5, index, step, shape) for index in range(start, start + size)])
        assert torch.equal(tensor, torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("device", "cores", "threads"), [("cpu", 64, 1), ("cuda", 1, 1), ("cuda", 2, 1), ("cuda", 4, 3), ("cuda", 64, 8)]
)
def test_threads_of_noise_are_cores_that_nobody_else_needs(device, cores, threads):
    assert noise.noise_threads(torch.device(device), cores) == threads


def test_a_stream_that_is_left_early_ends_its_threads():
    before = threading.active_count()
    with NoiseStream(0, [range(4)] * 1000, (4, 8, 8), steps=100, device=torch.device("cpu"), threads=2) as stream:
        next(stream)
    assert threading.active_count() == before


def test_a_failure_in_the_background_is_raised_in_front():
    with (
        NoiseStream(-1, [range(1)], (4, 8, 8), steps=0, device=torch.device("cpu")) as stream,
        pytest.raises(OverflowError),
    ):
        next(stream)
