"""Which label an index has, which indices are still to be drawn, and whose they are. Pure functions of small integers; no torch.

Randomness comes from Philox words addressed by position, so that any range of indices is computed without those before it.
"""

import numpy as np

LABEL_STREAM = 1  # second key word of the generator; `sampling.noise` uses another
LABEL_MODES = ("random", "balanced", "null")


def parse_labels(spec: str, num_classes: int) -> list[int] | None:
    """The list behind `7,7,3-5`, or None for a mode of `LABEL_MODES`.

    Raises:
        ValueError: in one sentence, if the list does not parse or names a class that does not exist.
    """
    if spec in LABEL_MODES:
        return None
    labels: list[int] = []
    for part in spec.split(","):
        first, dash, last = part.strip().partition("-")
        if not part.isascii() or not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{spec!r} is neither random, balanced, null nor a list of classes such as 7,7,3-5")
        start, stop = int(first), int(last or first)
        if start > stop or stop >= num_classes:
            raise ValueError(f"{part.strip()!r} is not within the classes 0 to {num_classes - 1}, in ascending order")
        labels += range(start, stop + 1)
    return labels


def labels(spec: str, num_classes: int, seed: int, start: int, stop: int) -> np.ndarray:
    """Labels of the indices `start` to `stop` (exclusive), int64; the null label `num_classes` with `null`.

    `random` is uniform and independent for each index; `balanced` gives each run of `num_classes` indices, counted
    from 0, every class once in an order of its own; a list is cycled over the indices. None depends on how many are drawn.
    """
    if (listed := parse_labels(spec, num_classes)) is not None:
        return np.array(listed, dtype=np.int64)[np.arange(start, stop) % len(listed)]
    if spec == "null":
        return np.full(stop - start, num_classes, dtype=np.int64)
    if spec == "random":
        # A 64-bit word modulo the class count: the bias is below 1e-16.
        return (_words(seed, start, stop) % np.uint64(num_classes)).astype(np.int64)
    first, last = start // num_classes, -(-stop // num_classes)
    keys = _words(seed, first * num_classes, last * num_classes).reshape(-1, num_classes)
    return np.argsort(keys, axis=1, kind="stable").ravel()[start - first * num_classes :][: stop - start].astype(np.int64)


def _words(seed: int, start: int, stop: int) -> np.ndarray:
    """Words `start` to `stop` of one endless stream of random uint64; Philox makes four for each count of its counter."""
    generator = philox(seed, LABEL_STREAM, [start // 4, 0, 0, 0])
    return generator.random_raw(stop - start // 4 * 4)[start % 4 :]


def philox(seed: int, stream: int, counter: list[int]) -> np.random.Philox:
    """numpy's Philox-4x64 with the key (seed, stream), at `counter`, least significant word first."""
    # As uint64, because numpy takes a list with an integer of 2**63 or more for floats.
    return np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=np.array(counter, dtype=np.uint64))


def pending_blocks(done: np.ndarray, block_size: int) -> np.ndarray:
    """Numbers of the blocks of `block_size` consecutive indices in which something is missing; done: (N,) bool."""
    padded = np.append(done, np.ones(-len(done) % block_size, dtype=bool))
    return np.flatnonzero(~padded.reshape(-1, block_size).all(axis=1))


def share(pending: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """The blocks that `rank` draws: every `world_size`-th, so that shares differ by at most one block."""
    return pending[rank::world_size]
