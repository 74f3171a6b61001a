"""Causes of a difference between two FIDs: how each is seen, how it is undone, and what to do about it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fiducial.studies.diagnose import pixels
from fiducial.studies.diagnose.side import Side

LEVEL = 0.001  # probability of a false alarm of one test, so that all together have below 1 %


@dataclass(frozen=True)
class Cause:
    """A cause that was seen.

    `undone` are both sides' images without it, None where it cannot be undone; then the gap of the FIDs is all that is known.
    """

    name: str
    seen: str
    advice: str
    undone: tuple[np.ndarray, np.ndarray] | None = None


def duplicates(a: Side, b: Side, _: bool) -> Iterator[Cause]:
    kept = [pixels.first_of_each(side.images) for side in (a, b)]
    lost = [len(side.images) - len(one) for side, one in zip((a, b), kept, strict=True)]
    if max(lost):
        seen = f"{lost[0]:,} images of A and {lost[1]:,} of B equal one before them"
        yield Cause("duplicates", seen, "Draw each index once.", (a.images[kept[0]], b.images[kept[1]]))


def counts(a: Side, b: Side, _: bool) -> Iterator[Cause]:
    least = min(len(a.images), len(b.images))
    if len(a.images) != len(b.images):
        seen = f"{len(a.images):,} images against {len(b.images):,}; FID falls with the number"
        yield Cause("counts", seen, "Evaluate equally many.", (a.images[:least], b.images[:least]))


def level_shift(a: Side, b: Side, paired: bool) -> Iterator[Cause]:
    first, second = (side.images.mean((1, 2), dtype=np.float64) for side in (a, b))
    if min(pixels.chance(first[:, c], second[:, c], paired) for c in range(3)) * 3 > LEVEL:
        return
    gap = second.mean(0) - first.mean(0)
    if np.abs(gap).max() > 1 or (paired and np.abs(a.images.astype(int) - b.images).mean() > 1):
        return  # no matter of rounding: pictures that differ in more than that
    seen = f"A is {-gap.mean():+.2f} levels from B in the mean, as truncating in place of rounding does"
    yield Cause("half-level shift", seen, "Round to the nearest level.", (pixels.shifted(a.images, gap), b.images))


def jpeg(a: Side, b: Side, paired: bool) -> Iterator[Cause]:
    first, second = pixels.blockiness(a.images), pixels.blockiness(b.images)
    if pixels.chance(first, second, paired) > LEVEL or abs(first.mean() - second.mean()) < 0.005:
        return
    if first.mean() > second.mean():
        quality = pixels.quality_of(a.images, b.images)
        undone, who = (a.images, pixels.as_jpeg(b.images, quality)), "A"
    else:
        quality = pixels.quality_of(b.images, a.images)
        undone, who = (pixels.as_jpeg(a.images, quality), b.images), "B"
    seen = f"{who} has steps at borders of 8x8 blocks, about as quality {quality} makes them; the other was saved so as well"
    yield Cause("JPEG traces", seen, "Write PNG.", undone)


def resize_kernel(a: Side, b: Side, paired: bool) -> Iterator[Cause]:
    first, second = pixels.sharpness(a.images), pixels.sharpness(b.images)
    if pixels.chance(first, second, paired) <= LEVEL and abs(first.mean() - second.mean()) > 0.05:
        seen = f"A has {np.exp(first.mean() - second.mean()):.2f} times B's share of power at high frequencies"
        yield Cause("resize kernel", seen, "Resize both in one way, or compare the decoders.")


def sorted_labels(a: Side, b: Side, _: bool) -> Iterator[Cause]:
    ordered = [side.labels is not None and len(set(side.labels)) > 1 and (np.diff(side.labels) >= 0).all() for side in (a, b)]
    if ordered[0] != ordered[1]:
        seen = f"{'A' if ordered[0] else 'B'} is sorted by class; Inception Score by blocks depends on it, FID does not"
        order = [np.random.default_rng(0).permutation(len(side.images)) for side in (a, b)]
        yield Cause("sorted labels", seen, "Shuffle.", (a.images[order[0]], b.images[order[1]]))


def class_balance(a: Side, b: Side, _: bool) -> Iterator[Cause]:
    if a.labels is None or b.labels is None:
        return
    classes = np.union1d(a.labels, b.labels)
    numbers = np.array([[(side.labels == one).sum() for one in classes] for side in (a, b)])
    spread = [row.max() - row.min() <= 1 for row in numbers]
    if (numbers[0].min() == numbers.T).all() or (spread[0] == spread[1] and not _differ(numbers)):
        return
    least = numbers.min(0)
    chosen = [np.concatenate([np.flatnonzero(s.labels == k)[:n] for k, n in zip(classes, least, strict=True)]) for s in (a, b)]
    how = ["balanced" if one else "not balanced" for one in spread]
    seen = f"A's classes are {how[0]} ({numbers[0].min()} to {numbers[0].max()}), B's {how[1]}"
    enough = min(map(len, chosen)) > 1
    undone = (a.images[np.sort(chosen[0])], b.images[np.sort(chosen[1])]) if enough else None
    yield Cause("class balance", seen, "Draw labels in one way.", undone)


def _differ(numbers: np.ndarray) -> bool:
    """Whether two rows (2, K) of counts come from different proportions, by a chi-square test."""
    from scipy.stats import chi2_contingency

    return numbers.shape[1] > 1 and chi2_contingency(numbers).pvalue < LEVEL


def settings(a: Side, b: Side, _: bool) -> Iterator[Cause]:
    differing = [name for name in sorted(set(a.settings) & set(b.settings)) if a.settings[name] != b.settings[name]]
    if differing := [name for name in differing if not name.endswith("seed")]:
        shown = "; ".join(f"{name} {a.settings[name]} against {b.settings[name]}" for name in differing[:6])
        yield Cause("settings", f"{shown}; their effect is joint", "Draw again with the other's settings.")


def pictures(a: Side, b: Side, paired: bool) -> Iterator[Cause]:
    if paired and not (a.settings and b.settings) and (gap := np.abs(a.images.astype(int) - b.images).mean()) > 1:
        seen = f"images of equal index are pairs, and differ by {gap:.1f} levels in the mean; no manifests say by what"
        yield Cause("pictures", seen, "Compare decoder, steps and guidance of both.")


SEEN: tuple[Callable[[Side, Side, bool], Iterator[Cause]], ...] = (
    duplicates,
    counts,
    level_shift,
    jpeg,
    settings,
    resize_kernel,
    sorted_labels,
    class_balance,
    pictures,
)
