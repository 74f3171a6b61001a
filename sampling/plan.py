"""Which label an index has, which indices are still to be drawn, and whose they are. Pure functions of small integers; no torch.

Randomness comes from Philox words addressed by position, so that any range of indices is computed without those before it.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np

from fiducial.sampling.identity import Identity

LABEL_STREAM = 1  # second key word of the generator; `fiducial.sampling.noise` uses another
LABEL_MODES = ("random", "balanced", "null")
LONGEST_SPEC = 1 << 19  # characters of a list of labels, which a manifest holds twice
MOST_LABELS = 1 << 22  # that it comes to
SHOWN = 60  # characters of one in a message


@lru_cache(maxsize=4)  # each batch asks for some of the same list
def parse_labels(spec: str, num_classes: int) -> np.ndarray | None:
    """The list behind `7,7,3-5`, (n,) int64, not to be written to; or None for a mode of `LABEL_MODES`.

    Raises:
        ValueError: in one sentence, if the list does not parse, names a class that does not exist, or is of more labels than
            anybody can have meant.
    """
    if spec in LABEL_MODES:
        return None
    if len(spec) > LONGEST_SPEC:
        raise ValueError(f"has {len(spec):,} characters, and a list of classes at most {LONGEST_SPEC:,}; ranges such as 3-5 help")
    ranges, count = [], 0
    for part in spec.split(","):
        first, dash, last = part.strip().partition("-")
        if not part.isascii() or not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{_shown(spec)} is neither random, balanced, null nor a list of classes such as 7,7,3-5")
        start, stop = _number(first), _number(last or first)
        if start > stop or stop >= num_classes:
            raise ValueError(f"{_shown(part.strip())} is not within the classes 0 to {num_classes - 1}, in ascending order")
        if (count := count + stop + 1 - start) > MOST_LABELS:
            raise ValueError(f"{_shown(spec)} comes to more than {MOST_LABELS:,} labels; a list is cycled, so give it once")
        ranges.append(range(start, stop + 1))
    labels = np.fromiter(chain.from_iterable(ranges), np.int64, count)
    labels.setflags(write=False)
    return labels


def _number(digits: str) -> int:
    """As Python reads them, but for those that are too many for it, which come to more than any class."""
    return int(digits.lstrip("0")[:SHOWN] or "0")


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def labels(spec: str, num_classes: int, seed: int, start: int, stop: int) -> np.ndarray:
    """Labels of the indices `start` to `stop` (exclusive), int64; the null label `num_classes` with `null`.

    `random` is uniform and independent for each index; `balanced` gives each run of `num_classes` indices, counted
    from 0, every class once in an order of its own; a list is cycled over the indices. None depends on how many are drawn.
    """
    if (listed := parse_labels(spec, num_classes)) is not None:
        return listed[np.arange(start, stop) % len(listed)]
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


def used(count: int, block_size: int, world_size: int) -> float:
    """The part of what all ranks draw that are images of `count`: in the last round some ranks have no block, and the last block
    is filled up."""
    return count / (rounds(count, block_size, world_size) * world_size * block_size)


def rounds(count: int, block_size: int, world_size: int) -> int:
    """The number of blocks that the rank with most of them draws."""
    return -(-count // (block_size * world_size))


def least_block(count: int, block_size: int, world_size: int) -> int:
    """The smallest size of a block with which ranks draw no more blocks than with `block_size`."""
    return -(-count // (rounds(count, block_size, world_size) * world_size))


@dataclass(frozen=True)
class Plan:
    """The label of each index, and the block in which it is drawn."""

    spec: str  # as `--labels`, without names
    num_classes: int
    seed: int
    count: int
    block_size: int

    @classmethod
    def of(cls, identity: Identity, count: int) -> "Plan":
        """The plan of the first `count` images of a run."""
        return cls(identity.labels, identity.num_classes, identity.global_seed, count, identity.block_size)

    @property
    def labels(self) -> np.ndarray:
        """Of all images, (count,) int64."""
        return labels(self.spec, self.num_classes, self.seed, 0, self.count)

    def starts(self, done: np.ndarray) -> np.ndarray:
        """Where the blocks begin in which something is missing; done: (count,) bool. Ranks take turns with them, so that their
        shares differ by at most one block."""
        return pending_blocks(done, self.block_size) * self.block_size
